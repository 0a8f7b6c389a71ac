"""Normalisations and softmax."""

from __future__ import annotations

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.dims import floordiv, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.ops.norm import fits_row
from opcel_compiler.ir.types import F32, I64


@lowers("Softmax", "LogSoftmax")
def softmax(c: Lowering) -> Value:
    x = c.x()
    op = "softmax" if c.op_type == "Softmax" else "log_softmax"
    dims = c.shape(x)
    axis = c.axis(c.attr_int("axis", 1 if c.opset < 13 else -1), len(dims))
    if c.opset >= 13 or axis == len(dims) - 1:
        return c.emit(op, x, axis=axis)
    y = c.reshape(x, (product(dims[:axis]), product(dims[axis:])))
    return c.reshape(c.emit(op, y, axis=1), dims)


@lowers("Hardmax")
def hardmax(c: Lowering) -> Value:
    """1 at the first of the largest along the axis, 0 elsewhere."""
    x = c.x()
    dims = c.shape(x)
    axis = c.axis(c.attr_int("axis", 1 if c.opset < 13 else -1), len(dims))
    if c.opset < 13:
        x, axis = c.reshape(x, (product(dims[:axis]), product(dims[axis:]))), 1
    shape = c.shape(x)
    top = c.emit("arg_max", x, axis=axis, keepdims=True)
    places = c.emit("range_", start=(0,), size=(shape[axis],), step=1, dtype=I64)
    places = c.reshape(places, (shape[axis], *[1] * (len(shape) - axis - 1)))
    return c.reshape(c.cast(c.emit("equal", places, top), c.dtype(x)), dims)


def normalized(
    c: Lowering, op: str, x: Value, scale: Value | None, bias: Value | None, axis: int, epsilon: float = 1e-5
) -> Value:
    """layer_norm or rms_norm with a scale and a bias that broadcast to x: the operator itself takes them in the shape
    of the normalised axes; others are applied to its result."""
    row, n = c.shape(x)[axis:], c.rank(x) - axis

    def fitted(side: Value | None) -> Value | None:
        if side is None:
            return None
        dims = c.shape(side)
        lead, own = dims[: max(0, len(dims) - n)], dims[max(0, len(dims) - n) :]
        return c.reshape(side, own) if all(d == 1 for d in lead) and fits_row(own, row) else None

    inner, inner_bias = fitted(scale), fitted(bias)
    if scale is not None and inner is None:
        inner_bias = None
    sides = [inner] if op == "rms_norm" else [inner, inner_bias]
    out = c.emit(op, x, *sides, axis=axis, epsilon=c.attr_float("epsilon", epsilon))
    if scale is not None and inner is None:
        out = c.emit("mul", out, scale)
    return c.emit("add", out, bias) if bias is not None and inner_bias is None else out


@lowers("BatchNormalization")
def batch_normalization(c: Lowering) -> list[Value]:
    """In training mode (opset 14 and newer) by the batch's own statistics, which join the running ones."""
    x = c.x()
    rank = c.rank(x)
    training = c.opset >= 14 and bool(c.attr_int("training_mode", 0))
    if not training and any(c.wants(i) for i in range(1, 5)):
        raise Unsupported("the statistics of a BatchNormalization that is not in training mode have no lowering")
    scale, bias, mean, variance = (c.cast(c.x(i), c.dtype(x)) for i in range(1, 5))
    running: list[Value] = []
    if training:
        axes = (0, *range(2, rank))
        own = c.emit("reduce_mean", x, axes=axes, keepdims=True)
        off = c.emit("sub", x, own)
        spread = c.emit("reduce_mean", c.emit("mul", off, off), axes=axes, keepdims=True)
        momentum = c.attr_float("momentum", 0.9)
        for given, i, now in ((mean, 3, own), (variance, 4, spread)):
            old = c.emit("mul", given, c.number(momentum, given))
            new = c.emit("mul", c.reshape(now, c.shape(given)), c.number(1 - momentum, given))
            running.append(c.cast(c.emit("add", old, new), c.dtype(c.x(i))))
        mean, variance = (c.reshape(v, c.shape(mean)) for v in (own, spread))
    deviation = c.emit("sqrt", c.emit("add", variance, c.number(c.attr_float("epsilon", 1e-5), variance)))
    factor = c.emit("div", scale, deviation)
    offset = c.emit("sub", bias, c.emit("mul", mean, factor))
    if rank > 1 and (c.opset >= 9 or c.attr_int("spatial", 1)):
        factor, offset = c.channels(factor, rank), c.channels(offset, rank)
    return [c.emit("add", c.emit("mul", x, factor), offset), *running]


@lowers("InstanceNormalization")
def instance_normalization(c: Lowering) -> Value:
    x = c.x()
    rank = c.rank(x)
    if rank < 3:
        raise Unsupported(f"InstanceNormalization of rank {rank} has no lowering")
    y = c.emit("layer_norm", x, axis=2, epsilon=c.attr_float("epsilon", 1e-5))
    return c.emit("add", c.emit("mul", y, c.channels(c.x(1), rank)), c.channels(c.x(2), rank))


@lowers("GroupNormalization", first=18)
def group_normalization(c: Lowering) -> Value:
    x, scale, bias = c.x(0), c.x(1), c.x(2)
    dims, groups = c.shape(x), c.attr_int("num_groups")
    rank = len(dims)
    if groups < 1 or rank < 2:
        raise ModelError(f"node {c.origin!r} (GroupNormalization): {groups} groups of rank {rank}")
    y = c.reshape(x, (dims[0], groups, floordiv(dims[1], groups) * product(dims[2:])))
    y = c.emit("layer_norm", y, axis=2, epsilon=c.attr_float("epsilon", 1e-5))
    if c.opset < 21:
        y = c.emit("add", c.emit("mul", y, c.channels(scale, 3)), c.channels(bias, 3))
        return c.reshape(y, dims)
    y = c.reshape(y, dims)
    return c.emit("add", c.emit("mul", y, c.channels(scale, rank)), c.channels(bias, rank))


@lowers("LayerNormalization")
def layer_normalization(c: Lowering) -> Value:
    """ONNX Runtime's optimizer writes it into models of opsets before 17 too."""
    if c.wants(1) or c.wants(2):
        raise Unsupported("the mean and deviation outputs of LayerNormalization have no lowering")
    x = c.x()
    if c.attr_int("stash_type", 1) != 1 and c.dtype(x) != F32:
        raise Unsupported("a stash_type other than float32 has no lowering")
    axis = c.axis(c.attr_int("axis", -1), c.rank(x))
    return normalized(c, "layer_norm", x, c.x(1), c.opt(2), axis)


@lowers("RMSNormalization", first=23)
def rms_normalization(c: Lowering) -> Value:
    x = c.x()
    axis = c.axis(c.attr_int("axis", -1), c.rank(x))
    return normalized(c, "rms_norm", x, c.x(1), None, axis)
