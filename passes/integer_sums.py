"""Products of integers summed in i32, as products of floats.

Sums that are only read as floats, of constant weights, are products of dequantized numbers, with what scales them as
their scales: the form of every quantized product (reassociates: sums are rounded). All others are added up in f32 so
that no sum is rounded: in one product where no sum passes 2^24, else in products of the operands' digits (exact).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.encodings import DENSE
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.ops.quant import integer_range
from opcel_compiler.ir.types import F32, I8, I32, U8, DType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import apply_rules, erase_unused, optimizable
from opcel_compiler.rewrite.emit import Emit
from opcel_compiler.rewrite.facts import all_of, dtype_of, keeps_type, same_type, shape_of
from opcel_compiler.rewrite.pass_ import Pass
from opcel_compiler.rewrite.pattern import Match, const, op, value
from opcel_compiler.rewrite.quantized import byte, is_number, maker, scale_number, scale_of, zero_of
from opcel_compiler.rewrite.rule import Builder, Numerics, Rule, rule
from opcel_compiler.rewrite.signs import never_negative

# -- ranges that are computed ------------------------------------------------------------------------------------------


def _positive_range(m: Match) -> str | None:
    return None if never_negative(m["x"]) and (m.array("c") == 0).all() else "some number may be negative"


@rule(op("min", op("reduce_min", value("x")), const("c")), all_of(_positive_range, keeps_type("c")), quiet=True)
def least_is_zero(m: Match, build: Builder) -> Value:
    """The least of 0 and of numbers that are not negative is 0"""
    return m["c"]


@rule(op("quantize", op("neg", const("c")), value("s"), dtype=U8), lambda m: _is_zero(m, "c"), quiet=True)
def nothing_is_zero(m: Match, build: Builder) -> Value:
    """A zero quantized by any scale is the integer 0"""
    return build.constant(0, U8)


def _is_zero(m: Match, name: str) -> str | None:
    return None if m.array(name).shape == () == m.root.tensor.dims and m.array(name) == 0 else "it is not 0"


def _of_all(m: Match) -> str | None:
    shape, axes = shape_of(m["x"]), m.node.attrs["axes"]
    if shape is None or len(axes) != len(shape) or m.node.attrs["keepdims"]:
        return "it is not over all axes"
    return "there is one row" if all(d == 1 for d in shape[: _leading(len(shape))]) else None


def _leading(rank: int) -> int:
    """How many axes number the rows of a tensor, or the planes of an image."""
    return rank - 1 if rank < 4 else 2


@rule(op("reduce_max|reduce_min", value("x")), _of_all, quiet=True)
def extreme_of_rows(m: Match, build: Builder) -> Value:
    """The extreme of all elements is that of the rows' extremes, which are found side by side"""
    first, rank = _leading(len(m["x"].tensor.dims)), len(m["x"].tensor.dims)
    rows = build(m.node.op, m["x"], axes=tuple(range(first, rank)), keepdims=False)
    return build(m.node.op, rows, axes=tuple(range(first)), keepdims=False)


# -- sums that are read as floats --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Steps:
    """An i32 operand: integers of 8 bits (or a constant that fits s8) less their zero point."""

    integers: Value
    zero: Value | None

    def dtype(self) -> DType:
        return I8 if self.integers.tensor.dtype == I32 else self.integers.tensor.dtype


def _steps(v: Value) -> _Steps | None:
    node = v.producer
    zero = None
    if node is not None and node.op == "sub":
        v, zero = node.operand(0), node.operand(1)
    integers = _narrow(v)
    if integers is None or (zero is not None and (zero := _narrow_zero(zero, integers)) is None):
        return None
    return _Steps(integers, zero)


def _narrow(v: Value) -> Value | None:
    """The bytes that `v` was cast from, or `v` if it is a constant that holds nothing but numbers of s8."""
    node = maker(v, "cast")
    if node is not None and byte(dtype_of(node.operand(0))):
        return node.operand(0)
    return v if v.constant is not None and _fits(v, I8) else None


def _narrow_zero(v: Value, integers: Value) -> Value | None:
    dtype = I8 if integers.tensor.dtype == I32 else integers.tensor.dtype
    node = maker(v, "cast")
    if node is not None and dtype_of(node.operand(0)) == dtype:
        return node.operand(0)
    return v if v.constant is not None and _fits(v, dtype) else None


def _fits(v: Value, dtype: DType) -> bool:
    low, high = _bounds(v)
    first, last = integer_range(dtype)
    return first <= low and high <= last


def _dequantized(steps: _Steps, build: Builder) -> Value:
    """The integers less their zero point, in f32."""
    dtype = steps.dtype()
    given = [steps.integers] if steps.zero is None else [steps.integers, steps.zero]
    q, *zero = [
        v if v.tensor.dtype == dtype or v.constant is None else build.constant(v.constant.array, dtype) for v in given
    ]
    return build("dequantize", q, build.constant(1, F32), *zero, dtype=F32)


def _of_weights(m: Match) -> str | None:
    if dtype_of(m["a"]) != I32:
        return "the sums are no integers"
    a, b = _steps(m["a"]), _steps(m["b"])
    if a is None or b is None:
        return "the operands are no integers of 8 bits"
    if _shifts_images(m.maker("sums"), a) and b.zero is not None:
        return "zero points of images and of weights are not both taken out of sums"
    return None if b.integers.constant is not None else "the weights are not constant"


@rule(op("cast", op("matmul|conv", value("a"), value("b"), name="sums"), dtype=F32), _of_weights, Numerics.REASSOCIATES)
def sums_as_floats(m: Match, build: Builder) -> Value:
    """Sums of integers read as floats are sums of dequantized integers"""
    a, b = _steps(m["a"]), _steps(m["b"])
    assert a is not None and b is not None
    sums = m.maker("sums")
    if _shifts_images(sums, a):
        return _shifted(sums, a, b, build)
    return build(sums.op, _dequantized(a, build), _dequantized(b, build), **sums.attrs)


def _shifts_images(sums: Node, a: _Steps) -> bool:
    """Whether the zero point of a convolution's image is computed as it runs, which its kernels must know."""
    return sums.op == "conv" and a.zero is not None and a.zero.constant is None


def _shifted(sums: Node, a: _Steps, b: _Steps, build: Builder) -> Value:
    """The convolution of integers as they are, less what their zero point adds to each sum. Around an image of
    integers lies the zero point."""
    image, weights = a.integers, b.integers.constant
    pads, n = sums.attrs["pads"], len(sums.attrs["pads"]) // 2
    assert weights is not None and a.zero is not None
    if any(pads):
        image = build("pad", image, a.zero, pads=(0, 0, *pads[:n], 0, 0, *pads[n:]), mode="constant")
    attrs = {**sums.attrs, "pads": (0,) * len(pads), "exact": True}
    total = build("conv", _dequantized(_Steps(image, None), build), _dequantized(b, build), **attrs)
    added = weights.array.astype(np.float32).reshape(len(weights.array), -1).sum(1).reshape(1, -1, *[1] * n)
    shift = build("mul", build("cast", a.zero, dtype=F32), build.constant(added, F32))
    return build("sub", total, shift)


def _scales(m: Match) -> tuple[list[Value], list[Value]] | None:
    """The factors of the root's scale: those of the activations, and those of the weights."""
    s, anchor = m["s"], m.maker("sums")
    product = maker(s, "mul")
    factors = [s] if product is None or s.constant is not None else [product.operand(0), product.operand(1)]
    mine, weights = [], []
    for factor in factors:
        if factor.constant is not None and _on_channels(factor, anchor):
            weights.append(factor)
        elif is_number(factor) and (factor.constant is not None or anchor.op != "conv"):
            mine.append(factor)
        else:
            return None
    return (mine, weights) if len(mine) < 2 and len(weights) < 2 else None


def _on_channels(p: Value, anchor: Node) -> bool:
    """Whether a constant scale of a contraction's result differs from output channel to output channel only."""
    shape, rank = p.tensor.dims, len(anchor.result.tensor.dims)
    axis = 1 if anchor.op == "conv" else rank - 1
    wide = (1,) * (rank - len(shape)) + tuple(shape)
    return len(wide) == rank and all(d == 1 for i, d in enumerate(wide) if i != axis)


def _scales_fit(m: Match) -> str | None:
    x, w = (maker(v, "dequantize") for v in m.maker("sums").operands[:2])
    if x is None or w is None or w.operand(0).constant is None:
        return "its operands are not dequantized"
    if scale_number(x) != 1 or scale_number(w) != 1:
        return "its operands have scales"
    if not same_type(m["sums"], m.root) or dtype_of(m["s"]) != F32:
        return "the scale changes the shape"
    return None if _scales(m) is not None else "the scale is no product of one number and one constant"


@rule(
    op("mul", op("matmul|conv", value(), value(), rest=True, name="sums", single_use=True), value("s")),
    _scales_fit,
    Numerics.REASSOCIATES,
    quiet=True,
)
def scales_into_operands(m: Match, build: Builder) -> Value:
    """A scale of a product of dequantized integers is the scale of its operands"""
    anchor, found = m.maker("sums"), _scales(m)
    assert found is not None
    x, w = (v.producer for v in anchor.operands[:2] if v is not None)
    assert x is not None and w is not None
    (mine, weights), rank = found, len(w.result.tensor.dims)
    if mine and mine[0].tensor.dims:
        mine = [build("reshape", mine[0], shape=())]
    if weights:
        data = weights[0].constant
        assert data is not None
        shape = () if data.array.size == 1 else (-1, *[1] * (rank - 1)) if anchor.op == "conv" else (-1,)
        weights = [build.constant(data.array.reshape(shape), F32)]
    a = build("dequantize", x.operand(0), *(mine or [scale_of(x)]), zero_of(x), dtype=F32)
    b = build("dequantize", w.operand(0), *(weights or [scale_of(w)]), zero_of(w), dtype=F32)
    bias = [] if len(anchor.operands) < 3 else [anchor.operands[2]]
    return build(anchor.op, a, b, *bias, **anchor.attrs)


# -- exact sums --------------------------------------------------------------------------------------------------------

EXACT = 1 << 24
"""Sums of integers up to this size are exact in f32."""
DIGIT = 16
"""What a number is divided by into a high and a low part, where its products are too large."""


def _bounds(v: Value) -> tuple[int, int]:
    """The least and the largest number that an integer tensor may hold."""
    data, node = v.constant, v.producer
    if data is not None and data.array.size and data.encoding == DENSE:
        return int(data.array.min()), int(data.array.max())
    own = integer_range(v.tensor.dtype)
    if node is None:
        return own
    if node.op == "cast" and (of := node.operand(0).tensor.dtype).is_integer:
        low, high = _bounds(node.operand(0)) if of.bits <= v.tensor.dtype.bits else own
    elif node.op == "sub":
        (a, b), (first, last) = _bounds(node.operand(0)), _bounds(node.operand(1))
        low, high = a - last, b - first
    elif node.op in ("reshape", "transpose", "expand", "slice"):
        low, high = _bounds(node.operand(0))
    else:
        return own
    return (low, high) if own[0] <= low and high <= own[1] else own


def _depth(node: Node) -> int | None:
    shape = node.operand(1).tensor.shape
    if shape is None:
        return None
    sizes = [d for d in (shape[1:] if node.op == "conv" else shape[-2:-1] or shape) if isinstance(d, int)]
    full = len(shape) - 1 if node.op == "conv" else 1
    return math.prod(sizes) if len(sizes) == full else None


def _splits(node: Node) -> tuple[bool, bool] | None:
    """Which operands are to be split into digits, so that no sum is rounded in f32; None where none helps."""
    depth = _depth(node)
    largest = [max(map(abs, _bounds(node.operand(i)))) for i in range(2)]
    for split in ((False, False), (True, False), (False, True), (True, True)):
        parts = [max(DIGIT - 1, x // DIGIT + 1) if s else x for x, s in zip(largest, split, strict=True)]
        if depth is not None and depth * parts[0] * parts[1] <= EXACT:
            return split
    return None


def _digits(v: Value, split: bool, emit: Emit) -> list[tuple[int, Value]]:
    """(factor, digits in f32) whose sum is `v`."""
    value = emit("cast", v, dtype=F32)
    if not split:
        return [(1, value)]
    high = emit("floor", emit("mul", value, emit.constant(1 / DIGIT, F32)))
    low = emit("sub", value, emit("mul", high, emit.constant(DIGIT, F32)))
    return [(DIGIT, high), (1, low)]


def _replace_exactly(node: Node, split: tuple[bool, bool]) -> None:
    emit = Emit(node)
    a, b = (_digits(node.operand(i), split[i], emit) for i in range(2))
    attrs = {**node.attrs, "exact": True}
    parts = [(i * j, emit(node.op, x, y, **attrs)) for i, x in a for j, y in b]
    parts.sort(key=lambda p: -p[0])
    users = list(node.result.users)
    floats = [u for u in users if u.op == "cast" and u.result.tensor.dtype == F32]
    if floats and len(parts) < 3:
        total = _total(parts, emit)
        for u in floats:
            assert u.graph is not None
            u.graph.replace(u, [total])
    if len(floats) < len(users) or node.result.is_output or len(parts) > 2:
        whole = [(f, emit("cast", p, dtype=I32)) for f, p in parts]
        node.result.replace_with(_total(whole, emit))


def _total(parts: Sequence[tuple[int, Value]], emit: Emit) -> Value:
    total: Value | None = None
    for factor, part in parts:
        scaled = part if factor == 1 else emit("mul", part, emit.constant(factor, part.tensor.dtype))
        total = scaled if total is None else emit("add", total, scaled)
    assert total is not None
    return total


@dataclass(frozen=True)
class IntegerSums(Pass):
    """Products of integers that are wider, or of unknown depth, stay."""

    name: ClassVar[str] = "integer-sums"
    summary: ClassVar[str] = "compute products of 8-bit integers as products of floats"

    _rules: ClassVar[Sequence[Rule]] = (
        least_is_zero, nothing_is_zero, extreme_of_rows, sums_as_floats, scales_into_operands,
    )  # fmt: skip

    def run(self, graph: Graph, ctx: PassContext) -> None:
        apply_rules(graph, self._rules, ctx)
        for node in list(optimizable(graph)):
            if node.op not in ("matmul", "conv") or dtype_of(node.result) != I32:
                continue
            split = _splits(node)
            if split is None:
                ctx.refuse("exact", node, "sums of integers this large are not exact in f32")
            elif ctx.allows("exact", node):
                ctx.changed("exact", node)
                _replace_exactly(node, split)
                erase_unused([node])
