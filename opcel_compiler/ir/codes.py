"""Codes of 8 bits: what activations become on a grid, and the scales of weights that lose least.

real = (code - zero) scale. Activations have codes of u8 and one grid a tensor; weights have codes of s8 from -127, a
scale for each output channel and no zero point.
"""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.recurrent import RECURRENT
from opcel_compiler.ir.thresholds import Grid

LARGEST = 127
"""The largest code of a weight; the smallest is its negative."""
SMALLEST = np.float32(1e-30)
"""The least largest magnitude of a row with a scale of its own: rows of zeros have a scale too."""
CLIPS = np.linspace(0.5, 1.0, 41)
"""The shares of the largest weight that are tried as the end of a channel's range."""
CHANNELS = 32
"""So many channels are searched at a time, which then stay in cache."""
OUTLIERS = 64
"""How many of a channel's largest weights a clip may cut; a grid that cuts more is never the best one at 8 bits."""


def rounded(x: np.ndarray, grid: Grid) -> np.ndarray:
    """`x`, f32, as its codes on `grid` give it back."""
    scale, zero = np.float32(grid.scale), np.float32(grid.zero)
    codes = np.clip(np.rint(x / scale) + zero, grid.least, grid.most)
    return np.asarray((codes - zero) * scale)


def channel_axis(op: str, rank: int) -> int:
    """The axis of a contraction's weights that counts output channels: convolutions have [out, in, ...], transposed
    ones [in, out, ...], matrix products [..., in, out]."""
    return {"conv": 0, "conv_transpose": 1}.get(op, rank - 1)


def term_axes(op: str, rank: int) -> tuple[int, ...]:
    """The other axes, over which a contraction adds up; of a recurrent layer's [directions, gate rows, in] the last."""
    if op in RECURRENT:
        return (rank - 1,)
    return tuple(i for i in range(rank) if i != channel_axis(op, rank))


def weight_scales(w: np.ndarray, terms: tuple[int, ...], clip: bool = True) -> np.ndarray:
    """A scale for each output channel of weights `w`, f32, with ones in the axes `terms`.

    With `clip` the end of each channel's range is the one that loses least in squares: rounding costs scale²/12 an
    element, and what is cut is summed over the largest elements. A clip is kept where the error, measured, is smaller
    than without. A channel of zeros has scale 1.
    """
    order = [i for i in range(w.ndim) if i not in terms]
    rows = np.moveaxis(w, order, range(len(order))).reshape(int(np.prod([w.shape[i] for i in order])), -1)
    rows = np.ascontiguousarray(rows, np.float32)
    magnitude = np.abs(rows)
    ends = magnitude.max(axis=1, initial=0.0)
    if clip and rows.shape[1] > 1:
        count = min(OUTLIERS, rows.shape[1])
        top = np.partition(magnitude, rows.shape[1] - count, axis=1)[:, -count:].astype(np.float64)
        cost = rows.shape[1] * (ends[:, None] * CLIPS / LARGEST) ** 2 / 12
        for at in range(0, len(rows), CHANNELS):
            block = slice(at, at + CHANNELS)
            cut = top[block, :, None] - ends[block, None, None] * CLIPS
            np.maximum(cut, 0, out=cut)
            np.multiply(cut, cut, out=cut)
            cost[block] += cut.sum(axis=1)
        chosen = (ends * CLIPS[np.argmin(cost, axis=1)]).astype(np.float32)
        better = _squares(rows, chosen) < _squares(rows, ends)
        ends = np.where(better, chosen, ends)
    scales = ends / np.float32(LARGEST)
    scales = np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales).astype(np.float32)
    shape = tuple(1 if i in terms else w.shape[i] for i in range(w.ndim))
    return np.ascontiguousarray(scales.reshape(shape))


def weight_codes(w: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The nearest codes, s8."""
    return np.asarray(np.clip(np.rint(w / scales), -LARGEST, LARGEST).astype(np.int8))


def _squares(rows: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """By row, the sum of squared errors of the codes whose range ends at `ends`."""
    scale = np.maximum(ends / np.float32(LARGEST), np.finfo(np.float32).tiny)[:, None]
    error = np.clip(np.rint(rows / scale), -LARGEST, LARGEST) * scale - rows
    return np.asarray(np.einsum("ij,ij->i", error, error))


def rounded_rows(x: np.ndarray) -> np.ndarray:
    """`x`, f32, as codes with a scale for each row of its last axis give it back; 127 is the row's largest."""
    scale = np.maximum(np.abs(x).max(axis=-1, keepdims=True, initial=0.0), SMALLEST) * np.float32(1 / LARGEST)
    return np.asarray(np.clip(np.rint(x / scale), -128, 127) * scale)
