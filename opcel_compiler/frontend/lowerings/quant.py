"""Quantization, and products of quantized numbers.

With constant weights a product is one of dequantized numbers, quantized again; else integers are summed in i32
(`passes/integer_sums.py` says how), scaled and rounded once.
"""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.nn import convolution
from opcel_compiler.ir.dims import Dim, equal
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, I8, I32, U8

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
    if zero is not None and zero.constant is not None and zero.tensor.size != 1:
        steps = zero.constant.array
        if steps.size and (steps == steps.flat[0]).all():
            return x_split, scale, c.constant(np.asarray(steps.flat[0], steps.dtype))
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
    scale, zero = range_of(c, c.x())
    return [c.emit("quantize", c.x(), scale, zero, dtype=U8), scale, zero]


def range_of(c: Lowering, x: Value) -> tuple[Value, Value]:
    """(scale, zero point) of u8 for all of x and 0."""
    axes, nought = tuple(range(c.rank(x))), c.number(0, x)
    high = c.emit("max", c.emit("reduce_max", x, axes=axes, keepdims=False), nought)
    low = c.emit("min", c.emit("reduce_min", x, axes=axes, keepdims=False), nought)
    width = c.emit("where", c.emit("equal", high, low), c.number(1, x), c.emit("sub", high, low))
    scale = c.emit("div", width, c.number(255, x))
    return scale, c.emit("quantize", c.emit("neg", low), scale, dtype=U8)


# -- products ---------------------------------------------------------------------------------------------------------


def whole(c: Lowering, x: Value, zero: Value | None, axis: int) -> Value:
    """x - zero point in i32; a vector of zero points lies along `axis` (negative) of x."""
    value = c.cast(x, I32)
    if zero is None or is_constant(zero, 0):
        return value
    return c.emit("sub", value, c.cast(along(c, zero, -1 - axis), I32))


def is_constant(v: Value, number: int) -> bool:
    """Whether every element of `v` is known to be `number`."""
    return v.constant is not None and bool(np.all(v.constant.array == number))


def weights_for_integers(w: Value, zero: Value | None) -> bool:
    """Whether kernels of integers may multiply by `w`: constant, and symmetric about its zero point."""
    if w.constant is None or w.tensor.dtype not in (I8, U8):
        return False
    if w.tensor.dtype == I8:
        return zero is None or is_constant(zero, 0)
    return zero is not None and is_constant(zero, 128)


def real(c: Lowering, x: Value, scale: Value, zero: Value | None, axis: int = 0) -> Value:
    """The numbers that `x` stands for, in f32; vectors of scales and zero points lie along `axis` of x."""
    points = [] if zero is None else [spread(c, x, zero, axis, 0)[1]]
    return c.emit("dequantize", x, spread(c, x, scale, axis, 0)[1], *points, dtype=F32)


def stepped(c: Lowering, y: Value, scale: Value, zero: Value | None, like: Value) -> Value:
    """`y` quantized, to the type of `zero`, or of `like` where there is none."""
    points = [] if zero is None else [along(c, zero, 0)]
    return c.emit("quantize", y, along(c, scale, 0), *points, dtype=c.dtype(like if zero is None else zero))


@lowers("MatMulInteger", first=10)
def matmul_integer(c: Lowering) -> Value:
    return c.emit("matmul", whole(c, c.x(0), c.opt(2), -2), whole(c, c.x(1), c.opt(3), -1))


DEEPEST = 1 << 16
"""Sums of so many products of integers of 8 bits can be added up exactly, in parts, in f32."""


def integer_convolution(c: Lowering, x: Value, zx: Value | None, w: Value, zw: Value | None) -> Value:
    """The sums of a convolution of integers, in i32."""
    depth: Dim = 1
    for d in c.shape(w)[1:]:
        depth = depth * d
    if not isinstance(depth, int) or depth > DEEPEST:
        raise Unsupported(f"sums of {depth} products of integers are not exact in f32")
    return convolution(c, whole(c, x, zx, -1), whole(c, w, zw, -c.rank(x)), None)


@lowers("ConvInteger", first=10)
def conv_integer(c: Lowering) -> Value:
    return integer_convolution(c, c.x(0), c.opt(2), c.x(1), c.opt(3))


def requantized(c: Lowering, real: Value, zero: Value | None, default: Value) -> Value:
    """f32 numbers rounded, in the type of `zero`, or of `default` where there is none."""
    dtype = c.dtype(default if zero is None else zero)
    one = c.constant(np.array(1, np.float32))
    return c.emit("quantize", real, one, *([] if zero is None else [zero]), dtype=dtype)


def _rescale(c: Lowering, a: Value, b: Value, y: Value) -> Value:
    """a b / y in f32."""
    return c.emit("div", c.emit("mul", c.cast(a, F32), c.cast(b, F32)), c.cast(y, F32))


def along(c: Lowering, p: Value, after: int) -> Value:
    """A scale or zero point as a number, or as a vector with `after` axes of extent 1 behind it."""
    shape = c.shape(p)
    if not shape or shape == (1,):
        return c.reshape(p, ())
    return p if len(shape) > 1 else c.reshape(p, (*shape, *[1] * after))


@lowers("QLinearMatMul", first=10)
def qlinear_matmul(c: Lowering) -> Value:
    a, b, zero = c.x(0), c.x(3), c.opt(7)
    if weights_for_integers(b, c.opt(5)) and c.shape(c.x(1)) in ((), (1,)):
        product = c.emit("matmul", real(c, a, c.x(1), c.opt(2)), real(c, b, c.x(4), c.opt(5), -1))
        return stepped(c, product, c.x(6), zero, a)
    sums = c.cast(c.emit("matmul", whole(c, a, c.opt(2), -2), whole(c, b, c.opt(5), -1)), F32)
    scale = _rescale(c, along(c, c.x(1), 1), along(c, c.x(4), 0), along(c, c.x(6), 0))
    return requantized(c, c.emit("mul", sums, scale), None if zero is None else along(c, zero, 0), a)


@lowers("QLinearConv", first=10)
def qlinear_conv(c: Lowering) -> Value:
    x, w, zero, bias = c.x(0), c.x(3), c.opt(7), c.opt(8)
    n = c.rank(x)
    if weights_for_integers(w, c.opt(5)) and (bias is None or bias.constant is not None):
        if bias is not None:
            scale = c.emit("mul", along(c, c.x(1), 0), along(c, c.x(4), 0))
            bias = c.emit("dequantize", bias, scale, dtype=F32)
        y = convolution(c, real(c, x, c.x(1), c.opt(2)), real(c, w, c.x(4), c.opt(5), 0), bias)
        return stepped(c, y, c.x(6), zero, x)
    total = c.cast(integer_convolution(c, x, c.opt(2), w, c.opt(5)), F32)
    if bias is not None:
        total = c.emit("add", total, c.cast(along(c, bias, n - 2), F32))
    scale = _rescale(c, along(c, c.x(1), 0), along(c, c.x(4), n - 2), along(c, c.x(6), 0))
    return requantized(c, c.emit("mul", total, scale), None if zero is None else along(c, zero, 0), x)
