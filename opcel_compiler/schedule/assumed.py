"""What the types of a node take for granted of sizes that cannot be compared before they are known."""

from __future__ import annotations

from opcel_compiler.ir.graph import InferenceError, Node
from opcel_compiler.ir.ops.common import Assumption, assumptions, may_equal
from opcel_compiler.ir.types import TensorType, Type


def assumed(node: Node) -> list[Assumption]:
    """The assumptions of a node's inference, and that its results have the shapes that inference gives."""
    definition = node.definition
    known: list[Type | None] = [None if v is None else v.type for v in node.operands]
    made = [v.type for v in node.results]
    if definition.traits & {"opaque", "control"} or all(_static(t) for t in (*known, *made)):
        return []
    with assumptions() as out:
        try:
            inferred = definition.infer(known, node.attrs)
        except InferenceError:
            return []
        for have, want in zip(made, inferred, strict=True):
            if isinstance(have, TensorType) and isinstance(want, TensorType) and have.shape and want.shape:
                for a, b in zip(have.shape, want.shape, strict=False):
                    may_equal(a, b)
    return out


def _static(t: Type | None) -> bool:
    return t is None or (isinstance(t, TensorType) and t.is_static)
