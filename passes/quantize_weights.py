"""Give products constant weights of 4 bits; those of the head, and tables that rows are taken from, get 8.

Approximate, and done only where the caller's scheme asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.nbits import GroupedWeights, WeightScheme, grouped
from opcel_compiler.ir.types import F32, I8, TensorType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import erase_unused, optimizable
from opcel_compiler.rewrite.pass_ import Pass

LONGEST_ROW = 1 << 15
"""What the kernels of such products take."""


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Without a scheme nothing changes."""

    name: ClassVar[str] = "quantize-weights"
    summary: ClassVar[str] = "quantize constant weights to 4 bits, heads and embeddings to 8"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        scheme = ctx.weights
        for node in list(optimizable(graph)) if scheme is not None else []:
            assert scheme is not None
            if ctx.limit is not None and ctx.report.total >= ctx.limit:
                return
            if node.op == "matmul":
                reason = why_float(node, scheme)
                if reason:
                    ctx.refuse("product", node, reason)
                else:
                    _product(node, scheme, ctx)
            elif node.op == "gather" and _is_table(node, scheme):
                _table(node, ctx)


def why_float(node: Node, scheme: WeightScheme) -> str:
    """Why the weights of a product stay float; empty where they need not."""
    w = node.operand(1)
    if w.constant is None:
        return "its second operand is no constant"
    if w.tensor.dtype != F32 or len(w.tensor.dims) != 2 or not node.operand(0).tensor.dims:
        return f"its weights are {w.type}"
    maker = node.operand(0).producer
    if node.attrs.get("exact") or (maker is not None and maker.op == "dequantize"):
        return "it is a product of integers"
    k, n = w.tensor.static_shape
    if k * n < scheme.least:
        return f"it has {k * n} weights, fewer than {scheme.least}"
    return f"a row has {k} elements" if k > LONGEST_ROW else ""


def is_head(node: Node) -> bool:
    """Whether the product, whose weights have more columns than rows, is a result of the model, but for what is added
    to it and how it is arranged."""
    value = node.result
    k, n = node.operand(1).tensor.static_shape
    if n <= k:
        return False
    while not value.is_output:
        users = value.users
        if len(users) != 1 or users[0].op not in ("add", "reshape", "transpose", "slice"):
            return False
        value = users[0].result
    return True


def weights_of(node: Node, scheme: WeightScheme) -> GroupedWeights:
    """The integers of a product's weights, without data."""
    data = node.operand(1).constant
    assert data is not None
    w = np.asarray(data.array)
    if is_head(node):
        return grouped(w, 8, len(w), True, False)
    return grouped(w, 4, scheme.group, scheme.symmetric, scheme.clip)


def _product(node: Node, scheme: WeightScheme, ctx: PassContext) -> None:
    graph, w = node.graph, node.operand(1)
    assert graph is not None
    found = scheme.found.get(node.result.name) or weights_of(node, scheme)

    def held(array: np.ndarray, name: str, integers: bool = True) -> Value:
        dtype = found.dtype if integers else F32
        return graph.constant(Constant(array.astype(dtype.numpy), dtype), before=node, name=f"{w.name}.{name}")

    operands = [node.operand(0), held(found.codes, "codes"), held(found.scale, "scale", False)]
    if found.zero is not None:
        operands.append(held(found.zero, "zero"))
    attrs = {"group": found.group, "rounded": True}
    new = graph.add("matmul_nbits", operands, attrs, before=node, origin=node.origin)
    ctx.changed(f"{found.bits} bits", node)
    node.result.name, new.result.name = new.result.name, node.result.name
    graph.replace(node, [new.result])
    erase_unused([p for p in (w.producer,) if p is not None])


def _is_table(node: Node, scheme: WeightScheme) -> bool:
    table = node.operand(0)
    if table.constant is None or table.tensor.dtype != F32 or len(table.tensor.dims) != 2 or node.attrs["axis"] != 0:
        return False
    rows, columns = table.tensor.static_shape
    return rows * columns >= scheme.least


def _table(node: Node, ctx: PassContext) -> None:
    """Rows of 8 bits with a scale each, dequantized once they are taken."""
    graph, table, index = node.graph, node.operand(0), node.operand(1)
    data = table.constant
    assert graph is not None and data is not None and isinstance(node.result.type, TensorType)
    found = grouped(np.asarray(data.array).T, 8, len(data.array.T), True, False)
    codes = graph.constant(Constant(np.ascontiguousarray(found.codes.T), I8), before=node, name=f"{table.name}.codes")
    scale = graph.constant(Constant(found.scale.T.copy(), F32), before=node, name=f"{table.name}.scale")
    taken = [
        graph.add("gather", [v, index], node.attrs, before=node, origin=node.origin).result for v in (codes, scale)
    ]  # fmt: skip
    new = graph.add("dequantize", taken, {"dtype": F32}, before=node, origin=node.origin)
    ctx.changed("rows", node)
    node.result.name, new.result.name = new.result.name, node.result.name
    graph.replace(node, [new.result])
    erase_unused([p for p in (table.producer,) if p is not None])
