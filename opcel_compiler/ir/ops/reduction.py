"""Reductions along axes and over sliding windows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from opcel_compiler.ir.dims import Dim, product
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import accumulator, array_at, check_axis, quiet, tensor_of, unknown_rank, widen
from opcel_compiler.ir.ops.windows import check_window, padded, taps, window_counts
from opcel_compiler.ir.types import I64, DType, TensorType, Type, dtype_of


def _input_size(operands: Operands, _: Sequence[Type], __: Attrs) -> Dim:
    x = tensor_of(operands, 0)
    return 0 if x.shape is None else product(x.shape)


def _reduced(x: TensorType, axes: tuple[int, ...], keepdims: bool, dtype: DType) -> tuple[Type, ...]:
    if x.shape is None:
        return unknown_rank(dtype)
    for axis in axes:
        check_axis(axis, len(x.shape))
    if list(axes) != sorted(set(axes)):
        raise InferenceError(f"axes={axes} must be sorted and distinct")
    if keepdims:
        return (TensorType(dtype, tuple(1 if i in axes else d for i, d in enumerate(x.shape))),)
    return (TensorType(dtype, tuple(d for i, d in enumerate(x.shape) if i not in axes)),)


Reduce = Callable[[np.ndarray, tuple[int, ...], bool], Any]


def lowest(dtype: np.dtype) -> Any:
    """The value that max ignores."""
    d = dtype_of(np.empty(0, dtype))
    return -np.inf if d.kind == "f" else False if d.kind == "b" else np.iinfo(dtype).min


def highest(dtype: np.dtype) -> Any:
    """The value that min ignores."""
    d = dtype_of(np.empty(0, dtype))
    return np.inf if d.kind == "f" else True if d.kind == "b" else np.iinfo(dtype).max


def _sum(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    return x.sum(axes, dtype=accumulator(x.dtype), keepdims=keep)


def _prod(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    return x.prod(axes, dtype=accumulator(x.dtype), keepdims=keep)


def _max(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    return x.max(axes, keepdims=keep, initial=lowest(x.dtype))


def _min(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    return x.min(axes, keepdims=keep, initial=highest(x.dtype))


def _mean(x: np.ndarray, axes: tuple[int, ...], keep: bool) -> Any:
    count = math.prod(x.shape[i] for i in axes)
    if x.dtype.kind == "f":
        return x.sum(axes, dtype=np.float64, keepdims=keep) / np.float64(count)
    return np.trunc(x.sum(axes, dtype=x.dtype, keepdims=keep) / max(count, 1))


def _reduce(name: str, summary: str, fn: Reduce, kinds: str = "fiu") -> None:
    def infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
        x = tensor_of(operands, 0, kinds)
        return _reduced(x, attrs["axes"], attrs["keepdims"], x.dtype)

    @quiet
    def evaluate(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
        x = array_at(arrays, 0)
        if not attrs["axes"]:
            return (x,)
        return (np.asarray(fn(widen(x), attrs["axes"], attrs["keepdims"])).astype(x.dtype, copy=False),)

    attrs = (AttrDef("axes", "ints"), AttrDef("keepdims", "bool"))
    define(name, summary, "x", infer, evaluate, attrs, flops=_input_size, traits="reduction")


_reduce("reduce_sum", "Sum over axes", _sum)
_reduce("reduce_mean", "Mean over axes; of integers, cut toward 0, and 0 of none", _mean)
_reduce("reduce_max", "Largest over axes; NaN if any is", _max, "fiub")
_reduce("reduce_min", "Smallest over axes; NaN if any is", _min, "fiub")
_reduce("reduce_prod", "Product over axes", _prod)


def _extreme_index(name: str, summary: str, pick: Callable[..., Any]) -> None:
    def infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
        return _reduced(tensor_of(operands, 0, "fiu"), (attrs["axis"],), attrs["keepdims"], I64)

    def evaluate(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
        x, axis = widen(array_at(arrays, 0)), attrs["axis"]
        if x.shape[axis] == 0:
            return (np.asarray(np.zeros(x.shape, np.int64).sum(axis, keepdims=attrs["keepdims"])),)
        found = pick(np.flip(x, axis) if attrs["last"] else x, axis=axis, keepdims=attrs["keepdims"])
        return (np.asarray(x.shape[axis] - 1 - found if attrs["last"] else found).astype(np.int64, copy=False),)

    attrs = (AttrDef("axis", "int"), AttrDef("keepdims", "bool"), AttrDef("last", "bool", False))
    define(name, summary, "x", infer, evaluate, attrs, flops=_input_size, traits="reduction")


_extreme_index("arg_max", "Index of the largest along axis: the first such, or the last; 0 of none", np.argmax)
_extreme_index("arg_min", "Index of the smallest along axis: the first such, or the last; 0 of none", np.argmin)

# -- pools -----------------------------------------------------------------------------------------------------------

_POOL = (AttrDef("kernel", "ints"), AttrDef("strides", "ints"), AttrDef("pads", "ints"), AttrDef("dilations", "ints"))
_CEIL = AttrDef("ceil_mode", "bool", False)


def _infer_pool(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x = tensor_of(operands, 0, "fiu")
    if x.shape is None:
        return (x,)
    if len(x.shape) < 3:
        raise InferenceError(f"x has rank {len(x.shape)}; a pool needs spatial axes")
    check_window(len(x.shape) - 2, attrs, "kernel", "strides", "dilations")
    return (TensorType(x.dtype, x.shape[:2] + window_counts(x.shape[2:], attrs["kernel"], attrs)),)


def _counts(x: np.ndarray, attrs: Attrs) -> list[int]:
    return [int(c) for c in window_counts(x.shape[2:], attrs["kernel"], attrs) if isinstance(c, int)]


@quiet
def _max_pool(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = widen(array_at(arrays, 0))
    counts, low = _counts(x, attrs), lowest(x.dtype)
    source = padded(x, attrs["kernel"], counts, attrs, low)
    y = np.full((*x.shape[:2], *counts), low, x.dtype)
    for _, index in taps(attrs["kernel"], counts, attrs):
        np.maximum(y, source[index], out=y)
    return (y.astype(array_at(arrays, 0).dtype, copy=False),)


def _window_sizes(size: int, i: int, count: int, attrs: Attrs) -> np.ndarray:
    """How many elements each window along spatial axis `i` averages over: those inside the input or, with
    count_include_pad, inside the input and its pads."""
    n = len(attrs["kernel"])
    before, after = attrs["pads"][i], attrs["pads"][n + i]
    low, high = (-before, size + after) if attrs["count_include_pad"] else (0, size)
    taps_at = np.arange(attrs["kernel"][i]) * attrs["dilations"][i]
    at = np.arange(count)[:, None] * attrs["strides"][i] - before + taps_at
    out: np.ndarray = ((at >= low) & (at < high)).sum(1)
    return out


@quiet
def _avg_pool(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = widen(array_at(arrays, 0))
    counts = _counts(x, attrs)
    source = padded(x, attrs["kernel"], counts, attrs, 0)
    y = np.zeros((*x.shape[:2], *counts), np.float64)
    for _, index in taps(attrs["kernel"], counts, attrs):
        y += source[index]
    for i, count in enumerate(counts):
        sizes = _window_sizes(x.shape[2 + i], i, count, attrs)
        y /= sizes.reshape(-1, *[1] * (len(counts) - 1 - i))
    return (y.astype(array_at(arrays, 0).dtype, copy=False),)


def _pool_flops(_: Operands, results: Sequence[Type], attrs: Attrs) -> Dim:
    y = results[0]
    return product(attrs["kernel"]) * product(y.shape) if isinstance(y, TensorType) and y.shape is not None else 0


define(
    "max_pool",
    "Largest element of each window; pads never win",
    "x",
    _infer_pool,
    _max_pool,
    (*_POOL, _CEIL),
    flops=_pool_flops,
    traits="reduction",
)


def _infer_arg_max_pool(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    (y,) = _infer_pool(operands, attrs)
    assert isinstance(y, TensorType)
    return (TensorType(I64, y.shape),)


@quiet
def _arg_max_pool(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = widen(array_at(arrays, 0))
    counts = _counts(x, attrs)
    source = padded(x, attrs["kernel"], counts, attrs, lowest(x.dtype))
    places = padded(np.arange(x.size).reshape(x.shape), attrs["kernel"], counts, attrs, -1)
    best = np.full((*x.shape[:2], *counts), lowest(x.dtype), x.dtype)
    at = np.full(best.shape, -1)
    for _, index in taps(attrs["kernel"], counts, attrs):
        value, place = source[index], places[index]
        better = (place >= 0) & ((at < 0) | (value > best) | (np.isnan(value) & ~np.isnan(best)))
        best, at = np.where(better, value, best), np.where(better, place, at)
    return (np.maximum(at, 0),)


define(
    "arg_max_pool",
    "Where the largest element of each window lies in x as a flat array: the first of equals; a NaN wins",
    "x",
    _infer_arg_max_pool,
    _arg_max_pool,
    (*_POOL, _CEIL),
    flops=_pool_flops,
    traits="reduction",
)
define(
    "avg_pool",
    "Mean of each window over its elements inside the input or, with count_include_pad, its pads",
    "x",
    _infer_pool,
    _avg_pool,
    (*_POOL, AttrDef("count_include_pad", "bool", False), _CEIL),
    flops=_pool_flops,
    traits="reduction",
)
