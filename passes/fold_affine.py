"""Fold multiplications and additions of constants into the weights and bias of the contraction beside them.

This is what batch normalisation becomes. Numerics: reassociates; the new weights are computed in float64 and rounded
once, and a fold that would overflow the weights' dtype is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.encodings import DENSE
from opcel_compiler.ir.graph import Value
from opcel_compiler.rewrite.facts import all_of, is_float, keeps_type, numbers, trailing
from opcel_compiler.rewrite.pass_ import RulePass
from opcel_compiler.rewrite.pattern import Match, Pattern, const, one_of, op, value
from opcel_compiler.rewrite.rule import Builder, CheckFn, Numerics, rule

_CONV = one_of(
    op("conv|conv_transpose", value("x"), const("w"), const("b"), name="anchor", single_use=True),
    op("conv|conv_transpose", value("x"), const("w"), None, name="anchor", single_use=True),
)
_MATMUL = op("matmul", value("x"), const("w"), name="anchor", single_use=True)


def _along(name: str, of: str, axis: int) -> CheckFn:
    """A check that the constant `name` broadcasts to the value `of` and varies along `axis` of it at most."""

    def check(m: Match) -> str | None:
        data, rank = m.array(name), m[of].tensor.rank
        if rank is None or data.ndim > rank or not -rank <= axis < rank:
            return "the ranks do not fit"
        full = trailing(data.shape, rank)
        if any(d != 1 for i, d in enumerate(full) if i != axis % rank):
            return f"constant %{m[name].name} varies along other axes than {axis % rank}"
        return None

    return check


def _vector(m: Match, name: str, size: int) -> np.ndarray:
    """The constant along its one axis, in float64, as `size` elements."""
    return np.array(np.broadcast_to(numbers(m.array(name)).reshape(-1), (size,)))


def _plain_weights(m: Match) -> str | None:
    if not is_float(m.root):
        return "the weights are no floats"
    for name in ("w", "b"):
        data = m[name].constant if name in m else None
        if data is not None and data.encoding != DENSE:
            return f"the weights are encoded as {data.encoding}"
    anchor = m.maker("anchor")
    if anchor.attrs.get("exact"):
        return "the sums are exact and must stay so"
    return "a matrix product with a vector" if anchor.op == "matmul" and m.array("w").ndim < 2 else None


def _stays_finite(m: Match) -> str | None:
    scale, limit = np.abs(numbers(m.array("c"))), float(_largest(m["w"]))
    for name in ("w", "b"):
        if name in m and m.array(name).size and scale.size:
            data = m.array(name)
            largest = max(abs(float(data.max())), abs(float(data.min()))) * float(scale.max())
            if not largest < limit:
                return f"%{m[name].name} scaled leaves the range of {m[name].tensor.dtype}"
    return None


def _largest(v: Value) -> float:
    dtype = v.tensor.dtype
    return float(np.finfo(np.float64 if dtype.bits == 64 else np.float32 if dtype.name != "f16" else np.float16).max)


def _rebuild(m: Match, build: Builder, weights: np.ndarray | None, bias: np.ndarray | None) -> Value:
    """The anchor with other weights or bias (None: as they are)."""
    anchor = m.maker("anchor")
    dtype = m["w"].tensor.dtype
    w = m["w"] if weights is None else build.constant(weights, dtype)
    operands: list[Value | None] = [m["x"], w]
    if bias is not None:
        operands.append(build.constant(bias, dtype))
    elif len(anchor.operands) > 2:
        operands.append(anchor.operands[2])
    return build(anchor.op, *operands, **anchor.attrs)


def _channels(m: Match) -> int:
    """The output channels of the convolution; a transposed one stores them as [in, out / groups, ...]."""
    w, anchor = m.array("w"), m.maker("anchor")
    return int(w.shape[0] if anchor.op == "conv" else w.shape[1] * anchor.attrs["groups"])


_CHANNELS = all_of(_plain_weights, keeps_type("anchor"), _along("c", "anchor", 1))


@rule(op("mul", _CONV, const("c")), all_of(_CHANNELS, _stays_finite), Numerics.REASSOCIATES)
def conv_scale(m: Match, build: Builder) -> Value:
    """A convolution times a constant for each channel has its weights and bias scaled"""
    w, groups = numbers(m.array("w")), m.maker("anchor").attrs["groups"]
    scale, ones = _vector(m, "c", _channels(m)), [1] * (w.ndim - 2)
    if m.maker("anchor").op == "conv":
        w = w * scale.reshape(-1, 1, *ones)
    else:
        w = (w.reshape(groups, -1, *w.shape[1:]) * scale.reshape(groups, 1, -1, *ones)).reshape(w.shape)
    return _rebuild(m, build, w, numbers(m.array("b")) * scale if "b" in m else None)


@rule(op("add", _CONV, const("c")), _CHANNELS, Numerics.REASSOCIATES)
def conv_bias(m: Match, build: Builder) -> Value:
    """A convolution plus a constant for each channel has it as bias"""
    bias = _vector(m, "c", _channels(m))
    return _rebuild(m, build, None, bias + numbers(m.array("b")) if "b" in m else bias)


_COLUMNS = all_of(_plain_weights, keeps_type("anchor"), _along("c", "anchor", -1), _stays_finite)


@rule(op("mul", _MATMUL, const("c")), _COLUMNS, Numerics.REASSOCIATES)
def matmul_scale(m: Match, build: Builder) -> Value:
    """A matrix product times a constant for each column has its weights scaled"""
    w = numbers(m.array("w"))
    return _rebuild(m, build, w * _vector(m, "c", w.shape[-1]), None)


@rule(op("mul", op("add", _MATMUL, const("d"), single_use=True), const("c")), _COLUMNS, Numerics.REASSOCIATES)
def matmul_bias_scale(m: Match, build: Builder) -> Value:
    """(x w + d) c is x (w c) + d c"""
    w, c, d = numbers(m.array("w")), numbers(m.array("c")), numbers(m.array("d"))
    product = _rebuild(m, build, w * _vector(m, "c", w.shape[-1]), None)
    return build("add", product, build.constant(d * c, m["d"].tensor.dtype))


def _scaled(x: Pattern) -> Pattern:
    return op("mul", x, const("c"), name="scaled", single_use=True)


_INTO_CONV = one_of(
    op("conv", _scaled(value("x")), const("w"), const("b"), name="anchor"),
    op("conv", _scaled(value("x")), const("w"), None, name="anchor"),
)


def _scale_kept(m: Match) -> str | None:
    if m["x"].type != m["scaled"].type:
        return f"%{m['scaled'].name} has another type than %{m['x'].name}"
    return None


_INPUT = all_of(_plain_weights, keeps_type("anchor"), _scale_kept, _stays_finite)


@rule(_INTO_CONV, all_of(_INPUT, _along("c", "scaled", 1)), Numerics.REASSOCIATES)
def scale_into_conv(m: Match, build: Builder) -> Value:
    """A convolution of x times a constant for each channel has its weights scaled"""
    w, groups = numbers(m.array("w")), m.maker("anchor").attrs["groups"]
    scale = _vector(m, "c", w.shape[1] * groups).reshape(groups, 1, w.shape[1], *[1] * (w.ndim - 2))
    return _rebuild(m, build, (w.reshape(groups, -1, *w.shape[1:]) * scale).reshape(w.shape), None)


@rule(
    op("matmul", _scaled(value("x")), const("w"), name="anchor"),
    all_of(_INPUT, _along("c", "scaled", -1)),
    Numerics.REASSOCIATES,
)
def scale_into_matmul(m: Match, build: Builder) -> Value:
    """(x c) w is x (c w) with the rows of w scaled"""
    w = numbers(m.array("w"))
    return _rebuild(m, build, w * _vector(m, "c", w.shape[-2])[:, None], None)


@dataclass(frozen=True)
class FoldAffine(RulePass):
    """Scales and offsets of convolutions and matrix products."""

    name: ClassVar[str] = "fold-affine"
    summary: ClassVar[str] = "fold constant scales and offsets into weights and bias"

    rules = (
        conv_scale, conv_bias, matmul_scale, matmul_bias_scale, scale_into_conv, scale_into_matmul,
    )  # fmt: skip
