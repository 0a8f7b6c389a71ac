"""Which channels between layers to divide, and by what: cross-layer equalization and SmoothQuant in one form.

A value x with channels j, read with weights W: s_j = max|x_j|^a / max|W_j|^(1-a), and x_j / s_j is read with s_j W_j
(Xiao et al., ICML 2023; with a = 1/2 and what x reaches in place of the weights that make it, Nagel et al., ICCV 2019,
as each output channel has a scale of its own).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from opcel_compiler.ir.codes import rounded
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.quantization import channel_readers
from opcel_compiler.ir.statistics import TensorStatistics
from opcel_compiler.ir.thresholds import grid_of
from opcel_compiler.quantization.layers import Candidate, root
from opcel_compiler.quantization.probe import Feeds, Operands, QuantizedLayer, visit

SHARES = (0.3, 0.5, 0.7, 0.85, 1.0)
"""The exponents a that are tried."""
TRIGGER = 4.0
"""How many times the median channel the largest must reach."""
GAIN = 0.8
"""The noise of the readers together must fall below this share of what it is undivided."""
MOST_SAMPLES = 4
ROWS = 2048
"""So many rows of a matrix product's operand are enough to measure it on."""


def divisions(
    graph: Graph, layers: Iterable[Candidate], seen: Mapping[str, TensorStatistics], samples: Sequence[Feeds]
) -> dict[str, np.ndarray]:
    """By the name of a value, what its channels are divided by, where that makes its readers better on samples.

    Without samples nothing is measured, and a = 1/2 is taken where the channels differ enough.
    """
    allowed = {c.node for c in layers if not c.reason}
    found: dict[Value, tuple[list[Node], int]] = {}
    for node in graph.nodes:
        value = root(node.operand(0)) if node in allowed else None
        if value is None or value in found or value.producer is None:
            continue
        readers = channel_readers(value)
        if readers is not None and all(n in allowed for n in readers[0]):
            reach = _reach(seen.get(value.name), readers[1], value)
            if reach is not None and _uneven(reach):
                found[value] = readers[0], readers[1]
    if not samples:
        return {
            v.name: _divisors(_reach(seen[v.name], axis, v), nodes, 0.5)  # type: ignore[arg-type]
            for v, (nodes, axis) in found.items()
        }
    trials = {v: _Trial(nodes, axis, _reach(seen.get(v.name), axis, v)) for v, (nodes, axis) in found.items()}
    by_node = {n: t for t in trials.values() for n in t.nodes}

    def see(_: int, node: Node, operands: Operands, y: np.ndarray) -> None:
        assert operands[0] is not None
        by_node[node].see(node, operands[0], y)

    visit(graph, samples[:MOST_SAMPLES], by_node, see)
    best = {v.name: t.best for v, t in trials.items()}
    return {name: s for name, s in best.items() if s is not None}


def _reach(t: TensorStatistics | None, axis: int, value: Value) -> np.ndarray | None:
    """The largest magnitude of each channel, where it was observed along this axis."""
    if t is None or t.absmax is None or t.axis is None:
        return None
    return np.asarray(t.absmax, np.float64) if len(value.tensor.dims) + t.axis == axis else None


def _uneven(reach: np.ndarray) -> bool:
    live = reach[reach > 0]
    return bool(live.size > 1 and live.max() > TRIGGER * np.median(live))


def _inputs(node: Node, magnitude: np.ndarray) -> np.ndarray:
    """The largest weight of each input channel."""
    if node.op == "conv":
        groups = int(node.attrs["groups"])
        grouped = magnitude.reshape(groups, -1, magnitude.shape[1], int(np.prod(magnitude.shape[2:])))
        return np.asarray(grouped.max(axis=(1, 3)).reshape(-1))
    return np.asarray(magnitude.reshape(magnitude.shape[0], -1).max(axis=1))


def _divisors(reach: np.ndarray, nodes: Sequence[Node], share: float) -> np.ndarray:
    """s, scaled so that its geometric mean over the channels in use is 1."""
    weights = np.maximum.reduce([_inputs(n, np.abs(n.operand(1).constant.array)) for n in nodes])  # type: ignore[union-attr]
    live = (reach > 0) & (weights > 0)
    s = np.ones_like(reach)
    if live.any():
        s[live] = reach[live] ** share / weights[live].astype(np.float64) ** (1 - share)
        s[live] /= np.exp(np.mean(np.log(s[live])))
    return np.asarray(np.clip(s, 2.0**-20, 2.0**20), np.float32)


class _Trial:
    """The readers of one value, undivided and with each share."""

    def __init__(self, nodes: list[Node], axis: int, reach: np.ndarray | None) -> None:
        assert reach is not None
        self.nodes, self.axis = nodes, axis
        self.divisors = [np.ones(reach.size, np.float32), *(_divisors(reach, nodes, a) for a in SHARES)]
        self.noise = np.zeros(len(self.divisors))
        self.limits = [reach / s for s in self.divisors]
        self.layers: dict[Node, list[QuantizedLayer]] = {}

    def see(self, node: Node, x: np.ndarray, y: np.ndarray) -> None:
        if node.op == "matmul":
            rows = x.reshape(-1, x.shape[-1])[:ROWS]
            x, y = rows, y.reshape(-1, y.shape[-1])[:ROWS]
        shape = [-1] + [1] * (x.ndim - 1 - (x.ndim - 1 if node.op == "matmul" else 1))
        if node not in self.layers:
            self.layers[node] = [
                QuantizedLayer(node, None if not i else _factors(node, s)) for i, s in enumerate(self.divisors)
            ]
        for i, (s, layer) in enumerate(zip(self.divisors, self.layers[node], strict=True)):
            most = float(self.limits[i].max())
            near = rounded(x / s.reshape(shape), grid_of(-most if x.min(initial=0) < 0 else 0.0, most))
            error = layer([near])[0] - y
            self.noise[i] += float(np.vdot(error, error))

    @property
    def best(self) -> np.ndarray | None:
        i = int(np.argmin(self.noise))
        return self.divisors[i] if i and self.noise[i] < GAIN * self.noise[0] else None


def _factors(node: Node, s: np.ndarray) -> np.ndarray:
    """What the node's weights are multiplied by, as they broadcast."""
    w = node.operand(1).tensor.static_shape
    if node.op == "conv":
        groups = int(node.attrs["groups"])
        each = np.repeat(s.reshape(groups, -1), w[0] // groups, axis=0)
        return np.asarray(each.reshape(w[0], w[1], *[1] * (len(w) - 2)))
    return np.asarray(s.reshape(-1, *[1] * (len(w) - 1)))
