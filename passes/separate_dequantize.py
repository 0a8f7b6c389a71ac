"""Give each user of a `dequantize` one of its own, so that it can be computed inside the user's kernel.

Numerics: exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import optimizable
from opcel_compiler.rewrite.emit import Emit
from opcel_compiler.rewrite.facts import dtype_of
from opcel_compiler.rewrite.pass_ import Pass
from opcel_compiler.rewrite.quantized import byte

RULE = "separate"


@dataclass(frozen=True)
class SeparateDequantize(Pass):
    """The integers are read by each user then, at a quarter of the bytes; users that are no nodes share the first."""

    name: ClassVar[str] = "separate-dequantize"
    summary: ClassVar[str] = "give each user of a dequantize one of its own"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(optimizable(graph)):
            if node.op != "dequantize" or not byte(dtype_of(node.operand(0))):
                continue
            for user in node.result.users[0 if node.result.is_output else 1 :]:
                if user.graph is node.graph and ctx.allows(RULE, node):
                    ctx.changed(RULE, node)
                    _separate(node, user)


def _separate(node: Node, user: Node) -> None:
    own = Emit(user)("dequantize", *node.operands, **node.attrs)
    assert own.producer is not None
    own.producer.origin = node.origin
    for i, v in enumerate(user.operands):
        if v is node.result:
            user.set_operand(i, own)
