"""Quantization, and products of quantized numbers: sums of integers, exact in f32, then scaled and rounded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.nn import convolution
from opcel_compiler.ir.dims import Dim, equal
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.ops.quant import integer_range
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


@dataclass(frozen=True)
class Whole:
    """A float tensor of integers, none further from zero than `largest`."""

    value: Value
    largest: int


@dataclass(frozen=True)
class Sums:
    """What is to be added up, in f32 or i32: each is a tensor of integers, times its factor."""

    terms: tuple[tuple[int, Value], ...]

    def in_i32(self, c: Lowering) -> Value:
        total: Value | None = None
        for factor, term in self.terms:
            part = c.cast(term, I32)
            part = part if factor == 1 else c.emit("mul", part, c.number(factor, part))
            total = part if total is None else c.emit("add", total, part)
        assert total is not None
        return total

    def in_f32(self, c: Lowering) -> Value:
        """The sum, rounded once."""
        if len(self.terms) > 2 or c.dtype(self.terms[0][1]) != F32:
            return c.cast(self.in_i32(c), F32)
        (factor, total), *rest = self.terms
        total = total if factor == 1 else c.emit("mul", total, c.number(factor, total))
        for _, term in rest:
            total = c.emit("add", total, term)
        return total


EXACT = 1 << 24
"""Sums of integers up to this size are exact in f32."""
DIGIT = 16
"""What a number is divided by into a high and a low part, where its products are too large."""


def whole(c: Lowering, x: Value, zero: Value | None, axis: int) -> Whole:
    """x - zero point in f32; a vector of zero points lies along `axis` (negative) of x."""
    low, high = _bounds(x)
    value = c.cast(x, F32)
    if zero is None:
        return Whole(value, max(-low, high))
    first, last = _bounds(zero)
    if first == last == 0:
        return Whole(value, max(-low, high))
    shape = c.shape(zero)
    if shape == (1,):
        zero = c.reshape(zero, ())
    elif len(shape) == 1:
        zero = c.reshape(zero, (*shape, *[1] * (-1 - axis)))
    return Whole(c.emit("sub", value, c.cast(zero, F32)), max(last - low, high - first))


def _bounds(x: Value) -> tuple[int, int]:
    """The least and the largest element that an integer tensor may have."""
    data = x.constant
    if data is not None and data.array.size:
        wide = data.array.astype(np.int64)
        return int(wide.min()), int(wide.max())
    return integer_range(x.tensor.dtype)


def exact_sums(c: Lowering, a: Whole, b: Whole, depth: Dim, product: Callable[[Value, Value], Value]) -> Sums | None:
    """The sums of `depth` products each of elements of a and b; None when even parts of them are too large for f32."""
    if not isinstance(depth, int):
        return None
    for split_a, split_b in ((False, False), (True, False), (False, True), (True, True)):
        if depth * _part(a, split_a) * _part(b, split_b) <= EXACT:
            parts = [
                (i * j, product(x, y)) for i, x in _parts(c, a, split_a) for j, y in _parts(c, b, split_b)
            ]  # fmt: skip
            return Sums(tuple(sorted(parts, key=lambda p: -p[0])))
    return None


def _part(x: Whole, split: bool) -> int:
    return max(DIGIT - 1, x.largest // DIGIT + 1) if split else x.largest


def _parts(c: Lowering, x: Whole, split: bool) -> list[tuple[int, Value]]:
    if not split:
        return [(1, x.value)]
    high = c.emit("floor", c.emit("mul", x.value, c.number(1 / DIGIT, x.value)))
    low = c.emit("sub", x.value, c.emit("mul", high, c.number(DIGIT, x.value)))
    return [(DIGIT, high), (1, low)]


def product_sums(c: Lowering, a: Whole, b: Whole) -> Sums:
    """Of a matrix product; in i32 where the number of products is not known, or too large."""
    found = exact_sums(c, a, b, c.shape(a.value)[-1], lambda x, y: c.emit("matmul", x, y, exact=True))
    return found or Sums(((1, c.emit("matmul", c.cast(a.value, I32), c.cast(b.value, I32))),))


def convolution_sums(c: Lowering, x: Whole, w: Whole) -> Sums:
    depth: Dim = 1
    for d in c.shape(w.value)[1:]:
        depth = depth * d
    found = exact_sums(c, x, w, depth, lambda a, b: convolution(c, a, b, None, exact=True))
    if found is None:
        raise Unsupported(f"sums of {depth} products of integers are not exact in f32")
    return found


@lowers("MatMulInteger", first=10)
def matmul_integer(c: Lowering) -> Value:
    return product_sums(c, whole(c, c.x(0), c.opt(2), -2), whole(c, c.x(1), c.opt(3), -1)).in_i32(c)


@lowers("ConvInteger", first=10)
def conv_integer(c: Lowering) -> Value:
    n = c.rank(c.x(0))
    return convolution_sums(c, whole(c, c.x(0), c.opt(2), -1), whole(c, c.x(1), c.opt(3), -n)).in_i32(c)


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
    sums = product_sums(c, whole(c, a, c.opt(2), -2), whole(c, b, c.opt(5), -1)).in_f32(c)
    scale = _rescale(c, along(c, c.x(1), 1), along(c, c.x(4), 0), along(c, c.x(6), 0))
    return requantized(c, c.emit("mul", sums, scale), None if zero is None else along(c, zero, 0), a)


@lowers("QLinearConv", first=10)
def qlinear_conv(c: Lowering) -> Value:
    x, w, zero, bias = c.x(0), c.x(3), c.opt(7), c.opt(8)
    n = c.rank(x)
    sums = convolution_sums(c, whole(c, x, c.opt(2), -1), whole(c, w, c.opt(5), -n))
    total = sums.in_f32(c)
    if bias is not None:
        total = c.emit("add", total, c.cast(along(c, bias, n - 2), F32))
    scale = _rescale(c, along(c, c.x(1), 0), along(c, c.x(4), n - 2), along(c, c.x(6), 0))
    return requantized(c, c.emit("mul", total, scale), None if zero is None else along(c, zero, 0), x)
