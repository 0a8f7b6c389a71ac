"""Elementwise operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.ops.elementwise import saturates
from opcel_compiler.ir.types import DTYPES, I64, DType

_UNARY = {
    "Neg": "neg", "Abs": "abs", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Reciprocal": "reciprocal", "Erf": "erf",
    "Tanh": "tanh", "Sigmoid": "sigmoid", "Relu": "relu", "Floor": "floor", "Ceil": "ceil", "Round": "round",
    "Sign": "sign", "Sin": "sin", "Cos": "cos", "Not": "not", "IsNaN": "is_nan", "Softplus": "softplus",
    "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Asinh": "asinh",
    "Acosh": "acosh", "Atanh": "atanh",
}  # fmt: skip
_BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Equal": "equal", "Less": "less",
    "LessOrEqual": "less_equal", "And": "and", "Or": "or", "Xor": "xor",
}  # fmt: skip
_SWAPPED = {"Greater": "less", "GreaterOrEqual": "less_equal"}
_VARIADIC = {"Max": "max", "Min": "min", "Sum": "add", "Mean": "add"}


@lowers(*_UNARY)
def unary(c: Lowering) -> Value:
    return c.emit(_UNARY[c.op_type], c.x())


@lowers(*_BINARY)
def binary(c: Lowering) -> Value:
    return c.emit(_BINARY[c.op_type], c.x(0), c.x(1))


@lowers(*_SWAPPED)
def swapped(c: Lowering) -> Value:
    return c.emit(_SWAPPED[c.op_type], c.x(1), c.x(0))


@lowers(*_VARIADIC)
def variadic(c: Lowering) -> Value:
    y = c.x(0)
    for i in range(1, len(c.inputs)):
        y = c.emit(_VARIADIC[c.op_type], y, c.x(i))
    if c.op_type == "Mean" and len(c.inputs) > 1:
        y = c.emit("div", y, c.number(len(c.inputs), y))
    return y


@lowers("Where")
def where(c: Lowering) -> Value:
    return c.emit("where", c.x(0), c.x(1), c.x(2))


@lowers("Pow")
def power(c: Lowering) -> Value:
    x, e = c.x(0), c.x(1)
    have, want = c.dtype(e), c.dtype(x)
    if have == want:
        return c.emit("pow", x, e)
    if want.is_float and have.is_integer:
        return c.emit("pow", x, c.cast(e, want))
    wide = DTYPES["f64"]
    return c.cast(c.emit("pow", c.cast(x, wide), c.cast(e, wide)), want)


@lowers("Mod")
def modulo(c: Lowering) -> Value:
    return c.emit("mod", c.x(0), c.x(1), fmod=bool(c.attr_int("fmod", 0)))


def _cast(c: Lowering, x: Value, to: DType) -> Value:
    have = c.dtype(x)
    if have == to:
        return x
    if "s" in (have.kind, to.kind) or "c" in (have.kind, to.kind):
        raise Unsupported(f"a cast from {have} to {to} has no lowering")
    saturate, mode = bool(c.attr_int("saturate", 1)), c.attr_str("round_mode", "up")
    attrs: dict[str, Any] = {}
    if saturates(to) or to.name == "f8e8m0":
        attrs["saturate"] = saturate
    if to.name == "f8e8m0":
        attrs["round_mode"] = mode
    return c.emit("cast", x, dtype=to, **attrs)


@lowers("Cast")
def cast(c: Lowering) -> Value:
    return _cast(c, c.x(), c.attr_dtype("to"))


@lowers("CastLike")
def cast_like(c: Lowering) -> Value:
    return _cast(c, c.x(0), c.dtype(c.x(1)))


@lowers("Clip")
def clip(c: Lowering) -> Value:
    x = c.x()
    if c.opset < 11:
        low = c.number(c.attr_float("min"), x) if c.has("min") else None
        high = c.number(c.attr_float("max"), x) if c.has("max") else None
    else:
        low, high = c.opt(1), c.opt(2)
    if low is not None:
        x = c.emit("max", x, c.reshape(low, ()))
    if high is not None:
        x = c.emit("min", x, c.reshape(high, ()))
    return x


@lowers("LeakyRelu")
def leaky_relu(c: Lowering) -> Value:
    return c.emit("leaky_relu", c.x(), alpha=c.attr_float("alpha", 0.01))


@lowers("Elu")
def elu(c: Lowering) -> Value:
    return c.emit("elu", c.x(), alpha=c.attr_float("alpha", 1.0))


@lowers("Selu")
def selu(c: Lowering) -> Value:
    y = c.emit("elu", c.x(), alpha=c.attr_float("alpha", float(np.float32(1.67326319217681884765625))))
    return c.emit("mul", y, c.number(c.attr_float("gamma", float(np.float32(1.05070102214813232421875))), y))


@lowers("Celu")
def celu(c: Lowering) -> Value:
    x, alpha = c.x(), c.attr_float("alpha", 1.0)
    below = c.emit("mul", c.emit("elu", c.emit("div", x, c.number(alpha, x)), alpha=1.0), c.number(alpha, x))
    return c.emit("where", c.emit("less", x, c.number(0, x)), below, x)


@lowers("PRelu")
def prelu(c: Lowering) -> Value:
    x, slope = c.x(0), c.x(1)
    return c.emit("where", c.emit("less", x, c.number(0, x)), c.emit("mul", x, slope), x)


@lowers("ThresholdedRelu", first=10)
def thresholded_relu(c: Lowering) -> Value:
    x = c.x()
    return c.emit("where", c.emit("less", c.number(c.attr_float("alpha", 1.0), x), x), x, c.number(0, x))


@lowers("Shrink")
def shrink(c: Lowering) -> Value:
    x, bias, edge = c.x(), c.attr_float("bias", 0.0), c.attr_float("lambd", 0.5)
    if not c.dtype(x).is_float:
        raise Unsupported("Shrink of integers has no lowering")
    inner = c.emit("where", c.emit("less", c.number(edge, x), x), c.emit("sub", x, c.number(bias, x)), c.number(0, x))
    return c.emit("where", c.emit("less", x, c.number(-edge, x)), c.emit("add", x, c.number(bias, x)), inner)


@lowers("HardSigmoid")
def hard_sigmoid(c: Lowering) -> Value:
    return c.emit("hard_sigmoid", c.x(), alpha=c.attr_float("alpha", 0.2), beta=c.attr_float("beta", 0.5))


@lowers("HardSwish", first=14)
def hard_swish(c: Lowering) -> Value:
    x = c.x()
    return c.emit("mul", x, c.emit("hard_sigmoid", x, alpha=1 / 6, beta=0.5))


@lowers("Gelu", first=20)
def gelu(c: Lowering) -> Value:
    approximate = c.attr_str("approximate", "none")
    if approximate not in ("none", "tanh"):
        raise Unsupported(f"approximate={approximate!r} is unknown")
    return c.emit("gelu", c.x(), approximate=approximate)


@lowers("Swish", first=24)
def swish(c: Lowering) -> Value:
    x, alpha = c.x(), c.attr_float("alpha", 1.0)
    if alpha == 1.0:
        return c.emit("silu", x)
    return c.emit("mul", x, c.emit("sigmoid", c.emit("mul", x, c.number(alpha, x))))


@lowers("Mish", first=18)
def mish(c: Lowering) -> Value:
    x = c.x()
    return c.emit("mul", x, c.emit("tanh", c.emit("softplus", x)))


@lowers("Softsign")
def softsign(c: Lowering) -> Value:
    x = c.x()
    return c.emit("div", x, c.emit("add", c.emit("abs", x), c.number(1, x)))


@lowers("Tan")
def tan(c: Lowering) -> Value:
    return c.emit("div", c.emit("sin", c.x()), c.emit("cos", c.x()))


@lowers("IsInf", first=10)
def is_inf(c: Lowering) -> Value:
    x, sides = c.x(), (c.attr_int("detect_negative", 1), c.attr_int("detect_positive", 1))
    found = c.emit("is_inf", x)
    if all(sides):
        return found
    if not any(sides):
        return c.emit("and", found, c.constant(np.array(False)))
    zero = c.number(0, x)
    sign = c.emit("less", x, zero) if sides[0] else c.emit("less", zero, x)
    return c.emit("and", found, sign)


@lowers("Identity")
def identity(c: Lowering) -> Value:
    return c.x()


@lowers("LpNormalization")
def lp_normalization(c: Lowering) -> Value:
    x, p = c.x(), c.attr_int("p", 2)
    if p not in (1, 2):
        raise ModelError(f"node {c.origin!r} (LpNormalization): p is {p}; 1 and 2 are defined")
    axis = c.axis(c.attr_int("axis", -1), c.rank(x))
    terms = c.emit("abs", x) if p == 1 else c.emit("mul", x, x)
    norm = c.emit("reduce_sum", terms, axes=(axis,), keepdims=True)
    if p != 1:
        norm = c.emit("sqrt", norm)
    y = c.emit("div", x, norm)
    return c.emit("where", c.emit("equal", norm, c.number(0, x)), c.number(0, x), y)


@lowers("OneHot", first=9)
def one_hot(c: Lowering) -> Value:
    indices, values = c.x(0), c.x(2)
    depth = c.size(c.x(1) if c.dtype(c.x(1)).is_integer else c.cast(c.x(1), I64), "the depth")
    rank = c.rank(indices)
    axis = c.axis(c.attr_int("axis", -1), rank + 1)
    at = c.cast(indices, I64)
    at = c.emit("where", c.emit("less", at, c.number(0, at)), c.emit("add", at, c.of_dims([depth], scalar=True)), at)
    shape = list(c.shape(indices))
    at = c.reshape(at, (*shape[:axis], 1, *shape[axis:]))
    classes = c.emit("range_", start=(0,), size=(depth,), step=1, dtype=I64)
    hit = c.emit("equal", at, c.reshape(classes, (depth, *[1] * (rank - axis))))
    off, on = (c.reshape(c.slice(values, 0, i, 1), ()) for i in range(2))
    return c.emit("where", hit, on, off)
