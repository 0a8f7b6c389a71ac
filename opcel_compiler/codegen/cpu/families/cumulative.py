"""Running sums and products along one axis."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.expressions import CTYPES, computing_type
from opcel_compiler.codegen.cpu.unit import MAX_TASK_WORK, KernelUnit
from opcel_compiler.ir.dims import ceildiv, dim_max, dim_min, floordiv, product
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target

STRIP = 32
"""kCumulateStrip of cumulate.h."""


def emit_cumulate(kernel: Kernel, target: Target) -> KernelUnit:
    """A dense operand of any arithmetic type."""
    assert kernel.anchor is not None
    unit = KernelUnit()
    x, y, a = kernel.inputs[0], kernel.outputs[0], kernel.anchor.attrs
    ctype = CTYPES[x.dtype]
    n, inner = x.shape[a["axis"]], product(x.shape[a["axis"] + 1 :])
    strips = ceildiv(inner, STRIP)
    lines = product(x.shape[: a["axis"]]) * strips
    work = dim_max(1, n * dim_min(inner, STRIP))
    per_task = dim_max(1, floordiv(MAX_TASK_WORK, work))
    unit.tasks = ceildiv(lines, per_task)
    product_, exclusive, reverse = (str(v).lower() for v in (a["kind"] == "product", a["exclusive"], a["reverse"]))
    fields = [*map(unit.integer, (n, inner, strips, lines, per_task)), reverse]
    total = computing_type(x.dtype) if x.dtype.is_float else "uint64_t" if x.dtype.kind == "u" else "int64_t"
    pointers = f"{unit.pointer(x, ctype)}, {unit.pointer(y, ctype, const=False)}"
    return unit.finish(
        ["base/narrow.h", "kernels/rows/cumulate.h"], "",
        f"  const CumulateArgs args{{{', '.join(fields)}}};\n"
        f"  cumulate_tasks<{ctype}, {total}, {product_}, {exclusive}>(args, {pointers}, begin, end);\n",
    )  # fmt: skip


EMITTERS = {"cumulate": emit_cumulate}
