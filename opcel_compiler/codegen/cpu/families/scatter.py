"""Scatters: updates joined to a copy of a tensor."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.codegen.cpu.expressions import CTYPES
from opcel_compiler.codegen.cpu.unit import MAX_TASK_WORK, KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, dim_min, floordiv, product
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.targets.schema import Target

_LEAST_STRIP = 64
"""Elements of the innermost axes that a task at least owns: shorter strips would share cache lines."""


def _boxes(unit: KernelUnit, outer: Dim, depth: Dim, inner: Dim) -> tuple[Dim, Dim]:
    """(rows, strip) of a task of about MAX_TASK_WORK elements of a result [outer, depth, inner]; sets the tasks."""
    rows = dim_min(dim_max(1, outer), dim_max(1, floordiv(MAX_TASK_WORK, dim_max(1, depth * inner))))
    strip = dim_min(dim_max(1, inner), dim_max(_LEAST_STRIP, floordiv(MAX_TASK_WORK, dim_max(1, depth))))
    unit.tasks = ceildiv(outer, rows) * ceildiv(inner, strip)
    return rows, strip


def _element(x: View, reduction: str) -> str:
    """What a kernel moves the elements of x as: bits, unless it computes with them."""
    return CTYPES[x.dtype] if reduction != "none" else f"uint{(x.dtype.bits + 7) // 8 * 8}_t"


def _operands(kernel: Kernel) -> tuple[View, View, View]:
    assert kernel.anchor is not None
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    x, index, updates = (inputs[kernel.anchor.operand(i)] for i in range(3))
    return x, index, updates


def _within(unit: KernelUnit, part: Sequence[Dim], whole: Sequence[Dim]) -> tuple[str, str, str]:
    """(axes, sizes, steps) of a box of shape `part` within one of shape `whole`, as C++ initialisers; 0 axes if both
    are the same."""
    if tuple(part) == tuple(whole):
        return "0", "{}", "{}"
    steps: list[Dim] = []
    step: Dim = 1
    for d in reversed(whole):
        steps.insert(0, step)
        step = step * d
    sizes, strides = ("{" + ", ".join(map(unit.integer, row)) + "}" for row in (part, steps))
    return str(len(part)), sizes, strides


def emit_scatter_elements(kernel: Kernel, target: Target) -> KernelUnit:
    assert kernel.anchor is not None
    unit = KernelUnit(fallible=True)
    x, index, updates = _operands(kernel)
    axis, reduction = kernel.anchor.attrs["axis"], kernel.anchor.attrs["reduction"]
    ctype, itype = _element(x, reduction), CTYPES[index.dtype]
    outer, inner = product(x.shape[:axis]), product(x.shape[axis + 1 :])
    rows, strip = _boxes(unit, outer, x.shape[axis], inner)
    pointers = [
        unit.pointer(x, ctype), unit.pointer(index, itype), unit.pointer(updates, ctype),
        unit.pointer(kernel.outputs[0], ctype, const=False),
    ]  # fmt: skip
    lines, width = index.shape[:axis], index.shape[axis + 1 :]
    sizes = map(unit.integer, (outer, x.shape[axis], inner, product(lines), index.shape[axis], product(width)))
    line_axes, line_size, line_step = _within(unit, lines, x.shape[:axis])
    inner_axes, inner_size, inner_step = _within(unit, width, x.shape[axis + 1 :])
    fields = [
        *pointers, *sizes, line_axes, inner_axes, line_size, line_step, inner_size, inner_step,
        *map(unit.integer, (rows, strip)), f"static_cast<int32_t*>(p[{len(unit.pointers)}])",
    ]  # fmt: skip
    return _finish(unit, "ScatterElements", "scatter_elements", ctype, itype, fields, reduction)


def emit_scatter_nd(kernel: Kernel, target: Target) -> KernelUnit:
    assert kernel.anchor is not None
    unit = KernelUnit(fallible=True)
    x, index, updates = _operands(kernel)
    reduction, depth = kernel.anchor.attrs["reduction"], index.shape[-1]
    assert isinstance(depth, int)
    ctype, itype = _element(x, reduction), CTYPES[index.dtype]
    slices, inner = product(x.shape[:depth]), product(x.shape[depth:])
    rows, strip = _boxes(unit, slices, 1, inner)
    fields = [
        unit.pointer(x, ctype), unit.pointer(index, itype), unit.pointer(updates, ctype),
        unit.pointer(kernel.outputs[0], ctype, const=False),
        *map(unit.integer, (slices, inner, product(index.shape[:-1]))), str(depth),
        "{" + ", ".join(map(unit.integer, x.shape[:depth])) + "}", *map(unit.integer, (rows, strip)),
        f"static_cast<int32_t*>(p[{len(unit.pointers)}])",
    ]  # fmt: skip
    return _finish(unit, "ScatterNd", "scatter_nd", ctype, itype, fields, reduction)


def _finish(
    unit: KernelUnit, args: str, name: str, ctype: str, itype: str, fields: list[str], reduction: str
) -> KernelUnit:
    return unit.over_tasks(
        ["kernels/movement/scatter.h"],
        f"{args}Args<{ctype}, {itype}>",
        fields,
        f"{name}_tasks<Join{reduction.capitalize()}>",
    )


EMITTERS = {"scatter_elements": emit_scatter_elements, "scatter_nd": emit_scatter_nd}
