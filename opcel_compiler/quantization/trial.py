"""What a plan does to a network's outputs, of the networks that are mostly matrix products: which of several is taken.

Rows differ where few of them, such as those of a text's first or last token, reach many times as far as the others.
What a grid loses then hardly shows in a layer's own signal to noise, whose signal is that of the loud rows, so whole
networks are compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.quantization import CONVOLUTIONS, STATIC, Plan
from opcel_compiler.quantization.metrics import relative_l2
from opcel_compiler.quantization.probe import Feeds, Operands, QuantizedLayer, read_codes
from opcel_compiler.quantization.sensitivity import SAMPLES, Replay

ENOUGH = 10 ** (-25.0 / 10)
"""Noise by signal of the outputs up to which grids are good enough: 25 dB."""
GAIN = 0.5
"""With scales for rows the noise must fall below this share: they have no zero point, and are computed at each run."""


def products(graph: Graph, plan: Plan) -> frozenset[str]:
    """The matrix products and recurrent layers of `plan` that have grids, by the names of their results; none where
    most layers are convolutions."""
    nodes = [n for n in graph.nodes if n.results and plan.quantized(n.results[0].name)]
    found = [n.results[0].name for n in nodes if n.op not in CONVOLUTIONS]
    return frozenset(n for n in found if plan.layers[n].scheme == STATIC and 2 * len(found) > len(nodes))


class Trial:
    """A graph on a few samples, in float and with the layers of `plan` in 8 bits."""

    def __init__(self, graph: Graph, plan: Plan, samples: Sequence[Feeds]) -> None:
        nodes = (n for n in graph.nodes if n.results and plan.quantized(n.results[0].name))
        self.layers = {node: QuantizedLayer(node) for node in nodes}
        self.replays = [Replay(graph, feeds) for feeds in samples[:SAMPLES]]

    def noise(self, plan: Plan) -> float:
        """Of all outputs together, by the signal."""

        def compute(node: Node, operands: Operands) -> Sequence[np.ndarray] | None:
            return self.layers[node](read_codes(node, operands, plan)) if node in self.layers else None

        return relative_l2([r.outputs for r in self.replays], [r.through(compute) for r in self.replays]) ** 2
