"""Which values of a Graph calibration observes, and how an observing Graph hands out what it learns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.types import TensorType

if TYPE_CHECKING:  # what runs a calibration takes the names below and no graphs
    from opcel_compiler.ir.graph import Graph, Node, Value

WINDOWS, COUNTS, SEEN, CHANNELS = (f"observed.{name}" for name in ("windows", "counts", "seen", "channels"))
"""The names of an observing graph's added input, f32[values, 2], and outputs, u32[values · 2049], f32[values · 5] and
f32[sum of 2 · channels]: the operands and results of its `observe` nodes, value after value."""

CONTRACTIONS = frozenset({"matmul", "conv", "conv_transpose"})
IMAGE = frozenset({"conv", "conv_transpose", "max_pool", "avg_pool"})
"""Operators on images, whose channels are axis 1."""


def observable(graph: Graph, also: Iterable[str] = ()) -> dict[Value, int]:
    """The values to observe, in order, and the axis of the channels (-1: none) of each: what the contractions with
    constant weights read, and what comes of their results after the elementwise work that follows; then those that
    `also` names. Values inside of control flow are none of them.

    Raises OpcelError for a name that no value has.
    """
    found: dict[Value, int] = {}
    for node in graph.nodes:
        if node.op not in CONTRACTIONS or len(node.operands) < 2 or not _weights(node.operand(1)):
            continue
        for value in (node.operand(0), end_of_chain(node)):
            if _can_be(value):
                found.setdefault(value, _channel_axis(value, node))
    by_name = {v.name: v for v in graph.values()}
    for name in also:
        if name not in by_name or not _can_be(by_name[name]):
            raise OpcelError(f"%{name} is no value of the graph that can be observed: a tensor of floats of known rank")
        value = by_name[name]
        near = next((n for n in (*value.users, value.producer) if n is not None and n.op in (*IMAGE, "matmul")), None)
        found.setdefault(value, _channel_axis(value, near))
    return found


def end_of_chain(node: Node) -> Value:
    """The result of `node`, or of the last elementwise node in a row of which each has only the next for a user."""
    value = node.result
    while len(value.uses) == 1:
        (user,) = value.users or (None,)
        if user is None or user.graph is not node.graph or "elementwise" not in user.definition.traits:
            break
        after = user.results[0]
        if user.op in ("quantize", "cast") or not _can_be(after) or after.tensor.dims != value.tensor.dims:
            break
        value = after
    return value


def _weights(value: Value) -> bool:
    if value.producer is not None and value.producer.op == "dequantize":
        value = value.producer.operand(0)
    return value.constant is not None


def _can_be(value: Value) -> bool:
    t = value.type
    floats = isinstance(t, TensorType) and t.shape is not None and t.dtype.kind == "f" and t.dtype.bits in (16, 32)
    return floats and value.constant is None


def _channel_axis(value: Value, node: Node | None) -> int:
    """The axis of channels as `node` sees it, which reads the value or makes it."""
    dims = value.tensor.dims
    at = -1 if node is None else 1 if node.op in IMAGE else len(dims) - 1
    return at if 0 <= at < len(dims) and isinstance(dims[at], int) else -1
