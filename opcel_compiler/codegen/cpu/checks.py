"""What a run checks of sizes before it relies on them, and where in the host code."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from opcel_compiler.ir.dims import Dim, bounds, symbols_of
from opcel_compiler.ir.program import Control, Program, Requirement, Step, blocks


@dataclass(frozen=True)
class Check:
    """`condition`: the C++ condition of what must not be; `text`: a format of printf; `values`: what it prints."""

    condition: str
    text: str
    values: tuple[str, ...]


@dataclass
class Checks:
    """The checks when the inputs are bound, by index of a step those at the mark of control flow that it is, and by
    number those after each `Read` step."""

    bound: list[Check] = field(default_factory=list)
    marks: dict[int, list[Check]] = field(default_factory=dict)
    reads: dict[int, list[Check]] = field(default_factory=dict)


def known_after(program: Program, *dims: Dim) -> int:
    """The last `Read` step, counted from 0, that tells one of the symbols; -1 when no step does."""
    read = {s.name: i for i, step in enumerate(program.reads) for s in step.symbols}
    return max((read.get(s.name, -1) for d in dims for s in symbols_of(d)), default=-1)


def checks_of(program: Program, write: Callable[[Dim], str], wide: Callable[[Dim], str]) -> Checks:
    """Every check at the first place where all its sizes are known, and only if the steps that rely on them run.
    `write` gives the C++ expression of a dim, `wide` that of the same as a double."""
    out = Checks()
    around = blocks(program.steps)
    at = {id(step): i for i, step in enumerate(program.steps)}
    reads = [around[at[id(step)]] for step in program.reads]
    marks = [i for i, s in enumerate(program.steps) if isinstance(s, Control) and s.kind != "end"]
    for mark in (None, *marks):
        inside = () if mark is None else (*around[mark], mark)
        steps = [s for s, where in zip(program.steps, around, strict=True) if where == inside]
        owner = program if mark is None else program.steps[mark]
        required = owner.requirements if isinstance(owner, (Program, Control)) else []
        for check, dims in _checks(steps, required, write):
            after = known_after(program, *dims)
            if after >= 0:  # no product of sizes that data makes up may wrap around
                huge = [f"!(__builtin_fabs({wide(d)}) < 0x1p62)" for d in dims if not isinstance(d, int)]
                check = Check(" || ".join([*huge, check.condition]), check.text, check.values)
            if after >= 0 and (mark is None or mark in reads[after]):
                place = out.reads.setdefault(after, [])
            else:
                place = out.bound if mark is None else out.marks.setdefault(mark, [])
            if check not in place:
                place.append(check)
    return out


def _checks(
    steps: Sequence[Step], required: Sequence[Requirement], write: Callable[[Dim], str]
) -> Iterator[tuple[Check, tuple[Dim, ...]]]:
    seen: set[str] = set()
    for step in steps:
        for dim in (d for view in step.outputs for d in view.buffer.type.dims):
            low = bounds(dim)[0]
            value = write(dim)
            if isinstance(dim, int) or (low is not None and low >= 0) or value in seen:
                continue
            seen.add(value)
            where = ", ".join(step.origin[:2]) or step.outputs[0].buffer.name
            what = f"{where}: its result would have a size of {dim} = ".replace("%", "%%")
            yield Check(f"{value} < 0", f"{what}%lld; an input is too small", (value,)), (dim,)
    for r in required:
        left, right = write(r.left), write(r.right)
        if r.reason:
            yield (
                Check(f"{left} {'!=' if r.exact else '<'} {right}", r.reason.replace("%", "%%"), ()),
                (r.left, r.right),
            )
            continue
        texts = [str(d).replace("%", "%%") for d in (r.left, r.right)]
        text = f"{', '.join(r.origin) or 'the model'}: {texts[0]} is %lld, and must be {'' if r.exact else 'at least '}"
        text += "%lld" if isinstance(r.right, int) else f"{texts[1]} = %lld"
        yield Check(f"{left} {'!=' if r.exact else '<'} {right}", text, (left, right)), (r.left, r.right)
