"""Comparing an import, and its export, with ONNX Runtime on the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from opcel_compiler.frontend.exporter import export_model, export_region
from opcel_compiler.frontend.importer import Imported, import_model
from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.verify import verify

Feeds = Mapping[str, np.ndarray]
ORT_OPSET = 24
"""The newest opset that the oldest supported ONNX Runtime executes in full."""


def session(model: onnx.ModelProto | str | Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def reference(model: onnx.ModelProto | str | Path, feeds: Feeds) -> list[Any]:
    return list(session(model).run(None, dict(feeds)))


def run_foreign(node: Node, operands: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """An opaque node computed by ONNX Runtime."""
    inputs = {v: a for v, a in zip(node.operands, operands, strict=True) if v is not None and v.constant is None}
    region = export_region([node], list(inputs), node.results)
    assert not region.symbols
    return reference(region.model, dict(zip(region.inputs, inputs.values(), strict=True)))


def interpret(imported: Imported, feeds: Feeds) -> list[np.ndarray]:
    named = {v.name: feeds[name] for v, name in zip(imported.graph.inputs, imported.input_names, strict=True)}
    out = run(imported.graph, named, foreign=run_foreign)
    return [out[name] for name in imported.output_names]


def same(got: Sequence[Any], want: Sequence[Any], rtol: float = 1e-5, atol: float = 1e-6) -> None:
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        if isinstance(w, np.ndarray) and w.dtype.kind in "fiub":
            assert g.shape == w.shape and g.dtype == w.dtype, f"{g.dtype}{g.shape} instead of {w.dtype}{w.shape}"
            np.testing.assert_allclose(g, w, rtol, atol)
        elif isinstance(w, list):
            same(g, w, rtol, atol)
        else:
            assert np.array_equal(g, w) if isinstance(w, np.ndarray) else g == w


def check(
    model: onnx.ModelProto, feeds: Feeds, foreign: Sequence[str] = (), rtol: float = 1e-5, atol: float = 1e-6
) -> Imported:
    """Import `model`; interpreting the graph and running its export must give what ONNX Runtime gives.

    `foreign`: the operators that are expected to stay opaque.
    """
    want = reference(model, feeds)
    imported = import_model(model)
    verify(imported.graph)
    assert [n.attrs["op_type"] for n in imported.foreign] == list(foreign)
    same(interpret(imported, feeds), want, rtol, atol)
    exported = export_model(imported.graph, names=imported)
    if all(o.type.tensor_type.HasField("shape") for o in exported.graph.output):
        onnx.checker.check_model(exported, full_check=True)
    assert [i.name for i in exported.graph.input] == list(imported.input_names)
    assert [o.name for o in exported.graph.output] == list(imported.output_names)
    same(reference(exported, feeds), want, rtol, atol)
    return imported


def one_node(
    op_type: str,
    feeds: Feeds,
    opset: int,
    *,
    constants: Feeds | None = None,
    outputs: int = 1,
    inputs: Sequence[str] | None = None,
    symbolic: Mapping[str, Sequence[str | int]] | None = None,
    domain: str = "",
    **attrs: Any,
) -> onnx.ModelProto:
    """A model of one node. Its operands are `inputs` ("" for an absent one), by default the feeds, then the constants.
    `symbolic` gives inputs other shapes than those of their feeds."""
    constants = constants or {}
    names = [*feeds, *constants] if inputs is None else list(inputs)
    node = helper.make_node(op_type, names, [f"y{i}" for i in range(outputs)], name="the_node", domain=domain, **attrs)
    return model_of([node], feeds, opset, constants, [f"y{i}" for i in range(outputs)], symbolic)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    feeds: Feeds,
    opset: int,
    constants: Feeds | None = None,
    outputs: Sequence[str] = ("y",),
    symbolic: Mapping[str, Sequence[str | int]] | None = None,
) -> onnx.ModelProto:
    """A model of these nodes; the types of its outputs come from ONNX's inference."""
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), (symbolic or {}).get(n, a.shape))
        for n, a in feeds.items()
    ]
    stored = [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()]
    graph = helper.make_graph(list(nodes), "g", given, [], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 20 else 10)
    inferred = {v.name: v for v in onnx.shape_inference.infer_shapes(untyped(model, outputs)).graph.output}
    for name in outputs:
        model.graph.output.append(inferred[name])
    return model


def untyped(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for name in outputs:
        out.graph.output.append(helper.make_empty_tensor_value_info(name))
    return out


def floats(*shape: int, seed: int = 0, low: float = -2.0, high: float = 2.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


FLOAT = TensorProto.FLOAT
