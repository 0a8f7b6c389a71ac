"""Move `dequantize` down and `quantize` up across operators that only choose among elements, until they meet.

What lies between them then works on bytes, and a pair that meets on one grid goes. Numerics: exact, but for a quantize
that moves up across a max_pool, where a NaN beside numbers no longer wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.ops.quant import integer_range
from opcel_compiler.ir.types import F32, DType
from opcel_compiler.rewrite.facts import dtype_of, same_dims, same_type, shape_of, trailing
from opcel_compiler.rewrite.pass_ import RulePass
from opcel_compiler.rewrite.pattern import Match, const, op, value
from opcel_compiler.rewrite.quantized import (
    byte,
    from_lowest,
    grid_is_normal,
    is_number,
    maker,
    per_tensor,
    same_grid,
    scale_number,
    zero_number,
    zero_of,
)
from opcel_compiler.rewrite.rule import Builder, Numerics, rule

# -- dequantize, down -------------------------------------------------------------------------------------------------


def _source(m: Match) -> Node:
    """The dequantize that makes the first operand of the root."""
    node = m.node.operand(0).producer
    assert node is not None
    return node


def _of_bytes(m: Match) -> str | None:
    source = _source(m)
    if not byte(dtype_of(source.operand(0))) or dtype_of(source.result) != F32:
        return "it is no dequantization of bytes to f32"
    return None


def _one_grid(m: Match) -> str | None:
    if reason := _of_bytes(m):
        return reason
    return None if per_tensor(_source(m)) else "the scale or zero point differs from element to element"


def _grid(build: Builder, node: Node) -> list[Value | None]:
    """The one scale and zero point of `node`, without axes."""
    return [p if p is None or p.tensor.dims == () else build("reshape", p, shape=()) for p in node.operands[1:]]


def _moved(m: Match, build: Builder, operands: Sequence[Value | None], like: Node) -> Value:
    """The root on integers, and their dequantization as `like` does it."""
    x = build(m.node.op, *operands, **m.node.attrs)
    return build("dequantize", x, *_grid(build, like), **like.attrs)


_DEQUANTIZED = op("dequantize", rest=True)


@rule(op("expand|slice|gather|gather_elements|gather_nd", _DEQUANTIZED, rest=True), _one_grid, quiet=True)
def sink_dequantize(m: Match, build: Builder) -> Value:
    """Chosen elements of dequantized numbers are the dequantized chosen elements"""
    source = _source(m)
    return _moved(m, build, [source.operand(0), *m.node.operands[1:]], source)


def _params_move(m: Match) -> str | None:
    if reason := _of_bytes(m):
        return reason
    source = _source(m)
    if any(p is not None and _param_moved(m.node, p) is None for p in source.operands[1:]):
        return "the scale or zero point would have to be spread out"
    return None


def _param_moved(move: Node, p: Value) -> Sequence[Dim] | None:
    """The shape of the scale or zero point `p` of a reshape's or transpose's operand that it has on the result (of a
    transpose: before it is transposed), or None."""
    shape, given = shape_of(move.operand(0)), shape_of(p)
    if is_number(p):
        return given
    if shape is None or given is None or p.constant is None:
        return None
    wide = trailing(given, len(shape))
    if move.op == "transpose":
        return wide
    new = shape_of(move.result)
    return None if new is None else _along_same_axis(shape, wide, new)


def _along_same_axis(shape: Sequence[Dim], p: Sequence[Dim], new: Sequence[Dim]) -> Sequence[Dim] | None:
    """`p`, which varies along one axis of `shape`, on `new`, where that axis is still one."""
    axes = [i for i, d in enumerate(p) if d != 1]
    sizes = [d for d in (*shape, *new) if isinstance(d, int)]
    if len(axes) != 1 or len(sizes) != len(shape) + len(new):
        return None
    (axis,) = axes
    before = math.prod(sizes[:axis])
    after = sizes[len(shape) :]
    for i, d in enumerate(after):
        if d == sizes[axis] and math.prod(after[:i]) == before:
            return tuple(d if j == i else 1 for j in range(len(after)))
    return None


@rule(op("reshape|transpose", _DEQUANTIZED), _params_move, quiet=True)
def sink_dequantize_reordered(m: Match, build: Builder) -> Value:
    """Dequantized numbers in another order are the reordered integers, dequantized"""
    source, move = _source(m), m.node
    params: list[Value | None] = []
    for p in source.operands[1:]:
        shape = None if p is None else _param_moved(move, p)
        if p is not None and shape is not None and not is_number(p):
            p = build("reshape", p, shape=tuple(shape))
            p = build("transpose", p, **move.attrs) if move.op == "transpose" else p
        params.append(p)
    return build("dequantize", build(move.op, source.operand(0), **move.attrs), *params, **source.attrs)


def _concat_of_one_grid(m: Match) -> str | None:
    sources = [maker(v, "dequantize") for v in m.node.operands]
    first = sources[0]
    if first is None or any(s is None for s in sources):
        return "an operand is not dequantized"
    if reason := _one_grid(m):
        return reason
    for s in sources:
        assert s is not None
        if not same_grid(first, s) or s.attrs != first.attrs or s.operand(0).tensor.dtype != _dtype(first):
            return "the operands lie on different grids"
    return None


def _dtype(source: Node) -> DType:
    return source.operand(0).tensor.dtype


@rule(op("concat", _DEQUANTIZED, rest=True), _concat_of_one_grid, quiet=True)
def sink_dequantize_joined(m: Match, build: Builder) -> Value:
    """Joined numbers of one grid are the joined integers, dequantized"""
    parts = [v.producer.operand(0) for v in m.node.operands if v is not None and v.producer is not None]
    return _moved(m, build, parts, _source(m))


def _pad_on_grid(m: Match) -> str | None:
    if reason := _one_grid(m):
        return reason
    if m.node.attrs["mode"] != "constant" or _pad_number(m) == 0:
        return None
    source, x = _source(m), _pad_number(m)
    if x is None or not grid_is_normal(source) or zero_number(source) is None:
        return "the pad is not constant"
    low, high = integer_range(_dtype(source))
    step = _step(source, x)
    exact = np.float32(step - (zero_number(source) or 0)) * np.float32(scale_number(source) or 0)
    return None if low <= step <= high and exact == np.float32(x) else f"the pad {x:g} is not on the grid"


def _pad_number(m: Match) -> float | None:
    pad = m.node.optional(1)
    if pad is None:
        return 0.0
    return None if pad.constant is None else float(pad.constant.array)


def _step(source: Node, x: float) -> int:
    return round(x / (scale_number(source) or 1)) + (zero_number(source) or 0)


@rule(op("pad", _DEQUANTIZED, rest=True), _pad_on_grid, quiet=True)
def sink_dequantize_padded(m: Match, build: Builder) -> Value:
    """Dequantized numbers with 0 around them are the integers with the zero point around them, dequantized"""
    source, zero = _source(m), zero_of(_source(m))
    x = _pad_number(m) or 0.0
    if m.node.attrs["mode"] != "constant" or (x == 0 and zero is None):
        point = None
    elif x == 0 and zero is not None:
        point = _grid(build, source)[1]
    else:
        point = build.constant(_step(source, x), _dtype(source))
    return _moved(m, build, [source.operand(0), point], source)


def _window_meets_image(m: Match) -> str | None:
    attrs = m.node.attrs
    n = len(attrs["kernel"])
    if any(d != 1 for d in attrs["dilations"]) and any(attrs["pads"]):
        return "a window may see pads only"
    if any(p >= attrs["kernel"][i % n] for i, p in enumerate(attrs["pads"])):
        return "a window may see pads only"
    return None


def _rising(m: Match) -> str | None:
    if (reason := _one_grid(m)) or (reason := _window_meets_image(m)):
        return reason
    scale = scale_number(_source(m))
    return None if scale is not None and scale > 0 else "the scale is not known to be positive"


@rule(op("max_pool", _DEQUANTIZED), _rising, quiet=True)
def sink_dequantize_pooled(m: Match, build: Builder) -> Value:
    """The largest of dequantized numbers is the largest integer, dequantized"""
    return _moved(m, build, [_source(m).operand(0)], _source(m))


def _never_negative(m: Match) -> str | None:
    source = _source(m)
    return None if from_lowest(source, _dtype(source)) else "some number may be negative"


@rule(op("relu", _DEQUANTIZED), _never_negative, quiet=True)
def dequantized_is_positive(m: Match, build: Builder) -> Value:
    """relu of numbers whose zero point is the lowest integer is these numbers"""
    return m.node.operand(0)


# -- quantize, up -----------------------------------------------------------------------------------------------------


def _to_one_grid(m: Match) -> str | None:
    if not byte(m.node.attrs["dtype"]) or dtype_of(m.node.operand(0)) != F32:
        return "it is no quantization of f32 to bytes"
    if not per_tensor(m.node):
        return "the scale or zero point differs from element to element"
    return "its operand has other uses" if len(m.node.operand(0).uses) != 1 else None


def _quantized(m: Match, build: Builder, x: Value) -> Value:
    return build("quantize", x, *_grid(build, m.node), **m.node.attrs)


def _moving(m: Match) -> Node:
    node = m.node.operand(0).producer
    assert node is not None
    return node


@rule(op("quantize", op("reshape|transpose|expand", value("x")), rest=True), _to_one_grid, quiet=True)
def hoist_quantize(m: Match, build: Builder) -> Value:
    """Moved numbers, quantized, are the quantized numbers moved"""
    move = _moving(m)
    return build(move.op, _quantized(m, build, m["x"]), **move.attrs)


@rule(op("quantize", op("concat", rest=True), rest=True), _to_one_grid, quiet=True)
def hoist_quantize_joined(m: Match, build: Builder) -> Value:
    """Joined numbers, quantized, are the quantized parts joined"""
    move = _moving(m)
    return build("concat", *[_quantized(m, build, v) for v in move.operands if v is not None], **move.attrs)


@rule(op("quantize", op("pad", value("x"), rest=True), rest=True), _to_one_grid, quiet=True)
def hoist_quantize_padded(m: Match, build: Builder) -> Value:
    """Padded numbers, quantized, are the quantized numbers around which the pad is quantized"""
    move = _moving(m)
    pad = move.optional(1)
    if move.attrs["mode"] != "constant":
        return build("pad", _quantized(m, build, m["x"]), **move.attrs)
    if pad is None:
        pad = build.constant(0, F32)
    point = _quantized(m, build, pad)
    return build("pad", _quantized(m, build, m["x"]), point, **move.attrs)


def _pooled_to_one_grid(m: Match) -> str | None:
    if reason := _to_one_grid(m):
        return reason
    scale, pool = scale_number(m.node), Match(m.node.operand(0), {}, ())
    if scale is None or not scale > 0:
        return "the scale is not known to be positive"
    return _window_meets_image(pool)


@rule(op("quantize", op("max_pool", value("x")), rest=True), _pooled_to_one_grid, Numerics.REASSOCIATES, quiet=True)
def hoist_quantize_pooled(m: Match, build: Builder) -> Value:
    """The largest number, quantized, is the largest of the quantized numbers"""
    move = _moving(m)
    return build("max_pool", _quantized(m, build, m["x"]), **move.attrs)


# -- what meets -------------------------------------------------------------------------------------------------------


def _same_grids(m: Match) -> str | None:
    before, dtype = _source(m), m.node.attrs["dtype"]
    if dtype != dtype_of(before.operand(0)) or not dtype.is_integer:
        return "the integers are of another type"
    if not same_grid(before, m.node):
        return "scale or zero point differ"
    if not grid_is_normal(m.node) or dtype_of(m.node.operand(0)) != F32:
        return "the steps may not be exact"
    return None if same_type(before.operand(0), m.root) else "the shape differs"


@rule(op("quantize", _DEQUANTIZED, rest=True), _same_grids, quiet=True)
def quantize_dequantized(m: Match, build: Builder) -> Value:
    """Dequantized integers quantized on the same grid are these integers"""
    return _source(m).operand(0)


def _relu_is_range(m: Match) -> str | None:
    if not from_lowest(m.node, m.node.attrs["dtype"]):
        return "the zero point is not the lowest integer"
    return "the relu has other uses" if len(m.node.operand(0).uses) != 1 else None


@rule(op("quantize", op("relu", value("x")), rest=True), _relu_is_range, quiet=True)
def relu_in_range(m: Match, build: Builder) -> Value:
    """A quantization whose lowest integer is 0 cuts off what relu does"""
    return _quantized(m, build, m["x"])


def _bound_is_range(m: Match) -> str | None:
    node, limit = m.node, m.array("c")
    dtype, scale, zero = node.attrs["dtype"], scale_number(node), zero_number(node)
    if not byte(dtype) or scale is None or zero is None or not scale > 0 or dtype_of(m["x"]) != F32:
        return "the grid is not known"
    if limit.size != 1 or not same_dims(shape_of(m["x"]), shape_of(node.operand(0))):
        return "the bound is not one number"
    if np.isnan(limit).any() or len(node.operand(0).uses) != 1:
        return "the bounded numbers have other uses"
    low, high = integer_range(dtype)
    step = float(np.rint(np.float32(limit.reshape(-1)[0]) / np.float32(scale))) + zero
    outside = step <= low if _moving(m).op == "max" else step >= high
    return None if outside else "the bound lies within the range"


@rule(op("quantize", op("max|min", value("x"), const("c")), rest=True), _bound_is_range, quiet=True)
def bound_in_range(m: Match, build: Builder) -> Value:
    """A bound beyond the range of a quantization is that range"""
    return _quantized(m, build, m["x"])


@dataclass(frozen=True)
class MoveQuantization(RulePass):
    """Quantized values between products stay bytes."""

    name: ClassVar[str] = "move-quantization"
    summary: ClassVar[str] = "move quantize and dequantize towards each other and cancel them"

    rules = (
        quantize_dequantized, dequantized_is_positive, sink_dequantize, sink_dequantize_reordered,
        sink_dequantize_joined, sink_dequantize_padded, sink_dequantize_pooled, relu_in_range, bound_in_range,
        hoist_quantize, hoist_quantize_joined, hoist_quantize_padded, hoist_quantize_pooled,
    )  # fmt: skip
