"""Observe the values that a quantization rounds: what contractions read, and what they and what follows them give.

Each such value gets an `observe` node. All their windows are one input of the graph, and their results three outputs,
so that observed values stay where they are and what a run returns is small (calibrate/accumulate.py reads it).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.calibration import CHANNELS, COUNTS, SEEN, WINDOWS, observable
from opcel_compiler.ir.dims import product
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.ops.observe import EVERY
from opcel_compiler.ir.types import F32, tensor
from opcel_compiler.rewrite.pass_ import Pass, PassContext

LARGE = 32
"""Positions of an image from which on a part of them is counted."""


@dataclass(frozen=True)
class Observe(Pass):
    """`also` names further values, each observed as a whole."""

    name: ClassVar[str] = "observe"
    summary: ClassVar[str] = "count what contractions read and give, for calibration"

    also: tuple[str, ...] = ()

    def run(self, graph: Graph, ctx: PassContext) -> None:
        found = observable(graph, self.also)
        if not found:
            return
        windows = graph.add_input(WINDOWS, tensor(F32, len(found), 2))
        made = [self._observe(graph, windows, i, value, axis) for i, (value, axis) in enumerate(found.items())]
        for result, name in enumerate((COUNTS, SEEN, CHANNELS)):
            parts = [node.results[result] for node in made]
            if name == CHANNELS:
                parts = [graph.add("reshape", [v], {"shape": (v.tensor.size,)}).result for v in parts]
            graph.add_output(graph.add("concat", parts, {"axis": 0}, names=[name]).result, name)

    @staticmethod
    def _observe(graph: Graph, windows: Value, i: int, value: Value, axis: int) -> Node:
        after = value.producer._next if value.producer is not None else next(graph.nodes, None)

        def add(op: str, operands: list[Value], **attrs: object) -> Node:
            return graph.add(op, operands, attrs, before=after, origin=value.producer.origin if value.producer else ())

        row = add("slice", [windows], starts=(i, 0), sizes=(1, 2), steps=(1, 1)).result
        window = add("reshape", [row], shape=(2,)).result
        x = value if value.tensor.dtype == F32 else add("cast", [value], dtype=F32).result
        return add("observe", [x, window], axis=axis, every=EVERY if _is_large_image(x, axis) else 1)


def _is_large_image(x: Value, axis: int) -> bool:
    """Whether the positions after the axis of the channels are many, and neighbours among them tell the same."""
    positions = product(x.tensor.dims[axis + 1 :]) if axis >= 0 else 1
    return isinstance(positions, int) and positions >= LARGE
