"""Matrix products by one level of Strassen's algorithm."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.families.contraction import matrix_epilogue
from opcel_compiler.codegen.cpu.families.functors import row_step
from opcel_compiler.codegen.cpu.unit import THREADS, KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, dim_min, product
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target


def emit_strassen(kernel: Kernel, target: Target) -> KernelUnit:
    """`params`: panel, tile heights `rows`, rows_per_task of a half, blocks of at most `depth`, `pairs` of a part;
    products of less than `fewest` rows are computed plainly."""
    anchor, p = kernel.anchor, kernel.params
    assert anchor is not None and target.vector is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    a, b, c = inputs[anchor.operand(0)], inputs[anchor.operand(1)], kernel.outputs[0]
    m, (k, n) = product(a.shape[:-1]), b.shape
    struct, make = matrix_epilogue(unit, kernel, m, True)
    plain = dim_max(0, dim_min(1, p["fewest"] - m))
    upper = plain * m + (1 - plain) * ceildiv(m, 2)
    pairs, groups = ceildiv(n, 2 * p["panel"]), ceildiv(upper, p["rows_per_task"])
    rows = p["rows_per_task"] if isinstance(m, int) else ceildiv(upper, dim_max(1, groups))
    # Each part makes the left factors of its rows for itself: no more parts than keep the threads evenly busy.
    parts: Dim = dim_min(pairs, dim_min(THREADS, ceildiv(8 * THREADS, dim_max(1, groups))))
    if p["blocks"] > 1:
        parts = dim_max(parts, ceildiv(pairs, p["pairs"]))
    unit.tasks = parts * groups
    fields = [
        unit.pointer(a), unit.integer(row_step(a)), unit.pointer(b), unit.pointer(c, const=False),
        *map(unit.integer, (row_step(c), m, n, k, dim_max(1, rows), parts, p["blocks"], plain)),
    ]  # fmt: skip
    held = p["pairs"] if p["blocks"] > 1 else 1
    sizes = (p["panel"] // target.vector.width_f32, p["rows_per_task"], p["depth"], held, *p["rows"])
    return unit.finish(
        ["kernels/gemm/strassen.h", "base/vmath.h"], struct,
        f"  const StrassenArgs args{{{', '.join(fields)}}};\n{make}"
        f"  strassen_tasks<{', '.join(map(str, sizes))}>(args, epilogue, begin, end);\n",
    )  # fmt: skip


EMITTERS = {"gemm.strassen": emit_strassen}
