"""Statistics of values by the interpreter, for models that are small or few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.statistics import Histogram, TensorStatistics

Feeds = Mapping[str, np.ndarray]


def interpreted(graph: Graph, samples: Iterable[Feeds], axes: Mapping[str, int | None]) -> dict[str, TensorStatistics]:
    """What the values with these names and axes of channels, counted from the last, are over samples, which are by the
    names of the graph's inputs."""
    found: dict[str, TensorStatistics] = {}

    def see(name: str, array: np.ndarray) -> None:
        if name in axes:
            new = _seen(name, np.asarray(array), axes[name])
            found[name] = _joined(found[name], new) if name in found else new

    def observe(node: Node, results: Sequence[np.ndarray]) -> None:
        for value, array in zip(node.results, results, strict=True):
            see(value.name, array)

    for feeds in samples:
        for name, array in feeds.items():
            see(name, array)
        run(graph, feeds, observe=observe)
    return found


def _seen(name: str, x: np.ndarray, axis: int | None) -> TensorStatistics:
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
    absmax = mean = None
    if axis is not None and x.size:
        channels = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
        absmax, mean = np.abs(channels).max(axis=0), channels.mean(axis=0, dtype=np.float64).astype(np.float32)
    return TensorStatistics(name, Histogram.of(x), low, high, 1, 0, low, high, axis, absmax, mean)


def _joined(a: TensorStatistics, b: TensorStatistics) -> TensorStatistics:
    low, high = min(a.minimum, b.minimum), max(a.maximum, b.maximum)
    samples = (a.samples, b.samples)
    absmax = None if a.absmax is None or b.absmax is None else np.maximum(a.absmax, b.absmax)
    mean = None if a.mean is None or b.mean is None else np.average([a.mean, b.mean], axis=0, weights=samples)
    return TensorStatistics(
        a.name, a.histogram.merged(b.histogram, low, high), low, high, sum(samples), 0,
        float(np.average([a.mean_minimum, b.mean_minimum], weights=samples)),
        float(np.average([a.mean_maximum, b.mean_maximum], weights=samples)), a.axis, absmax, mean,
    )  # fmt: skip
