"""Operators on the bits of integers, and other readings of the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import array_at, broadcast, present, same_dtype, tensor_of, widen
from opcel_compiler.ir.types import TensorType, Type


def _infer_binary(operands: Operands, _: Attrs) -> tuple[Type, ...]:
    a, b = tensor_of(operands, 0, "iu"), tensor_of(operands, 1, "iu")
    dtype = same_dtype((a, b))
    if a.shape is None or b.shape is None:
        return (TensorType(dtype, None),)
    return (TensorType(dtype, broadcast((a.shape, b.shape))),)


def _binary(name: str, summary: str, fn: Callable[[np.ndarray, np.ndarray], Any], traits: str = "") -> None:
    def evaluate(arrays: Arrays, _: Attrs) -> tuple[np.ndarray, ...]:
        a, b = present(arrays)
        return (np.asarray(fn(widen(a), widen(b))).astype(a.dtype, copy=False),)

    define(name, summary, "a b", _infer_binary, evaluate, traits=f"elementwise {traits}")


def _shift(fn: Callable[[np.ndarray, np.ndarray], Any], signs: bool) -> Callable[[np.ndarray, np.ndarray], Any]:
    def run(a: np.ndarray, b: np.ndarray) -> Any:
        inside = (b >= 0) & (b < a.dtype.itemsize * 8)
        rest = np.where(a < 0, -1, 0).astype(a.dtype) if signs else a.dtype.type(0)
        return np.where(inside, fn(a, np.where(inside, b, 0).astype(a.dtype)), rest)

    return run


_binary("bit_and", "Bits that both have", np.bitwise_and, "commutative")
_binary("bit_or", "Bits that either has", np.bitwise_or, "commutative")
_binary("bit_xor", "Bits that one of them has", np.bitwise_xor, "commutative")
_binary("shift_left", "a 2^b without the bits that leave; 0 for a negative b or all bits", _shift(np.left_shift, False))
_binary("shift_right", "a / 2^b cut down; the sign alone for a negative b or all bits", _shift(np.right_shift, True))

define(
    "bit_not",
    "The other bits",
    "x",
    lambda operands, _: (tensor_of(operands, 0, "iu"),),
    lambda arrays, _: (np.asarray(np.invert(widen(array_at(arrays, 0))), array_at(arrays, 0).dtype),),
    traits="elementwise",
)


def _infer_bit_cast(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, dtype = tensor_of(operands, 0, "fiub"), attrs["dtype"]
    if dtype.kind not in "fiub" or dtype.bits != x.dtype.bits:
        raise InferenceError(f"the bits of {x.dtype} are not those of a {dtype}")
    return (TensorType(dtype, x.shape),)


define(
    "bit_cast",
    "The same bits read as another dtype of the same size",
    "x",
    _infer_bit_cast,
    lambda arrays, attrs: (np.array(array_at(arrays, 0), order="C").view(attrs["dtype"].numpy),),
    (AttrDef("dtype", "dtype"),),
    traits="movement",
)
