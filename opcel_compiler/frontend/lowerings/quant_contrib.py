"""Quantized operators of ONNX Runtime: computed between a dequantization and a quantization, products exactly."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.quant import (
    MICROSOFT,
    Whole,
    along,
    product_sums,
    range_of,
    spread,
    whole,
)
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, U8


def real(c: Lowering, x: Value, scale: Value, zero: Value | None, axis: int = 0) -> Value:
    """The numbers that `x` stands for, in f32."""
    points = [] if zero is None else [spread(c, x, zero, axis, 0)[1]]
    return c.emit("dequantize", x, spread(c, x, scale, axis, 0)[1], *points, dtype=F32)


def stepped(c: Lowering, y: Value, scale: Value, zero: Value | None, like: Value) -> Value:
    """`y` quantized, to the type of `zero`, or of `like` where there is none."""
    points = [] if zero is None else [along(c, zero, 0)]
    return c.emit("quantize", y, along(c, scale, 0), *points, dtype=c.dtype(like if zero is None else zero))


@lowers("QLinearAdd", "QLinearMul", domain=MICROSOFT, first=1)
def binary(c: Lowering) -> Value:
    a, b = (real(c, c.x(i), c.x(i + 1), c.opt(i + 2)) for i in (0, 3))
    return stepped(c, c.emit(c.op_type[7:].lower(), a, b), c.x(6), c.opt(7), c.x(0))


@lowers("QLinearSigmoid", "QLinearLeakyRelu", domain=MICROSOFT, first=1)
def unary(c: Lowering) -> Value:
    x = real(c, c.x(0), c.x(1), c.opt(2))
    leaky = c.op_type == "QLinearLeakyRelu"
    y = c.emit("leaky_relu", x, alpha=c.attr_float("alpha", 0.01)) if leaky else c.emit("sigmoid", x)
    return stepped(c, y, c.x(3), c.opt(4), c.x(0))


@lowers("QLinearConcat", domain=MICROSOFT, first=1)
def concat(c: Lowering) -> Value:
    parts = [real(c, c.x(i), c.x(i + 1), c.opt(i + 2)) for i in range(2, len(c.inputs), 3)]
    axis = c.axis(c.attr_int("axis"), c.rank(parts[0]))
    return stepped(c, c.emit("concat", *parts, axis=axis), c.x(0), c.opt(1), c.x(2))


@lowers("QLinearWhere", domain=MICROSOFT, first=1)
def where(c: Lowering) -> Value:
    x, y = (real(c, c.x(i), c.x(i + 1), c.opt(i + 2)) for i in (1, 4))
    return stepped(c, c.emit("where", c.x(0), x, y), c.x(7), c.opt(8), c.x(1))


@lowers("QLinearGlobalAveragePool", domain=MICROSOFT, first=1)
def global_average_pool(c: Lowering) -> Value:
    x = real(c, c.x(0), c.x(1), c.opt(2))
    first = 1 if c.attr_int("channels_last", 0) else 2
    axes = tuple(range(first, first + c.rank(x) - 2))
    return stepped(c, c.emit("reduce_mean", x, axes=axes, keepdims=True), c.x(3), c.opt(4), c.x(0))


@lowers("QLinearSoftmax", domain=MICROSOFT, first=1)
def softmax(c: Lowering) -> Value:
    x = real(c, c.x(0), c.x(1), c.opt(2))
    if c.attr_int("opset", 13) < 13:
        raise Unsupported("the softmax of opsets before 13 over several axes has no quantized lowering")
    axis = c.axis(c.attr_int("axis", -1), c.rank(x))
    return stepped(c, c.emit("softmax", x, axis=axis), c.x(3), c.opt(4), c.x(0))


def _scaled(c: Lowering, sums: Value, scale: Value, bias: Value | None) -> Value:
    y = c.emit("mul", sums, scale)
    return y if bias is None else c.emit("add", y, bias)


@lowers("MatMulIntegerToFloat", domain=MICROSOFT, first=1)
def matmul_to_float(c: Lowering) -> Value:
    sums = product_sums(c, whole(c, c.x(0), c.opt(4), -2), whole(c, c.x(1), c.opt(5), -1)).in_f32(c)
    scale = c.emit("mul", along(c, c.x(2), 1), along(c, c.x(3), 0))
    return _scaled(c, sums, scale, c.opt(6))


@lowers("DynamicQuantizeMatMul", domain=MICROSOFT, first=1)
def dynamic_matmul(c: Lowering) -> Value:
    scale, zero = range_of(c, c.x(0))
    a = c.emit("quantize", c.x(0), scale, zero, dtype=U8)
    sums = product_sums(c, whole(c, a, zero, -2), whole(c, c.x(1), c.opt(3), -1)).in_f32(c)
    return _scaled(c, sums, c.emit("mul", scale, along(c, c.x(2), 0)), c.opt(4))


@lowers("QGemm", domain=MICROSOFT, first=1)
def gemm(c: Lowering) -> Value:
    """alpha A B in integers, plus C, which is in steps of the product's scale."""
    turned = bool(c.attr_int("transB", 0))
    a, b = whole(c, c.x(0), c.opt(2), -1), whole(c, c.x(3), c.opt(5), -2 if turned else -1)
    if c.attr_int("transA", 0):
        a = Whole(c.transpose(a.value, (1, 0)), a.largest)
    if turned:
        b = Whole(c.transpose(b.value, (1, 0)), b.largest)
    sums = product_sums(c, a, b).in_f32(c)
    if c.opt(6) is not None:
        sums = c.emit("add", sums, c.cast(c.x(6), F32))
    scale = c.emit("mul", along(c, c.x(1), 0), along(c, c.x(4), 0))
    if (alpha := c.attr_float("alpha", 1.0)) != 1.0:
        scale = c.emit("mul", scale, c.number(np.float32(alpha), scale))
    y = c.emit("mul", sums, scale)
    return y if c.opt(7) is None else stepped(c, y, c.x(7), c.opt(8), c.x(0))
