"""Statistics of values by the interpreter, for models that are small or few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.statistics import Histogram, TensorStatistics

Feeds = Mapping[str, np.ndarray]


def interpreted(graph: Graph, samples: Iterable[Feeds], names: Iterable[str]) -> dict[str, TensorStatistics]:
    """What the values `names` are over samples, which are by the names of the graph's inputs."""
    found: dict[str, TensorStatistics] = {}
    wanted = set(names)

    def see(name: str, array: np.ndarray) -> None:
        if name in wanted:
            new = _seen(name, np.asarray(array))
            found[name] = _joined(found[name], new) if name in found else new

    def observe(node: Node, results: Sequence[np.ndarray]) -> None:
        for value, array in zip(node.results, results, strict=True):
            see(value.name, array)

    for feeds in samples:
        for name, array in feeds.items():
            see(name, array)
        run(graph, feeds, observe=observe)
    return found


def _seen(name: str, x: np.ndarray) -> TensorStatistics:
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    return TensorStatistics(name, Histogram.of(x), low, high, 1, 0, low, high)


def _joined(a: TensorStatistics, b: TensorStatistics) -> TensorStatistics:
    low, high = min(a.minimum, b.minimum), max(a.maximum, b.maximum)
    n = a.samples + b.samples

    def mean(x: float, y: float) -> float:
        return (x * a.samples + y * b.samples) / n

    return TensorStatistics(
        a.name, a.histogram.merged(b.histogram, low, high), low, high, n, 0,
        mean(a.mean_minimum, b.mean_minimum), mean(a.mean_maximum, b.mean_maximum),
    )  # fmt: skip
