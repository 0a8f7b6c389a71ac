"""Products with weights of 4 and 8 bits."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.families.contraction import matrix_epilogue
from opcel_compiler.codegen.cpu.families.functors import row_step
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import ceildiv, product
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target


def emit_nbits(kernel: Kernel, target: Target) -> KernelUnit:
    """C = epilogue(X·W), W in panels of `params["panel"]` columns; X is rounded where `precision` says so."""
    assert kernel.anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    x, w, scale, *zero = (inputs[v] for v in kernel.anchor.operands if v is not None)
    c, dtype = kernel.outputs[0], w.dtype
    width = target.vector.width_f32 if target.vector else 1
    params = kernel.params
    k, n = w.shape
    m = product(x.shape[:-1])
    struct, epilogue = matrix_epilogue(unit, kernel, 0, shared=True)
    middle = 1 << (dtype.bits - 1) if dtype.kind == "i" else 0
    rows_per_task, panels_per_task = params["rows_per_task"], params["panels_per_task"]
    unit.tasks = ceildiv(ceildiv(n, params["panel"]), panels_per_task) * ceildiv(m, rows_per_task)
    fields = [
        unit.pointer(x), unit.integer(row_step(x)), unit.pointer(w, "uint8_t"), unit.pointer(scale),
        unit.pointer(zero[0], "uint8_t") if zero else "nullptr", unit.pointer(c, const=False),
        unit.integer(row_step(c)), unit.integer(1),
        *map(unit.integer, (m, n, k, params["group"], params["shared"], middle, rows_per_task, panels_per_task)),
    ]  # fmt: skip
    rows = "RoundedRows" if params.get("precision") == "rounded" else "PlainRows"
    heights = ", ".join(map(str, params["rows"]))
    return unit.finish(
        ["kernels/gemm/nbits.h", "base/vmath.h"], struct,
        f"  const NbitsArgs args{{{', '.join(fields)}}};\n{epilogue}"
        f"  nbits_tasks<detail::{rows}, {dtype.bits}, {params['panel'] // width}, {heights}>"
        "(args, epilogue, begin, end);\n",
    )  # fmt: skip


EMITTERS = {"gemm.nbits": emit_nbits}
