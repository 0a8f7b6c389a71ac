"""Linear attention: a task for some columns of each head's state."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.expressions import CTYPES
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import ceildiv, floordiv
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.targets.schema import Target

_COLUMNS = 64
"""kLinearColumns of the kernel."""


def emit_linear_attention(kernel: Kernel, target: Target) -> KernelUnit:
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    q, k, v, past, decay, beta = [*(None if x is None else inputs[x] for x in anchor.operands), *[None] * 3][:6]
    assert q is not None and k is not None and v is not None
    ctype = CTYPES[q.dtype]
    batch, steps, heads, size = k.shape
    width = v.shape[3]
    unit.tasks = batch * heads * ceildiv(width, _COLUMNS)

    def pointer(view: View | None) -> str:
        return "nullptr" if view is None else unit.pointer(view, ctype)

    y, state = (unit.pointer(o, ctype, const=False) for o in kernel.outputs)
    sizes = [batch, steps, heads, floordiv(q.shape[2], heads), size, width]
    sizes += [1, 1] if decay is None else decay.shape[2:]
    sizes.append(1 if beta is None else beta.shape[2])
    fields = [*map(pointer, (q, k, v, past, decay, beta)), y, state, *map(unit.integer, sizes)]
    return unit.over_tasks(
        ["kernels/attention/linear.h"], f"LinearAttentionArgs<{ctype}>", fields, "linear_attention_tasks"
    )


EMITTERS = {"linear_attention": emit_linear_attention}
