"""Products with weights of a few bits, of which each column has one scale for every group of rows."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.dims import ceildiv
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import (
    array_at,
    optional_array,
    optional_tensor,
    quiet,
    same_dtype,
    tensor_of,
    unify,
    unknown_rank,
    widen,
)
from opcel_compiler.ir.ops.contraction import matmul_flops
from opcel_compiler.ir.types import F32, TensorType, Type


def _infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, w, scale = tensor_of(operands, 0, "f"), tensor_of(operands, 1, "iu"), tensor_of(operands, 2, "f")
    zero, group = optional_tensor(operands, 3), attrs["group"]
    if w.dtype.bits not in (4, 8):
        raise InferenceError(f"weights are integers of 4 or 8 bits, not {w.dtype}")
    if scale.dtype != F32:
        raise InferenceError(f"the scales are f32, not {scale.dtype}")
    if group < 1:
        raise InferenceError(f"group={group} must be positive")
    if zero is not None and same_dtype((w, zero)).kind == "i":
        raise InferenceError(f"weights with zero points are unsigned, not {w.dtype}")
    if x.shape is None or w.shape is None:
        return unknown_rank(x.dtype)
    if not x.shape or len(w.shape) != 2:
        raise InferenceError(f"x {x} and w {w} are no rows and a matrix")
    unify(x.shape[-1], w.shape[0], "the contracted sizes differ")
    for t, what in ((scale, "scales"), (zero, "zero points")):
        if t is None or t.shape is None:
            continue
        if len(t.shape) != 2:
            raise InferenceError(f"the {what} have rank {len(t.shape)}, not 2")
        unify(t.shape[0], ceildiv(w.shape[0], group), f"the {what} are not one a group")
        unify(t.shape[1], w.shape[1], f"the {what} are not one a column")
    return (TensorType(x.dtype, (*x.shape[:-1], w.shape[1])),)


def dequantized(w: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, group: int) -> np.ndarray:
    """[k, n] of f32: (w - zero) scale, scale and zero [ceil(k / group), n]."""
    of = np.arange(w.shape[0]) // group
    steps = w.astype(np.float32)
    if zero is not None:
        steps -= zero.astype(np.float32)[of]
    steps *= scale[of]
    return steps


@quiet
def _evaluate(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, w, scale = (array_at(arrays, i) for i in range(3))
    floats = dequantized(w, scale, optional_array(arrays, 3), attrs["group"])
    return (np.asarray(np.matmul(widen(x), floats)).astype(x.dtype, copy=False),)


define(
    "matmul_nbits",
    "x W for W[k, n] = (w[k, n] - zero[k / group, n]) scale[k / group, n]; with `rounded`, x may be rounded to 8 bits, "
    "each row by groups along k",
    "x w scale zero?",
    _infer,
    _evaluate,
    (AttrDef("group", "int"), AttrDef("rounded", "bool", False)),
    flops=matmul_flops,
    traits="contraction",
)
