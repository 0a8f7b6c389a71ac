"""Attention without a softmax, as a recurrence over a matrix that keys write to and queries read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opcel_compiler.ir.dims import Dim, product
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
from opcel_compiler.ir.types import TensorType, Type


def _infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    q, k, v = (tensor_of(operands, i, "f") for i in range(3))
    state, decay, beta = (optional_tensor(operands, i) for i in range(3, 6))
    given = [t for t in (q, k, v, state, decay, beta) if t is not None]
    dtype = same_dtype(given)
    if attrs["delta"] != (beta is not None):
        raise InferenceError("beta belongs to the delta rule, and the delta rule needs it")
    if any(t.shape is None for t in given):
        return unknown_rank(dtype) * 2
    for operand in given:
        if len(operand.dims) != 4:
            raise InferenceError(f"an operand {operand} must have rank 4")
    b, t, heads, size = k.dims
    width = v.dims[3]
    for i in (0, 1):
        unify(q.dims[i], k.dims[i], f"q and k differ along axis {i}")
    unify(q.dims[3], size, "the sizes of q and k differ")
    for i in range(3):
        unify(v.dims[i], k.dims[i], f"v and k differ along axis {i}")
    if isinstance(q.dims[2], int) and isinstance(heads, int) and q.dims[2] % heads:
        raise InferenceError(f"{q.dims[2]} query heads are no multiple of {heads}")
    want = (b, heads, size, width)
    for have, dim in zip(state.dims if state else want, want, strict=True):
        unify(have, dim, "the state is not [batch, heads, key size, value size]")
    for factor, dims in ((decay, (b, t, heads, size)), (beta, (b, t, heads, 1))):
        for i, have in enumerate(factor.dims if factor else ()):
            if not (i >= 2 and have == 1):
                unify(have, dims[i], "decay or beta does not fit k")
    return TensorType(dtype, (b, t, q.dims[2], width)), TensorType(dtype, want)


@quiet
def _evaluate(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    q, k, v = (widen(array_at(arrays, i)) for i in range(3))
    past, decay, beta = (optional_array(arrays, i) for i in range(3, 6))
    (b, t, heads, size), group = k.shape, q.shape[2] // max(k.shape[2], 1)
    state = np.zeros((b, heads, size, v.shape[3]), k.dtype) if past is None else widen(past)
    out = np.empty((b, t, q.shape[2], v.shape[3]), k.dtype)
    for i in range(t):
        if decay is not None:
            state = state * widen(decay[:, i, :, :, None])
        new = v[:, i]
        if beta is not None:
            new = widen(beta[:, i]) * (new - np.einsum("bhdm,bhd->bhm", state, k[:, i]))
        state = state + k[:, i, :, :, None] * new[:, :, None, :]
        out[:, i] = np.einsum("bhd,bhdm->bhm", q[:, i], np.repeat(state, group, axis=1))
    dtype = array_at(arrays, 0).dtype
    return out.astype(dtype, copy=False), state.astype(dtype, copy=False)


def _flops(operands: Operands, results: Sequence[Type], attrs: Attrs) -> Dim:
    k, v, q = tensor_of(operands, 1), tensor_of(operands, 2), tensor_of(operands, 0)
    if k.shape is None or v.shape is None or q.shape is None:
        return 0
    updates = product(k.shape) * v.shape[3] * (4 if attrs["delta"] else 2)
    return updates + product(q.shape) * v.shape[3] * 2


define(
    "linear_attention",
    "Step by step, state = decay · state + k ⊗ v and y = q · state; delta: v is beta · (v - k · decay · state). "
    "q, k, v, y are [batch, step, heads, size], decay is as k and beta [batch, step, heads, 1], both with axes of 1 "
    "where they are shared; the second result is the last state [batch, heads, key size, value size]",
    "q k v state? decay? beta?",
    _infer,
    _evaluate,
    (AttrDef("delta", "bool", False),),
    results=2,
    flops=_flops,
    traits="contraction",
)
