"""The results of an observing model's runs, added up."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from opcel_compiler.calibrate.errors import CalibrationError
from opcel_compiler.calibrate.samples import Feeds, Sample
from opcel_compiler.ir.calibration import CHANNELS, COUNTS, SEEN, WINDOWS
from opcel_compiler.ir.statistics import BINS, Histogram, TensorStatistics
from opcel_compiler.runtime import _runtime


class Runnable(Protocol):
    """A compiled model whose graph has `observe` nodes."""

    def run(self, feeds: Feeds, /) -> Mapping[str, np.ndarray]: ...


@dataclass(frozen=True)
class Observed:
    """A value that is observed: its name, the axis of its channels from its last axis on (-1), or None, and how many
    there are."""

    name: str
    axis: int | None
    channels: int


class NonfiniteError(CalibrationError):
    """A sample made a value that is not finite; `tensor` names it."""


MOST_U32 = 2**32 - 1


class Accumulator:
    """The statistics of the values `observed`, in the order of the model's `observe` nodes; 8 KiB each."""

    def __init__(self, observed: Sequence[Observed]) -> None:
        n = len(observed)
        self.observed = tuple(observed)
        self.samples = 0
        self._windows = np.tile(np.array([-127, 0], np.float32), (n, 1))
        self._counts = np.zeros((n, BINS), np.uint32)  # i64 as soon as a value might have 2^32 elements
        self._elements = 0
        self._extremes = np.tile([np.inf, -np.inf], (n, 1))
        self._sums = np.zeros((n, 3))  # of the samples' least, largest, numbers of elements
        ends = np.cumsum([0, *(2 * o.channels for o in observed)])
        self._slices = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        self._largest = np.zeros(ends[-1], np.float32)  # of each value the channels' magnitudes, then what is not read
        self._totals = np.zeros(ends[-1])  # of each value what is not read, then the channels' sums

    def run(self, model: Runnable, sample: Sample) -> None:
        """Run a sample and add what is observed.

        Raises NonfiniteError, having added nothing, where a value has NaNs or infinities.
        """
        results = model.run({**sample.feeds, WINDOWS: self._windows})
        counts, seen = results[COUNTS].reshape(-1, BINS + 1), results[SEEN].reshape(-1, 5)
        self._elements += int(seen[:, 4].max())
        if self._elements > MOST_U32 and self._counts.dtype != np.int64:
            self._counts = self._counts.astype(np.int64)
        bad, elsewhere = _runtime.add_observed(
            counts, seen, results[CHANNELS], self._windows, self._counts, self._extremes, self._sums, self._largest,
            self._totals,
        )  # fmt: skip
        if bad >= 0:
            name, many = self.observed[bad].name, int(counts[bad, BINS])
            raise NonfiniteError(
                f"{sample} makes {many} elements of %{name} NaN or infinite", sample=sample.index, tensor=name
            )
        for i in elsewhere:
            if seen[i, 2] <= seen[i, 3]:
                self._merge(i, counts[i, :BINS], seen[i])
        self.samples += 1

    def _merge(self, i: int, counts: np.ndarray, seen: np.ndarray) -> None:
        """Add counts of other bins than those of the value's own."""
        made = Histogram(int(seen[0]), int(seen[1]), counts.astype(np.int64))
        merged = self._histogram(i, self._counts[i]).merged(made, *map(float, self._extremes[i]))
        self._counts[i] = merged.counts
        self._windows[i] = merged.exponent, merged.start

    def _histogram(self, i: int, counts: np.ndarray) -> Histogram:
        exponent, start = (int(v) for v in self._windows[i])
        place = (exponent, start) if exponent > -127 else Histogram.fitting(0.0, 0.0)
        return Histogram(*place, counts.astype(np.int64))

    def tensors(self) -> dict[str, TensorStatistics]:
        """By name. They hold sums of channels themselves, so this is the end: nothing can be added."""
        self._largest.flags.writeable = self._totals.flags.writeable = False
        return {o.name: self._tensor(i, o) for i, o in enumerate(self.observed)}

    def _tensor(self, i: int, o: Observed) -> TensorStatistics:
        histogram = self._histogram(i, self._counts[i])
        low, high = (float(v) for v in self._extremes[i]) if histogram.total else (0.0, 0.0)
        means = self._sums[i] / max(1, self.samples)
        each = max(1.0, self._sums[i, 2] / o.channels)
        has = o.axis is not None
        largest, totals = (a[self._slices[i]].reshape(2, -1)[j] for j, a in enumerate((self._largest, self._totals)))
        return TensorStatistics(
            o.name, histogram, low, high, self.samples, 0, float(means[0]), float(means[1]), o.axis,
            largest if has else None, (totals / each).astype(np.float32) if has else None,
        )  # fmt: skip


def tensor_warnings(tensors: Mapping[str, TensorStatistics]) -> list[str]:
    """Of values whose statistics tell little, or tell that 8 bits are too few."""
    out = []
    for t in tensors.values():
        if t.constant:
            out.append(f"%{t.name} is {t.minimum:g} in all samples: a constant, whose scale is taken for 1")
        elif (ratio := spread(t)) > WIDE:
            out.append(
                f"%{t.name} reaches {max(-t.minimum, t.maximum):g}, more than {ratio:.0f} times what 99.9 % of its "
                "elements lie below: 8 bits hold either these or its outliers; SmoothQuant moves outliers of channels "
                "into the weights"
            )
    return out


WIDE = 500.0


def spread(t: TensorStatistics) -> float:
    """The largest magnitude by that below which 99.9 % of the elements lie, or what it is at least: a histogram
    tells nothing finer than a bin, which the largest magnitude is 1024 to 2047 times, or for values of both signs half
    of that."""
    counts = t.histogram.magnitudes()
    below = int(np.searchsorted(np.cumsum(counts), 0.999 * t.count)) + 1
    return max(-t.minimum, t.maximum) / (below * t.histogram.width)
