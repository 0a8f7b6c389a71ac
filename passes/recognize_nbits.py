"""Recognise products with constant weights that are dequantized by groups: they stay integers.

What stands between the dequantization and the product only moves elements (a blocked DequantizeLinear is split into
blocks and put together again, exporters transpose), so that the integers, scales and zero points can be moved instead.
Weights of 8 bits are left alone where the other operand is dequantized too: that is a product of integers.
Numerics: reassociates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import DTYPES, F32, DType, TensorType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import erase_unused, optimizable
from opcel_compiler.rewrite.pass_ import Pass
from opcel_compiler.rewrite.rule import Numerics

MOVES = frozenset({"reshape", "transpose", "slice"})
RULE = "weights"


@dataclass(frozen=True)
class RecognizeNbits(Pass):
    """A group has at least `least_group` elements; smaller ones are dequantized when compiling."""

    name: ClassVar[str] = "recognize-nbits"
    summary: ClassVar[str] = "keep dequantized weights of products in their few bits"

    least_group: int = 8

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(optimizable(graph)):
            if node.op != "matmul" or _source(node.operand(1)) is None:
                continue
            found = _weights(node, self.least_group)
            if isinstance(found, str):
                ctx.refuse(RULE, node, found)
            elif ctx.allows(RULE, node, Numerics.REASSOCIATES):
                _rewrite(node, found, ctx)


@dataclass(frozen=True)
class Weights:
    """[k, n] of integers of `dtype`, scales and zero points [ceil(k / group), n]."""

    w: np.ndarray
    scale: np.ndarray
    zero: np.ndarray | None
    dtype: DType
    group: int


def _source(value: Value) -> Node | None:
    """The dequantization that `value` is moved from."""
    node = value.producer
    while node is not None and node.op in MOVES:
        node = node.operand(0).producer
    return node if node is not None and node.op == "dequantize" else None


def _weights(node: Node, least: int) -> Weights | str:
    """The weights of a product whose second operand is dequantized, or why they are none."""
    source = _source(node.operand(1))
    assert source is not None
    integers = _array(source.operand(0))
    params = [None if v is None else _array(v) for v in source.operands[1:]]
    if integers is None or any(v is not None and p is None for v, p in zip(source.operands[1:], params, strict=True)):
        return "the weights are computed"
    dtype = source.operand(0).tensor.dtype
    if dtype.bits not in (4, 8) or not dtype.is_integer:
        return f"the weights are {dtype}"
    if len(node.operand(1).tensor.dims) != 2 or not isinstance(node.operand(0).type, TensorType):
        return "the weights are no matrix"
    if node.operand(0).tensor.dtype != F32 or not node.operand(0).tensor.dims:
        return "the other operand is no matrix of f32"
    if dtype.bits == 8 and _source(node.operand(0)) is not None:
        return "the other operand is dequantized too"
    moved = [_moved(np.broadcast_to(a, integers.shape), node.operand(1), source) for a in params if a is not None]
    w = _moved(integers, node.operand(1), source)
    blocks = {int(d) for d in integers.shape if d > 1}
    for group in sorted({w.shape[0], *(b for b in blocks if b < w.shape[0])}, reverse=True):
        if group >= min(least, w.shape[0]) and all(_by_groups(a, group) for a in moved):
            first = [np.ascontiguousarray(a[::group]) for a in moved]
            zero = first[1] if len(first) > 1 and first[1].astype(bool).any() else None
            return _unsigned(Weights(w, first[0].astype(np.float32), zero, dtype, group))
    return "its scales are not one for a column and group of rows"


def _unsigned(found: Weights) -> Weights:
    """The same with zero points of unsigned numbers, which signed ones become by moving up half of their range."""
    if found.dtype.kind == "u":
        zero = found.zero if found.zero is not None else np.zeros(found.scale.shape, found.dtype.numpy)
        return Weights(found.w, found.scale, zero, found.dtype, found.group)
    if found.zero is None:
        return found
    dtype, half = DTYPES[f"u{found.dtype.bits}"], 1 << (found.dtype.bits - 1)
    w, zero = ((a.astype(np.int16) + half).astype(np.uint8).astype(dtype.numpy) for a in (found.w, found.zero))
    return Weights(w, found.scale, zero, dtype, found.group)


def _by_groups(a: np.ndarray, group: int) -> bool:
    """Whether a column is the same all over each group of rows."""
    whole = len(a) // group * group
    split, rest = a[:whole].reshape(-1, group, a.shape[1]), a[whole:]
    return bool((split == split[:, :1]).all() and (rest == rest[:1]).all())


def _array(value: Value) -> np.ndarray | None:
    """A constant's elements, moved as the graph moves them."""
    if value.constant is not None:
        array: np.ndarray = value.constant.array
        return array
    node = value.producer
    if node is None or node.op not in MOVES or node.definition.evaluate is None:
        return None
    inner = _array(node.operand(0))
    if inner is None or not isinstance(value.type, TensorType) or not value.tensor.is_static:
        return None
    return np.asarray(node.definition.evaluate([inner], node.attrs)[0])


def _moved(array: np.ndarray, value: Value, source: Node) -> np.ndarray:
    """`array`, of the shape of what `source` dequantizes, moved as its result is on the way to `value`."""
    node = value.producer
    assert node is not None
    if node is source:
        return array
    assert node.definition.evaluate is not None
    return np.asarray(node.definition.evaluate([_moved(array, node.operand(0), source)], node.attrs)[0])


def _rewrite(node: Node, found: Weights, ctx: PassContext) -> None:
    graph = node.graph
    assert graph is not None
    held = [Constant(found.w, found.dtype), Constant(found.scale, F32)]
    if found.zero is not None:
        held.append(Constant(found.zero, found.dtype))
    origin = node.origin
    constants = [graph.constant(data, before=node, origin=origin) for data in held]
    new = graph.add("matmul_nbits", [node.operand(0), *constants], {"group": found.group}, before=node, origin=origin)
    ctx.changed(RULE, node)
    node.result.name, new.result.name = new.result.name, node.result.name
    makers = [v.producer for v in node.operands if v is not None and v.producer is not None]
    graph.replace(node, [new.result])
    erase_unused(makers)
