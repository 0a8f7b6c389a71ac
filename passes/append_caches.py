"""Let an attention of one query row write the caches that it returns as it reads those that it was given.

A decode step without state returns its keys and values with a row appended: copies of all of them, which the attention
then reads. Where only those two copies make what it reads, it takes over both: every key is read once and written once.
Where weights and caches exceed the last-level cache, it writes past the caches. Numerics: exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.dims import Dim, equal, evaluate
from opcel_compiler.ir.outline import outline, outside_values
from opcel_compiler.ir.program import Control, Kernel, Program, View
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.rewrite.pass_ import Pass, PassContext
from opcel_compiler.schedule.choice.attention import takes_row
from opcel_compiler.schedule.cost import domain, nominal
from opcel_compiler.targets.schema import Target

LENGTH = 2
"""The axis of keys and values along which a step appends."""


@dataclass(frozen=True)
class AppendCaches(Pass):
    """Keys and values appended by the attention that reads them, not by copies before it."""

    name: ClassVar[str] = "append-caches"
    summary: ClassVar[str] = "let attention of one query row write the caches that a step returns"
    level: ClassVar[str] = "program"

    def run(self, program: Program, ctx: PassContext) -> None:
        if ctx.target is None or ctx.target.vector is None:
            return
        streamed = _exceeds_caches(program, ctx.target)
        for kernel in [k for k in program.kernels if k.family == "attention" and takes_row(k, ctx.target)]:
            pairs = [_copies(program, kernel, position) for position in (1, 2)]
            copies = [copy for pair in pairs for copy in pair or ()]
            if len(set(copies)) == 4:
                _append(program, kernel, copies, streamed)
                assert kernel.anchor is not None
                ctx.changed("append-caches", kernel.anchor, kernel.origin)


def _exceeds_caches(program: Program, target: Target) -> bool:
    """Whether what a run takes, gives and knows does not stay in the last-level cache."""
    buffers = [b for b in program.buffers if b.kind != "temp"]
    sizes = nominal(*(d for b in buffers for d in b.type.dims))
    return sum(evaluate(b.elements, sizes) * b.element_bytes for b in buffers) > target.memories[1].size


def _copies(program: Program, kernel: Kernel, position: int) -> list[Kernel] | None:
    """The two copies, of what was there and of what is new, that make operand `position` of an attention, all that
    writes it and comes before it, in the same block; None where something else does."""
    assert kernel.anchor is not None
    read = kernel.inputs[kernel.body.inputs.index(kernel.anchor.operand(position))]
    at = program.steps.index(kernel)
    first = next((i + 1 for i in range(at - 1, -1, -1) if isinstance(program.steps[i], Control)), 0)
    around = [s for s in program.steps if s is not kernel and any(v.buffer is read.buffer for v in s.views)]
    writers = [s for s in around if any(v.buffer is read.buffer for v in s.outputs)]
    before = [s for s in around if s in program.steps[:at]]
    copies = [s for s in writers if isinstance(s, Kernel) and s.family == "copy" and s in program.steps[first:at]]
    if len(copies) != 2 or before != copies or writers != copies:
        return None
    held, new = sorted(copies, key=lambda copy: equal(copy.outputs[0].offset, read.offset) is not True)
    if not (_is_part(read, held, 0) and _is_part(read, new, held.outputs[0].shape[LENGTH])):
        return None
    whole = equal(held.inputs[0].shape[LENGTH] + new.inputs[0].shape[LENGTH], read.shape[LENGTH]) is True
    sources = {copy.inputs[0].buffer for copy in copies}
    between = program.steps[program.steps.index(copies[0]) : at]
    written = any(v.buffer in sources for s in between for v in s.outputs)
    return [held, new] if whole and not written else None


def _is_part(read: View, copy: Kernel, start: Dim) -> bool:
    """Whether a copy writes all heads' rows of `read` from `start` on, and reads rows without gaps."""
    source, target = copy.inputs[0], copy.outputs[0]
    same = all(equal(a, b) is True for i in (0, 1, 3) for a, b in [(target.shape[i], read.shape[i])])
    same = same and all(equal(a, b) is True for a, b in zip(target.strides, read.strides, strict=True))
    placed = equal(target.offset, read.offset + start * read.strides[LENGTH]) is True
    return same and placed and source.dtype == F32 and source.strides[-1] == 1 == target.strides[-1]


def _append(program: Program, kernel: Kernel, copies: list[Kernel], streamed: bool) -> None:
    """Let the body of `kernel` join what the copies of keys and then of values read, and return it; the copies go."""
    assert kernel.anchor is not None
    body = kernel.body
    views = dict(zip(body.inputs, kernel.inputs, strict=True))
    results = list(body.outputs)
    for position, parts in ((1, copies[:2]), (2, copies[2:])):
        old = kernel.anchor.operand(position)
        sources = {body.add_input(old.name, TensorType(F32, c.inputs[0].shape)): c.inputs[0] for c in parts}
        joined = body.add("concat", list(sources), {"axis": LENGTH}, before=kernel.anchor, origin=parts[0].origin)
        old.replace_with(joined.result)
        results.append(joined.result)
        kernel.outputs.append(views[old])
        views |= sources
    nodes = list(body.nodes)
    kernel.family, kernel.params = "attention.append", {"streamed": streamed}
    kernel.inputs = [views[v] for v in outside_values(nodes)]
    kernel.body = outline(nodes, results, name=body.name)
    kernel.anchor = next(n for n in kernel.body.nodes if n.op == "attention")
    kernel.axes, kernel.maps = domain(kernel)
    kernel.origin = tuple(dict.fromkeys(o for k in (kernel, *copies) for o in k.origin))
    program.steps = [s for s in program.steps if s not in copies]
