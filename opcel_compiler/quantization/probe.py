"""What quantization does to each layer by itself: its result from codes, beside its float result on the same input."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from opcel_compiler.ir.codes import rounded, rounded_rows, term_axes, weight_codes, weight_scales
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.interpret import evaluate_node, run
from opcel_compiler.ir.ops.recurrent import SCALE_AT
from opcel_compiler.ir.quantization import CONVOLUTIONS, DYNAMIC, Plan
from opcel_compiler.ir.recurrent import RECURRENT
from opcel_compiler.quantization.layers import root

Feeds = Mapping[str, np.ndarray]
Operands = Sequence["np.ndarray | None"]
"""Those of a node; a constant may be left out."""
See = Callable[[int, Node, Operands, np.ndarray], None]
"""Called with the number of the sample, a layer, its operands without constants, and its first result."""
KL_BINS = 256
KL_MOST = 1 << 16
"""The elements of a result, evenly spread, whose distribution is compared."""


def visit(graph: Graph, samples: Iterable[Feeds], nodes: Iterable[Node], see: See) -> list[dict[str, np.ndarray]]:
    """Run `graph` on samples by the interpreter and show `see` the operands and the first result of each of `nodes`;
    gives the outputs, sample by sample.

    An operand is held from when it is made to the last of these nodes that reads it.
    """
    read, outputs = {n: [None if v is None or v.constant is not None else v for v in n.operands] for n in nodes}, []
    for index, feeds in enumerate(samples):
        waiting = Counter(v for operands in read.values() for v in operands if v is not None)
        held = {v: np.asarray(feeds[v.name]) for v in graph.inputs if v in waiting}
        pending = set(read)

        def observe(node: Node, results: Sequence[np.ndarray], index: int = index) -> None:
            if node in pending:  # noqa: B023
                operands = read[node]
                see(index, node, [None if v is None else held[v] for v in operands], np.asarray(results[0]))  # noqa: B023
                for v in operands:
                    if v is not None:
                        waiting[v] -= 1  # noqa: B023
                        if not waiting[v]:  # noqa: B023
                            del held[v]  # noqa: B023
            for value, array in zip(node.results, results, strict=True):
                if waiting.get(value):  # noqa: B023
                    held[value] = np.asarray(array)  # noqa: B023

        outputs.append(run(graph, feeds, observe=observe))
    return outputs


class QuantizedLayer:
    """A layer with its weights as their codes give them back."""

    def __init__(self, node: Node, factors: np.ndarray | None = None) -> None:
        self.node = node
        self.weights = {i: _Codes(node, i, factors) for i in ((1, 2) if node.op in RECURRENT else (1,))}

    def __call__(self, operands: Operands) -> tuple[np.ndarray, ...]:
        """The results for operands of which the first is rounded already; constants are the layer's own."""
        given = [None if v is None or v.constant is None else np.asarray(v.constant.array) for v in self.node.operands]
        given = [c if c is not None else x for c, x in zip(given, [*operands, *[None] * len(given)], strict=False)]
        for i, codes in self.weights.items():
            given[i] = codes.reals
        if self.node.op in RECURRENT:
            at, r = SCALE_AT[self.node.op], self.weights[1]
            given += [None] * (at + 1 - len(given))
            given[1], given[at] = r.codes, r.scales[..., 0]
        return tuple(map(np.asarray, evaluate_node(self.node, given)))


class _Codes:
    """A constant operand."""

    def __init__(self, node: Node, i: int, factors: np.ndarray | None) -> None:
        data = node.operand(i).constant
        assert data is not None
        w = np.asarray(data.array) if factors is None else np.asarray(data.array * factors, np.float32)
        self.scales = weight_scales(w, term_axes(node.op, w.ndim))
        self.codes = weight_codes(w, self.scales)

    @property
    def reals(self) -> np.ndarray:
        return np.asarray(self.codes.astype(np.float32) * self.scales)


def read_codes(node: Node, operands: Operands, plan: Plan) -> Operands:
    """The operands of a layer as `plan` has it read them: the first from codes."""
    x = operands[0]
    assert x is not None
    if plan.layers[node.results[0].name].scheme == DYNAMIC:
        return [rounded_rows(x), *operands[1:]]
    return [rounded(x, plan.grids[root(node.operand(0)).name]), *operands[1:]]


@dataclass
class Measured:
    """One layer over the samples: `signal` and `noise` are sums of squares of the float result and of what the
    quantized one differs by; the rest is by output channel, for samples of even and of odd number."""

    signal: float = 0.0
    noise: float = 0.0
    counts: list[int] = field(default_factory=lambda: [0, 0])
    sums: list[np.ndarray | float] = field(default_factory=lambda: [0.0, 0.0])
    float_counts: np.ndarray | None = None
    codes_counts: np.ndarray | None = None
    range: tuple[float, float] = (0.0, 0.0)

    def add(self, index: int, y: np.ndarray, got: np.ndarray, axis: int) -> None:
        error = (got - y).astype(np.float64)
        self.signal += float(np.vdot(y, y))
        self.noise += float(np.vdot(error, error))
        by_channel = np.moveaxis(error, axis, -1).reshape(-1, y.shape[axis])
        self.counts[index % 2] += by_channel.shape[0]
        self.sums[index % 2] = self.sums[index % 2] + by_channel.sum(axis=0)
        if self.float_counts is None:
            self.range = (float(y.min(initial=0.0)), float(y.max(initial=0.0)))
            self.float_counts, self.codes_counts = np.zeros(KL_BINS), np.zeros(KL_BINS)
        self.float_counts += _counts(y, self.range)
        self.codes_counts += _counts(got, self.range)

    @property
    def sqnr(self) -> float:
        """Decibels: the power of the float result by that of the difference."""
        return decibels(self.signal, self.noise)

    @property
    def kl(self) -> float:
        """The relative entropy of the quantized result's distribution to the float one's, in nats, over 256 bins."""
        if self.float_counts is None or self.codes_counts is None:
            return 0.0
        p, q = self.float_counts + 0.5, self.codes_counts + 0.5
        p, q = p / p.sum(), q / q.sum()
        return float(max(0.0, np.sum(p * np.log(p / q))))

    @property
    def correction(self) -> np.ndarray | None:
        """What added to each channel makes the mean difference zero; None unless each half of the samples lessens the
        noise of the other, as it would that of data not seen."""
        if not all(self.counts):
            return None
        gains = 0.0
        for one, other in ((0, 1), (1, 0)):
            mean = np.asarray(self.sums[one]) / self.counts[one]
            gain = float(np.sum(2 * mean * self.sums[other] - self.counts[other] * mean * mean))
            if gain <= 0:
                return None
            gains += gain
        if gains < 1e-3 * self.noise:
            return None
        return np.asarray(-(self.sums[0] + np.asarray(self.sums[1])) / sum(self.counts), np.float32)

    def corrected(self, correction: np.ndarray) -> None:
        """Count the noise as it is with the correction."""
        total = self.sums[0] + np.asarray(self.sums[1])
        self.noise += float(np.sum(2 * correction * total + sum(self.counts) * np.square(correction, dtype=np.float64)))


def decibels(signal: float, noise: float) -> float:
    """10 log10 of signal by noise; infinite without noise, minus infinite for noise without signal."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def measure(
    graph: Graph, plan: Plan, samples: Iterable[Feeds]
) -> tuple[dict[str, Measured], list[dict[str, np.ndarray]]]:
    """(each layer that `plan` quantizes, measured with the operands that the float graph gives it; the float graph's
    outputs, sample by sample)."""
    nodes = [n for n in graph.nodes if n.results and plan.quantized(n.results[0].name)]
    layers = {node: QuantizedLayer(node) for node in nodes}
    out = {n.results[0].name: Measured() for n in nodes}

    def see(index: int, node: Node, operands: Operands, y: np.ndarray) -> None:
        got = layers[node](read_codes(node, operands, plan))[0]
        out[node.results[0].name].add(index, y, got, 1 if node.op in CONVOLUTIONS else y.ndim - 1)

    return out, visit(graph, samples, nodes, see)


def _counts(x: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    flat = x.reshape(-1)
    flat = flat[:: max(1, flat.size // KL_MOST)]
    return np.histogram(np.clip(flat, *span), KL_BINS, span if span[0] < span[1] else (span[0] - 1, span[1] + 1))[0]
