"""The products of a model whose operands are quantized, and how."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.quantization import LAYERS
from opcel_compiler.ir.types import I8, I32, U8, DType
from opcel_compiler.rewrite.driver import optimizable
from opcel_compiler.rewrite.quantized import KEEPS_GRID

PASSED = KEEPS_GRID | {"relu"}


@dataclass(frozen=True)
class QuantizedLayer:
    """A product, the types that its operands are quantized to (None: not at all);
    and whether the second is constant."""

    op: str
    origin: tuple[str, ...]
    activations: DType | None
    weights: DType | None
    constant: bool

    @property
    def reason(self) -> str:
        """Why no kernel of integers computes it, as far as the types of its operands tell."""
        types = [d for d in (self.activations, self.weights) if d is not None and d not in (I8, U8, I32)]
        if types:
            names = " and ".join(dict.fromkeys(d.name for d in types))
            return f"operands of {names} are multiplied as floats"
        if self.activations is None:
            return "only its weights are quantized"
        if self.weights is None:
            return "its weights are not quantized"
        if not self.constant:
            return "its second operand is not constant"
        return "its scales or zero points have no form for integers"


def quantized_layers(graph: Graph) -> list[QuantizedLayer]:
    """The products that read dequantized numbers, of a graph as it was imported."""
    return list(_layers(optimizable(graph)))


def _layers(nodes: Iterable[Node]) -> Iterable[QuantizedLayer]:
    for node in nodes:
        if node.op not in LAYERS:
            continue
        x, w = _integers(node.operand(0)), _integers(node.operand(1))
        if x is None and (w is None or w.tensor.dtype == I32):
            continue
        types = [None if v is None else v.tensor.dtype for v in (x, w)]
        constant = w is not None and _is_constant(w)
        yield QuantizedLayer(node.op, node.origin, types[0], types[1], constant)


def _integers(v: Value) -> Value | None:
    """The integers of at most 16 bits that `v` is dequantized, or cast to i32, and moved from."""
    node = v.producer
    while node is not None and node.op in PASSED:
        v, node = node.operand(0), node.operand(0).producer
    if node is None or (node.op != "dequantize" and v.tensor.dtype != I32):
        return None
    if node.op == "sub":
        v, node = node.operand(0), node.operand(0).producer
    if node is None or node.op not in ("cast", "dequantize"):
        return v if v.constant is not None and v.tensor.dtype == I32 else None
    found = node.operand(0)
    return found if node.op == "dequantize" or found.tensor.dtype.bits <= 16 else None


def _is_constant(v: Value) -> bool:
    node = v.producer
    while node is not None and node.op in KEEPS_GRID | {"quantize"}:
        node = node.operand(0).producer
    return node is not None and node.op == "constant"
