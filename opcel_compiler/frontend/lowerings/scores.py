"""From scores to what ai.onnx.ml's models give: labels, and scores after a transform."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32


def labels_of(c: Lowering, integers: str = "classlabels_int64s", strings: str = "classlabels_strings") -> np.ndarray:
    """The class labels, which must be integers."""
    if c.has(strings) and c.attr_strings(strings):
        raise Unsupported("its labels are strings")
    return np.array(c.attr_ints(integers, ()), np.int64)


def transformed(c: Lowering, scores: Value, post: str, alone: bool = False) -> Value:
    """`scores` [rows, targets] after the transform `post`, computed in f32. `alone`: a single target is left as it is
    by all but PROBIT, as by ONNX Runtime."""
    if post == "NONE":
        return scores
    x = c.cast(scores, F32)
    if alone and c.shape(x)[1] == 1 and post != "PROBIT":
        return x
    if post == "LOGISTIC":
        return c.emit("sigmoid", x)
    if post == "SOFTMAX":
        return c.emit("softmax", x, axis=1)
    if post == "SOFTMAX_ZERO":
        return softmax_zero(c, x)
    if post == "PROBIT":
        return probit(c, x)
    raise ModelError(f"node {c.origin!r} ({c.op_type}): post_transform {post!r}")


def softmax_zero(c: Lowering, x: Value) -> Value:
    """Softmax over the scores that are not zero; those stay zero."""
    zero = c.emit("equal", x, c.number(0, x))
    top = c.emit("reduce_max", x, axes=(1,), keepdims=True)
    power = c.emit("exp", c.emit("sub", x, top))
    power = c.emit("where", zero, c.number(0, x), power)
    total = c.emit("reduce_sum", power, axes=(1,), keepdims=True)
    total = c.emit("where", c.emit("equal", total, c.number(0, x)), c.number(1, x), total)
    return c.emit("div", power, total)


def probit(c: Lowering, x: Value) -> Value:
    """sqrt(2) times the inverse error function of 2x - 1, by Winitzki's approximation."""

    def scaled(v: Value, a: float) -> Value:
        return c.emit("mul", v, c.number(a, v))

    y = c.emit("sub", scaled(x, 2), c.number(1, x))
    log = c.emit("log", c.emit("mul", c.emit("sub", c.number(1, y), y), c.emit("add", c.number(1, y), y)))
    v = c.emit("add", scaled(log, 0.5), c.number(2 / (np.pi * 0.147), log))
    inner = c.emit("sub", c.emit("mul", v, v), scaled(log, 1 / 0.147))
    root = c.emit("sqrt", c.emit("sub", c.emit("sqrt", inner), v))
    sign = c.emit("where", c.emit("less", y, c.number(0, y)), c.number(-1, y), c.number(1, y))
    return scaled(c.emit("mul", sign, root), np.sqrt(2))
