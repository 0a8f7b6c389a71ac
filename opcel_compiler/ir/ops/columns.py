"""Windows of images as columns, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opcel_compiler.ir.dims import Dim, equal, floordiv, mod, product
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import (
    array_at,
    ints,
    optional_array,
    optional_tensor,
    quiet,
    same_dtype,
    tensor_of,
    unify,
    unknown_rank,
    widen,
)
from opcel_compiler.ir.ops.windows import check_window
from opcel_compiler.ir.types import TensorType, Type

_WINDOW = (AttrDef("strides", "ints"), AttrDef("pads", "ints"), AttrDef("dilations", "ints"))


def _infer_deform_columns(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, offset, mask = tensor_of(operands, 0, "f"), tensor_of(operands, 1, "f"), optional_tensor(operands, 2)
    same_dtype((x, offset) if mask is None else (x, offset, mask))
    check_window(2, attrs, "kernel", "strides", "dilations")
    if x.shape is None or offset.shape is None:
        return unknown_rank(x.dtype)
    if len(x.shape) != 4 or len(offset.shape) != 4:
        raise InferenceError(f"x and offset are [n, c, h, w], not {x} and {offset}")
    taps, groups = product(attrs["kernel"]), attrs["groups"]
    unify(offset.shape[1], 2 * taps * groups, "offsets of each place")
    if mask is not None and mask.shape is not None:
        unify(mask.shape[1], taps * groups, "factors of each place")
    if equal(mod(x.shape[1], groups), 0) is False:
        raise InferenceError(f"{x.shape[1]} channels are not divisible into {groups} groups")
    n = unify(x.shape[0], offset.shape[0], "the batches differ")
    return (TensorType(x.dtype, (n, x.shape[1] * taps, *offset.shape[2:])),)


@quiet
def _deform_columns(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, offset, mask = widen(array_at(arrays, 0)), widen(array_at(arrays, 1)), optional_array(arrays, 2)
    (n, c, h, w), (kh, kw), groups = x.shape, attrs["kernel"], attrs["groups"]
    oh, ow = offset.shape[2:]
    shifts = offset.reshape(n, groups, kh, kw, 2, oh, ow)
    factors = np.ones((n, groups, kh, kw, oh, ow)) if mask is None else widen(mask).reshape(n, groups, kh, kw, oh, ow)
    grid = np.ogrid[:kh, :kw, :oh, :ow]
    (dh, dw), (sh, sw), pads = attrs["dilations"], attrs["strides"], attrs["pads"]
    rows = shifts[:, :, :, :, 0] + (grid[0] * dh + grid[2] * sh - pads[0])
    columns = shifts[:, :, :, :, 1] + (grid[1] * dw + grid[3] * sw - pads[1])
    images = x.reshape(n, groups, c // groups, h * w)
    y = np.zeros((n, groups, c // groups, kh * kw * oh * ow))
    for i in (0, 1):
        for j in (0, 1):
            r, s = np.floor(rows) + i, np.floor(columns) + j
            weight = (1 - np.abs(rows - r)) * (1 - np.abs(columns - s)) * factors
            inside = (r >= 0) & (r < h) & (s >= 0) & (s < w)
            place = (np.where(inside, r, 0) * w + np.where(inside, s, 0)).astype(np.int64).reshape(n, groups, 1, -1)
            value = np.take_along_axis(images, place, 3) * weight.reshape(n, groups, 1, -1)
            y += np.where(inside.reshape(n, groups, 1, -1), value, 0)
    return (y.reshape(n, c * kh * kw, oh, ow).astype(array_at(arrays, 0).dtype),)


define(
    "deform_columns",
    "For each element of a window and each place of it, x [n, c, h, w] interpolated at the element's position plus "
    "offset [n, groups · taps · (row, column), places...], zero outside, times mask [n, groups · taps, places...]",
    "x offset mask?",
    _infer_deform_columns,
    _deform_columns,
    (AttrDef("kernel", "ints"), *_WINDOW, AttrDef("groups", "int", 1)),
)


def _infer_col2im(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, size, kernel = tensor_of(operands, 0, "f"), attrs["size"], attrs["kernel"]
    rank = len(size)
    check_window(rank, {**attrs, "kernel": (1,) * rank}, "strides", "dilations")
    if len(kernel) != rank:
        raise InferenceError(f"kernel={kernel} and size={size} differ in length")
    if x.shape is None:
        return unknown_rank(x.dtype)
    if len(x.shape) != 3:
        raise InferenceError(f"x is [n, channels · kernel, places], not {x}")
    if equal(mod(x.shape[1], product(kernel)), 0) is False:
        raise InferenceError(f"{x.shape[1]} rows are no multiple of the kernel's {product(kernel)} elements")
    unify(x.shape[2], product(places(size, kernel, attrs)), "the places of the windows")
    return (TensorType(x.dtype, (x.shape[0], floordiv(x.shape[1], product(kernel)), *size)),)


def places(size: Sequence[Dim], kernel: Sequence[Dim], attrs: Attrs) -> tuple[Dim, ...]:
    """How many windows fit along each axis."""
    n = len(size)
    return tuple(
        floordiv(d + attrs["pads"][i] + attrs["pads"][n + i] - attrs["dilations"][i] * (k - 1) - 1, attrs["strides"][i])
        + 1
        for i, (d, k) in enumerate(zip(size, kernel, strict=True))
    )


@quiet
def _col2im(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = widen(array_at(arrays, 0))
    size, kernel, pads = ints(attrs, "size"), ints(attrs, "kernel"), attrs["pads"]
    rank, counts = len(size), [int(d) for d in places(size, kernel, attrs) if isinstance(d, int)]
    columns = x.reshape(x.shape[0], -1, *kernel, *counts)
    y = np.zeros((*columns.shape[:2], *(d + pads[i] + pads[rank + i] for i, d in enumerate(size))))
    every: list[Any] = [slice(None), slice(None)]
    for tap in np.ndindex(*kernel):
        to = [
            slice(t * d, t * d + (count - 1) * s + 1, s)
            for t, d, s, count in zip(tap, attrs["dilations"], attrs["strides"], counts, strict=True)
        ]
        y[tuple(every + to)] += columns[tuple(every + list(tap))]
    inside = [slice(pads[i], pads[i] + d) for i, d in enumerate(size)]
    return (y[tuple(every + inside)].astype(array_at(arrays, 0).dtype),)


define(
    "col2im",
    "Images of `size` as the sum of windows x [n, c · kernel, places], each added where it was taken from",
    "x",
    _infer_col2im,
    _col2im,
    (AttrDef("size", "dims"), AttrDef("kernel", "dims"), *_WINDOW),
)
