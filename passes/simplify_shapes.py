"""Remove data movement that moves nothing, and merge what follows each other. Numerics: exact.

Sizes count as equal when that is provable for every value of the symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.dims import equal
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.opdef import all_ops
from opcel_compiler.rewrite.facts import all_of, keeps_type, shape_of, trailing
from opcel_compiler.rewrite.pass_ import RulePass
from opcel_compiler.rewrite.pattern import Match, const, one_of, op, value
from opcel_compiler.rewrite.rule import Builder, rule


@rule(op("reshape|expand", value("x")), keeps_type("x"), quiet=True)
def same_shape(m: Match, build: Builder) -> Value:
    """reshape or expand to the shape that x has is x"""
    return m["x"]


@rule(op("reshape", op("reshape", value("x"))))
def reshape_twice(m: Match, build: Builder) -> Value:
    """reshape of reshape is one reshape"""
    return build("reshape", m["x"], shape=m.node.attrs["shape"])


@rule(op("expand", op("expand", value("x"))))
def expand_twice(m: Match, build: Builder) -> Value:
    """expand of expand is one expand"""
    return build("expand", m["x"], shape=m.node.attrs["shape"])


_ELEMENTWISE = "|".join(name for name, d in all_ops().items() if "elementwise" in d.traits and d.operands)
_BINARY = "add|sub|mul|div|pow|min|max|equal|less|less_equal|and|or|xor|mod"


def _broadcasts_anyway(m: Match) -> str | None:
    x, others = shape_of(m["x"]), [shape_of(v) for v in m.node.operands if v is not None and v is not m["wide"]]
    result = shape_of(m.root)
    if x is None or result is None or None in others:
        return "a rank is unknown"
    ranked = [s for s in (x, *others) if s is not None]
    if max(map(len, ranked)) < len(result):
        return f"without the expand, the result would not have rank {len(result)}"
    shapes = [trailing(s, len(result)) for s in ranked]
    for i, d in enumerate(result):
        axis = [s[i] for s in shapes if s[i] != 1]
        if (not axis and d != 1) or not all(equal(size, d) is True for size in axis):
            return f"without the expand, axis {i} of the result would not be {d}"
    return None


def _without_expand(m: Match, build: Builder) -> Value:
    operands = [m["x"] if v is m["wide"] else v for v in m.node.operands]
    return build(m.node.op, *operands, **m.node.attrs)


_WIDE = op("expand", value("x"), name="wide")


@rule(op(_BINARY, _WIDE, value()), _broadcasts_anyway, quiet=True)
def expand_left(m: Match, build: Builder) -> Value:
    """An expand before an operator that broadcasts anyway is not needed"""
    return _without_expand(m, build)


@rule(op(_BINARY, value(), _WIDE), _broadcasts_anyway, quiet=True)
def expand_right(m: Match, build: Builder) -> Value:
    """An expand before an operator that broadcasts anyway is not needed"""
    return _without_expand(m, build)


@rule(op("where", _WIDE, value(), value()), _broadcasts_anyway, quiet=True)
def expand_condition(m: Match, build: Builder) -> Value:
    """An expanded condition where the branches broadcast anyway is not needed"""
    return _without_expand(m, build)


@rule(
    one_of(op("where", value(), _WIDE, value()), op("where", value(), value(), _WIDE)), _broadcasts_anyway, quiet=True
)
def expand_branch(m: Match, build: Builder) -> Value:
    """An expanded branch where the rest broadcasts anyway is not needed"""
    return _without_expand(m, build)


def _others_are_single(m: Match) -> str | None:
    others = [shape_of(v) for v in m.node.operands if v is not None and v is not m["wide"]]
    x, result = shape_of(m["x"]), shape_of(m.root)
    if x is None or result is None or any(s is None or any(d != 1 for d in s) or len(s) > len(x) for s in others):
        return "another operand has more than one element"
    return None


@rule(
    one_of(
        op(_ELEMENTWISE, _WIDE, rest=True),
        op(_ELEMENTWISE, value(), _WIDE, rest=True),
        op("where", value(), value(), _WIDE),
    ),
    _others_are_single,
    quiet=True,
)
def expand_later(m: Match, build: Builder) -> Value:
    """An elementwise operator on an expanded x is done on x, and its result expanded"""
    return build("expand", _without_expand(m, build), shape=m.root.tensor.dims)


@rule(op("attention", value("q"), value("k"), value("v"), op("expand", value("x"))))
def expand_mask(m: Match, build: Builder) -> Value:
    """An expanded mask of attention broadcasts anyway"""
    return build("attention", m["q"], m["k"], m["v"], m["x"], **m.node.attrs)


@rule(op("slice", value("x"), steps=lambda steps: all(s == 1 for s in steps)), keeps_type("x"), quiet=True)
def whole_slice(m: Match, build: Builder) -> Value:
    """A slice of everything is x"""
    return m["x"]


@rule(op("slice", op("slice", value("x"), name="inner")))
def slice_twice(m: Match, build: Builder) -> Value:
    """slice of slice is one slice"""
    a, b = m.maker("inner").attrs, m.node.attrs
    starts = tuple(s + t * step for s, t, step in zip(a["starts"], b["starts"], a["steps"], strict=True))
    steps = tuple(s * t for s, t in zip(a["steps"], b["steps"], strict=True))
    return build("slice", m["x"], starts=starts, sizes=b["sizes"], steps=steps)


def _consecutive(data: Constant) -> bool:
    """consecutive indices that do not wrap"""
    flat = data.array.reshape(-1)
    return flat.size > 0 and bool((np.diff(flat) == 1).all()) and (flat.size == 1 or flat[0] >= 0)


@rule(op("gather", value("x"), const("i", _consecutive)), lambda m: None if shape_of(m["x"]) else "the rank is unknown")
def gather_run(m: Match, build: Builder) -> Value:
    """gather of known consecutive indices is a slice under another shape"""
    shape, axis, indices = m["x"].tensor.dims, m.node.attrs["axis"], m.array("i")
    first = int(indices.flat[0])
    start = first if first >= 0 else shape[axis] + first
    sliced = build(
        "slice",
        m["x"],
        starts=tuple(start if i == axis else 0 for i in range(len(shape))),
        sizes=tuple(indices.size if i == axis else d for i, d in enumerate(shape)),
        steps=(1,) * len(shape),
    )
    return build("reshape", sliced, shape=m.root.tensor.dims)


@rule(op("concat", value("x")))
def concat_one(m: Match, build: Builder) -> Value:
    """concat of one tensor is that tensor"""
    return m["x"]


def _parts(m: Match) -> list[Value]:
    """The operands of a concat, with those of inner concats in their place and empty ones left out."""
    out: list[Value] = []
    axis = m.node.attrs["axis"]
    for v in m.node.operands:
        assert v is not None
        inner = v.producer
        if inner is not None and inner.op == "concat" and inner.attrs["axis"] == axis and len(v.uses) == 1:
            out.extend(x for x in inner.operands if x is not None)
        elif (shape_of(v) or (None,) * (axis + 1))[axis] != 0:
            out.append(v)
    return out


def _flattens(m: Match) -> str | None:
    parts = _parts(m)
    return "nothing to take out" if not parts or tuple(parts) == m.node.operands else None


@rule(op("concat", rest=True), _flattens, quiet=True)
def flatten_concat(m: Match, build: Builder) -> Value:
    """A concat takes in the parts of a concat among its operands, and drops empty ones"""
    return build("concat", *_parts(m), axis=m.node.attrs["axis"])


def _no_pads(m: Match) -> str | None:
    return None if all(p == 0 for p in m.node.attrs["pads"]) else "there are pads"


@rule(op("pad", value("x"), rest=True), all_of(_no_pads, keeps_type("x")), quiet=True)
def pad_nothing(m: Match, build: Builder) -> Value:
    """pad by nothing is x"""
    return m["x"]


def _unit_axes(m: Match) -> str | None:
    shape, axes = shape_of(m["x"]), m.node.attrs["axes"]
    if shape is None or not all(shape[a] == 1 for a in axes):
        return "an axis of the reduction is longer than 1"
    return None


@rule(op("reduce_sum|reduce_mean|reduce_max|reduce_min|reduce_prod", value("x")), _unit_axes, quiet=True)
def reduce_one(m: Match, build: Builder) -> Value:
    """A reduction over axes of size 1 is x under another shape"""
    return build("reshape", m["x"], shape=m.root.tensor.dims)


def _moves_ones(m: Match) -> str | None:
    shape, perm = shape_of(m["x"]), m.node.attrs["perm"]
    if shape is None:
        return "the rank is unknown"
    moved = [p for p in perm if shape[p] != 1]
    return None if moved == sorted(moved) else "axes longer than 1 change their order"


def _has_ones(v: Value) -> bool:
    """x has an axis of size 1"""
    return 1 in (shape_of(v) or ())


@rule(op("transpose", value("x", _has_ones)), _moves_ones, quiet=True)
def transpose_ones(m: Match, build: Builder) -> Value:
    """A transpose that keeps the order of all axes longer than 1 is a reshape"""
    return build("reshape", m["x"], shape=m.root.tensor.dims)


_ROWS = op("matmul", op("reshape", value("x"), name="flat"), value("w"), name="product", single_use=True)


def _keeps_columns(m: Match) -> str | None:
    flat, w, result = shape_of(m["flat"]), shape_of(m["w"]), shape_of(m.root)
    if flat is None or w is None or result is None or len(w) != 2 or len(flat) != 2 or not result:
        return "a rank is unknown, or the product is not one of matrices"
    if equal(result[-1], w[-1]) is not True:
        return "the columns of the product are regrouped"
    bias = shape_of(m["b"]) if "b" in m else ()
    if bias is None or any(d != 1 for d in bias[:-1]):
        return "what is added differs from row to row"
    return None


_AND_BIAS = op("add", _ROWS, value("b"), single_use=True)


@rule(op("reshape", one_of(_ROWS, _AND_BIAS)), _keeps_columns, quiet=True)
def reshape_before_matmul(m: Match, build: Builder) -> Value:
    """A linear layer on x flattened to rows, the rows then regrouped, is the layer on x so grouped"""
    rows = (*m.root.tensor.dims[:-1], m["flat"].tensor.dims[-1])
    y = build("matmul", build("reshape", m["x"], shape=rows), m["w"], **m.maker("product").attrs)
    if "b" not in m:
        return y
    bias = m["b"]
    if len(bias.tensor.dims) > 1:
        bias = build("reshape", bias, shape=bias.tensor.dims[-1:])
    return build("add", y, bias)


_PADDED = op("pad", value("x"), const(0), name="padded", mode="constant", single_use=True)
_PADDED_BY_DEFAULT = op("pad", value("x"), None, name="padded", mode="constant", single_use=True)


def _spatial_pads(m: Match) -> str | None:
    pads = m.maker("padded").attrs["pads"]
    rank = len(pads) // 2
    if not all(type(p) is int and p >= 0 for p in pads):
        return "a pad is not a constant"
    return None if not any(pads[i] or pads[rank + i] for i in (0, 1)) else "batch or channels are padded"


@rule(op("conv", one_of(_PADDED, _PADDED_BY_DEFAULT), value("w"), rest=True), _spatial_pads)
def pad_into_conv(m: Match, build: Builder) -> Value:
    """Zero padding before a convolution becomes its own"""
    pads = m.maker("padded").attrs["pads"]
    rank = len(pads) // 2
    extra = np.array([*pads[2:rank], *pads[rank + 2 :]])
    attrs = {**m.node.attrs, "pads": tuple(int(p) for p in extra + np.array(m.node.attrs["pads"]))}
    return build("conv", m["x"], *m.node.operands[1:], **attrs)


@dataclass(frozen=True)
class SimplifyShapes(RulePass):
    """Shapes and movement."""

    name: ClassVar[str] = "simplify-shapes"
    summary: ClassVar[str] = "remove and merge reshapes, expands, slices, concats and pads"

    rules = (
        same_shape, reshape_twice, expand_twice, expand_left, expand_right, expand_condition, expand_branch,
        expand_later, expand_mask, whole_slice, slice_twice, gather_run, concat_one, flatten_concat,
        pad_nothing, reduce_one, transpose_ones, reshape_before_matmul, pad_into_conv,
    )  # fmt: skip
