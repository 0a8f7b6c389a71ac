"""Compute equal things once. Numerics: exact."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import optimizable
from opcel_compiler.rewrite.pass_ import Pass

RULE = "merge"


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """Two nodes of one graph are the same when operator, operands, attributes and result types are; equal constants
    become one. Opaque operators, which may draw random numbers, and operators with regions are left alone."""

    name: ClassVar[str] = "common-subexpressions"
    summary: ClassVar[str] = "merge nodes that compute the same"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        seen: dict[Hashable, list[Node]] = {}
        for node in optimizable(graph):
            if node.regions or node.definition.traits & {"control", "opaque"}:
                continue
            others = seen.setdefault(_key(node), [])
            same = next((n for n in others if n.attrs == node.attrs), None)
            if same is None:
                others.append(node)
            elif ctx.allows(RULE, node):
                ctx.changed(RULE, node)
                assert node.graph is not None
                node.graph.replace(node, same.results)


def _key(node: Node) -> Hashable:
    """Equal for equal nodes; constants are told apart by a sample of their bytes, not by reading all of them."""
    operands = [id(v) for v in node.operands]
    if "commutative" in node.definition.traits:
        operands.sort()
    attrs = tuple(_sample(a) if isinstance(a, Constant) else a for a in node.attrs.values())
    return node.graph, node.op, tuple(operands), tuple(v.type for v in node.results), attrs


def _sample(data: Constant) -> Hashable:
    array: np.ndarray = data.array
    if array.size == 0 or data.dtype.kind == "s":
        return data.type
    places = np.linspace(0, array.size - 1, min(array.size, 8)).astype(np.int64)
    return data.type, str(data.encoding), array.flat[places].tobytes()
