"""Outputs that are sequences of maps: the graph gives the tensor of their values, the Python face makes the maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Union

import numpy as np
from onnx import NodeProto

from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import F32, STRING, TensorType

DOMAIN = "ai.onnx.ml"
Labels = Union[list[int], list[str]]


def without_maps(graph: Graph, names: Sequence[str]) -> dict[str, Labels]:
    """Replace each output that a ZipMap makes by the rows of values that it reads; gives the keys of its maps by the
    output's name. Nothing is replaced where other inputs or outputs are no tensors that an artifact can take.
    """
    made = [_zip_map(v) for v in graph.outputs]
    plain = [v for v, node in zip(graph.outputs, made, strict=True) if node is None]
    if any(not isinstance(v.type, TensorType) or v.type.dtype == STRING for v in (*graph.inputs, *plain)):
        return {}
    out: dict[str, Labels] = {}
    for i, (name, node) in enumerate(zip(names, made, strict=True)):
        if node is not None:
            out[name] = _labels(node)
            graph.set_output(i, node.operand(0))
            if not node.result.uses:
                graph.erase(node)
    return out


def _zip_map(value: Value) -> Node | None:
    """The ZipMap of rows of floats that makes `value`, if one does."""
    node = value.producer
    if node is None or node.op != "foreign" or node.attrs["op_type"] != "ZipMap" or node.attrs["domain"] != DOMAIN:
        return None
    t, labels = node.operand(0).type, _labels(node)
    rows = isinstance(t, TensorType) and t.dtype == F32 and t.shape is not None and len(t.shape) == 2
    return node if rows and labels and isinstance(t, TensorType) and t.dims[1] == len(labels) else None


def _labels(node: Node) -> Labels:
    attrs = {a.name: a for a in NodeProto.FromString(node.attrs["node"]).attribute}
    if "classlabels_strings" in attrs and attrs["classlabels_strings"].strings:
        return [s.decode(errors="replace") for s in attrs["classlabels_strings"].strings]
    return list(attrs["classlabels_int64s"].ints) if "classlabels_int64s" in attrs else []


def values_of_maps(value: np.ndarray, labels: Labels) -> np.ndarray:
    """Maps that another engine made, as the tensor [maps, labels] of their values."""
    return np.array([[one[key] for key in labels] for one in value.reshape(-1)], np.float32).reshape(-1, len(labels))
