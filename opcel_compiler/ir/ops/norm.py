"""Operators on whole rows: softmax and normalisation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from opcel_compiler.ir.dims import Dim, equal, product
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, Operands, define
from opcel_compiler.ir.ops.common import (
    array_at,
    broadcasts_to,
    check_axis,
    optional_array,
    optional_tensor,
    quiet,
    same_dtype,
    tensor_of,
    widen,
)
from opcel_compiler.ir.types import TensorType, Type


def _infer_row(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x = tensor_of(operands, 0, "f")
    for i in range(1, len(operands)):
        side = optional_tensor(operands, i)
        if side is not None:
            same_dtype((x, side))
            if x.shape is not None and side.shape is not None:
                broadcasts_to(side.shape, x.shape, "scale" if i == 1 else "bias")
    if x.shape is not None:
        check_axis(attrs["axis"], len(x.shape))
    return (x,)


def fits_row(side: Sequence[Dim], row: Sequence[Dim]) -> bool:
    """Whether a scale or bias of shape `side` has, in every valid run, an element for each of a row of that shape: no
    size is 1, or a symbol that may be 1, where the row's is another."""
    return len(side) == len(row) and all(
        equal(s, r) is True or (isinstance(s, int) and s != 1) for s, r in zip(side, row, strict=True)
    )


def _flops(per_element: int) -> Callable[[Operands, Sequence[Type], Attrs], Dim]:
    def count(_: Operands, results: Sequence[Type], __: Attrs) -> Dim:
        y = results[0]
        return per_element * product(y.shape) if isinstance(y, TensorType) and y.shape is not None else 0

    return count


def softmax(x: np.ndarray, axis: int) -> np.ndarray:
    """exp(x - max) over its sum along `axis`; the sum is taken in float64."""
    if x.shape[axis] == 0:
        return x
    e = np.exp(x - x.max(axis, keepdims=True))
    total = e.sum(axis, keepdims=True, dtype=np.float64)
    return np.asarray(e / total.astype(x.dtype))


@quiet
def _softmax(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = array_at(arrays, 0)
    return (softmax(widen(x), attrs["axis"]).astype(x.dtype, copy=False),)


@quiet
def _log_softmax(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, axis = array_at(arrays, 0), attrs["axis"]
    if x.shape[axis] == 0:
        return (x,)
    wide = widen(x)
    shifted = wide - wide.max(axis, keepdims=True)
    total = np.exp(shifted).sum(axis, keepdims=True, dtype=np.float64)
    return ((shifted - np.log(total)).astype(x.dtype),)


def _normalised(arrays: Arrays, attrs: Attrs, centre: bool) -> tuple[np.ndarray, ...]:
    x = array_at(arrays, 0)
    wide, axes = x.astype(np.float64), tuple(range(attrs["axis"], x.ndim))
    if math.prod(x.shape) == 0:
        return (x,)
    if centre:
        wide = wide - wide.mean(axes, keepdims=True)
    y = wide / np.sqrt((wide * wide).mean(axes, keepdims=True) + attrs["epsilon"])
    scale, bias = optional_array(arrays, 1), optional_array(arrays, 2)
    if scale is not None:
        y = y * scale.astype(np.float64)
    if bias is not None:
        y = y + bias.astype(np.float64)
    return (y.astype(x.dtype),)


_AXIS = AttrDef("axis", "int")

define("softmax", "exp(x) over its sum along axis", "x", _infer_row, _softmax, (_AXIS,), flops=_flops(4), traits="row")
define(
    "log_softmax",
    "x less the logarithm of the sum of exp(x) along axis",
    "x",
    _infer_row,
    _log_softmax,
    (_AXIS,),
    flops=_flops(4),
    traits="row",
)
define(
    "layer_norm",
    "(x - mean) / sqrt(variance + epsilon) over axis..last, times scale plus bias",
    "x scale? bias?",
    _infer_row,
    quiet(lambda arrays, attrs: _normalised(arrays, attrs, True)),
    (_AXIS, AttrDef("epsilon", "float")),
    flops=_flops(7),
    traits="row",
)
define(
    "rms_norm",
    "x / sqrt(mean of squares + epsilon) over axis..last, times scale",
    "x scale?",
    _infer_row,
    quiet(lambda arrays, attrs: _normalised(arrays, attrs, False)),
    (_AXIS, AttrDef("epsilon", "float")),
    flops=_flops(4),
    traits="row",
)
