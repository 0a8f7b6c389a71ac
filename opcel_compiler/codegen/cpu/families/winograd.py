"""Winograd convolutions: one kernel where transformed tiles stay in a cache, else two with them in memory between."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.expressions import stored_type
from opcel_compiler.codegen.cpu.families.convolution import epilogue, extent, image_steps, padded
from opcel_compiler.codegen.cpu.unit import THREADS, KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_min
from opcel_compiler.ir.program import Buffer, Kernel, View, whole
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.schedule.choice.context import TASKS
from opcel_compiler.targets.schema import Target

HEADERS = ["kernels/conv/winograd.h", "base/vmath.h"]


def emit_winograd(kernel: Kernel, target: Target) -> list[KernelUnit]:
    """`params`: tile m, out_blocks NV, group_blocks (ocb, icb), groups of at most `group` tiles, register tile heights,
    `fused` when tasks transform the tiles they need for themselves."""
    anchor, p = kernel.anchor, kernel.params
    assert anchor is not None
    m, vectors, group, (ocb, icb) = p["tile"], p["out_blocks"], p["group"], p["group_blocks"]
    width = kernel.outputs[0].buffer.layout.block
    elements = (m + 2) ** 2 * (icb * group + 1) * width
    unit = KernelUnit()
    struct, make = epilogue(unit, kernel, anchor)
    heights = ", ".join(map(str, p["heights"]))
    shared = f"{m}, {vectors}, {group}"
    if p["fused"]:
        unit.tasks = p["groups"] * _parts(kernel)
        args = _args(unit, kernel, None)
        call = f"winograd_tasks<{shared}, {elements}, {heights}>(args, epilogue, begin, end);"
        return [unit.finish(HEADERS, struct, f"{args}{make}  {call}\n")]
    tiles = Buffer(f"{kernel.outputs[0].buffer.name}.tiles", TensorType(F32, (p["groups"] * elements,)))
    unit.tasks = p["groups"] * ceildiv(ocb, vectors)
    args = _args(unit, kernel, whole(tiles))
    call = f"winograd_product_tasks<{shared}, {heights}>(args, epilogue, begin, end);"
    unit.finish(HEADERS, struct, f"{args}{make}  {call}\n")
    before = KernelUnit(tasks=p["groups"] * icb)
    args = _args(before, kernel, whole(tiles))
    before.finish(HEADERS, "", f"{args}  winograd_input_tasks<{m}>(args, begin, end);\n")
    return [before, unit]


def _parts(kernel: Kernel) -> Dim:
    """Parts of a group's panels: enough tasks for all threads, and no more, as each transforms the group's tiles."""
    panels = kernel.params["group_blocks"][0] // kernel.params["out_blocks"]
    groups = kernel.params["groups"]
    return 1 if groups >= TASKS else dim_min(panels, ceildiv(THREADS, groups))


def _args(unit: KernelUnit, kernel: Kernel, tiles: View | None) -> str:
    anchor, p = kernel.anchor, kernel.params
    assert anchor is not None
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    x, w, y = inputs[anchor.operand(0)], inputs[anchor.operand(1)], kernel.outputs[0]
    read, written = stored_type(x), stored_type(y)
    fields = [
        unit.pointer(padded(x, anchor.attrs["pads"]), read), *map(unit.integer, image_steps(x)[:3]), unit.pointer(w),
        unit.pointer(y, written, const=False),
        *map(unit.integer, (*image_steps(y)[:3], x.shape[0], *p["group_blocks"])),
        *map(unit.integer, (*extent(y), p["groups"], _parts(kernel))),
        unit.pointer(tiles, const=False) if tiles is not None else "nullptr",
    ]  # fmt: skip
    return f"  const WinogradArgs<{read}, {written}> args{{{', '.join(fields)}}};\n"


EMITTERS = {"conv.winograd": emit_winograd}
