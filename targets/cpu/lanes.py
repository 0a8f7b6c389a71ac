"""What can be computed in lanes of f32, whatever its element types in memory are."""

from __future__ import annotations

from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import BOOL, F32, I32, DType
from opcel_compiler.targets.kernels import kernel_table

WRITTEN = frozenset({"cast", "quantize", "dequantize"})
"""Elementwise operators whose C++ depends on more than their operands, so that no table can hold it."""
CHOICES = frozenset({"min", "max", "where", "equal", "less", "less_equal", "cast", "quantize", "dequantize"})
"""Operators that work on lanes of f32 which stand for integers."""


def in_lanes(dtype: DType) -> bool:
    """Whether f32 holds every value of `dtype`, so that it can be computed in lanes of f32 (booleans: in masks)."""
    return dtype == BOOL or (dtype.is_float and dtype.bits <= 32) or (dtype.is_integer and dtype.bits <= 16)


def _read_rounded(value: Value) -> bool:
    """Whether `value` comes from memory in i32 and every user would round it to f32, as a load of lanes does."""
    users = [u for u, _ in value.uses]
    return (
        value.producer is None
        and value.tensor.dtype == I32
        and all(isinstance(u, Node) and u.op in ("cast", "dequantize") and u.result.tensor.dtype == F32 for u in users)
    )


def lane_node(node: Node) -> bool:
    """Whether an elementwise node has a form on lanes of f32."""
    result = node.result.tensor.dtype
    if node.op == "constant":
        return in_lanes(result)
    dtypes = [F32 if _read_rounded(v) else v.tensor.dtype for v in node.operands if v is not None]
    if not all(map(in_lanes, (*dtypes, result))):
        return False
    if node.op == "cast":
        return result == BOOL or (result.is_float and result.name != "f8e8m0")
    if node.op in ("where", "equal") and BOOL in dtypes[node.op == "where" :]:
        return False
    if any(d.is_integer for d in (*dtypes, result)) and node.op not in CHOICES:
        return False
    row = kernel_table().elementwise.get(node.op)
    return node.op in WRITTEN or (row is not None and row.vector is not None)


def vectorizable(body: Graph) -> bool:
    """Whether a body can be computed in lanes of f32, with masks for booleans, whatever it reads and writes."""
    readable = (in_lanes(v.tensor.dtype) or _read_rounded(v) for v in body.inputs)
    return all(readable) and all(in_lanes(v.tensor.dtype) for v in body.outputs) and all(map(lane_node, body.nodes))
