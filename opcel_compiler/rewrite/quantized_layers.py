"""The products of a model whose operands are quantized, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import I8, U8, DType
from opcel_compiler.rewrite.driver import optimizable
from opcel_compiler.rewrite.quantized import KEEPS_GRID, computes_integers

ANCHORS = frozenset({"matmul", "conv", "conv_transpose"})


@dataclass(frozen=True)
class QuantizedLayer:
    """A product, the types that its operands are quantized to (None: not at all), whether the second is constant, and
    whether there are kernels for such a product of integers."""

    op: str
    origin: tuple[str, ...]
    activations: DType | None
    weights: DType | None
    constant: bool
    has_kernel: bool

    @property
    def reason(self) -> str:
        """Why no kernel of integers computes it, as far as the types of its operands tell."""
        types = [d for d in (self.activations, self.weights) if d is not None and d not in (I8, U8)]
        if types:
            names = " and ".join(dict.fromkeys(d.name for d in types))
            return f"operands of {names} are multiplied as floats"
        if self.activations is None:
            return "only its weights are quantized"
        if self.weights is None:
            return "its weights are not quantized"
        if not self.constant:
            return "its second operand is not constant"
        return (
            "its scales or zero points have no form for integers"
            if self.has_kernel
            else f"{self.op} has no kernel for integers"
        )


def quantized_layers(graph: Graph) -> list[QuantizedLayer]:
    """The products that read dequantized numbers, of a graph as it was imported."""
    return list(_layers(optimizable(graph)))


def _layers(nodes: Iterable[Node]) -> Iterable[QuantizedLayer]:
    for node in nodes:
        if node.op not in ANCHORS:
            continue
        x, w = _source(node.operand(0)), _source(node.operand(1))
        if x is None and w is None:
            continue
        types = [None if s is None else s.operand(0).tensor.dtype for s in (x, w)]
        constant = w is not None and _is_constant(w.operand(0))
        yield QuantizedLayer(node.op, node.origin, types[0], types[1], constant, computes_integers(node))


def _source(v: Value) -> Node | None:
    """The dequantization that `v` is moved from."""
    node = v.producer
    while node is not None and (node.op in KEEPS_GRID or node.op == "relu"):
        node = node.operand(0).producer
    return node if node is not None and node.op == "dequantize" else None


def _is_constant(v: Value) -> bool:
    node = v.producer
    while node is not None and node.op in KEEPS_GRID | {"quantize"}:
        node = node.operand(0).producer
    return node is not None and node.op == "constant"
