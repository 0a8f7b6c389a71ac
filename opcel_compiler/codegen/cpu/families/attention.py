"""Attention as one kernel."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.expressions import literal, stored_type
from opcel_compiler.codegen.cpu.families.functors import Functor, after
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv
from opcel_compiler.ir.program import Kernel
from opcel_compiler.ir.types import F32
from opcel_compiler.targets.schema import Target

MOST_ROWS = 384
"""Query rows a task: the keys' packing is then some 1 % of its time, and it holds half as many as the kernel can."""
TILE_ROWS = 12
"""A multiple of the kernel's register tile for every vector width."""


def emit_attention(kernel: Kernel, target: Target) -> KernelUnit:
    """softmax(scale · q kᵀ + mask) v over [batch, heads, sequence, size] operands of any strides, in f32 or bf16; the
    result may be quantized."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    q, k, v = (inputs[anchor.operand(i)] for i in range(3))
    y = kernel.outputs[0]
    mask = anchor.optional(3)
    batch, heads, sq, d = q.shape
    operand, result = stored_type(q), stored_type(y)
    fields = [unit.pointer(view, operand) for view in (q, k, v)]
    if mask is None:
        fields.append("nullptr")
        steps: tuple[Dim, ...] = (0, 0, 0, 0)
    else:
        wide = inputs[mask].expand((batch, heads, sq, k.shape[2]))
        fields.append(unit.pointer(wide))
        steps = wide.strides
    fields.append(unit.pointer(y, result, const=False))
    for view in (q, k, v):
        fields += map(unit.integer, view.strides[:3])
    fields += map(unit.integer, (*steps, *y.strides[:3], batch, heads, k.shape[1], sq, k.shape[2]))
    fields += [literal(anchor.attrs["scale"], F32), "true" if anchor.attrs["causal"] else "false"]
    per_task = rows_per_task(sq)
    fields += map(unit.integer, (k.shape[2] - sq, per_task))
    unit.tasks = batch * heads * ceildiv(sq, per_task)
    bf16, last, struct = kernel.params.get("precision") == "bf16", "AsTheyAre", ""
    if nodes := after(kernel.body, anchor):
        last, signature = "Last", "apply(vf v, int lanes)"
        functor = Functor(unit, kernel, (), lambda view: ())
        struct = functor.struct(last, signature, nodes, {anchor.result: "v"}, kernel.body.outputs[0])
    header, tasks = ("bf16", "attention_bf16_tasks") if bf16 else ("blockwise", "attention_tasks")
    width = target.vector.width_f32 if target.vector else 1
    if not bf16 and sq == 1 and all(size % width == 0 for size in (d, v.shape[3])):
        header, tasks = "single", "attention_row_tasks"
    return unit.over_tasks(
        [f"kernels/attention/{header}.h"], f"AttentionArgs<{operand}, {result}, {last}>", fields,
        f"{tasks}<{d}, {v.shape[3]}>", struct,
    )  # fmt: skip


def rows_per_task(sq: Dim) -> Dim:
    """Query rows of one task: as even as whole register tiles allow, no more than share a packing of the keys."""
    if not isinstance(sq, int) or sq <= MOST_ROWS:
        return MOST_ROWS
    per = -(-sq // -(-sq // MOST_ROWS))
    return -(-per // TILE_ROWS) * TILE_ROWS


EMITTERS = {"attention": emit_attention, "attention.bf16": emit_attention}
