"""The kernel of calibration: histograms and channel extremes, in parts and then added up."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, dim_min, equal, product
from opcel_compiler.ir.ops.observe import MOST_PARTS, channels
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.targets.schema import Target

PART = 1 << 14
"""Elements of a part, at least; four times as many where some are only looked at."""
FLAT = 1 << 12
"""Elements of a row, where none is given."""

Rows = tuple[list[tuple[Dim, Dim]], Dim, int]
"""Extents and strides of the rows, elements of one, and which of the extents numbers the channels (-1: none)."""


def _blocked(x: View) -> Rows:
    block = x.buffer.layout.block
    rows = [(x.shape[0], x.strides[0]), (ceildiv(x.shape[1], block), x.strides[1])]
    pixels = list(zip(x.shape[2:], x.strides[2:], strict=True))
    n: Dim = block
    while pixels and equal(pixels[-1][1], n) is True:
        n = n * pixels.pop()[0]
    return [*rows, *pixels], n, 1


def _plain(x: View, axis: int) -> Rows:
    if axis == -1 and x.is_contiguous:
        total = product(x.shape)
        return [(ceildiv(total, FLAT), FLAT)], FLAT, -1
    if axis in (-1, len(x.shape) - 1):
        lead = View(x.buffer, x.shape[:-1], x.strides[:-1]).merged()
        return list(zip(*lead, strict=True)), x.shape[-1], -1
    lead, rest = (View(x.buffer, x.shape[s], x.strides[s]).merged() for s in (slice(axis), slice(axis + 1, None)))
    inner = list(zip(*rest, strict=True))
    n: Dim = inner.pop()[0] if inner else 1
    rows = [*zip(*lead, strict=True), (x.shape[axis], x.strides[axis]), *inner]
    return rows, n, len(lead[0])


def emit_observe(kernel: Kernel, target: Target) -> list[KernelUnit]:
    """An operand whose rows, in at most three axes, have a stride; or blocked by the axis of the channels."""
    anchor = kernel.anchor
    assert anchor is not None
    x, axis, every = kernel.inputs[0], anchor.attrs["axis"], anchor.attrs["every"]
    kind = "block" if x.buffer.layout.block > 1 else "along" if axis == len(x.shape) - 1 else "one"
    rows, n, numbered = _blocked(x) if kind == "block" else _plain(x, axis)
    if len(rows) > 3:
        raise ValueError(f"{x.buffer!r} has rows in {len(rows)} axes")
    pad = 3 - len(rows)
    rows = [(1, 0)] * pad + rows
    numbered = numbered + pad if numbered >= 0 else -1
    total = product(x.shape) if kind == "one" and numbered < 0 else n * product([e for e, _ in rows])
    parts = dim_max(1, dim_min(MOST_PARTS, ceildiv(total, PART if every == 1 else 4 * PART)))
    units = KernelUnit(), KernelUnit()
    for unit in units:
        views = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
        kinds = ("uint32_t", "float", "float", "uint32_t", "float")
        fields = [
            unit.pointer(x), unit.pointer(views[anchor.operand(1)]),
            *(unit.pointer(v, t, const=False) for v, t in zip(kernel.outputs, kinds, strict=True)),
            *("{" + ", ".join(unit.integer(r[i]) for r in rows) + "}" for i in (0, 1)),
            *map(unit.integer, (n, total)), str(numbered),
            *map(unit.integer, (channels(anchor.operand(0).tensor, axis), parts, product(x.shape))),
        ]  # fmt: skip
        header = ["kernels/observe/histogram.h"]
        if unit is units[0]:
            unit.over_tasks(header, "ObserveArgs", fields, f"observe_tasks<Channels::{kind}, {every}>")
        else:
            made = (
                f"  const ObserveArgs args{{{', '.join(fields)}}};\n  (void)begin, (void)end;\n  merge_parts(args);\n"
            )
            unit.finish(header, "", made)
    units[0].tasks = parts
    return list(units)


EMITTERS = {"observe": emit_observe}
