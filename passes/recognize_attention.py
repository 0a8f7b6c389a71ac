"""Recognize softmax(q kᵀ scale + mask) v as one attention operator.

Numerics: reassociates. The scale may be a constant factor or divisor of q, of k, or of their product; masks are added
to the scaled product or, where a condition picks between it and a huge negative constant, made from the condition.
Where the decomposed form replaces NaN rows by 0, only rows hidden by the mask become 0; NaN of q and k stays NaN.
Operands of rank 2 and 3 get axes of size 1 for the missing batch and head axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.dims import Dim, bounds, equal
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.rewrite.facts import is_float, same_dims, same_type, shape_of, trailing
from opcel_compiler.rewrite.pass_ import RulePass
from opcel_compiler.rewrite.pattern import Match, Pattern, const, one_of, op, uniform, value
from opcel_compiler.rewrite.rule import Builder, Numerics, rule

_HUGE = -1e30


@dataclass(frozen=True)
class _Mask:
    """An additive mask; with `fill`, it is `fill` where the condition `value` equals `when`, and 0 elsewhere."""

    value: Value
    fill: float | None = None
    when: bool = True


@dataclass(frozen=True)
class _Scores:
    product: Node
    scale: float = 1.0
    masks: tuple[_Mask, ...] = ()


@dataclass(frozen=True)
class _Attention:
    """What a match amounts to; `k` is transposed by `perm` to [..., keys, width]."""

    q: Value
    k: Value
    perm: tuple[int, ...]
    v: Value
    scale: float
    masks: tuple[_Mask, ...]


def _factor(v: Value) -> tuple[Value, float]:
    """(x, c) when v is x times the number c and of the same type, else (v, 1)."""
    node = v.producer
    if node is not None and node.op in ("mul", "div"):
        a, b = node.operand(0), node.operand(1)
        for x, c in ((a, b), (b, a)) if node.op == "mul" else ((a, b),):
            number = None if c.constant is None else uniform(c.constant)
            if number and math.isfinite(number) and same_type(x, v):
                return x, number if node.op == "mul" else 1 / number
    return v, 1.0


def _scores(v: Value) -> _Scores | str:
    """What is under the softmax, or the reason why it is not a scaled and masked product."""
    node = v.producer
    if node is None:
        return f"%{v.name} is an input, not a product"
    if len(v.uses) != 1:
        return f"%{v.name} is used elsewhere"
    if node.op == "matmul":
        return _Scores(node)
    x, number = _factor(v)
    if x is not v:
        inner = _scores(x)
        if isinstance(inner, _Scores) and inner.masks:
            return f"%{v.name} scales the mask too"
        return inner if isinstance(inner, str) else replace(inner, scale=inner.scale * number)
    reason = f"%{v.name} is made by {node.op}, which is neither product, scale nor mask"
    for x, mask in _masked(node):
        if same_type(x, v):
            inner = _scores(x)
            if isinstance(inner, _Scores):
                return replace(inner, masks=(*inner.masks, mask))
            reason = inner
    return reason


def _masked(node: Node) -> list[tuple[Value, _Mask]]:
    """The ways to see a node as a masked value, with the mask."""
    if node.op == "add":
        a, b = node.operand(0), node.operand(1)
        return [(a, _Mask(b)), (b, _Mask(a))]
    if node.op == "where":
        c, x, y = node.operand(0), node.operand(1), node.operand(2)
        for scores, other, when in ((x, y, False), (y, x, True)):
            fill = None if other.constant is None else uniform(other.constant)
            if fill is not None and fill <= _HUGE:
                return [(scores, _Mask(c, fill, when))]
    return []


def _analyse(m: Match) -> _Attention | str:
    found = _scores(m["scores"])
    if isinstance(found, str):
        return found
    q, q_factor = _factor(found.product.operand(0))
    k, k_factor = _factor(found.product.operand(1))
    v = m["v"]
    rank = q.tensor.rank
    if not is_float(q) or rank is None or rank not in (2, 3, 4) or k.tensor.rank != rank or v.tensor.rank != rank:
        return "q, k and v are not floats of one rank between 2 and 4"
    if m.maker("p").attrs["axis"] != rank - 1:
        return "the softmax is not over the keys"
    perm = (*range(rank - 2), rank - 1, rank - 2)
    if k.producer is not None and k.producer.op == "transpose":
        before = k.producer.attrs["perm"]
        k, factor = _factor(k.producer.operand(0))
        perm, k_factor = tuple(before[p] for p in perm), k_factor * factor
    keys = tuple(k.tensor.dims[p] for p in perm)
    if not same_dims(q.tensor.dims[:-2], keys[:-2]) or not same_dims(keys[:-1], v.tensor.dims[:-1]):
        return "the batches or heads of q, k and v differ"
    if equal(q.tensor.dims[-1], keys[-1]) is not True:
        return "q and k differ in width"
    return _Attention(q, k, perm, v, found.scale * q_factor * k_factor, found.masks)


def _refuse(m: Match) -> str | None:
    found = _analyse(m)
    return found if isinstance(found, str) else None


def _to_4d(build: Builder, v: Value) -> Value:
    """v as [batch, heads, rows, columns]."""
    shape = v.tensor.dims
    wanted: tuple[Dim, ...] = (shape[0], 1, *shape[1:]) if len(shape) == 3 else trailing(shape, 4)
    return v if len(shape) == 4 else build("reshape", v, shape=wanted)


def _mask_value(build: Builder, mask: _Mask, like: Value, rank: int) -> Value:
    x, dtype = mask.value, like.tensor.dtype
    if mask.fill is not None:
        fill, zero = build.constant(mask.fill, dtype), build.constant(0.0, dtype)
        x = build("where", x, fill, zero) if mask.when else build("where", x, zero, fill)
    shape = shape_of(x) or ()
    return _to_4d(build, build("reshape", x, shape=trailing(shape, 3))) if rank == 3 and len(shape) > 2 else x


def _is_causal(v: Value, queries: Dim, keys: Dim) -> bool:
    """Whether a constant mask hides exactly the keys after each query, the last query seeing all keys."""
    data = v.constant
    if data is None or type(queries) is not int or type(keys) is not int or keys < queries:
        return False
    if data.array.size != queries * keys or data.array.shape[-2:] != (queries, keys):
        return False
    hidden = np.arange(keys)[None, :] > np.arange(queries)[:, None] + keys - queries
    grid = data.array.reshape(queries, keys).astype(np.float64)
    return bool(np.all(grid[~hidden] == 0) and np.all(grid[hidden] <= _HUGE))


def _build(m: Match, build: Builder) -> tuple[Value, Value | None]:
    """The attention, in the shape of the root, and its mask."""
    found = _analyse(m)
    assert isinstance(found, _Attention)
    rank = len(found.perm)
    k = found.k if list(found.perm) == sorted(found.perm) else build("transpose", found.k, perm=found.perm)
    queries, keys = found.q.tensor.dims[-2], k.tensor.dims[-2]
    masks = [_mask_value(build, mask, found.q, rank) for mask in found.masks]
    causal = any(_is_causal(mask, queries, keys) for mask in masks)
    masks = [mask for mask in masks if not _is_causal(mask, queries, keys)]
    total = masks[0] if masks else None
    for mask in masks[1:]:
        total = build("add", total, mask)
    operands = [_to_4d(build, x) for x in (found.q, k, found.v)]
    if total is not None:
        operands.append(total)
    out = build("attention", *operands, scale=found.scale, causal=causal)
    return (out if rank == 4 else build("reshape", out, shape=m.root.tensor.dims)), total


@rule(
    op("matmul", op("softmax", value("scores"), name="p", single_use=True), value("v")), _refuse, Numerics.REASSOCIATES
)
def attention(m: Match, build: Builder) -> Value:
    """softmax(q kᵀ scale + mask) v is attention(q, k, v, mask)"""
    return _build(m, build)[0]


_ROWS = op("softmax", value("scores"), name="p")
_GUARDED = op("where", op("is_nan", _ROWS, single_use=True), const(0), value("p"), single_use=True)


def _only_guarded(m: Match) -> str | None:
    if len(m["p"].uses) != 2 or m.root.tensor.rank == 3:
        return f"%{m['p'].name} is used elsewhere" if m.root.tensor.rank != 3 else "a guard with operands of rank 3"
    return _refuse(m)


@rule(op("matmul", _GUARDED, value("v")), _only_guarded, Numerics.REASSOCIATES)
def attention_guarded(m: Match, build: Builder) -> Value:
    """softmax with NaN replaced by 0, times v, is attention with 0 for the rows that the mask hides whole"""
    out, mask = _build(m, build)
    if mask is None:
        return out
    highest = build("reduce_max", mask, axes=(len(mask.tensor.dims) - 1,), keepdims=True)
    dtype = mask.tensor.dtype
    hidden = build("equal", highest, build.constant(-np.inf, dtype))
    return build("where", hidden, build.constant(0.0, dtype), out)


_HIDDEN = const("hidden", lambda c: (uniform(c) or 0.0) <= _HUGE)
_BEFORE = op("less_equal", value("a"), value("b"))
_AFTER = op("less", value("b"), value("a"))
_CAUSAL = one_of(
    op("where", _BEFORE, const(0), _HIDDEN, name="mask"),
    op("where", _BEFORE, _HIDDEN, const(0), name="mask"),
    op("where", _AFTER, const(0), _HIDDEN, name="mask"),
    op("where", _AFTER, _HIDDEN, const(0), name="mask"),
)


def _start(v: Value, rows: bool) -> Dim | None:
    """The first of consecutive numbers along the rows (or columns) that `v` holds."""
    shape, node = v.tensor.shape, v.producer
    if shape is None or node is None or any(d != 1 for i, d in enumerate(shape[::-1]) if i != int(rows)):
        return None
    if node.op == "reshape":
        node = node.operand(0).producer
    if node is None or node.op != "range_" or node.attrs["step"] != 1:
        return None
    start: Dim = node.attrs["start"][0]
    return start


def _hides_later_keys(m: Match) -> str | None:
    """Column j is visible to row i when j <= i + offset; attention counts rows from the last key."""
    condition = m.maker("mask").operand(0).producer
    shown = (m.maker("mask").operand(1) is not m["hidden"]) == (condition is not None and condition.op == "less_equal")
    rows, columns = (m["b"], m["a"]) if shown else (m["a"], m["b"])
    first_row, first_column = _start(rows, True), _start(columns, False)
    if first_row is None or first_column is None:
        return "the condition does not compare row and column numbers"
    offset = first_row - first_column - (0 if shown else 1)
    spare = m["k"].tensor.dims[2] - m["q"].tensor.dims[2]
    if equal(offset, spare) is not True or (bounds(spare)[0] or 0) < 0 or bounds(spare)[0] is None:
        return "the mask is not aligned with the last key"
    return None


@rule(
    op("attention", value("q"), value("k"), value("v"), _CAUSAL, causal=False), _hides_later_keys, Numerics.REASSOCIATES
)
def causal_mask(m: Match, build: Builder) -> Value:
    """A mask that hides the keys after each query is the attribute `causal`"""
    return build("attention", m["q"], m["k"], m["v"], **{**m.node.attrs, "causal": True})


def _repeated(name: str) -> Pattern:
    return op("reshape", op("expand", value(f"{name}_once"), name=f"{name}_wide"))


def _repeats_heads(m: Match) -> str | None:
    heads = []
    for name in ("k", "v"):
        once, wide = shape_of(m[f"{name}_once"]), shape_of(m[f"{name}_wide"])
        if once is None or wide is None or len(once) != 5 or len(wide) != 5 or once[2] != 1:
            return f"{name} does not repeat heads"
        if not same_dims((*once[:2], *once[3:]), (*wide[:2], *wide[3:])):
            return f"{name} repeats more than heads"
        joined = m.node.operand(1 if name == "k" else 2).tensor.dims
        if not same_dims(joined, (wide[0], wide[1] * wide[2], *wide[3:])):
            return f"{name} joins other axes than the heads"
        heads.append(once[1])
    return None if equal(heads[0], heads[1]) is True else "k and v differ in heads"


@rule(op("attention", value("q"), _repeated("k"), _repeated("v"), rest=True), _repeats_heads)
def grouped_heads(m: Match, build: Builder) -> Value:
    """Heads of k and v repeated for groups of q's heads need not be"""
    k, v = (
        build("reshape", m[f"{n}_once"], shape=tuple(d for i, d in enumerate(m[f"{n}_once"].tensor.dims) if i != 2))
        for n in ("k", "v")
    )
    return build("attention", m["q"], k, v, *m.node.operands[3:], **m.node.attrs)


@dataclass(frozen=True)
class RecognizeAttention(RulePass):
    """Attention."""

    name: ClassVar[str] = "recognize-attention"
    summary: ClassVar[str] = "find scaled dot-product attention in decomposed form"

    rules = (attention, attention_guarded, causal_mask, grouped_heads)
