"""Sliding windows: the output sizes and the strided views that convolutions and pools share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product as cartesian
from typing import Any

import numpy as np

from opcel_compiler.ir.dims import Dim, ceildiv, dim_min, floordiv
from opcel_compiler.ir.opdef import Attrs, InferenceError
from opcel_compiler.ir.ops.common import at_least

Index = tuple[slice, ...]


def check_window(rank: int, attrs: Attrs, *names: str) -> None:
    """Raises InferenceError unless each named attribute has one positive integer per spatial axis, and pads two
    non-negative ones."""
    for name in names:
        if len(attrs[name]) != rank:
            raise InferenceError(f"{name}={attrs[name]} does not have one entry for each of {rank} spatial axes")
        if any(v < 1 for v in attrs[name]):
            raise InferenceError(f"{name}={attrs[name]} must be positive")
    if len(attrs["pads"]) != 2 * rank or any(v < 0 for v in attrs["pads"]):
        raise InferenceError(f"pads={attrs['pads']} must be {2 * rank} non-negative integers")


def window_counts(sizes: Sequence[Dim], kernel: Sequence[int], attrs: Attrs) -> tuple[Dim, ...]:
    """How many windows fit along each spatial axis: ⌊(size + pads - extent) / stride⌋ + 1, extent =
    dilation (kernel - 1) + 1. With ceil_mode the division rounds up, less the windows that would start past the end
    of the input and its leading pad."""
    n, out = len(sizes), []
    pads, strides = attrs["pads"], attrs["strides"]
    for i, size in enumerate(sizes):
        room = size + pads[i] + pads[n + i] - attrs["dilations"][i] * (kernel[i] - 1) - 1
        at_least(room, 0, f"spatial axis {i}: the padded size less the window")
        if attrs.get("ceil_mode"):
            out.append(dim_min(ceildiv(room, strides[i]), floordiv(size + pads[i] - 1, strides[i])) + 1)
        else:
            out.append(floordiv(room, strides[i]) + 1)
    return tuple(out)


def padded(x: np.ndarray, kernel: Sequence[int], counts: Sequence[int], attrs: Attrs, value: Any) -> np.ndarray:
    """`x` [n, c, spatial...] padded with `value` so that `counts` windows lie inside."""
    n, widths = len(kernel), [(0, 0), (0, 0)]
    for i in range(n):
        extent = attrs["dilations"][i] * (kernel[i] - 1) + 1
        need = (counts[i] - 1) * attrs["strides"][i] + extent
        before = attrs["pads"][i]
        widths.append((before, max(0, need - before - x.shape[2 + i])))
    return x if not any(map(sum, widths)) else np.pad(x, widths, constant_values=value)


def windows(x: np.ndarray, kernel: Sequence[int], counts: Sequence[int], attrs: Attrs) -> np.ndarray:
    """The read-only view [n, c, counts..., kernel...] of a padded `x`."""
    s = x.strides
    step = [s[2 + i] * attrs["strides"][i] for i in range(len(kernel))]
    inner = [s[2 + i] * attrs["dilations"][i] for i in range(len(kernel))]
    shape = (*x.shape[:2], *counts, *kernel)
    return np.lib.stride_tricks.as_strided(x, shape, (*s[:2], *step, *inner), writeable=False)


def taps(kernel: Sequence[int], counts: Sequence[int], attrs: Attrs) -> Iterator[tuple[tuple[int, ...], Index]]:
    """For each kernel position, the index into [n, c, spatial...] of the elements it meets in all windows."""
    for k in cartesian(*map(range, kernel)):
        index = [slice(None), slice(None)]
        for i, (at, count) in enumerate(zip(k, counts, strict=True)):
            start, stride = at * attrs["dilations"][i], attrs["strides"][i]
            index.append(slice(start, start + (count - 1) * stride + 1, stride))
        yield k, tuple(index)
