"""Recognize gelu, silu, sigmoid, softplus, softmax and log_softmax in their decomposed forms.

Numerics: reassociates; intermediate overflow of the decomposed form vanishes. The exception is softmax written without
subtracting the maximum, which overflows to NaN where softmax does not: approximate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.graph import Value
from opcel_compiler.rewrite.facts import all_of, is_float, keeps_type
from opcel_compiler.rewrite.pass_ import RulePass
from opcel_compiler.rewrite.pattern import Match, Pattern, const, flat, one_of, op, value
from opcel_compiler.rewrite.rule import Builder, Numerics, rule

_X = value("x")
_CHECK = all_of(keeps_type("x"), lambda m: None if is_float(m["x"]) else "x is no float")


def _half_gate(gate: Pattern) -> Pattern:
    """x/2 (1 + gate) in any association."""
    plus_one = op("add", gate, const(1))
    return one_of(
        flat("mul", _X, const(0.5), plus_one),
        flat("mul", op("div", _X, const(2)), plus_one),
        op("div", flat("mul", _X, plus_one), const(2)),
        flat("mul", _X, op("div", plus_one, const(2))),
        flat("mul", _X, op("add", op("mul", gate, const(0.5)), const(0.5))),
    )


_ERF = op("erf", one_of(op("div", _X, const(math.sqrt(2))), op("mul", _X, const(math.sqrt(0.5)))))


@rule(_half_gate(_ERF), _CHECK, Numerics.REASSOCIATES)
def gelu(m: Match, build: Builder) -> Value:
    """x/2 (1 + erf(x / sqrt 2)) is gelu(x)"""
    return build("gelu", m["x"])


_INNER, _CUBIC = const(math.sqrt(2 / math.pi)), const(0.044715)
_SQUARE = one_of(op("pow", _X, const(2)), op("mul", _X, _X))
_CUBE_TERM = one_of(
    flat("mul", _CUBIC, op("pow", _X, const(3))), flat("mul", _CUBIC, _X, _X, _X), flat("mul", _CUBIC, _X, _SQUARE)
)
_CUBE_FACTOR = op("add", one_of(flat("mul", _CUBIC, _X, _X), flat("mul", _CUBIC, _SQUARE)), const(1))
_TANH = op("tanh", one_of(flat("mul", _INNER, op("add", _X, _CUBE_TERM)), flat("mul", _INNER, _X, _CUBE_FACTOR)))


@rule(_half_gate(_TANH), _CHECK, Numerics.REASSOCIATES)
def gelu_tanh(m: Match, build: Builder) -> Value:
    """x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))) is the tanh form of gelu(x)"""
    return build("gelu", m["x"], approximate="tanh")


def _not_halved(m: Match) -> str | None:
    for user in m.root.users:
        if user.op in ("mul", "div") and any(v is not None and v.constant is not None for v in user.operands):
            return f"%{user.result.name} may halve it, which is the usual form"
    return _CHECK(m)


def _doubled(gate: Pattern) -> Pattern:
    return op("mul", _X, op("add", gate, const(1)))


def _twice(x: Value, build: Builder) -> Value:
    return build("mul", x, build.constant(2.0, x.tensor.dtype))


@rule(_doubled(_ERF), _not_halved, Numerics.REASSOCIATES, quiet=True)
def gelu_doubled(m: Match, build: Builder) -> Value:
    """x (1 + erf(x / sqrt 2)) is 2 gelu(x); the half may have gone into a product that follows"""
    return _twice(build("gelu", m["x"]), build)


@rule(_doubled(_TANH), _not_halved, Numerics.REASSOCIATES, quiet=True)
def gelu_tanh_doubled(m: Match, build: Builder) -> Value:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x³))) is twice the tanh form of gelu(x)"""
    return _twice(build("gelu", m["x"], approximate="tanh"), build)


_ONE_PLUS_EXP = op("add", op("exp", op("neg", _X)), const(1))


@rule(one_of(op("reciprocal", _ONE_PLUS_EXP), op("div", const(1), _ONE_PLUS_EXP)), _CHECK, Numerics.REASSOCIATES)
def sigmoid(m: Match, build: Builder) -> Value:
    """1 / (1 + exp(-x)) is sigmoid(x)"""
    return build("sigmoid", m["x"])


@rule(one_of(op("mul", _X, op("sigmoid", _X)), op("div", _X, _ONE_PLUS_EXP)), _CHECK, Numerics.REASSOCIATES)
def silu(m: Match, build: Builder) -> Value:
    """x sigmoid(x) is silu(x)"""
    return build("silu", m["x"])


@rule(op("log", op("add", op("exp", _X), const(1))), _CHECK, Numerics.REASSOCIATES)
def softplus(m: Match, build: Builder) -> Value:
    """log(1 + exp(x)) is softplus(x)"""
    return build("softplus", m["x"])


def _over_sum(exp: Pattern) -> Pattern:
    """e = exp over its sum."""
    total = op("reduce_sum", value("e"), name="sum", keepdims=True)
    return one_of(op("div", exp, total), op("mul", exp, op("reciprocal", total)))


def _one_axis(m: Match) -> str | None:
    axes = m.maker("sum").attrs["axes"]
    if "max" in m and m.maker("max").attrs["axes"] != axes:
        return "maximum and sum are taken over different axes"
    return None if len(axes) == 1 else f"the sum is over axes {axes}, not over one"


_SHIFTED = op("sub", _X, op("reduce_max", _X, name="max", keepdims=True))


@rule(_over_sum(op("exp", _SHIFTED, name="e")), all_of(_one_axis, _CHECK), Numerics.REASSOCIATES)
def softmax(m: Match, build: Builder) -> Value:
    """exp(x - max) over its sum is softmax(x)"""
    return build("softmax", m["x"], axis=m.maker("sum").attrs["axes"][0])


@rule(_over_sum(op("exp", _X, name="e")), all_of(_one_axis, _CHECK), Numerics.APPROXIMATE)
def softmax_unshifted(m: Match, build: Builder) -> Value:
    """exp(x) over its sum is softmax(x), where it does not overflow"""
    return build("softmax", m["x"], axis=m.maker("sum").attrs["axes"][0])


@rule(op("log", op("softmax", _X, name="p", single_use=True)), _CHECK, Numerics.REASSOCIATES)
def log_softmax(m: Match, build: Builder) -> Value:
    """log(softmax(x)) is log_softmax(x)"""
    return build("log_softmax", m["x"], axis=m.maker("p").attrs["axis"])


@dataclass(frozen=True)
class RecognizeActivations(RulePass):
    """Activations and softmax."""

    name: ClassVar[str] = "recognize-activations"
    summary: ClassVar[str] = "find gelu, silu, sigmoid, softplus and softmax in decomposed form"

    rules = (
        gelu, gelu_tanh, gelu_doubled, gelu_tanh_doubled, sigmoid, silu, softplus, softmax, softmax_unshifted,
        log_softmax,
    )  # fmt: skip
