"""Where temporary buffers lie in the arena.

Sizes known at compile time: buffers in order of size, each at the lowest offset free during its life. Symbolic sizes:
buffers share slots as registers do, a slot is as large as its largest tenant, and slots lie one after another, so that
offsets are expressions of the symbols. Buffers whose sizes depend on data lie in blocks of their own, one for each step
that reads symbols, which are allocated after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.dims import Dim, DimError, ceildiv, dim_max, symbols_of
from opcel_compiler.ir.extremes import Ends, extreme
from opcel_compiler.ir.program import Buffer, Control, Program, Step, loops

ALIGNMENT = 64
"""Bytes: a cache line, and one AVX-512 vector."""


class MemoryPlanError(OpcelError):
    """A buffer whose size cannot be told."""


@dataclass
class MemoryPlan:
    """Offsets in bytes of every temporary buffer, and the arena's size in bytes.

    `block` says which of a Program's `Read` steps, counted from 0, a buffer waits for; it then lies in the block of
    that number, whose size in bytes is `blocks[number]`, and otherwise in the arena.
    """

    offsets: dict[Buffer, Dim] = field(default_factory=dict)
    arena: Dim = 0
    block: dict[Buffer, int] = field(default_factory=dict)
    blocks: dict[int, Dim] = field(default_factory=dict)


def buffer_bytes(buffer: Buffer) -> Dim:
    """Bytes a buffer occupies, rounded up to the alignment."""
    size = buffer.elements * buffer.element_bytes
    return ceildiv(size, ALIGNMENT) * ALIGNMENT


def lifetimes(program: Program, used: Sequence[Iterable[Buffer]] = ()) -> dict[Buffer, tuple[int, int]]:
    """(first, last) step index of each temporary buffer; `used[i]` are buffers of step i beyond those it views. What a
    loop and the steps around it use lives through all of the loop."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for i, step in enumerate(program.steps):
        for b in (*(v.buffer for v in step.views), *(used[i] if used else ())):
            if b.kind == "temp":
                lives[b] = (lives.get(b, (i, i))[0], i)
    for begin, end in loops(program.steps):
        for b, (first, last) in lives.items():
            if first <= end and last >= begin and not (begin < first and last < end):
                lives[b] = min(first, begin), max(last, end)
    return lives


def plan_memory(program: Program, used: Sequence[Iterable[Buffer]] = ()) -> MemoryPlan:
    """The arena plan of a program; `used` is that of `lifetimes`."""
    lives = lifetimes(program, used)
    ends = iteration_ends(program.steps)
    sizes = {b: _largest(buffer_bytes(b), ends) for b in lives}
    waits = _waits(program, lives)
    plan = _plan({b: life for b, life in lives.items() if b not in waits}, sizes)
    plan.block = waits
    for block in sorted(set(waits.values())):
        part = _plan({b: life for b, life in lives.items() if waits.get(b) == block}, sizes)
        plan.offsets |= part.offsets
        plan.blocks[block] = part.arena
    return plan


def iteration_ends(steps: Sequence[Step]) -> Ends:
    """Where the numbers of iterations begin and end."""
    loops = [s for s in steps if isinstance(s, Control) and s.iteration is not None]
    return {s.iteration.name: (0, None if s.trip is None else s.trip - 1) for s in loops if s.iteration is not None}


def _largest(size: Dim, ends: Ends) -> Dim:
    """A buffer is as large as its largest in any iteration. Raises MemoryPlanError where that has no limit."""
    for _ in range(len(ends) + 1):
        found = extreme(size, ends, True)
        if found is None:
            raise MemoryPlanError(f"a size of {size} bytes in a loop has no limit that is known before the loop runs")
        size = found
    return size


def _waits(program: Program, buffers: Iterable[Buffer]) -> dict[Buffer, int]:
    """The last `Read` step, counted from 0, that tells the size of a buffer, for those that wait for one."""
    read = {s: i for i, step in enumerate(program.reads) for s in step.symbols}
    if not read:
        return {}
    named = {b: [read[s] for d in b.type.dims for s in symbols_of(d) if s in read] for b in buffers}
    return {b: max(found) for b, found in named.items() if found}


def _plan(lives: dict[Buffer, tuple[int, int]], known: Mapping[Buffer, Dim]) -> MemoryPlan:
    sizes = {b: known[b] for b in lives}
    if all(isinstance(s, int) for s in sizes.values()):
        return _static(lives, {b: s for b, s in sizes.items() if isinstance(s, int)})
    return _slots(lives, sizes)


def _static(lives: dict[Buffer, tuple[int, int]], sizes: dict[Buffer, int]) -> MemoryPlan:
    plan = MemoryPlan()
    placed: list[tuple[int, int, Buffer]] = []
    top = 0
    for b in sorted(lives, key=lambda b: (-sizes[b], lives[b])):
        first, last = lives[b]
        at = 0
        for start, end, other in placed:
            if lives[other][1] < first or lives[other][0] > last:
                continue
            if at + sizes[b] <= start:
                break
            at = max(at, end)
        plan.offsets[b] = at
        placed.append((at, at + sizes[b], b))
        placed.sort(key=lambda t: (t[0], t[1]))
        top = max(top, at + sizes[b])
    plan.arena = top
    return plan


def _slots(lives: dict[Buffer, tuple[int, int]], sizes: dict[Buffer, Dim]) -> MemoryPlan:
    slots: list[tuple[Dim, int]] = []
    where: dict[Buffer, int] = {}
    for b in sorted(lives, key=lambda b: lives[b]):
        first, last = lives[b]
        free = [i for i, (_, busy) in enumerate(slots) if busy < first]
        same = next((i for i in free if slots[i][0] == sizes[b]), None)
        pick = same if same is not None else (free[0] if free else None)
        size = sizes[b] if pick is None else _larger(slots[pick][0], sizes[b])
        if pick is None or size is None:
            where[b] = len(slots)
            slots.append((sizes[b], last))
        else:
            where[b] = pick
            slots[pick] = (size, last)
    plan = MemoryPlan()
    offsets: list[Dim] = []
    for size, _ in slots:
        offsets.append(plan.arena)
        plan.arena = plan.arena + size
    plan.offsets = {b: offsets[i] for b, i in where.items()}
    return plan


def _larger(a: Dim, b: Dim) -> Dim | None:
    """Their maximum; None if its expression has too many parts."""
    try:
        return dim_max(a, b)
    except DimError:
        return None
