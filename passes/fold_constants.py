"""Evaluate at compile time what depends on constants alone.

Numerics: exact with respect to the operators' definitions. Results that only view an operand (a transposed weight)
stay views, so memory-mapped weights stay mapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.dims import Expr
from opcel_compiler.ir.encodings import DENSE, Constant
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.types import TensorType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import erase_unused, optimizable
from opcel_compiler.rewrite.pass_ import Pass
from opcel_compiler.rewrite.quantized import kept_quantized

RULE = "fold"


@dataclass(frozen=True)
class FoldConstants(Pass):
    """A result is kept when it has at most `max_bytes`, or at most `max_growth` times the bytes of its operands; four
    times for a dequantization, as what multiplies by weights wants them constant. The dequantization of weights that
    are multiplied with quantized numbers stays."""

    name: ClassVar[str] = "fold-constants"
    summary: ClassVar[str] = "evaluate nodes whose operands are all constants"

    max_bytes: int = 1 << 20
    max_growth: int = 2

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in optimizable(graph):
            if not _foldable(node) or kept_quantized(node):
                continue
            if reason := self._too_large(node):
                ctx.refuse(RULE, node, reason)
            elif ctx.allows(RULE, node):
                _fold(node, ctx)

    def _too_large(self, node: Node) -> str | None:
        given = sum(v.constant.nbytes for v in node.operands if v is not None and v.constant is not None)
        made = sum((v.tensor.dtype.bits * int(np.prod(v.tensor.static_shape)) + 7) // 8 for v in node.results)
        growth = max(self.max_growth, 4) if node.op == "dequantize" else self.max_growth
        limit = max(self.max_bytes, growth * given)
        return f"the result has {made} bytes, more than {limit}" if made > limit else None


def _foldable(node: Node) -> bool:
    d = node.definition
    if node.op in ("constant", "random_uniform") or d.evaluate is None or d.traits & {"control", "opaque"}:
        return False
    if any(v is not None and (v.constant is None or v.constant.encoding != DENSE) for v in node.operands):
        return False
    if any(isinstance(d, Expr) for a in node.attrs.values() if isinstance(a, tuple) for d in a):
        return False
    return all(isinstance(v.type, TensorType) and v.type.is_static and v.type.dtype.kind != "s" for v in node.results)


def _fold(node: Node, ctx: PassContext) -> None:
    graph, evaluate = node.graph, node.definition.evaluate
    assert graph is not None and evaluate is not None
    arrays = [v.constant.array if v is not None and v.constant is not None else None for v in node.operands]
    try:
        results = evaluate(arrays, node.attrs)
    except (ValueError, IndexError, ArithmeticError, TypeError) as error:
        ctx.refuse(RULE, node, f"its evaluation fails: {error}")
        return
    ctx.changed(RULE, node)
    makers = [v.producer for v in node.operands if v is not None and v.producer is not None]
    values = []
    for old, array in zip(node.results, results, strict=True):
        data = Constant(np.asarray(array), old.tensor.dtype)
        new = graph.constant(data, before=node, origin=node.origin)
        old.name, new.name = new.name, old.name
        values.append(new)
    graph.replace(node, values)
    erase_unused(makers)
