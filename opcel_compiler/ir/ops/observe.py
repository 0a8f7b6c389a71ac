"""What calibration learns of a value while a model runs."""

from __future__ import annotations

import math

import numpy as np

from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import array_at, check_axis, quiet, tensor_of, unify
from opcel_compiler.ir.statistics import BINS, LEAST_EXPONENT, Histogram
from opcel_compiler.ir.types import F32, TensorType, Type, tensor

MOST_PARTS = 16
"""Into so many parts a value is divided at most, which are counted at the same time."""
PART_COUNTS = BINS + 16
"""The counters of a part: the bins, then of NaNs and infinities, and the place of the bins."""
EVERY = 8
"""One position in so many is counted of a large image."""


def channels(t: TensorType, axis: int) -> int:
    """The length of `axis`; 1 where that is -1. Raises InferenceError for one that is not a constant."""
    size: Dim = t.dims[axis] if axis >= 0 else 1
    if not isinstance(size, int):
        raise InferenceError(f"axis {axis} of {t} has no constant length")
    return size


def part_channels(count: int) -> int:
    """The floats of a part: the largest magnitudes and the sums of the channels, in whole vectors; the extremes."""
    return 2 * (-(-count // 16) * 16) + 16


def _infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, window = tensor_of(operands, 0, "f"), tensor_of(operands, 1, "f")
    if x.dtype != F32 or window.dtype != F32:
        raise InferenceError(f"{x} is not observed in a window of {window}: both are f32")
    if window.shape is not None:
        if len(window.shape) != 1:
            raise InferenceError(f"the window is {window}, not f32[2]")
        unify(window.shape[0], 2, "the window")
    if x.shape is None:
        by_channel = parts = TensorType(F32, None)
    else:
        if attrs["axis"] != -1:
            check_axis(attrs["axis"], len(x.shape))
        every = attrs["every"]
        if every not in (1, EVERY) or (every > 1 and attrs["axis"] == -1):
            raise InferenceError(f"one position in {every} is counted: one in {EVERY} of an image's, or all")
        count = channels(x, attrs["axis"])
        by_channel, parts = tensor(F32, 2, count), tensor(F32, MOST_PARTS, part_channels(count))
    return (
        tensor("u32", BINS + 1), tensor(F32, 5), by_channel, tensor("u32", MOST_PARTS, PART_COUNTS), parts
    )  # fmt: skip


def _window(x: np.ndarray, exponent: int, start: int) -> tuple[int, int]:
    """(exponent, start) of the bins that `x`, all finite, is counted in."""
    low, high = float(x.min(initial=0.0)), float(x.max(initial=0.0))
    if exponent < LEAST_EXPONENT:
        return Histogram.fitting(low, high)
    first, last = (math.floor(math.ldexp(v, -exponent)) for v in (low, high))
    if not x.size or (start <= math.floor(math.ldexp(float(x.min()), -exponent)) and last < start + BINS):
        return exponent, start
    least, start = Histogram.fitting(low, high)
    return (least, start) if least >= exponent else (exponent, first)


def counted_positions(shape: tuple[int, ...], axis: int, every: int) -> np.ndarray:
    """Where an array of this shape is counted, broadcast: at the positions p of the axes after `axis`, all together,
    with (p + p // every) % every == 0: one of each `every`, in turn at each place."""
    if every == 1:
        return np.ones((1,) * len(shape), bool)
    p = np.arange(math.prod(shape[axis + 1 :])).reshape(shape[axis + 1 :])
    counted: np.ndarray = (p + p // every) % every == 0
    return counted


@quiet
def _observe(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, window, axis = array_at(arrays, 0), array_at(arrays, 1), attrs["axis"]
    finite = np.isfinite(x)
    known = x[finite]
    exponent, start = _window(known, int(window[0]), int(window[1]))
    counted = finite & counted_positions(x.shape, axis, attrs["every"])
    bins = np.floor(np.ldexp(x[counted].astype(np.float64), -exponent)).astype(np.int64) - start
    counts = np.append(np.bincount(bins, minlength=BINS), x.size - known.size).astype(np.uint32)
    seen = np.array([exponent, start, known.min(initial=np.inf), known.max(initial=-np.inf), known.size], np.float32)
    rest = tuple(i for i in range(x.ndim) if i != axis)
    largest = np.max(np.abs(x), axis=rest, where=finite, initial=0).reshape(-1)
    total = np.sum(x, axis=rest, where=finite, dtype=np.float64).reshape(-1)
    scratch = np.zeros((MOST_PARTS, PART_COUNTS), np.uint32), np.zeros((MOST_PARTS, part_channels(largest.size)), "f4")
    return (counts, seen, np.stack([largest, total]).astype(np.float32), *scratch)


define(
    "observe",
    "Counts of the finite elements of x in the 2048 bins of the window (exponent, start; see Histogram), or of a wider "
    "one that holds them all, then of the others; that window, the least, the largest and the number of them; for each "
    "index of `axis` (-1: for all) the largest magnitude and the sum; and scratch memory. An exponent of -127 is no "
    "window. Counts are of one position in `every` of an image (see counted_positions), the rest is of all",
    "x window",
    _infer,
    _observe,
    (AttrDef("axis", "int", -1), AttrDef("every", "int", 1)),
    results=5,
)
