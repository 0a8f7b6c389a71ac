"""Store the images between convolutions as bf16, where products may be computed in it.

A buffer of blocked channels is stored as bf16 when every kernel that reads or writes it can. What only leaves the
blocked region stays f32: rounding it would save little and cost precision. A first layer's planes are rounded as they
get their halo. A direct convolution is computed in the type that its input is stored as; Winograd's is
in f32 with either.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Kernel, Program, Step, View, whole
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.rewrite.pass_ import Pass, PassContext

CONVERTS = frozenset({"conv.blocked", "conv.depthwise", "pool.blocked", "resample.blocked", "elementwise", "relayout"})
"""Families that read and write any mixture of storages."""


@dataclass(frozen=True)
class StoreBf16(Pass):
    """Choose which blocked images lie in memory as bf16; nothing where products are computed in f32."""

    name: ClassVar[str] = "store-bf16"
    summary: ClassVar[str] = "store the images between convolutions as bf16"
    level: ClassVar[str] = "program"

    def run(self, program: Program, ctx: PassContext) -> None:
        exact = any(k.anchor is not None and k.anchor.attrs.get("exact") for k in program.kernels)
        if ctx.precision != "bf16" or exact:
            return
        for buffer in _stored(program):
            buffer.layout = buffer.layout.stored_as("bf16")
        _round_planes(program)


def _stored(program: Program) -> set[Buffer]:
    steps: defaultdict[Buffer, list[Step]] = defaultdict(list)
    read: defaultdict[Buffer, list[Step]] = defaultdict(list)
    for step in program.steps:
        for view in step.views:
            steps[view.buffer].append(step)
        for view in step.inputs:
            read[view.buffer].append(step)
    stored = {
        b for b, users in steps.items()
        if b.kind == "temp" and b.layout.block > 1 and b.type.dtype == F32
        and all(isinstance(s, Kernel) and (s.family in CONVERTS or s.family == "copy") for s in users)
        and not all(isinstance(s, Kernel) and s.family == "relayout" for s in read[b])
    }  # fmt: skip
    while True:
        # A copy moves bytes: both of its sides are stored alike.
        split = {
            v.buffer
            for s in program.kernels
            if s.family == "copy" and len({v.buffer in stored for v in s.views}) > 1
            for v in s.views
        } & stored
        if not split:
            return stored
        stored -= split


def _round_planes(program: Program) -> None:
    """First layers read their planes as bf16, in pairs of neighbours: those of an odd width reach one pixel further."""
    names = {b.name for b in program.buffers}
    readers = Counter(b for step in program.steps for b in {v.buffer for v in step.inputs})
    padding = {k.outputs[0].buffer: k for k in program.kernels if k.family == "relayout"}
    steps: list[Step] = []
    for step in program.steps:
        if isinstance(step, Kernel) and step.params.get("kind") == "planar" and _adjacent_taps(step):
            assert step.anchor is not None
            at = step.body.inputs.index(step.anchor.operand(0))
            view = step.inputs[at]
            layout = _pairs_layout(step, view)
            if view.buffer in padding and readers[view.buffer] == 1:
                view.buffer.layout = layout
                padding[view.buffer].outputs[0] = step.inputs[at] = whole(view.buffer)
            else:
                step.inputs[at] = whole(
                    Buffer(_name(f"{view.buffer.name}.bf16", names), TensorType(F32, view.shape), layout=layout)
                )
                steps.append(_relayout(view, step.inputs[at], step.origin))
        steps.append(step)
    program.steps = steps


def _adjacent_taps(kernel: Kernel) -> bool:
    return kernel.anchor is not None and kernel.anchor.attrs["dilations"][-1] == 1


def _pairs_layout(kernel: Kernel, view: View) -> Layout:
    assert kernel.anchor is not None
    halo = list(view.buffer.layout.halo or [(0, 0)] * len(view.shape))
    odd = kernel.anchor.operand(1).tensor.static_shape[-1] % 2
    halo[-1] = (halo[-1][0], halo[-1][1] + odd)
    return Layout(halo=tuple(halo) if any(map(sum, halo)) else (), storage="bf16")


def _relayout(source: View, target: View, origin: tuple[str, ...]) -> Kernel:
    body = Graph("copy")
    body.add_output(body.add_input("x", TensorType(source.dtype, source.shape)))
    return Kernel("relayout", body, [source], [target], origin=origin)


def _name(base: str, names: set[str]) -> str:
    name, count = base, 0
    while name in names:
        count += 1
        name = f"{base}{count}"
    names.add(name)
    return name
