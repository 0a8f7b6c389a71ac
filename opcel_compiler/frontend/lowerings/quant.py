"""Quantization, and products of quantized numbers: exact in i32, then scaled and rounded once."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.dims import equal
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, I32, U8

MICROSOFT = "com.microsoft"


def spread(c: Lowering, x: Value, p: Value, axis: int, block: int) -> tuple[Value, Value]:
    """`x` and a scale or zero point `p`, shaped to broadcast: p is one number, a vector along `axis`, or has one number
    for each `block` elements along `axis`, for which x is split into blocks where they are whole."""
    shape, given = c.shape(x), c.shape(p)
    if not given or given == (1,):
        return x, c.reshape(p, ())
    axis = c.axis(axis, len(shape))
    if not block:
        if len(given) != 1:
            raise Unsupported(f"a scale of rank {len(given)} without blocks has no lowering")
        return x, c.reshape(p, (given[0], *[1] * (len(shape) - axis - 1)))
    blocks = given[axis]
    if blocks == 1:
        return x, p
    split = (*given[: axis + 1], 1, *given[axis + 1 :])
    if equal(blocks * block, shape[axis]) is True:
        return c.reshape(x, (*shape[:axis], blocks, block, *shape[axis + 1 :])), c.reshape(p, split)
    wide = c.emit("expand", c.reshape(p, split), shape=(*given[: axis + 1], block, *given[axis + 1 :]))
    flat = c.reshape(wide, (*given[:axis], blocks * block, *given[axis + 1 :]))
    return x, c.slice(flat, axis, 0, shape[axis])


def _with_zero(c: Lowering, x: Value, axis: int, block: int) -> tuple[Value, Value, Value | None]:
    """(x, scale, zero point) of inputs 1 and 2, shaped to broadcast."""
    x_split, scale = spread(c, x, c.x(1), axis, block)
    zero = c.opt(2)
    return x_split, scale, None if zero is None else spread(c, x, zero, axis, block)[1]


@lowers("QuantizeLinear", first=10)
@lowers("QuantizeLinear", domain=MICROSOFT, first=1)
def quantize_linear(c: Lowering) -> Value:
    x, zero = c.x(), c.opt(2)
    asked = c.attr_dtype("output_dtype", U8) if c.attr_int("output_dtype", 0) else U8
    dtype = asked if zero is None else c.dtype(zero)
    computed = c.attr_dtype("precision") if c.attr_int("precision", 0) else c.dtype(c.x(1))
    if computed.bits < 16:
        computed = c.dtype(x) if c.dtype(x).is_float else F32
    shape = c.shape(x)
    split, scale, point = _with_zero(c, x, c.attr_int("axis", 1), c.attr_int("block_size", 0))
    attrs = {"dtype": dtype, "saturate": bool(c.attr_int("saturate", 1))}
    operands = [c.cast(split, computed), c.cast(scale, computed)]
    if point is not None and not dtype.is_float:
        operands.append(point)
    return c.reshape(c.emit("quantize", *operands, **attrs), shape)


@lowers("DequantizeLinear", first=10)
@lowers("DequantizeLinear", domain=MICROSOFT, first=1)
def dequantize_linear(c: Lowering) -> Value:
    x = c.x()
    dtype = c.attr_dtype("output_dtype") if c.attr_int("output_dtype", 0) else c.dtype(c.x(1))
    split, scale, point = _with_zero(c, x, c.attr_int("axis", 1), c.attr_int("block_size", 0))
    operands = [split, scale] if point is None or c.dtype(x).is_float else [split, scale, point]
    return c.reshape(c.emit("dequantize", *operands, dtype=dtype), c.shape(x))


@lowers("DynamicQuantizeLinear", first=11)
def dynamic_quantize(c: Lowering) -> list[Value]:
    scale, zero = _range_of(c, c.x())
    return [c.emit("quantize", c.x(), scale, zero, dtype=U8), scale, zero]


def _range_of(c: Lowering, x: Value) -> tuple[Value, Value]:
    """(scale, zero point) of u8 for all of x and 0."""
    axes, nought = tuple(range(c.rank(x))), c.number(0, x)
    high = c.emit("max", c.emit("reduce_max", x, axes=axes, keepdims=False), nought)
    low = c.emit("min", c.emit("reduce_min", x, axes=axes, keepdims=False), nought)
    width = c.emit("where", c.emit("equal", high, low), c.number(1, x), c.emit("sub", high, low))
    scale = c.emit("div", width, c.number(255, x))
    return scale, c.emit("quantize", c.emit("neg", low), scale, dtype=U8)


# -- products ---------------------------------------------------------------------------------------------------------


def _shifted(c: Lowering, x: Value, zero: Value | None, axis: int) -> Value:
    """x - zero point in i32; a vector of zero points lies along `axis` (negative) of x."""
    wide = c.cast(x, I32)
    if zero is None:
        return wide
    shape = c.shape(zero)
    if shape == (1,):
        zero = c.reshape(zero, ())
    elif len(shape) == 1:
        zero = c.reshape(zero, (*shape, *[1] * (-1 - axis)))
    return c.emit("sub", wide, c.cast(zero, I32))


@lowers("MatMulInteger", first=10)
def matmul_integer(c: Lowering) -> Value:
    return c.emit("matmul", _shifted(c, c.x(0), c.opt(2), -2), _shifted(c, c.x(1), c.opt(3), -1))


def requantized(c: Lowering, sums: Value, scale: Value, zero: Value | None, default: Value) -> Value:
    """i32 `sums` times `scale` in the type of `zero`, or of `default` where there is none."""
    real = c.emit("mul", c.cast(sums, F32), c.cast(scale, F32))
    dtype = c.dtype(default if zero is None else zero)
    one = c.constant(np.array(1, np.float32))
    return c.emit("quantize", real, one, *([] if zero is None else [zero]), dtype=dtype)


def _rescale(c: Lowering, a: Value, b: Value, y: Value) -> Value:
    """a b / y in f32."""
    return c.emit("div", c.emit("mul", c.cast(a, F32), c.cast(b, F32)), c.cast(y, F32))


def _along(c: Lowering, p: Value, after: int) -> Value:
    """A scale or zero point as a number, or as a vector with `after` axes of extent 1 behind it."""
    shape = c.shape(p)
    if not shape or shape == (1,):
        return c.reshape(p, ())
    return p if len(shape) > 1 else c.reshape(p, (*shape, *[1] * after))


@lowers("QLinearMatMul", first=10)
def qlinear_matmul(c: Lowering) -> Value:
    a, b, zero = c.x(0), c.x(3), c.opt(7)
    sums = c.emit("matmul", _shifted(c, a, c.opt(2), -2), _shifted(c, b, c.opt(5), -1))
    scale = _rescale(c, _along(c, c.x(1), 1), _along(c, c.x(4), 0), _along(c, c.x(6), 0))
    return requantized(c, sums, scale, None if zero is None else _along(c, zero, 0), a)
