"""Images read at other places than their own pixels."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.codegen.cpu.expressions import stored_type
from opcel_compiler.codegen.cpu.families.convolution import extent, image_steps
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, dim_min, floordiv
from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.targets.schema import Target

_TASK_PIXELS = 1 << 14
"""Elements of the result that a task computes, at least."""


def operand_views(kernel: Kernel, anchor: Node) -> list[View | None]:
    """The view of each of the anchor's operands; None for an absent one."""
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    return [None if v is None else inputs[v] for v in anchor.operands]


def _axis(unit: KernelUnit, tables: Sequence[View | None], size: Dim) -> str:
    """A `Resampled` of an axis whose new extent is `size`."""
    at, weights = tables
    pointer = "nullptr" if at is None else unit.pointer(at, "int32_t")
    factors = "nullptr" if weights is None else unit.pointer(weights)
    return f"{{{pointer}, {factors}, {unit.integer(1 if at is None else at.shape[0])}, {unit.integer(size)}}}"


def _operands(kernel: Kernel) -> tuple[View, list[View | None]]:
    """The image, and the places and weights of its two axes."""
    assert kernel.anchor is not None
    x, *tables = [*operand_views(kernel, kernel.anchor), *[None] * 4][:5]
    assert x is not None
    return x, tables


def _rows_per_task(rows: Dim, width: Dim) -> Dim:
    return dim_max(1, dim_min(rows, floordiv(_TASK_PIXELS, dim_max(1, width))))


def emit_resample(kernel: Kernel, target: Target) -> KernelUnit:
    """Row-major planes."""
    unit, y = KernelUnit(), kernel.outputs[0]
    x, tables = _operands(kernel)
    rows, width = y.shape[2], y.shape[3]
    per_task = _rows_per_task(rows, width)
    planes = x.shape[0] * x.shape[1]
    unit.tasks = planes * ceildiv(rows, per_task)
    fields = [
        unit.pointer(x), unit.pointer(y, const=False), *map(unit.integer, (planes, x.shape[2], x.shape[3])),
        _axis(unit, tables[:2], rows), _axis(unit, tables[2:], width), unit.integer(per_task),
    ]  # fmt: skip
    return unit.over_tasks(["kernels/resample/rows.h"], "ResampleArgs", fields, "resample_tasks")


def emit_resample_blocked(kernel: Kernel, target: Target) -> KernelUnit:
    """Images blocked by channels, stored as f32 or bf16."""
    unit, y = KernelUnit(), kernel.outputs[0]
    x, tables = _operands(kernel)
    rows, width = extent(y)
    block = y.buffer.layout.block
    per_task = _rows_per_task(rows, width * block)
    cb = ceildiv(y.shape[1], block)
    unit.tasks = x.shape[0] * cb * ceildiv(rows, per_task)
    read, written = stored_type(x), stored_type(y)
    fields = [
        unit.pointer(x, read), *map(unit.integer, image_steps(x)[:3]), unit.pointer(y, written, const=False),
        *map(unit.integer, (*image_steps(y)[:3], x.shape[0], cb, *extent(x))),
        _axis(unit, tables[:2], rows), _axis(unit, tables[2:], width), unit.integer(per_task),
    ]  # fmt: skip
    return unit.over_tasks(
        ["kernels/resample/blocked.h"], f"ResampleBlockedArgs<{read}, {written}>", fields, "resample_blocked_tasks"
    )


EMITTERS = {"resample": emit_resample, "resample.blocked": emit_resample_blocked}
