"""Choose each kernel's family and its compile-time parameters from the target's vector unit and register tiles.

What no fast family takes goes to the reference family of its operator, its epilogue split off. Measured choices, where
the context has some, replace these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.program import Kernel, Program, Step
from opcel_compiler.ir.program_split import separate_operands, split_quantized
from opcel_compiler.ir.recurrent import RECURRENT
from opcel_compiler.ir.types import F32
from opcel_compiler.rewrite.pass_ import Pass, PassContext
from opcel_compiler.rewrite.rule import Numerics
from opcel_compiler.schedule.choice.bf16 import choose_attention_bf16, choose_matmul_bf16
from opcel_compiler.schedule.choice.context import Choosing
from opcel_compiler.schedule.choice.contraction import choose_matmul
from opcel_compiler.schedule.choice.convolution import choose_conv, choose_depthwise
from opcel_compiler.schedule.choice.int8 import choose_matmul_int8
from opcel_compiler.schedule.choice.integers import is_integer
from opcel_compiler.schedule.choice.nbits import choose_nbits
from opcel_compiler.schedule.choice.recurrent import choose_recurrent
from opcel_compiler.schedule.choice.strassen import plan_strassen, use_strassen
from opcel_compiler.schedule.choice.variants import override
from opcel_compiler.schedule.choice.vector import choose_few_rows
from opcel_compiler.schedule.choice.winograd import plan_winograd, use_winograd


@dataclass(frozen=True)
class ChooseKernels(Pass):
    """Pick kernel families, register tiles, task sizes and weight packings."""

    name: ClassVar[str] = "choose-kernels"
    summary: ClassVar[str] = "pick kernel families, register tiles and weight packings"
    level: ClassVar[str] = "program"

    def run(self, program: Program, ctx: PassContext) -> None:
        target = ctx.target
        if target is None or target.vector is None:
            return
        choosing = Choosing(program, target, ctx.precision)
        chosen: list[Step] = []
        for step in program.steps:
            chosen += _choose(step, choosing, ctx)
            choosing.passed(step)
        program.steps = chosen
        if ctx.tuned:
            winograd = not ctx.small and Numerics.REASSOCIATES not in ctx.forbidden
            ctx.overridden += override(program.kernels, ctx.tuned, choosing, winograd)


def _choose(step: Step, choosing: Choosing, ctx: PassContext) -> list[Step]:
    if not isinstance(step, Kernel):
        return [step]
    separate_operands(step)
    if step.family == "matmul":
        integers = choose_matmul_int8(step, choosing)
        if integers is not None:
            return integers
        parts = split_quantized(step, choosing.name)
        if len(parts) > 1 or parts[0] is not step:
            return [s for part in parts for s in _choose(part, choosing, ctx)]
        return choose_few_rows(step, choosing) or _choose_matmul(step, choosing, ctx)
    if step.family == "matmul_nbits":
        return choose_nbits(step, choosing)
    if step.family == "conv.blocked":
        _choose_conv(step, choosing, ctx)
    elif step.family == "conv.depthwise":
        choose_depthwise(step, choosing)
    elif step.family in RECURRENT:
        choose_recurrent(step, choosing)
    elif step.family == "attention":
        choose_attention_bf16(step, choosing)
    elif step.family == "conv":
        return choosing.reference(step, "conv.reference")
    elif step.family == "conv_transpose":
        parts = split_quantized(step, choosing.name)
        return [s for k in parts for s in (choosing.reference(k, k.family) if k.anchor is not None else [k])]
    elif step.family in ("max_pool", "avg_pool"):
        step.family = "pool.reference"
    elif step.family == "reduce_max" and len(step.outputs) == 2:
        step.family = "rows.scaled"
    elif step.family.startswith("reduce_") and _row_reduction(step):
        step.family = "reduce.rows"
    return [step]


def _choose_matmul(kernel: Kernel, choosing: Choosing, ctx: PassContext) -> list[Step]:
    rounded = choose_matmul_bf16(kernel, choosing)
    if rounded:
        return rounded
    plan = None if ctx.small else plan_strassen(kernel, choosing)
    assert kernel.anchor is not None
    if plan is not None and ctx.allows("strassen", kernel.anchor, Numerics.REASSOCIATES):
        use_strassen(kernel, plan, choosing)
        ctx.changed("strassen", kernel.anchor, kernel.origin)
        return [kernel]
    return choose_matmul(kernel, choosing)


def _choose_conv(kernel: Kernel, choosing: Choosing, ctx: PassContext) -> None:
    plan = None if ctx.small or is_integer(kernel) else plan_winograd(kernel, choosing)
    assert kernel.anchor is not None
    if plan is not None and ctx.allows("winograd", kernel.anchor, Numerics.REASSOCIATES):
        use_winograd(kernel, plan, choosing)
        ctx.changed("winograd", kernel.anchor, kernel.origin)
    else:
        choose_conv(kernel, choosing)


def _row_reduction(kernel: Kernel) -> bool:
    assert kernel.anchor is not None
    axes, x = kernel.anchor.attrs["axes"], kernel.inputs[0]
    adjacent = bool(axes) and list(axes) == list(range(axes[0], axes[-1] + 1))
    return adjacent and x.dtype == F32 and x.is_contiguous
