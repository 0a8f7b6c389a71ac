"""Normalisations and softmax."""

from __future__ import annotations

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.dims import floordiv, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32


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


@lowers("BatchNormalization")
def batch_normalization(c: Lowering) -> Value:
    if c.attr_int("training_mode", 0) or any(c.wants(i) for i in range(1, 5)):
        raise Unsupported("BatchNormalization in training mode has no lowering")
    if c.opset < 9 and not c.attr_int("spatial", 1):
        raise Unsupported("BatchNormalization with spatial=0 has no lowering")
    x = c.x()
    scale, bias, mean, variance = (c.cast(c.x(i), c.dtype(x)) for i in range(1, 5))
    deviation = c.emit("sqrt", c.emit("add", variance, c.number(c.attr_float("epsilon", 1e-5), variance)))
    factor = c.emit("div", scale, deviation)
    offset = c.emit("sub", bias, c.emit("mul", mean, factor))
    rank = c.rank(x)
    if rank == 1:
        return c.emit("add", c.emit("mul", x, factor), offset)
    return c.emit("add", c.emit("mul", x, c.channels(factor, rank)), c.channels(offset, rank))


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
    return c.emit("layer_norm", x, c.x(1), c.opt(2), axis=axis, epsilon=c.attr_float("epsilon", 1e-5))


@lowers("RMSNormalization", first=23)
def rms_normalization(c: Lowering) -> Value:
    x = c.x()
    axis = c.axis(c.attr_int("axis", -1), c.rank(x))
    return c.emit("rms_norm", x, c.x(1), axis=axis, epsilon=c.attr_float("epsilon", 1e-5))
