"""Recognize layer_norm and rms_norm in their decomposed forms.

Numerics: reassociates. The normalised axes must be the last ones; scale and bias join the node when they vary over
those axes only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.graph import Value
from opcel_compiler.rewrite.facts import all_of, is_float, keeps_type, same_dims, shape_of, trailing
from opcel_compiler.rewrite.pass_ import RulePass
from opcel_compiler.rewrite.pattern import Match, Pattern, const, one_of, op, uniform, value
from opcel_compiler.rewrite.rule import Builder, Numerics, rule


def _squared(x: Pattern) -> Pattern:
    return one_of(op("mul", x, x), op("pow", x, const(2)))


def _normalised(x: Pattern) -> Pattern:
    """x over the square root of the mean of its squares plus epsilon, however the division is written."""
    mean = op("reduce_mean", _squared(x), name="variance", keepdims=True)
    shifted = op("add", mean, const("epsilon"))
    root = one_of(op("sqrt", shifted), op("pow", shifted, const(0.5)))
    inverse = one_of(op("reciprocal", root), op("div", const(1), root), op("pow", shifted, const(-0.5)))
    return one_of(op("div", x, root), op("mul", x, inverse))


def _last_axes(m: Match) -> str | None:
    shape, axes = shape_of(m["x"]), m.maker("variance").attrs["axes"]
    if shape is None:
        return "the rank is unknown"
    if not is_float(m["x"]):
        return "x is no float"
    if "mean" in m and m.maker("mean").attrs["axes"] != axes:
        return "mean and variance are taken over different axes"
    if not axes or tuple(axes) != tuple(range(len(shape) - len(axes), len(shape))):
        return f"axes {axes} are not the last ones of {len(shape)}"
    data = m["epsilon"].constant
    return "epsilon varies" if data is None or uniform(data) is None else None


def _build(m: Match, build: Builder, name: str) -> Value:
    axis = m.maker("variance").attrs["axes"][0]
    return build(name, m["x"], axis=axis, epsilon=float(m.array("epsilon").flat[0]))


_CENTRED = op("sub", value("x"), op("reduce_mean", value("x"), name="mean", keepdims=True))
_CHECK = all_of(_last_axes, keeps_type("x"))


@rule(_normalised(_CENTRED), _CHECK, Numerics.REASSOCIATES)
def layer_norm(m: Match, build: Builder) -> Value:
    """(x - mean) / sqrt(variance + epsilon) is layer_norm(x)"""
    return _build(m, build, "layer_norm")


@rule(_normalised(value("x")), _CHECK, Numerics.REASSOCIATES)
def rms_norm(m: Match, build: Builder) -> Value:
    """x / sqrt(mean of squares + epsilon) is rms_norm(x)"""
    return _build(m, build, "rms_norm")


def _varies_with(name: str) -> str:
    return f"{name} does not vary over the normalised axes alone"


def _fits(m: Match) -> str | None:
    side, x, axis = shape_of(m["side"]), shape_of(m.root), m.maker("norm").attrs["axis"]
    if side is None or x is None or len(side) > len(x):
        return "the rank is unknown or too large"
    full = trailing(side, len(x))
    if any(d != 1 for d in full[:axis]) or not same_dims(full[axis:], x[axis:]):
        return _varies_with(f"%{m['side'].name}")
    return None


def _side(m: Match, build: Builder) -> Value:
    """The scale or bias with the normalised axes as its shape."""
    wanted = m.root.tensor.dims[m.maker("norm").attrs["axis"] :]
    return m["side"] if same_dims(shape_of(m["side"]), wanted) else build("reshape", m["side"], shape=wanted)


_PLAIN = op("layer_norm|rms_norm", value("x"), None, None, name="norm", single_use=True)
_SCALED = op("layer_norm", value("x"), value("scale"), None, name="norm", single_use=True)
_UNSCALED = op("layer_norm", value("x"), None, None, name="norm", single_use=True)


@rule(op("mul", _PLAIN, value("side")), _fits, Numerics.REASSOCIATES, quiet=True)
def norm_scale(m: Match, build: Builder) -> Value:
    """A norm times a scale takes the scale in"""
    norm = m.maker("norm")
    return build(norm.op, m["x"], _side(m, build), **norm.attrs)


@rule(op("add", one_of(_SCALED, _UNSCALED), value("side")), _fits, Numerics.REASSOCIATES, quiet=True)
def norm_bias(m: Match, build: Builder) -> Value:
    """A layer_norm plus a bias takes the bias in"""
    scale = m["scale"] if "scale" in m else None
    return build("layer_norm", m["x"], scale, _side(m, build), **m.maker("norm").attrs)


@dataclass(frozen=True)
class RecognizeNorms(RulePass):
    """layer_norm before rms_norm: the centred form contains the other."""

    name: ClassVar[str] = "recognize-norms"
    summary: ClassVar[str] = "find layer_norm and rms_norm in decomposed form"

    rules = (layer_norm, rms_norm, norm_scale, norm_bias)
