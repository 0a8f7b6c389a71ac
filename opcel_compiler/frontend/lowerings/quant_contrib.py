"""Quantized operators of ONNX Runtime: computed between a dequantization and a quantization."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.pooling import mean_of_windows
from opcel_compiler.frontend.lowerings.quant import (
    MICROSOFT,
    along,
    range_of,
    real,
    stepped,
    weights_for_integers,
    whole,
)
from opcel_compiler.frontend.lowerings.recurrent import last_states
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, U8


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


@lowers("QLinearAveragePool", domain=MICROSOFT, first=1)
def average_pool(c: Lowering) -> Value:
    x = real(c, c.x(0), c.x(1), c.opt(2))
    last = c.rank(x) - 1
    if not c.attr_int("channels_last", 0):
        return stepped(c, mean_of_windows(c, x), c.x(3), c.opt(4), c.x(0))
    y = mean_of_windows(c, c.transpose(x, (0, last, *range(1, last))))
    return stepped(c, c.transpose(y, (0, *range(2, last + 1), 1)), c.x(3), c.opt(4), c.x(0))


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


def _plus(c: Lowering, y: Value, bias: Value | None) -> Value:
    return y if bias is None else c.emit("add", y, bias)


@lowers("MatMulIntegerToFloat", domain=MICROSOFT, first=1)
def matmul_to_float(c: Lowering) -> Value:
    a, b = c.x(0), c.x(1)
    if weights_for_integers(b, c.opt(5)) and c.shape(c.x(2)) in ((), (1,)):
        y = c.emit("matmul", real(c, a, c.x(2), c.opt(4)), real(c, b, c.x(3), c.opt(5), -1))
        return _plus(c, y, c.opt(6))
    sums = c.cast(c.emit("matmul", whole(c, a, c.opt(4), -2), whole(c, b, c.opt(5), -1)), F32)
    scale = c.emit("mul", along(c, c.x(2), 1), along(c, c.x(3), 0))
    return _plus(c, c.emit("mul", sums, scale), c.opt(6))


@lowers("DynamicQuantizeMatMul", domain=MICROSOFT, first=1)
def dynamic_matmul(c: Lowering) -> Value:
    scale, zero = range_of(c, c.x(0))
    a, b = c.emit("quantize", c.x(0), scale, zero, dtype=U8), c.x(1)
    if weights_for_integers(b, c.opt(3)):
        y = c.emit("matmul", real(c, a, scale, zero), real(c, b, c.x(2), c.opt(3), -1))
        return _plus(c, y, c.opt(4))
    sums = c.cast(c.emit("matmul", whole(c, a, zero, -2), whole(c, b, c.opt(3), -1)), F32)
    return _plus(c, c.emit("mul", sums, c.emit("mul", scale, along(c, c.x(2), 0))), c.opt(4))


@lowers("QGemm", domain=MICROSOFT, first=1)
def gemm(c: Lowering) -> Value:
    """alpha A B, plus C, which is in steps of the product's scale."""
    a, b, bias, alpha = c.x(0), c.x(3), c.opt(6), c.attr_float("alpha", 1.0)
    turned = bool(c.attr_int("transB", 0))
    scale = c.emit("mul", along(c, c.x(1), 0), along(c, c.x(4), 0))
    if alpha != 1.0:
        scale = c.emit("mul", scale, c.number(np.float32(alpha), scale))
    if weights_for_integers(b, c.opt(5)) and (bias is None or bias.constant is not None):
        x, w = real(c, a, c.x(1), c.opt(2)), real(c, b, c.x(4), c.opt(5), 0 if turned else -1)
        y = _oriented(c, x, w)
        y = y if alpha == 1.0 else c.emit("mul", y, c.number(np.float32(alpha), y))
        y = _plus(c, y, None if bias is None else c.emit("dequantize", bias, scale, dtype=F32))
    else:
        sums = c.cast(_oriented(c, whole(c, a, c.opt(2), -1), whole(c, b, c.opt(5), -2 if turned else -1)), F32)
        y = c.emit("mul", sums if bias is None else c.emit("add", sums, c.cast(bias, F32)), scale)
    return y if c.opt(7) is None else stepped(c, y, c.x(7), c.opt(8), a)


def _oriented(c: Lowering, a: Value, b: Value) -> Value:
    """The product of a Gemm's operands."""
    a = c.transpose(a, (1, 0)) if c.attr_int("transA", 0) else a
    return c.emit("matmul", a, c.transpose(b, (1, 0)) if c.attr_int("transB", 0) else b)


@lowers("DynamicQuantizeLSTM", domain=MICROSOFT, first=1)
def dynamic_lstm(c: Lowering) -> list[Value | None]:
    """Both products multiply bytes: the inputs of all steps are quantized at once, each hidden state by itself."""
    w, r, bias = c.x(1), c.x(2), c.opt(3)
    direction, given = c.attr_str("direction", "forward"), (w, r, c.x(8), c.x(10), *([] if bias is None else [bias]))
    usual = not any(map(c.has, ("activations", "clip"))) and not c.attr_int("input_forget", 0)
    if not usual or c.opt(4) is not None or c.opt(7) is not None or any(v.constant is None for v in given):
        raise Unsupported(
            "a quantized LSTM has a lowering with constant weights, its own functions and whole sequences"
        )
    if not all(weights_for_integers(v, zero) for v, zero in ((w, c.opt(9)), (r, c.opt(11)))):
        raise Unsupported("a quantized LSTM has a lowering with weights that are symmetric about their zero points")
    (w8, ws), (r8, rs) = (_signed(v, scale) for v, scale in ((w, c.x(8)), (r, c.x(10))))
    scale, zero = range_of(c, c.x(0))
    x = real(c, c.emit("quantize", c.x(0), scale, zero, dtype=U8), scale, zero)
    columns = c.constant(np.concatenate(list(w8), 1))
    gates = c.emit("matmul", x, c.emit("dequantize", columns, c.constant(ws.reshape(-1)), dtype=F32))
    if bias is not None:
        assert bias.constant is not None
        halves = bias.constant.array.reshape(len(w8), 2, -1)
        gates = c.emit("add", gates, c.constant((halves[:, 0] + halves[:, 1]).reshape(-1)))
    turned = c.constant(np.ascontiguousarray(r8.transpose(0, 2, 1)))
    operands = [gates, turned, None, None, c.opt(5), c.opt(6), None, None, c.constant(rs)]
    y, cell = c.builder.add("lstm", operands, {"direction": direction}, c.origin).results
    return [y, last_states(c, y, direction, None) if c.wants(1) else None, cell][: len(c.node.output)]


def _signed(v: Value, scale: Value) -> tuple[np.ndarray, np.ndarray]:
    """Weights [d, k, n] as s8, and their scales as [d, n]."""
    assert v.constant is not None and scale.constant is not None
    data, scales = v.constant.array, scale.constant.array.reshape(len(v.constant.array), -1)
    data = data if data.dtype == np.int8 else data.view(np.int8) ^ np.int8(-128)
    return data, np.ascontiguousarray(np.broadcast_to(scales, (len(data), data.shape[2])))
