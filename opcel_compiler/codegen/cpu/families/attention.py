"""Attention as one kernel."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.codegen.cpu.expressions import literal, stored_type
from opcel_compiler.codegen.cpu.families.functors import Functor, after
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.ir.types import F32
from opcel_compiler.schedule.choice.attention import head_sizes, takes_row
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
    views = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    args, struct = _args(unit, kernel, [views[anchor.operand(i)] for i in range(3)])
    header, tasks = "blockwise", "attention_tasks"
    if kernel.params.get("precision") == "bf16":
        header, tasks = "bf16", "attention_bf16_tasks"
    elif takes_row(kernel, target):
        header, tasks = "single", "attention_row_tasks"
    sizes = head_sizes(anchor)
    return unit.finish(
        [f"kernels/attention/{header}.h"], struct, f"{args}  {tasks}<{sizes[0]}, {sizes[1]}>(args, begin, end);\n"
    )


def emit_attention_append(kernel: Kernel, target: Target) -> KernelUnit:
    """The same with one query row, over keys and values that a concat of the body joins, which are results, too."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    views = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    joins = [anchor.operand(i).producer for i in (1, 2)]
    held, new = ([views[join.operand(i)] for join in joins if join is not None] for i in range(2))
    args, struct = _args(unit, kernel, [views[anchor.operand(0)], *held])
    fields = [unit.integer(held[0].shape[2]), *map(unit.pointer, new)]
    fields += [unit.pointer(view, const=False) for view in kernel.outputs[1:]]
    for view in (*new, *kernel.outputs[1:]):
        fields += map(unit.integer, view.strides[:3])
    fields.append("true" if kernel.params.get("streamed") else "false")
    sizes = head_sizes(anchor)
    return unit.finish(
        ["kernels/attention/single.h"], struct,
        f"{args}  const AttentionAppend append{{{', '.join(fields)}}};\n"
        f"  attention_append_tasks<{sizes[0]}, {sizes[1]}>(args, append, begin, end);\n",
    )  # fmt: skip


def _args(unit: KernelUnit, kernel: Kernel, operands: Sequence[View]) -> tuple[str, str]:
    """(the statement that declares the kernel's `AttentionArgs`, declarations before the kernel), for q and what there
    is of k and v before it; the unit's tasks."""
    anchor = kernel.anchor
    assert anchor is not None
    y, mask = kernel.outputs[0], anchor.optional(3)
    batch, heads, sq, _ = operands[0].shape
    _, shared, sk, _ = anchor.operand(1).tensor.dims
    operand, result = stored_type(operands[0]), stored_type(y)
    fields = [unit.pointer(view, operand) for view in operands]
    if mask is None:
        fields.append("nullptr")
        steps: tuple[Dim, ...] = (0, 0, 0, 0)
    else:
        wide = kernel.inputs[kernel.body.inputs.index(mask)].expand((batch, heads, sq, sk))
        fields.append(unit.pointer(wide))
        steps = wide.strides
    fields.append(unit.pointer(y, result, const=False))
    for view in operands:
        fields += map(unit.integer, view.strides[:3])
    fields += map(unit.integer, (*steps, *y.strides[:3], batch, heads, shared, sq, sk))
    fields += [literal(anchor.attrs["scale"], F32), "true" if anchor.attrs["causal"] else "false"]
    per_task = rows_per_task(sq)
    fields += map(unit.integer, (sk - sq, per_task))
    unit.tasks = batch * heads * ceildiv(sq, per_task)
    last, struct = "AsTheyAre", ""
    if nodes := after(kernel.body, anchor):
        last, signature = "Last", "apply(vf v, int lanes)"
        functor = Functor(unit, kernel, (), lambda view: ())
        struct = functor.struct(last, signature, nodes, {anchor.result: "v"}, kernel.body.outputs[0])
    return f"  const AttentionArgs<{operand}, {result}, {last}> args{{{', '.join(fields)}}};\n", struct


def rows_per_task(sq: Dim) -> Dim:
    """Query rows of one task: as even as whole register tiles allow, no more than share a packing of the keys."""
    if not isinstance(sq, int) or sq <= MOST_ROWS:
        return MOST_ROWS
    per = -(-sq // -(-sq // MOST_ROWS))
    return -(-per // TILE_ROWS) * TILE_ROWS


EMITTERS = {
    "attention": emit_attention, "attention.bf16": emit_attention, "attention.append": emit_attention_append,
}  # fmt: skip
