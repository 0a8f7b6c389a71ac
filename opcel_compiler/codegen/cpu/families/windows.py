"""Images sampled at computed positions, windows as columns, eliminated matrices."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.codegen.cpu.expressions import CTYPES, literal
from opcel_compiler.codegen.cpu.families.sampling import operand_views
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, product
from opcel_compiler.ir.ops.columns import places
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.ir.types import F32
from opcel_compiler.targets.schema import Target

_GRID_PLACES = 32
"""kGridPlaces of csrc/kernels/resample/grid.h."""


def _views(kernel: Kernel) -> list[View]:
    assert kernel.anchor is not None
    return [v for v in operand_views(kernel, kernel.anchor) if v is not None]


def _padded(unit: KernelUnit, values: Sequence[Dim], size: int) -> str:
    return "{" + ", ".join([*map(unit.integer, values), *["1"] * (size - len(values))]) + "}"


def emit_grid_sample(kernel: Kernel, target: Target) -> KernelUnit:
    assert kernel.anchor is not None
    unit, a = KernelUnit(), kernel.anchor.attrs
    (x, grid), y = _views(kernel), kernel.outputs[0]
    count, rank = product(y.shape[2:]), len(x.shape) - 2
    unit.tasks = x.shape[0] * ceildiv(count, _GRID_PLACES)
    fields = [
        unit.pointer(x), unit.pointer(grid), unit.pointer(y, const=False),
        *map(unit.integer, (x.shape[0], x.shape[1], count)), _padded(unit, x.shape[2:], 3),
        "true" if a["align_corners"] else "false",
    ]  # fmt: skip
    kind = f"{rank}, GridMode::{a['mode']}, GridPadding::{a['padding']}"
    return unit.over_tasks(["kernels/resample/grid.h"], "GridArgs", fields, f"grid_tasks<{kind}>")


def emit_roi_align(kernel: Kernel, target: Target) -> KernelUnit:
    assert kernel.anchor is not None
    unit, a = KernelUnit(fallible=True), kernel.anchor.attrs
    (x, rois, images), y = _views(kernel), kernel.outputs[0]
    unit.tasks = y.shape[0] * y.shape[1]
    shift, least = (0.5, float("-inf")) if a["half_pixel"] else (0.0, 1.0)
    fields = [
        unit.pointer(x), unit.pointer(rois), unit.pointer(images, "char"), unit.pointer(y, const=False),
        *map(unit.integer, (y.shape[0], *x.shape, *y.shape[2:], a["samples"])),
        *(literal(v, F32) for v in (a["scale"], shift, least)), f"static_cast<int32_t*>(p[{len(unit.pointers)}])",
    ]  # fmt: skip
    kind = f"{'true' if a['mode'] == 'max' else 'false'}, {CTYPES[images.dtype]}"
    return unit.over_tasks(["kernels/resample/roi.h"], "RoiArgs", fields, f"roi_tasks<{kind}>")


def emit_deform_columns(kernel: Kernel, target: Target) -> KernelUnit:
    assert kernel.anchor is not None
    unit, a = KernelUnit(), kernel.anchor.attrs
    (x, offset, *mask), y = _views(kernel), kernel.outputs[0]
    unit.tasks = x.shape[0] * a["groups"] * product(a["kernel"])
    fields = [
        unit.pointer(x), unit.pointer(offset), unit.pointer(mask[0]) if mask else "nullptr",
        unit.pointer(y, const=False), *map(unit.integer, (x.shape[0], x.shape[1], a["groups"], *x.shape[2:])),
        *map(unit.integer, (*y.shape[2:], *a["kernel"], *a["strides"], *a["pads"][:2], *a["dilations"])),
    ]  # fmt: skip
    return unit.over_tasks(["kernels/columns/deform.h"], "DeformArgs", fields, "deform_tasks")


def emit_col2im(kernel: Kernel, target: Target) -> KernelUnit:
    assert kernel.anchor is not None
    unit, a = KernelUnit(), kernel.anchor.attrs
    (x,), y = _views(kernel), kernel.outputs[0]
    rank = len(a["size"])
    unit.tasks = y.shape[0] * y.shape[1]
    lists = (
        a["size"], a["kernel"], places(a["size"], a["kernel"], a), a["strides"], a["dilations"], a["pads"][:rank],
    )  # fmt: skip
    fields = [
        unit.pointer(x), unit.pointer(y, const=False), unit.integer(unit.tasks), str(rank),
        *(_padded(unit, values, 6) for values in lists),
    ]  # fmt: skip
    return unit.over_tasks(["kernels/columns/col2im.h"], "Col2ImArgs", fields, "col2im_tasks")


def emit_echelon(kernel: Kernel, target: Target) -> KernelUnit:
    unit = KernelUnit()
    (x,), y = _views(kernel), kernel.outputs[0]
    ctype = CTYPES[x.dtype]
    unit.tasks = product(x.shape[:-2])
    fields = [unit.pointer(x, ctype), unit.pointer(y, ctype, const=False), unit.integer(x.shape[-1])]
    return unit.finish(["kernels/rows/echelon.h"], "", f"  echelon_tasks<{ctype}>({', '.join(fields)}, begin, end);\n")


EMITTERS = {
    "grid_sample": emit_grid_sample, "roi_align": emit_roi_align, "deform_columns": emit_deform_columns,
    "col2im": emit_col2im, "echelon": emit_echelon,
}  # fmt: skip
