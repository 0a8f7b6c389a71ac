"""Parts of image buffers: what one kernel writes of a buffer that several kernels fill, and parts of blocked buffers.

A concat's operands, or convolutions whose results interleave, are parts. Where channels are blocked, a part is written
in place if it begins at a block, so neither needs the row-major order.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, replace

from opcel_compiler.ir.dims import Dim, equal, evaluate, symbols_of
from opcel_compiler.ir.program import Buffer, Kernel, Program, Step, View, blocks, whole
from opcel_compiler.ir.types import F32, I8, U8

STRIDED = frozenset(
    "conv.blocked conv.depthwise pool.blocked resample.blocked copy elementwise relayout observe".split()
)
"""Families that read and write parts of blocked buffers as well as whole ones."""


@dataclass(frozen=True)
class Part:
    """Elements starts[i] + j · steps[i], j < sizes[i], along each axis of a buffer."""

    starts: tuple[int, ...]
    sizes: tuple[Dim, ...]
    steps: tuple[int, ...]

    def view(self, buffer: Buffer) -> View:
        """The part in a buffer of any layout; on a blocked axis it begins at a block."""
        every = whole(buffer)
        layout, offset = buffer.layout, every.offset
        for axis, (start, stride) in enumerate(zip(self.starts, every.strides, strict=True)):
            blocked = layout.block > 1 and axis == layout.block_axis
            offset = offset + (start // layout.block if blocked else start) * stride
        strides = tuple(s * step for s, step in zip(every.strides, self.steps, strict=True))
        return View(buffer, self.sizes, strides, offset)

    def shifted(self, starts: Sequence[int]) -> Part:
        return Part(tuple(a + b for a, b in zip(self.starts, starts, strict=True)), self.sizes, self.steps)


def part_of(view: View) -> Part | None:
    """Which part of its row-major buffer `view` is; None when it is all of it, or no part, or not known.

    Symbolic sizes: read off for one value of each symbol, then proved for all.
    """
    dims, base = view.buffer.type.dims, whole(view.buffer).strides
    if len(dims) != len(view.shape) or view.buffer.layout.block != 1 or view.is_whole:
        return None
    symbols = {s.name for d in (*base, *view.strides, view.offset) for s in symbols_of(d)}
    sizes = {name: 1009 + 2 * i for i, name in enumerate(sorted(symbols))}
    rest, starts, steps = evaluate(view.offset, sizes), [], []
    for extent, stride, own in zip(view.shape, view.strides, base, strict=True):
        here = evaluate(own, sizes)
        if here <= 0:
            return None
        starts.append(rest // here)
        rest %= here
        steps.append(1 if extent == 1 else evaluate(stride, sizes) // here)
        if extent != 1 and (steps[-1] < 1 or equal(stride, own * steps[-1]) is not True):
            return None
    offset: Dim = 0
    for start, own in zip(starts, base, strict=True):
        offset = offset + own * start
    return Part(tuple(starts), view.shape, tuple(steps)) if equal(offset, view.offset) is True else None


class Parts:
    """The parts of blocked buffers that a program's kernels write, while `relayout` blocks them."""

    def __init__(self, program: Program, width: int) -> None:
        self.width = width
        self._writers: dict[Buffer, list[Step]] = {}
        within: dict[Buffer, set[tuple[int, ...]]] = {}
        for step, block in zip(program.steps, blocks(program.steps), strict=True):
            for v in step.outputs:
                self._writers.setdefault(v.buffer, []).append(step)
                within.setdefault(v.buffer, set()).add(block)
        self._scattered = {b for b, places in within.items() if len(places) > 1}
        """Buffers that steps of several branches or loops write."""
        self._left = {b: len(steps) for b, steps in self._writers.items()}
        self._places: dict[tuple[int, int], tuple[Buffer, Part]] = {}
        """(identity of a step's list of views, position) → what that view is a part of."""

    def fit(self, buffer: Buffer, blocked: Container[Buffer], takes_blocks: Callable[[Kernel], bool]) -> bool:
        """Whether every kernel that writes `buffer` can write its part of a blocked one, and most of it comes from
        kernels and buffers that are blocked."""
        dims = buffer.type.dims
        if (
            buffer.kind != "temp"
            or buffer.type.dtype not in (F32, U8, I8)
            or len(dims) not in (3, 4)
            or buffer in self._scattered
        ):
            return False
        gain = 0
        for step in self._writers.get(buffer, []):
            if not isinstance(step, Kernel) or len(step.outputs) != 1:
                return False
            view = step.outputs[0]
            part = part_of(view)
            if part is None or not self._aligned(part, dims):
                return False
            size = view.shape[1] if isinstance(view.shape[1], int) else 1
            if step.family == "conv":
                if not takes_blocks(step):
                    return False
                gain += size
            elif step.family == "copy" and _full_planes(part, dims) and step.inputs[0].shape == view.shape:
                gain += size if step.inputs[0].buffer in blocked else -size
            else:
                return False
        return gain > 0

    def _aligned(self, part: Part, dims: Sequence[Dim]) -> bool:
        start, size, step = part.starts[1], part.sizes[1], part.steps[1]
        if type(size) is not int or type(dims[1]) is not int:
            return False
        return start % self.width == 0 and step == 1 and (size % self.width == 0 or start + size == dims[1])

    def place(self, kernel: Kernel, target: Buffer) -> bool:
        """Let `kernel`, which writes a part of a row-major buffer, write that part of the blocked `target`; whether it
        is the last to do so."""
        plain = kernel.outputs[0].buffer
        part = part_of(kernel.outputs[0])
        assert part is not None
        self._places[id(kernel.outputs), 0] = target, part
        kernel.outputs[0] = part.view(target)
        self._left[plain] -= 1
        return self._left[plain] == 0

    def view(self, views: list[View], i: int) -> View:
        """views[i] of a blocked buffer made again, after that buffer's layout changed."""
        buffer, part = self._places.get((id(views), i), (views[i].buffer, None))
        return whole(buffer) if part is None else part.view(buffer)

    def join(self, program: Program) -> None:
        """Drop copies of a whole blocked buffer into a part of another: all that use the one use that part instead."""
        for step in list(program.steps):
            if not isinstance(step, Kernel) or step.family != "copy" or (id(step.outputs), 0) not in self._places:
                continue
            source, (target, into) = step.inputs[0].buffer, self._places[id(step.outputs), 0]
            is_part = (id(step.inputs), 0) in self._places
            if is_part or source.kind != "temp" or source.layout.block == 1 or source is target:
                continue
            users = [s for s in program.steps if s is not step and any(v.buffer is source for v in s.views)]
            if not all(isinstance(s, Kernel) and s.family in STRIDED for s in users):
                continue
            pads = {b.layout.pad_value for b in (source, target) if b.layout.halo}
            if len(pads) > 1:
                continue
            program.steps.remove(step)
            target.layout = replace(target.layout.with_halo(source.layout.halo), pad_value=max(pads, default=0.0))
            for views, i in _uses(program, source):
                _, part = self._places.get((id(views), i), (source, None))
                moved = part.shifted(into.starts) if part is not None else into
                self._places[id(views), i] = target, moved
                views[i] = moved.view(target)
            for views, i in _uses(program, target):
                views[i] = self.view(views, i)


def _full_planes(part: Part, dims: Sequence[Dim]) -> bool:
    """Whether the part has every pixel of its channels. Sizes that a concat takes as equal may differ in form."""
    same = all(equal(a, b) is not False for a, b in zip(part.sizes[2:], dims[2:], strict=True))
    return same and not any(part.starts[2:]) and all(step == 1 for step in part.steps)


def _uses(program: Program, buffer: Buffer) -> list[tuple[list[View], int]]:
    return [
        (views, i)
        for step in program.steps for views in (step.inputs, step.outputs)
        for i, v in enumerate(views) if v.buffer is buffer
    ]  # fmt: skip
