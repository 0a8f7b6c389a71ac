"""Weights in a few bits: a scale, and where asked for a zero point, for each column and group of rows of a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from opcel_compiler.ir.ops.nbits import dequantized
from opcel_compiler.ir.types import DTYPES, DType

CLIPS = np.linspace(1.0, 0.6, 9)
"""The shares of a group's range that are tried as the range of its grid."""
AT_ONCE = 1 << 21
"""Elements that are worked on together, so that temporaries stay small."""


class GroupedWeights(NamedTuple):
    """`codes` [k, n], `scale` f32 and `zero` [ceil(k / group), n]: w is about (codes - zero) scale. Without zero points
    codes are signed."""

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    bits: int
    group: int

    @property
    def dtype(self) -> DType:
        return DTYPES[f"{'i' if self.zero is None else 'u'}{self.bits}"]

    def floats(self) -> np.ndarray:
        """What the codes stand for, [k, n] of f32."""
        return dequantized(self.codes, self.scale, self.zero, self.group)


@dataclass(frozen=True)
class WeightScheme:
    """How constant weights of products become integers.

    Groups of `group` rows have a scale for each column, and a zero point unless `symmetric`. `clip`: the grid is that
    of several clipped ranges that loses least in squares, else that of the whole range. The product that gives a
    result of the model, and tables that rows are taken from, have 8 bits. Products of fewer than `least` weights, and
    tables of fewer elements than that, stay float. `found` are weights that were quantized with data, by the name of
    the product's result.
    """

    group: int = 128
    symmetric: bool = False
    clip: bool = True
    least: int = 1 << 16
    found: Mapping[str, GroupedWeights] = field(default_factory=dict)


def grouped(w: np.ndarray, bits: int, group: int, symmetric: bool, clip: bool) -> GroupedWeights:
    """Weights [k, n] of f32 rounded to `bits` bits, symmetric on -2^(bits-1) + 1 .. 2^(bits-1) - 1."""
    k, n = w.shape
    group = min(group, k)
    codes = np.empty((k, n), np.int8 if symmetric else np.uint8)
    scale = np.empty((-(-k // group), n), np.float32)
    zero = np.empty(scale.shape, np.uint8)
    together = max(1, AT_ONCE // max(1, group * n))
    for first in range(0, len(scale), together):
        part = w[first * group : (first + together) * group].astype(np.float32)
        blocks = -(-len(part) // group)
        last = np.repeat(part[-1:], blocks * group - len(part), 0)
        split = np.concatenate([part, last]).reshape(blocks, group, n)
        found = _best(split, bits, symmetric, clip)
        scale[first : first + blocks], zero[first : first + blocks] = found
        step, point = found[0][:, None], found[1][:, None].astype(np.float32)
        made = rounded(split, step, point, bits, symmetric).reshape(-1, n)[: len(part)]
        codes[first * group : first * group + len(part)] = made
    return GroupedWeights(codes, scale, None if symmetric else zero, bits, group)


def rounded(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    """The codes of w, as floats."""
    low, high = code_range(bits, symmetric)
    return np.asarray(np.clip(np.rint(w / scale) + zero, low, high))


def code_range(bits: int, symmetric: bool) -> tuple[int, int]:
    half = 1 << (bits - 1)
    return (1 - half, half - 1) if symmetric else (0, 2 * half - 1)


def grid(low: np.ndarray, high: np.ndarray, bits: int, symmetric: bool) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero point) of ranges that include 0; one of nothing but zeros has scale 1."""
    least, most = code_range(bits, symmetric)
    width = np.maximum(-low, high) if symmetric else (high - low)
    scale = np.where(width > 1e-30, width, most if symmetric else most - least) / np.float32(
        most if symmetric else most - least
    )
    zero = np.zeros_like(scale) if symmetric else np.clip(np.rint(-low / scale), least, most)
    return scale.astype(np.float32), zero.astype(np.float32)


def best_grid(w: np.ndarray, bits: int, symmetric: bool, clip: bool) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero point) for each column of one group, w [rows, columns]."""
    scale, zero = _best(w[None], bits, symmetric, clip)
    return scale[0], zero[0]


def _best(w: np.ndarray, bits: int, symmetric: bool, clip: bool) -> tuple[np.ndarray, np.ndarray]:
    """(scale, zero point) of each group and column of w [groups, rows, columns]."""
    low, high = np.minimum(w.min(1), 0), np.maximum(w.max(1), 0)
    scale, zero = grid(low, high, bits, symmetric)
    if not clip:
        return scale, zero
    least = _loss(w, scale, zero, bits, symmetric)
    for share in CLIPS[1:]:
        tried = grid(low * np.float32(share), high * np.float32(share), bits, symmetric)
        loss = _loss(w, *tried, bits, symmetric)
        better = loss < least
        least = np.where(better, loss, least)
        scale, zero = np.where(better, tried[0], scale), np.where(better, tried[1], zero)
    return scale, zero


def _loss(w: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int, symmetric: bool) -> np.ndarray:
    step, point = scale[:, None], zero[:, None]
    back = (rounded(w, step, point, bits, symmetric) - point) * step
    return np.asarray(np.square(back - w).sum(1))
