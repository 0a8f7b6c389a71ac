"""Operators whose results depend in size on data, and the one that makes data a size."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.dims import Dim, as_symbol
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import array_at, at_least, ints, tensor_of
from opcel_compiler.ir.types import I64, TensorType, Type, tensor


def _infer_read_dims(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, symbols = tensor_of(operands, 0, "iu"), attrs["symbols"]
    names = [s.name for d in symbols if (s := as_symbol(d)) is not None]
    if len(set(names)) != len(symbols):
        raise InferenceError(f"symbols={symbols} are not distinct symbols")
    if x.shape is not None and x.size != len(symbols):
        raise InferenceError(f"{x} does not hold {len(symbols)} elements, one for each symbol")
    return ()


define(
    "read_dims",
    "Gives the symbols the values of x's elements, in order; nodes after it may name them",
    "x",
    _infer_read_dims,
    attrs=(AttrDef("symbols", "symbols"),),
    results=0,
)


def _infer_nonzero(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, count = tensor_of(operands, 0), attrs["count"]
    if len(count) != 1:
        raise InferenceError("count holds one dim")
    at_least(count[0], 0, "count")
    rank: Dim | None = x.rank
    return (TensorType(I64, None) if rank is None else tensor(I64, rank, count[0]),)


def _nonzero(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, (count,) = array_at(arrays, 0), ints(attrs, "count")
    out = np.argwhere(x).T.astype(np.int64) if x.ndim else np.zeros((0, int(bool(x))), np.int64)
    if out.shape[1] != count:
        raise ValueError(f"{out.shape[1]} elements are not zero, count is {count}")
    return (out,)


define(
    "nonzero",
    "The indices of the `count` elements of x that are not zero, in row-major order: i64[rank, count]",
    "x",
    _infer_nonzero,
    _nonzero,
    (AttrDef("count", "dims"),),
)
