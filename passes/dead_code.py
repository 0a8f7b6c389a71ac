"""Remove nodes whose results nobody uses. Numerics: exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.analysis import dead_nodes
from opcel_compiler.ir.graph import Graph
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import optimizable
from opcel_compiler.rewrite.pass_ import Pass


@dataclass(frozen=True)
class DeadCode(Pass):
    """No operator has effects, so a node is dead when no result of it is used, or no symbol that it makes is named;
    users go before what they use."""

    name: ClassVar[str] = "dead-code"
    summary: ClassVar[str] = "remove nodes whose results nobody uses"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in dead_nodes(list(optimizable(graph))):
            if ctx.allows("remove", node):
                ctx.changed("remove", node)
                assert node.graph is not None
                node.graph.erase(node)
