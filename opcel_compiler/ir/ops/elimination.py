"""Elimination of square matrices."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.opdef import Arrays, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import array_at, quiet, tensor_of, unify
from opcel_compiler.ir.types import TensorType, Type


def _infer_echelon(operands: Operands, _: Attrs) -> tuple[Type, ...]:
    x = tensor_of(operands, 0, "f")
    if x.shape is None:
        return (x,)
    if len(x.shape) < 2:
        raise InferenceError(f"x has matrices as its last two axes, and is {x}")
    unify(x.shape[-2], x.shape[-1], "rows and columns differ")
    return (TensorType(x.dtype, x.shape),)


@quiet
def _echelon(arrays: Arrays, _: Attrs) -> tuple[np.ndarray, ...]:
    x = array_at(arrays, 0)
    out = x.astype(np.float64).reshape(-1, *x.shape[-2:])
    for a in out:
        for k in range(a.shape[0]):
            pivot = k + int(np.argmax(np.abs(a[k:, k])))
            if pivot != k:
                a[[k, pivot]] = a[[pivot, k]]
                a[pivot] = -a[pivot]
            if a[k, k] != 0:
                a[k + 1 :] -= np.outer(a[k + 1 :, k] / a[k, k], a[k])
                a[k + 1 :, k] = 0
    return (out.reshape(x.shape).astype(x.dtype),)


define(
    "echelon",
    "Each matrix [..., n, n] as an upper triangle of the same determinant, by elimination with the largest pivot of "
    "each column",
    "x",
    _infer_echelon,
    _echelon,
)
