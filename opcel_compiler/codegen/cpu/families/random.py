"""Random numbers: tasks of neighbouring elements."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.unit import MAX_TASK_WORK, KernelUnit
from opcel_compiler.ir.dims import ceildiv, product
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target


def emit_random(kernel: Kernel, target: Target) -> KernelUnit:
    """`RandomArgs` of csrc/kernels/random/uniform.h."""
    assert kernel.anchor is not None
    unit, a, y = KernelUnit(), kernel.anchor.attrs, kernel.outputs[0]
    count, per_task = product(y.shape), MAX_TASK_WORK // 4
    unit.tasks = ceildiv(count, per_task)
    fields = [
        unit.pointer(y, const=False), unit.integer(count), str(per_task), f"UINT64_C({a['key'] & (1 << 64) - 1})",
        str(a["fixed"]).lower(),
    ]  # fmt: skip
    return unit.over_tasks(["kernels/random/uniform.h"], "RandomArgs", fields, "random_tasks")


EMITTERS = {"random_uniform": emit_random}
