"""Write as bf16 what is only read to be rounded to it.

Such a reader rounds its operand, so the result is the same to the last bit: the rounding moves to where the value is
written, the kernel that did nothing else goes, and the value takes half the memory. A norm whose result is read as f32
too, as by a residual connection, writes both.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.program import Buffer, Kernel, Program, Step, View
from opcel_compiler.ir.types import F32
from opcel_compiler.rewrite.pass_ import Pass, PassContext

NORMS = frozenset({"layer_norm", "rms_norm"})
"""The families that can write a result as bf16, as f32, or both."""
WRITERS = NORMS | {"gemm.bf16", "gemm.int8", "attention.bf16"}
"""The families that can write bf16."""
MAX_ROW = 1 << 14
"""The longest row, in elements, that a row kernel holds in f32 before it writes it as bf16."""


@dataclass(frozen=True)
class RoundEarly(Pass):
    """Move roundings from kernels of their own to the kernels that write the values."""

    name: ClassVar[str] = "round-early"
    summary: ClassVar[str] = "write as bf16 what is only read to be rounded to it"
    level: ClassVar[str] = "program"

    def run(self, program: Program, ctx: PassContext) -> None:
        if ctx.precision not in ("bf16", "int8"):
            return
        stored = _candidates(program)
        attentions = [k for k in program.kernels if k.family == "attention.bf16"]
        while dropped := {b for k in attentions for b in _mixed(_operands(k), stored)}:
            stored -= dropped
        for buffer in stored:
            buffer.layout = buffer.layout.stored_as("bf16")
        same: dict[Buffer, View] = {}
        writers: dict[Buffer, Kernel] = {}
        count = Counter(v.buffer for step in program.steps for v in step.outputs)
        steps: list[Step] = []
        for step in program.steps:
            if isinstance(step, Kernel) and step.family == "round":
                x, y = step.inputs[0], step.outputs[0]
                if x.buffer in stored:
                    same[y.buffer] = x
                    continue
                if y.buffer.layout.block == 1 and x.is_whole and x.buffer in writers and count[x.buffer] == 1:
                    _write_both(writers.pop(x.buffer), y.buffer)
                    continue
            elif isinstance(step, Kernel) and step.family in NORMS and _writes(step) and step.outputs[0].is_whole:
                writers[step.outputs[0].buffer] = step
            step.inputs = [same.get(v.buffer, v) for v in step.inputs]
            steps.append(step)
        program.steps = steps


def _write_both(kernel: Kernel, rounded: Buffer) -> None:
    """Let a kernel with one result also write it to `rounded`."""
    out = kernel.outputs[0]
    kernel.outputs.append(View(rounded, out.shape, out.strides, 0))
    kernel.body.add_output(kernel.body.outputs[0])
    kernel.maps = (*kernel.maps, *kernel.maps[-1:])


def _candidates(program: Program) -> set[Buffer]:
    """The temporaries that families of WRITERS write and that are read to be rounded, or by an attention in bf16."""
    fits = {b for b in program.buffers if b.kind == "temp" and b.type.dtype == F32 and b.layout.is_plain}
    read: set[Buffer] = set()
    for step in program.steps:
        fits -= {v.buffer for v in step.outputs if not _writes(step)}
        rounded = _operands(step)
        fits -= {v.buffer for v in step.inputs if v.buffer not in rounded}
        read |= rounded
    return fits & read


def _writes(step: Step) -> bool:
    if not isinstance(step, Kernel) or step.family not in WRITERS or len(step.outputs) != 1:
        return False
    row = step.outputs[0].shape[-1]
    return step.family not in NORMS or (type(row) is int and row <= MAX_ROW and _norm_of_one_axis(step))


def _norm_of_one_axis(kernel: Kernel) -> bool:
    return kernel.anchor is not None and kernel.anchor.attrs["axis"] == len(kernel.outputs[0].shape) - 1


def _operands(step: Step) -> set[Buffer]:
    """The buffers whose elements a step rounds to bf16 before it uses them, and does not read otherwise."""
    if not isinstance(step, Kernel):
        return set()
    if step.family == "round":
        return {v.buffer for v in step.inputs if step.outputs[0].buffer.layout.block == 1}
    if step.family == "attention.bf16":
        assert step.anchor is not None
        own = step.anchor.operands[:3]
        pairs = list(zip(step.body.inputs, step.inputs, strict=True))
        return {v.buffer for value, v in pairs if value in own} - {v.buffer for value, v in pairs if value not in own}
    return set()


def _mixed(operands: set[Buffer], stored: set[Buffer]) -> set[Buffer]:
    """Those of an attention's operands that are stored as bf16, where not all are."""
    return set() if operands <= stored else operands & stored
