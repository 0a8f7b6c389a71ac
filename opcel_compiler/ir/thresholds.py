"""From what was seen of a value to the range that its grid of 8 bits covers.

Each threshold gives (low, high) with low <= 0 <= high, within the values seen. The formulas of `entropy` and `mse` work
on the histogram alone, vectorised over all candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opcel_compiler.ir.statistics import Histogram, TensorStatistics

Range = tuple[float, float]


@dataclass(frozen=True)
class Grid:
    """q = clamp(round(x / scale) + zero, least, most)."""

    scale: float
    zero: int
    least: int
    most: int

    @property
    def range(self) -> Range:
        return (self.least - self.zero) * self.scale, (self.most - self.zero) * self.scale


def grid_of(low: float, high: float, symmetric: bool = False, bits: int = 8) -> Grid:
    """The grid that covers `low` to `high` and has zero on it: unsigned and affine, or signed and symmetric without its
    lowest value. The scale is an f32; that of an empty range is 1."""
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        most = (1 << (bits - 1)) - 1
        scale = _scale(max(-low, high), most)
        return Grid(scale, 0, -most, most)
    most = (1 << bits) - 1
    scale = _scale(high - low, most)
    return Grid(scale, min(most, max(0, round(-low / scale))), 0, most)


def _scale(extent: float, steps: int) -> float:
    scale = float(np.float32(extent / steps))
    return scale if scale >= np.finfo(np.float32).tiny and math.isfinite(scale) else 1.0


def minmax(t: TensorStatistics, symmetric: bool = False) -> Range:
    """All that was seen."""
    return _within(t, -math.inf, math.inf)


def percentile(t: TensorStatistics, symmetric: bool = False, share: float = 99.99) -> Range:
    """The least range that holds `share` percent: without half of the rest at either end, or symmetric about zero."""
    rest = 1 - share / 100
    if symmetric:
        reach = quantile(t.histogram.magnitudes(), 1 - rest) * t.histogram.width
        return _within(t, -reach, reach)
    low, high = (
        t.histogram.low + quantile(t.histogram.counts, p) * t.histogram.width for p in (rest / 2, 1 - rest / 2)
    )
    return _within(t, low, high)


def quantile(counts: np.ndarray, p: float) -> float:
    """The place, in bins from the first on, below which lies the share `p` (0 to 1), values being even within a bin."""
    sums = np.concatenate([[0.0], np.cumsum(counts, dtype=np.float64)])
    return float(np.interp(p * sums[-1], sums, np.arange(sums.size))) if sums[-1] else 0.0


def entropy(t: TensorStatistics, symmetric: bool = False, levels: int = 128) -> Range:
    """The reach T of magnitudes that loses the least information on `levels` levels of |x|.

    For every number i of bins from `levels` on: P is the first i counts, the last of them with all beyond it added; Q
    the first i counts without that, pooled to `levels` levels and spread evenly over the bins of a level that hold
    anything. T is where sum P ln(P / Q), both normalised, is least (the calibration of TensorRT by relative entropy).
    An unsigned value has all levels of the grid on its one side.
    """
    if not symmetric and (t.minimum >= 0 or t.maximum <= 0):
        levels *= 2
    counts = t.histogram.magnitudes().astype(np.float64)
    if counts.size <= levels:
        return minmax(t)
    ends = np.arange(levels, counts.size + 1)
    loss = _divergences(counts, ends, levels)
    reach = (int(ends[int(np.argmin(loss))]) + 0.5) * t.histogram.width
    return _within(t, -reach, reach)


SMALLEST_SHARE = 1e-9


def _divergences(counts: np.ndarray, ends: np.ndarray, levels: int) -> np.ndarray:
    """sum P ln(P / Q) for each number of bins in `ends`, by prefix sums of counts, of filled bins and of h ln h.

    Within a level Q is S / N for the sum S of its N filled bins, so all bins but the last add h ln h - h ln(S / N)."""
    sums = np.concatenate([[0.0], np.cumsum(counts)])
    filled = np.concatenate([[0.0], np.cumsum(counts > 0)])
    own = np.concatenate([[0.0], np.cumsum(counts * np.log(np.where(counts > 0, counts, 1.0)))])
    borders = (np.arange(levels + 1)[None, :] * ends[:, None]) // levels
    share = np.diff(sums[borders], axis=1)
    mean = share / np.maximum(np.diff(filled[borders], axis=1), 1.0)
    cross = (share * np.log(np.where(mean > 0, mean, 1.0))).sum(axis=1)
    total, kept, last = sums[-1], sums[ends], counts[ends - 1]
    lumped = last + total - kept
    q_last = np.where(last > 0, mean[:, -1], SMALLEST_SHARE * np.maximum(kept, 1.0))
    terms = own[ends - 1] + lumped * np.log(np.where(lumped > 0, lumped, 1.0))
    divergence: np.ndarray = (
        (terms - cross + (last - lumped) * np.log(q_last)) / total - math.log(total) + np.log(np.maximum(kept, 1.0))
    )
    return divergence


MSE_SHARES = np.concatenate([np.geomspace(0.01, 0.2, 16, endpoint=False), np.linspace(0.2, 1.0, 65)])


def mse(t: TensorStatistics, symmetric: bool = False, bits: int = 8) -> Range:
    """The range whose grid has the least mean squared error, values being even within a bin of the histogram.

    A share c of the whole range is searched, on 81 values; for an affine grid then of each end alone.
    """
    low, high = minmax(t)
    shares = MSE_SHARES
    if symmetric:
        reach = max(-low, high)
        best = float(
            shares[int(np.argmin(squared_errors(t.histogram, [(-reach * c, reach * c) for c in shares], True, bits)))]
        )
        return _within(t, -reach * best, reach * best)
    found = _best(t.histogram, [(low * c, high * c) for c in shares], bits)
    if low < 0 < high:
        for _ in range(2):
            found = _best(t.histogram, [found, *((low * c, found[1]) for c in shares)], bits)
            found = _best(t.histogram, [found, *((found[0], high * c) for c in shares)], bits)
    return found


def _best(histogram: Histogram, ranges: list[Range], bits: int) -> Range:
    return ranges[int(np.argmin(squared_errors(histogram, ranges, False, bits)))]


def squared_errors(histogram: Histogram, ranges: list[Range], symmetric: bool, bits: int = 8) -> np.ndarray:
    """f64[ranges]: the mean squared error of the values on the grid of each range.

    The integral of (x - Q(x))^2 from a point of the grid to x is a twelfth of scale^3 for each whole step between, and
    a third of the cube of what is left.
    """
    used = np.flatnonzero(histogram.counts)
    if not used.size:
        return np.zeros(len(ranges))
    first, last = int(used[0]), int(used[-1]) + 1
    x = histogram.edges[first : last + 1][None, :]
    grids = [grid_of(low, high, symmetric, bits) for low, high in ranges]
    scale, zero, least, most = (
        np.array([getattr(g, name) for g in grids], np.float64)[:, None] for name in ("scale", "zero", "least", "most")
    )
    step = np.clip(np.rint(x / scale), least - zero, most - zero)
    rest = x - step * scale
    integral = step * (scale**3 / 12) + rest * rest * rest / 3
    return np.asarray(np.diff(integral, axis=1) @ histogram.counts[first:last] / (histogram.width * histogram.total))


def _within(t: TensorStatistics, low: float, high: float) -> Range:
    return min(0.0, max(low, t.minimum)), max(0.0, min(high, t.maximum))


Threshold = Callable[[TensorStatistics, bool], Range]
THRESHOLDS: dict[str, Threshold] = {"minmax": minmax, "percentile": percentile, "entropy": entropy, "mse": mse}
"""By name, as functions of what was seen and of whether the grid is symmetric."""
