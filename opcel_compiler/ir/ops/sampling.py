"""Images read at other places than their own pixels."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.opdef import Arrays, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import array_at, optional_array, optional_tensor, quiet, tensor_of, unify
from opcel_compiler.ir.types import F32, I32, TensorType, Type

RESAMPLED = ((2, 1), (3, 3))
"""(axis, the operand that holds its places) of a `resample`; the weights follow the places."""


def _resampled(size: Dim, operands: Operands, i: int) -> Dim:
    """The new extent of an axis of `size`, whose places and weights are operands i and i + 1."""
    at, weights = optional_tensor(operands, i), optional_tensor(operands, i + 1)
    if at is None:
        if weights is not None:
            raise InferenceError("weights without places")
        return size
    if at.dtype != I32 or (weights is not None and weights.dtype != F32):
        raise InferenceError("places are i32 and weights f32")
    if at.shape is None:
        raise InferenceError("places have a known rank")
    if len(at.shape) != 2:
        raise InferenceError(f"places are [taps, size], not {at}")
    if weights is None and at.shape[0] != 1:
        raise InferenceError("several taps need weights")
    if weights is not None and weights.shape is not None:
        if len(weights.shape) != 2:
            raise InferenceError(f"weights are [taps, size], not {weights}")
        for a, b in zip(at.shape, weights.shape, strict=True):
            unify(a, b, "the places and weights differ")
    return at.shape[1]


def _infer_resample(operands: Operands, _: Attrs) -> tuple[Type, ...]:
    x = tensor_of(operands, 0)
    if x.shape is None:
        return (TensorType(x.dtype, None),)
    if len(x.shape) != 4:
        raise InferenceError(f"x is [n, c, h, w], not {x}")
    n, c, h, w = x.shape
    return (TensorType(x.dtype, (n, c, _resampled(h, operands, 1), _resampled(w, operands, 3))),)


@quiet
def _resample(arrays: Arrays, _: Attrs) -> tuple[np.ndarray, ...]:
    x = array_at(arrays, 0)
    y = x
    for axis, i in RESAMPLED:
        at, weights = optional_array(arrays, i), optional_array(arrays, i + 1)
        if at is None:
            continue
        at = np.clip(at, 0, y.shape[axis] - 1)
        if weights is None:
            y = np.take(y, at[0], axis)
            continue
        tail = (-1,) if axis == 3 else (-1, 1)
        y = sum(
            (np.take(y.astype(np.float64), p, axis) * w.reshape(tail) for p, w in zip(at, weights, strict=True)),
            np.zeros((*y.shape[:axis], at.shape[1], *y.shape[axis + 1 :])),
        )
    return (y.astype(x.dtype, copy=False),)


define(
    "resample",
    "Images [n, c, h, w] at other rows and columns: each new one is the sum over t of the old ones at places[t, i], "
    "cut to the image, times weights[t, i]; without weights one place each, without places the axis stays",
    "x rows? row_weights? columns? column_weights?",
    _infer_resample,
    _resample,
)
