"""The invariants of a Program.

 1. Interface: the inputs are all the buffers of kind `input`, the outputs all those of kind `output`, each once.
 2. Names: no two buffers have the same name.
 3. Data: a weight has data of its dtype and number of elements, no other buffer has data or a packing.
 4. Layouts: the order is a permutation, the block is positive and of an existing axis, a halo gives two non-negative
    widths for each axis, none on the blocked one. Only temporaries and weights of f32 are stored as bf16, and only
    inputs and outputs have room to grow.
 5. Pads: the pad value of floats is 0, that of other elements is one of their dtype.
 6. Views: a view has a stride for each axis, whose size is not negative, and on a blocked buffer the buffer's axes.
 7. Bounds: a view whose shape, strides and offset are integers lies inside its buffer.
 8. Bodies: the body is a valid graph, it has an input and an output for each view, and the anchor is one of its nodes.
 9. Types: a view has the dtype of what the body takes or gives there, and its shape, as far as that can be decided.
10. Domains: axes have distinct names; there are no maps, or one for each view with an index for each of its axes, whose
    terms are axes of the kernel, each once.
11. Tiles: an extent for each axis, positive and no larger than that of the level outside it or the axis.
12. Order: what a step reads is an input, a weight, or written by an earlier step; by one in each branch, where those
    are in branches. A loop counts as run.
13. Writes: no step writes an input or a weight.
14. Outputs: every output is written.
15. Aliases: what a step writes overlaps neither what it reads nor its other writes; an elementwise kernel may write
    just what it reads.
16. Regions: they are numbered 0, 1, … in order, and each has a reason.
17. Symbols: a symbol has the same range wherever it stands.
18. Control flow: each `if` and `loop` ends and only an `if` has an `else`; a condition is one bool, an `if` has one; a
    loop's symbol numbers no loop around it, and stands only inside the loop.
19. Reads: one step reads a symbol, from a dense view with as many integers as it has symbols, and only later steps
    name it, in their views, domains, bodies and buffers.
20. Requirements: they name symbols of the Program, with their ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.analysis import symbol_places, symbols_in
from opcel_compiler.ir.dims import Expr, Symbol, equal, product
from opcel_compiler.ir.layout import STORAGES
from opcel_compiler.ir.program import Buffer, Control, Kernel, Program, Read, Step, View
from opcel_compiler.ir.program_text import step_text
from opcel_compiler.ir.types import BOOL, F32, TensorType
from opcel_compiler.ir.verify import VerifyError, compatible, verify

EXACT_OVERLAP = 1 << 16
"""Up to so many elements two views of a buffer are compared element by element; above by the ranges they span."""


class ProgramVerifyError(OpcelError):
    """A Program breaks an invariant: its number is `invariant`; the message shows the step."""

    def __init__(self, invariant: int, message: str, step: Step | None = None) -> None:
        where = "" if step is None else f"\n{step_text(step)}"
        super().__init__(f"the program breaks invariant {invariant}: {message}{where}")
        self.invariant = invariant
        self.step = step


def verify_program(program: Program) -> None:
    """Raise ProgramVerifyError for the first broken invariant. The numbers are those of this module's text."""
    _interface(program)
    _symbols(program)
    known = program.symbols
    for r in program.requirements:
        if found := next((s for s in symbols_in((r.left, r.right)) if known.get(s.name) != s), None):
            raise ProgramVerifyError(20, f"{r} names {found}, which the program does not have")
    known = known | program.iterations
    for step in program.steps:
        for r in step.requirements if isinstance(step, Control) else ():
            if found := next((s for s in symbols_in((r.left, r.right)) if known.get(s.name) != s), None):
                raise ProgramVerifyError(20, f"{r} names {found}, which the program does not have", step)
    for buffer in program.buffers:
        _buffer(buffer)
    _control(program)
    written: set[Buffer] = set()
    branches: list[tuple[set[Buffer], set[Buffer] | None]] = []
    regions = 0
    unread = _read_symbols(program)
    for step in program.steps:
        for view in step.views:
            _view(view, step)
        if unread and (named := next((s for s in _named(step) if s in unread), None)):
            raise ProgramVerifyError(19, f"{named} is named before it is read", step)
        if isinstance(step, Control):
            written = _joined(step, written, branches)
        elif isinstance(step, Kernel):
            _body(step)
            _domain(step)
        elif isinstance(step, Read):
            unread.difference_update(step.symbols)
        else:
            if step.index != regions or not step.reason:
                raise ProgramVerifyError(16, f"region {step.index} is the one numbered {regions}, with a reason", step)
            regions += 1
        for view in step.inputs:
            if view.buffer.kind in ("temp", "output") and view.buffer not in written:
                raise ProgramVerifyError(12, f"{view.buffer!r} is read before anything writes it", step)
        for view in step.outputs:
            if view.buffer.kind in ("input", "weight"):
                raise ProgramVerifyError(13, f"{view.buffer!r} is written", step)
            written.add(view.buffer)
        _aliases(step)
    for buffer in program.outputs:
        if buffer not in written:
            raise ProgramVerifyError(14, f"{buffer!r} is never written")


def _interface(program: Program) -> None:
    for kind, listed in (("input", program.inputs), ("output", program.outputs)):
        found = [b for b in program.buffers if b.kind == kind]
        if len(set(listed)) != len(listed) or set(found) != set(listed):
            raise ProgramVerifyError(
                1, f"the {kind}s are {', '.join(b.name for b in listed)}, those of kind {kind} "
                f"{', '.join(b.name for b in found)}",
            )  # fmt: skip
    seen: set[str] = set()
    for b in program.buffers:
        if b.name in seen:
            raise ProgramVerifyError(2, f"two buffers are named {b.name}")
        seen.add(b.name)


def _read_symbols(program: Program) -> set[Symbol]:
    """The symbols that the steps read."""
    found: set[Symbol] = set()
    for step in program.reads:
        if any(s in found for s in step.symbols) or len(set(step.symbols)) != len(step.symbols):
            raise ProgramVerifyError(19, f"{', '.join(map(str, step.symbols))} are not read just once", step)
        found.update(step.symbols)
        (view,) = step.inputs
        dense = view.is_contiguous and view.buffer.type.dtype.kind in "iu"
        if not dense or equal(product(view.shape), len(step.symbols)) is not True:
            raise ProgramVerifyError(19, f"{len(step.symbols)} symbols are read of {view.buffer!r}", step)
    if named := next((s for b in program.inputs for s in symbols_in(b.type) if s in found), None):
        raise ProgramVerifyError(19, f"an input names {named}, which a step reads")
    return found


def _named(step: Step) -> Iterator[Symbol]:
    return symbols_in(tuple(_places(step)))


def _places(step: Step) -> Iterator[Any]:
    """All of a step that may name symbols, but for those that it reads."""
    for v in step.views:
        yield (v.shape, v.strides, v.offset, v.buffer.type)
    if isinstance(step, Kernel):
        yield tuple(a.extent for a in step.axes)
        yield from step.tiles.values()
        yield from (item for _, item in symbol_places(step.body))


def _symbols(program: Program) -> None:
    def places() -> Iterator[Any]:
        for b in program.buffers:
            yield b.type
        for step in program.steps:
            yield from _places(step)
            if isinstance(step, Read):
                yield tuple(Expr((((s,), 1),)) for s in step.symbols)

    known: dict[str, Symbol] = {}
    for item in places():
        for s in symbols_in(item):
            if known.setdefault(s.name, s) != s:
                first = known[s.name]
                raise ProgramVerifyError(17, f"symbol {s.name} has the ranges {_range(first)} and {_range(s)}")


def _range(s: Symbol) -> str:
    return f"{s.lo}..{'' if s.hi is None else s.hi}"


def _buffer(b: Buffer) -> None:
    if (b.data is None) == (b.kind == "weight") or (b.packing and b.kind != "weight"):
        raise ProgramVerifyError(3, f"{b!r}: a weight has data, other buffers have neither data nor a packing")
    if b.data is not None and (b.data.dtype != b.type.dtype or equal(b.type.size, b.data.array.size) is not True):
        raise ProgramVerifyError(3, f"{b!r} has data of type {b.data.type}")
    layout, rank = b.layout, len(b.type.dims)
    if layout.order and sorted(layout.order) != list(range(rank)):
        raise ProgramVerifyError(4, f"{b!r}: the order is no permutation of {rank} axes")
    if layout.block < 1 or (layout.block > 1 and not 0 <= layout.block_axis < rank):
        raise ProgramVerifyError(4, f"{b!r}: no axis of {rank} can be blocked so")
    if layout.halo:
        bad = len(layout.halo) != rank or any(w < 0 for pair in layout.halo for w in pair)
        if bad or (layout.block > 1 and any(layout.halo[layout.block_axis])):
            raise ProgramVerifyError(4, f"{b!r}: the halo does not fit {rank} axes, the blocked one without a halo")
    if layout.room and not (0 <= layout.room[0] < rank and layout.room[1] > 0 and b.kind in ("input", "output")):
        raise ProgramVerifyError(4, f"{b!r}: only an axis of an input or output has room")
    if layout.storage not in STORAGES or (layout.storage and (b.type.dtype != F32 or b.kind in ("input", "output"))):
        raise ProgramVerifyError(4, f"{b!r} cannot be stored as {layout.storage}")
    if b.type.dtype.kind not in "iu":
        if layout.pad_value != 0:
            raise ProgramVerifyError(5, f"{b!r}: pads of {b.type.dtype} are 0")
    elif not np.array(layout.pad_value).astype(b.type.dtype.numpy) == layout.pad_value:
        raise ProgramVerifyError(5, f"{b!r}: {layout.pad_value} is no {b.type.dtype}")


def _joined(
    mark: Control, written: set[Buffer], branches: list[tuple[set[Buffer], set[Buffer] | None]]
) -> set[Buffer]:  # fmt: skip
    """What is written for sure after a mark; `branches` holds, for each open block, what was before and what its other
    branch wrote (None for a loop)."""
    if mark.kind == "if":
        branches.append((set(written), set(written)))
    elif mark.kind == "loop":
        branches.append((set(written), None))
    elif mark.kind == "else":
        before, _ = branches.pop()
        branches.append((before, set(written)))
        return set(before)
    else:
        _, other = branches.pop()
        return written if other is None else written & other
    return written


def _control(program: Program) -> None:
    numbers = set(program.iterations)
    open_: list[Control] = []
    for step in program.steps:
        inside = {c.iteration.name for c in open_ if c.iteration is not None}
        used = {s.name for v in step.views for s in symbols_in((v.shape, v.strides, v.offset))} & numbers
        if used - inside:
            raise ProgramVerifyError(18, f"{min(used - inside)} stands outside its loop", step)
        if not isinstance(step, Control):
            continue
        bools = all(v.dtype == BOOL and product(v.shape) == 1 for v in step.inputs)
        if not bools or len(step.inputs) > 1 or (step.kind == "if") > len(step.inputs):
            raise ProgramVerifyError(18, "a condition is one bool", step)
        if step.kind == "else" and not (open_ and open_[-1].kind == "if"):
            raise ProgramVerifyError(18, "an else without its if", step)
        if step.kind in ("else", "end"):
            if not open_:
                raise ProgramVerifyError(18, "an end of nothing", step)
            open_.pop()
        if step.kind == "loop" and (step.iteration is None or step.iteration.name in inside):
            raise ProgramVerifyError(18, "a loop has a symbol that no loop around it has", step)
        if step.kind != "end":
            open_.append(step)
    if open_:
        raise ProgramVerifyError(18, "a block does not end", open_[-1])


def _view(v: View, step: Step) -> None:
    blocked = v.buffer.layout.block > 1
    if len(v.shape) != len(v.strides) or (blocked and len(v.shape) != len(v.buffer.type.dims)):
        raise ProgramVerifyError(6, f"a view of {v.buffer!r} has shape {v.shape} and strides {v.strides}", step)
    if any(isinstance(d, int) and d < 0 for d in v.shape):
        raise ProgramVerifyError(6, f"a view of {v.buffer!r} has the shape {v.shape}", step)
    span, size = _span(v), v.buffer.elements
    if span is not None and isinstance(size, int) and not (span[0] >= 0 and span[1] < size):
        raise ProgramVerifyError(7, f"a view of {v.buffer!r} spans {span[0]}..{span[1]} of {size} elements", step)


def _axes(v: View) -> list[tuple[int, int, int]] | None:
    """Extent, stride and block (or 1) of each axis; None unless all is integers, of sizes that memory can have."""
    layout, out = v.buffer.layout, []
    for axis, (extent, stride) in enumerate(zip(v.shape, v.strides, strict=True)):
        if not (isinstance(extent, int) and isinstance(stride, int)):
            return None
        if max(extent, 1) * max(abs(stride), 1) >= 1 << 60:
            raise ProgramVerifyError(7, f"a view of {v.buffer!r} has {extent} elements, {stride} apart, in an axis")
        out.append((extent, stride, layout.block if axis == layout.block_axis else 1))
    return out


def _span(v: View) -> tuple[int, int] | None:
    """The lowest and highest element of a static view that is not empty."""
    axes = _axes(v)
    if axes is None or not isinstance(v.offset, int) or not all(extent for extent, _, _ in axes):
        return None
    low = high = v.offset
    for extent, stride, block in axes:
        last, rest = divmod(extent - 1, block)
        ends = (0, min(extent, block) - 1, max(last - 1, 0) * stride + (block - 1 if last else 0), last * stride + rest)
        low, high = low + min(*ends, last * stride), high + max(ends)
    return low, high


def _body(k: Kernel) -> None:
    try:
        verify(k.body)
    except VerifyError as e:
        raise ProgramVerifyError(8, str(e), k) from e
    if len(k.body.inputs) != len(k.inputs) or len(k.body.outputs) != len(k.outputs):
        counts = f"{len(k.body.inputs)} inputs and {len(k.body.outputs)} outputs"
        raise ProgramVerifyError(
            8, f"the body has {counts}, the kernel reads {len(k.inputs)}, writes {len(k.outputs)}", k
        )
    if k.anchor is not None and k.anchor.graph is not k.body:
        raise ProgramVerifyError(8, f"the anchor {k.anchor!r} is not a node of the body", k)
    for view, value in zip(k.views, (*k.body.inputs, *k.body.outputs), strict=True):
        if not compatible(value.type, TensorType(view.dtype, view.shape)):
            raise ProgramVerifyError(9, f"{value!r} stands for a view of shape {view.shape} of {view.buffer!r}", k)


def _domain(k: Kernel) -> None:
    names = [a.name for a in k.axes]
    if len(set(names)) != len(names) or any(a.kind not in ("parallel", "reduce") for a in k.axes):
        raise ProgramVerifyError(10, "axes have distinct names and are parallel or reduce", k)
    if k.maps and len(k.maps) != len(k.views):
        raise ProgramVerifyError(10, f"{len(k.maps)} maps for {len(k.views)} views", k)
    for view, access in zip(k.views, k.maps, strict=False):
        if len(access) != len(view.shape):
            raise ProgramVerifyError(10, f"{len(access)} indices for a view of rank {len(view.shape)}", k)
        for index in access:
            used = [a for a, _ in index.terms]
            bad = any(not 0 <= a < len(k.axes) for a in used) or any(f == 0 for _, f in index.terms)
            if bad or len(set(used)) != len(used) or (index.whole and (index.terms or index.base)):
                raise ProgramVerifyError(10, f"{index} is no index over {', '.join(names) or 'no axes'}", k)
    outer = tuple(a.extent for a in k.axes)
    for level, tile in k.tiles.items():
        if len(tile) != len(k.axes):
            raise ProgramVerifyError(11, f"the tile of {level} has {len(tile)} extents for {len(k.axes)} axes", k)
        for axis, inner, limit in zip(k.axes, tile, outer, strict=True):
            over = inner - limit
            if (isinstance(inner, int) and inner < 1 and limit != 0) or (isinstance(over, int) and over > 0):
                raise ProgramVerifyError(11, f"the tile of {level} is {inner} along {axis.name}, inside {limit}", k)
        outer = tile


def _aliases(step: Step) -> None:
    elementwise = isinstance(step, Kernel) and step.anchor is None
    for i, out in enumerate(step.outputs):
        for other in step.inputs:
            if other.buffer is out.buffer and not (elementwise and other == out) and _overlap(other, out):
                raise ProgramVerifyError(15, f"what is read of {out.buffer!r} overlaps what is written", step)
        for other in step.outputs[:i]:
            if other.buffer is out.buffer and _overlap(other, out):
                raise ProgramVerifyError(15, f"two results overlap in {out.buffer!r}", step)


def _overlap(a: View, b: View) -> bool:
    """Whether two views of a buffer surely share an element."""
    if a == b:
        return a.shape.count(0) == 0
    spans = _span(a), _span(b)
    if spans[0] is None or spans[1] is None or spans[0][1] < spans[1][0] or spans[1][1] < spans[0][0]:
        return False
    if max(_count(a), _count(b)) > EXACT_OVERLAP:
        return False
    return bool(np.intersect1d(_elements(a), _elements(b)).size)


def _count(v: View) -> int:
    return math.prod(d for d in v.shape if isinstance(d, int))


def _elements(v: View) -> np.ndarray:
    out = np.array([v.offset])
    for extent, stride, block in _axes(v) or []:
        at = np.arange(extent)
        out = (out[:, None] + at // block * stride + at % block).reshape(-1)
    return out


__all__ = ["ProgramVerifyError", "verify_program"]
