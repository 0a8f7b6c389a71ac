"""A quantization plan: which layers of a Graph compute in 8 bits, on which grids, and why others do not.

A layer is a contraction with constant weights and goes by the name of its result. A plan is data: the passes carry it
out (`equalize`, `quantize`), `opcel_compiler.quantization` makes it from statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.recurrent import RECURRENT
from opcel_compiler.ir.thresholds import Grid
from opcel_compiler.ir.types import F32

CONVOLUTIONS = frozenset({"conv", "conv_transpose"})
LAYERS = CONVOLUTIONS | {"matmul"}
"""The operators whose kernels of integers read dequantized operands. Recurrent layers can be quantized too; they have
an operator's form of their own (`ir/ops/recurrent.py`)."""

STATIC, DYNAMIC, FLOAT = "static", "dynamic", "float"
"""Schemes: a grid known when compiling; a scale for each row, computed as the model runs; not quantized."""


@dataclass(frozen=True)
class Layer:
    """What becomes of one layer. `reason` says why it stays float, in words for the user."""

    scheme: str
    reason: str = ""


@dataclass
class Plan:
    """`layers` by result; `grids` by the value that is quantized; `readers` are other nodes, by result, that read the
    codes of their operands of these indices; `corrections` are added to a layer's result, one for each output channel;
    `divided` holds, by the value between layers, what its channels are divided by.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    readers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    corrections: dict[str, np.ndarray] = field(default_factory=dict)
    divided: Mapping[str, np.ndarray] = field(default_factory=dict)

    def quantized(self, name: str) -> bool:
        """Whether the layer `name` computes in 8 bits."""
        return name in self.layers and self.layers[name].scheme != FLOAT

    def without(self, names: Iterable[str]) -> Plan:
        """The same with these layers in float."""
        return replace(self, layers={**self.layers, **dict.fromkeys(names, Layer(FLOAT))})

    @property
    def kept(self) -> dict[str, str]:
        """The layers that stay float, with the reason."""
        return {name: layer.reason for name, layer in self.layers.items() if layer.scheme == FLOAT}


def recurrent_layers(graph: Graph, plan: Plan) -> list[str]:
    """The recurrent layers that `plan` quantizes."""
    names = (n.results[0].name for n in graph.nodes if n.op in RECURRENT)
    return [name for name in names if plan.quantized(name)]


def channel_readers(value: Value) -> tuple[list[Node], int, bool] | None:
    """The layers with constant weights that read `value`, also through max pools; the axis of its channels; and
    whether nothing else reads it. None where its channels cannot be divided: there is no such layer, or images have
    other readers, as those would want the value twice, or are joined from parts, or an attention makes the value: both
    are written as codes by the kernels that make them."""
    readers: list[Node] = []
    alone = True
    stack = [value]
    while stack:
        v = stack.pop()
        for user, i in v.uses:
            if isinstance(user, Node) and user.op == "max_pool" and not v.is_output:
                stack.append(user.result)
            elif isinstance(user, Node) and user.op in LAYERS and i == 0 and _constant_weights(user):
                readers.append(user)
            else:
                alone = False
    kinds = {n.op == "matmul" for n in readers}
    if len(kinds) != 1 or value.tensor.shape is None:
        return None
    matmul = kinds.pop()
    axis = len(value.tensor.shape) - 1 if matmul else 1
    joined = value.producer is not None and value.producer.op == "concat"
    if _source(value) == "attention":
        return None
    if not isinstance(value.tensor.shape[axis], int) or (not matmul and (joined or not alone)):
        return None
    return readers, axis, alone


def _source(value: Value) -> str:
    """The operator that makes the elements of a value, before they were moved."""
    node = value.producer
    while node is not None and node.op in ("reshape", "transpose"):
        node = node.operand(0).producer
    return "" if node is None else node.op


def _constant_weights(node: Node) -> bool:
    w = node.operand(1)
    plain = w.constant is not None and w.tensor.dtype == F32 and not node.attrs.get("exact")
    return plain and (node.op != "matmul" or len(w.tensor.dims) == 2)
