"""Kernels whose results depend in size on data."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.expressions import CTYPES
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target


def emit_nonzero(kernel: Kernel, target: Target) -> KernelUnit:
    """The places of a dense operand's elements that are not zero, in one task."""
    unit = KernelUnit()
    x, y = kernel.inputs[0], kernel.outputs[0]
    shape = ", ".join(map(unit.integer, x.shape)) or "0"
    call = f"nonzero({unit.pointer(x, CTYPES[x.dtype])}, shape, {len(x.shape)}, "
    return unit.finish(
        ["kernels/movement/nonzero.h"], "",
        f"  (void)begin, (void)end;\n  const int64_t shape[] = {{{shape}}};\n"
        f"  {call}{unit.pointer(y, 'int64_t', const=False)}, {unit.integer(y.shape[1])});\n",
    )  # fmt: skip


EMITTERS = {"nonzero": emit_nonzero}
