"""Quantization: numbers on a grid of a scale and a zero point, that broadcast to them."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import (
    array_at,
    broadcasts_to,
    optional_array,
    optional_tensor,
    quiet,
    same_dtype,
    tensor_of,
    widen,
)
from opcel_compiler.ir.ops.elementwise import saturated, saturates
from opcel_compiler.ir.types import DType, TensorType, Type

LARGEST_DEPTH = ((1 << 31) - 1) // (255 * 128)
"""So many products of u8 and s8 cannot leave s32."""


def integer_range(dtype: DType) -> tuple[int, int]:
    """The smallest and the largest value of an integer type."""
    low = -(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0
    return low, low + (1 << dtype.bits) - 1


def _check(operands: Operands, x: TensorType) -> None:
    for i, what in ((1, "scale"), (2, "zero point")):
        t = optional_tensor(operands, i)
        if t is not None and t.shape is not None and x.shape is not None:
            broadcasts_to(t.shape, x.shape, f"the {what}")


def _infer_quantize(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, zero, dtype = tensor_of(operands, 0, "f"), optional_tensor(operands, 2), attrs["dtype"]
    same_dtype((x, tensor_of(operands, 1, "f")))
    if x.dtype.bits > 32:
        raise InferenceError(f"{x.dtype} is not quantized")
    if dtype.bits > (8 if dtype.is_float else 16) or dtype.kind not in "fiu" or dtype.name == "f8e8m0":
        raise InferenceError(f"{dtype} is no type to quantize to")
    if zero is not None and (zero.dtype != dtype or dtype.is_float):
        raise InferenceError(f"a zero point of {zero.dtype} does not go with {dtype}")
    _check(operands, x)
    return (TensorType(dtype, x.shape),)


@quiet
def _quantize(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, scale, zero, dtype = array_at(arrays, 0), array_at(arrays, 1), optional_array(arrays, 2), attrs["dtype"]
    quotient = widen(np.asarray(widen(x) / widen(scale)).astype(x.dtype))
    if dtype.is_float:
        cut = saturates(dtype) and attrs["saturate"]
        return (saturated(quotient, dtype) if cut else quotient.astype(dtype.numpy),)
    low, high = integer_range(dtype)
    grid = np.rint(quotient) + (0 if zero is None else widen(zero).astype(np.float32))
    grid = np.where(grid > low, np.minimum(grid, np.float32(high)), np.float32(low))
    return (grid.astype(np.int32).astype(dtype.numpy),)


define(
    "quantize",
    "x / scale rounded to x's dtype; for integers then to the nearest, ties to even, plus the zero point, cut to the "
    "range (a NaN to its lower end); floats of 8 bits are cut to their range with `saturate`",
    "x scale zero_point?",
    _infer_quantize,
    _quantize,
    (AttrDef("dtype", "dtype"), AttrDef("saturate", "bool", True)),
    traits="elementwise",
)


def _infer_dequantize(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, zero = tensor_of(operands, 0, "fiu"), optional_tensor(operands, 2)
    tensor_of(operands, 1, "f")
    if x.dtype.bits > 32 or attrs["dtype"].kind != "f":
        raise InferenceError(f"a dequantization of {x.dtype} to {attrs['dtype']} is not defined")
    if zero is not None:
        same_dtype((x, zero))
    _check(operands, x)
    return (TensorType(attrs["dtype"], x.shape),)


@quiet
def _dequantize(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, scale, zero = array_at(arrays, 0), array_at(arrays, 1), optional_array(arrays, 2)
    steps = widen(x).astype(np.float32)
    if zero is not None:
        steps = steps - widen(zero).astype(np.float32)
    return (np.asarray(steps * widen(scale)).astype(attrs["dtype"].numpy),)


define(
    "dequantize",
    "(x - zero point) scale, computed in f32 and rounded once to `dtype`",
    "x scale zero_point?",
    _infer_dequantize,
    _dequantize,
    (AttrDef("dtype", "dtype"),),
    traits="elementwise",
)
