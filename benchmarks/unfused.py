"""What a model computes in float64, node by node as it is written: neither fused nor folded, nothing rounded to f32.

Quantization rounds to its grids as the model says, to the nearest with ties to even.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.analysis import dependences
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.interpret import evaluate_node
from opcel_compiler.ir.ops.quant import integer_range

Arrays = Sequence[np.ndarray | None]


def outputs(path: Path, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs, in the model's order, for feeds by input name. Raises OpcelError for a model with control flow,
    operators of other engines, or sizes that depend on data."""
    imported = import_model(path, dims=_sizes(path, feeds))
    graph = imported.graph
    env: dict[Value, np.ndarray] = {
        v: _wide(feeds[name]) for v, name in zip(graph.inputs, imported.input_names, strict=True)
    }
    last: dict[Value, Node] = {}
    for node in graph.nodes:
        last.update(dict.fromkeys(dependences(node), node))
    kept = set(graph.outputs)
    for node in graph.nodes:
        if node.regions or node.op == "foreign":
            raise OpcelError(f"{path}: {', '.join(node.origin)} ({node.op}) is not evaluated in float64")
        operands = [None if v is None else env[v] for v in node.operands]
        for value, array in zip(node.results, _evaluate(node, operands), strict=True):
            env[value] = array
        for value in dict.fromkeys(dependences(node)):
            if last[value] is node and value not in kept:
                del env[value]
    return [env[v] for v in graph.outputs]


def _sizes(path: Path, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The symbolic dimensions of the model's inputs as the feeds have them."""
    model = onnx.load(path, load_external_data=False)
    return {
        d.dim_param: n
        for info in model.graph.input
        if info.name in feeds
        for d, n in zip(info.type.tensor_type.shape.dim, feeds[info.name].shape, strict=True)
        if d.dim_param
    }


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" or array.dtype.name == "bfloat16" else array


def _evaluate(node: Node, operands: Arrays) -> Sequence[np.ndarray]:
    if node.op == "constant":
        return [node.attrs["value"].array]  # widened where it is used, so that weights are wide one at a time
    wide = [None if x is None else _wide(x) for x in operands]
    if node.op == "quantize":
        return [_quantized(node, wide)]
    if node.op == "dequantize":
        return [_dequantized(wide)]
    if node.op == "cast" and node.attrs["dtype"].is_float:
        assert wide[0] is not None
        return [wide[0].astype(np.float64)]
    if node.op in ("matmul", "conv") and wide[0] is not None and wide[0].dtype.kind in "iu":
        floats = [None if x is None else x.astype(np.float64) for x in wide]
        return [y.astype(wide[0].dtype) for y in evaluate_node(node, floats)]
    return [_wide(np.asarray(y)) for y in evaluate_node(node, wide)]


def _quantized(node: Node, operands: Arrays) -> np.ndarray:
    x, scale, zero = (*operands, None)[:3]
    dtype = node.attrs["dtype"]
    assert x is not None and scale is not None
    with np.errstate(all="ignore"):
        steps = x / scale
    if dtype.is_float:
        return _wide(steps.astype(np.float32).astype(dtype.numpy))
    low, high = integer_range(dtype)
    grid = np.rint(steps) + (0 if zero is None else zero.astype(np.float64))
    out: np.ndarray = np.where(grid > low, np.minimum(grid, high), low).astype(np.int64).astype(dtype.numpy)
    return out


def _dequantized(operands: Arrays) -> np.ndarray:
    x, scale, zero = (*operands, None)[:3]
    assert x is not None and scale is not None
    steps = x.astype(np.float64) - (0.0 if zero is None else zero.astype(np.float64))
    return np.asarray(steps * scale)
