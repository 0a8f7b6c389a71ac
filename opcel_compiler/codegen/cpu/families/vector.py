"""Products of a few rows, bound by reading the weights."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.families.contraction import matrix_epilogue
from opcel_compiler.codegen.cpu.families.functors import row_step
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import ceildiv
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target


def emit_vector(kernel: Kernel, target: Target) -> KernelUnit:
    """C = epilogue(A·B) for `params["rows"]` rows, B in panels of `params["panel"]` columns, f32 or bf16."""
    assert kernel.anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    a, b, c = inputs[kernel.anchor.operand(0)], inputs[kernel.anchor.operand(1)], kernel.outputs[0]
    width = target.vector.width_f32 if target.vector else 1
    panel: int = kernel.params["panel"]
    per_task: int = kernel.params["panels_per_task"]
    k, n = b.shape

    struct, epilogue = matrix_epilogue(unit, kernel, 0, shared=True)
    unit.tasks = ceildiv(ceildiv(n, panel), per_task)
    held = b.buffer.layout.storage or "float"
    fields = [
        unit.pointer(a), unit.integer(row_step(a)), unit.pointer(b, held), unit.pointer(c, const=False),
        *map(unit.integer, (row_step(c), n, k, per_task)),
    ]  # fmt: skip
    return unit.finish(
        ["kernels/gemm/vector.h", "base/vmath.h"], struct,
        f"  const VectorArgs<{held}> args{{{', '.join(fields)}}};\n{epilogue}"
        f"  vector_tasks<{kernel.params['rows']}, {panel // width}>(args, epilogue, begin, end);\n",
    )  # fmt: skip


EMITTERS = {"vector": emit_vector}
