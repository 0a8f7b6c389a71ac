"""Pad the rows of matrices whose length makes a register tile's rows compete for one set of the first cache.

A product reads a tile of rows of its first operand side by side. Rows a multiple of 4 KiB apart fall into the same set,
which holds eight lines, so a tile of twelve of them reads most of its elements from the second cache. One more cache
line a row spreads them. Numerics: exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import ClassVar

from opcel_compiler.ir.dims import Dim, floordiv
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Kernel, Program, Step, View
from opcel_compiler.ir.types import F32
from opcel_compiler.rewrite.pass_ import Pass, PassContext

SET_SPAN = 4096
"""Bytes after which addresses fall into the same set again: a page, in every first-level cache of an x86 CPU."""
ROWS_A_SET = 6
"""Rows of a tile that one set bears: eight ways, less what streams past."""
STRIDED = frozenset({"gemm", "pack", "attention", "layer_norm", "rms_norm", "observe"})
"""Families that read and write matrices with any step from row to row."""


@dataclass(frozen=True)
class PadRows(Pass):
    """One cache line more between the rows of such a matrix, where all its kernels can step over it."""

    name: ClassVar[str] = "pad-rows"
    summary: ClassVar[str] = "spread the rows of products' operands over the cache's sets"
    level: ClassVar[str] = "program"

    def run(self, program: Program, ctx: PassContext) -> None:
        if ctx.target is None or ctx.target.vector is None:
            return
        steps: dict[Buffer, list[Step]] = {}
        for step in program.steps:
            for buffer in dict.fromkeys(v.buffer for v in step.views):
                steps.setdefault(buffer, []).append(step)
        line = ctx.target.vector.alignment // 4
        for buffer, users in steps.items():
            if any(_crowded(s, buffer) for s in users):
                _pad(buffer, users, line)


def _crowded(step: Step, buffer: Buffer) -> bool:
    """Whether `step` is a product whose tiles have too many rows of `buffer` in one set."""
    if not isinstance(step, Kernel) or step.family != "gemm" or step.anchor is None:
        return False
    a = step.inputs[list(step.body.inputs).index(step.anchor.operand(0))]
    rows = View(a.buffer, a.shape[:-1], a.strides[:-1]).merged()[1]
    if a.buffer is not buffer or not rows or type(rows[-1]) is not int or rows[-1] == 0:
        return False
    sets = SET_SPAN // gcd(SET_SPAN, 4 * rows[-1])
    tallest: int = step.params["rows"][0]
    return -(-tallest // sets) > ROWS_A_SET


def _pad(buffer: Buffer, users: list[Step], line: int) -> None:
    shape = buffer.type.dims
    if buffer.kind != "temp" or buffer.type.dtype != F32 or not buffer.layout.is_plain or len(shape) < 2:
        return
    n = shape[-1]
    if type(n) is not int:
        return
    moved: dict[View, View] = {}
    for step in users:
        if not isinstance(step, Kernel) or step.family not in STRIDED or step.params.get("precision"):
            return
        if step.family.endswith("_norm"):
            assert step.anchor is not None
            if step.anchor.attrs["axis"] not in (-1, len(step.outputs[0].shape) - 1):
                return
        for view in step.views:
            if view.buffer is buffer:
                padded = _moved(view, n, n + line)
                if padded is None:
                    return
                moved[view] = padded
    for step in users:
        step.inputs = [moved.get(v, v) for v in step.inputs]
        step.outputs = [moved.get(v, v) for v in step.outputs]
    buffer.layout = Layout(halo=(*[(0, 0)] * (len(shape) - 1), (0, line)))


def _moved(view: View, old: int, new: int) -> View | None:
    """`view` of rows of `old` elements when they are `new` elements apart; None where it would cross their ends."""
    within: Dim = view.offset - floordiv(view.offset, old) * old
    strides: list[Dim] = []
    for extent, stride in zip(view.shape, view.strides, strict=True):
        rows = floordiv(stride, old)
        if rows * old == stride:
            strides.append(rows * new)
        elif isinstance(stride, int) and 0 < stride < old and isinstance(extent, int):
            within = within + (extent - 1) * stride
            strides.append(stride)
        else:
            return None
    if not (isinstance(within, int) and within < old):
        return None
    offset = view.offset + floordiv(view.offset, old) * (new - old)
    return View(view.buffer, view.shape, tuple(strides), offset)
