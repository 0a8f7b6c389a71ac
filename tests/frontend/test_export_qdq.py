"""Quantized graphs as ONNX of opset 21: what ONNX Runtime computes with them is what the interpreter does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from opcel_compiler.compilation import prepare
from opcel_compiler.frontend import exporter
from opcel_compiler.frontend.exporter import export_model, write_model
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ExportError
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.types import DTYPES

RNG = np.random.default_rng(0)

ISLAND = """graph main(%x: f32[n, 4, 9, 9]) {
  %s1 = f32[] 0.03125
  %z1 = u8[] 100
  %xq = quantize(%x, %s1, %z1){dtype=u8}
  %xf = dequantize(%xq, %s1, %z1){dtype=f32}
  %w = i8[8, 4, 3, 3] #W0
  %ws = f32[8, 1, 1, 1] [[[[0.03]]], [[[0.02]]], [[[0.01]]], [[[0.04]]], [[[0.03]]], [[[0.02]]], [[[0.01]]], [[[0.04]]]]
  %wf = dequantize(%w, %ws){dtype=f32}
  %b = f32[8] [1.0, -1.0, 0.5, 0.25, 2.0, 0.0, -0.5, 1.0]
  %c = conv(%xf, %wf, %b){strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]}
  %s2 = f32[] 0.125
  %z2 = u8[] 0
  %cq = quantize(%c, %s2, %z2){dtype=u8}
  %p = max_pool(%cq){kernel=[3, 3], strides=[3, 3], pads=[0, 0, 0, 0], dilations=[1, 1]}
  %r = reshape(%p){shape=[n, 72]}
  %rf = dequantize(%r, %s2, %z2){dtype=f32}
  %v = i8[72, 5] #W1
  %vs = f32[5] [0.01, 0.02, 0.03, 0.02, 0.01]
  %vf = dequantize(%v, %vs){dtype=f32}
  %m = matmul(%rf, %vf)
  %mb = f32[5] [0.5, 0.25, -0.5, 1.0, 0.0]
  %y = add(%m, %mb)
  return %y
}"""


def island() -> Graph:
    held = [Constant(RNG.integers(-127, 128, shape).astype(np.int8)) for shape in ((8, 4, 3, 3), (72, 5))]
    text = ISLAND
    for i, data in enumerate(held):
        text = text.replace(f"#W{i}", f"#{data.digest}")
    return parse_graph(text, {c.digest: c for c in held})


def in_onnxruntime(model: onnx.ModelProto | Path, feeds: dict[str, np.ndarray], optimized: bool) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return [np.asarray(a) for a in session.run(None, feeds)]


def test_an_island_computes_the_same() -> None:
    graph = island()
    model = export_model(graph, opset=21)
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version == 21
    kinds = [n.op_type for n in model.graph.node]
    assert kinds.count("QuantizeLinear") == 2 and kinds.count("DequantizeLinear") == 4
    assert kinds.count("Reshape") == 1, "scales are written in the shape that ONNX has for them"
    x = RNG.standard_normal((2, 4, 9, 9)).astype(np.float32)
    (want,) = run(graph, {"x": x}).values()
    (plain,) = in_onnxruntime(model, {"x": x}, optimized=False)
    np.testing.assert_allclose(plain, want, rtol=1e-5, atol=1e-5)
    (fast,) = in_onnxruntime(model, {"x": x}, optimized=True)
    assert np.linalg.norm(fast - want) <= 0.01 * np.linalg.norm(want)  # its own rounding of bias and results


def test_what_is_exported_is_what_is_compiled(tmp_path: Path) -> None:
    """A model with more than quantization needs comes back as the quantized graph, under its own names."""
    path = tmp_path / "m.onnx"
    onnx.save(export_model(island(), opset=21), path)
    work = prepare(path, "x86-64-avx2", export_qdq=True)
    assert work.qdq is not None
    again = tmp_path / "again.onnx"
    write_model(work.qdq, again)
    x = RNG.standard_normal((1, 4, 9, 9)).astype(np.float32)
    (want,) = in_onnxruntime(path, {"x": x}, optimized=False)
    (got,) = in_onnxruntime(again, {"x": x}, optimized=False)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_float_model_has_no_quantized_form(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(export_model(parse_graph("graph main(%x: f32[n]) {\n %y = exp(%x)\n return %y\n}")), path)
    with pytest.raises(ExportError, match="nothing in the model is quantized"):
        prepare(path, "x86-64-avx2", export_qdq=True)


@pytest.mark.parametrize("name, block", [("i4", 4), ("u4", 3), ("i8", 12)])
def test_weights_of_a_few_bits(name: str, block: int) -> None:
    dtype = DTYPES[name]
    graph = Graph()
    x = graph.add_input("x", parse_graph("graph g(%x: f32[2, 12]) {\n return %x\n}").inputs[0].type)
    low = 0 if dtype.kind == "u" else -(1 << (dtype.bits - 1))
    w = RNG.integers(low, low + (1 << dtype.bits), (12 // block, block, 6)).astype(dtype.numpy)
    scale = RNG.uniform(0.01, 0.1, (12 // block, 1, 6)).astype(np.float32)
    zero = RNG.integers(max(low, 0), low + (1 << dtype.bits), (12 // block, 1, 6)).astype(dtype.numpy)
    held = [graph.constant(Constant(a, d)) for a, d in ((w, dtype), (scale, DTYPES["f32"]), (zero, dtype))]
    floats = graph.add("dequantize", held, {"dtype": DTYPES["f32"]}).result
    weights = graph.add("reshape", [floats], {"shape": (12, 6)}).result
    graph.add_output(graph.add("matmul", [x, weights]).result, "y")
    feeds = {"x": RNG.standard_normal((2, 12)).astype(np.float32)}
    (want,) = run(graph, feeds).values()
    (got,) = in_onnxruntime(export_model(graph, opset=21), feeds, optimized=False)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_weights_of_four_bits_stay_so(tmp_path: Path) -> None:
    """A MatMul with blocked int4 weights, compiled, comes back as one that ONNX Runtime runs."""
    w = RNG.integers(-8, 8, (2, 16, 6)).astype(DTYPES["i4"].numpy)
    scale = Constant(RNG.uniform(0.01, 0.1, (2, 1, 6)).astype(np.float32))
    graph = parse_graph(
        f"""graph main(%x: f32[2, 32]) {{
          %w = i4[2, 16, 6] #{(held := Constant(w, DTYPES["i4"])).digest}
          %s = f32[2, 1, 6] #{scale.digest}
          %f = dequantize(%w, %s){{dtype=f32}}
          %r = reshape(%f){{shape=[32, 6]}}
          %y = matmul(%x, %r)
          return %y
        }}""",
        {held.digest: held, scale.digest: scale},
    )
    path, feeds = tmp_path / "m.onnx", {"x": RNG.standard_normal((2, 32)).astype(np.float32)}
    first = export_model(graph)
    assert first.opset_import[0].version == 21
    onnx.save(first, path)
    work = prepare(path, "x86-64-avx2", export_qdq=True)
    assert work.qdq is not None
    kinds = {t.data_type for t in work.qdq.graph.initializer}
    assert kinds & {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    (want,) = in_onnxruntime(first, feeds, optimized=False)
    (got,) = in_onnxruntime(work.qdq, feeds, optimized=False)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_model_too_large_for_one_message_has_its_tensors_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "MESSAGE", 1)
    model = parse_graph("graph main(%x: f32[3000]) {\n %w = f32[3000] 2.0\n %y = mul(%x, %w)\n return %y\n}")
    path = tmp_path / "m.onnx"
    write_model(export_model(model), path)
    assert (tmp_path / "m.onnx.data").stat().st_size >= 12000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.onnx", "m.onnx.data"]
    (node,) = [n for n in import_model(path).graph.nodes if n.op == "constant"]
    assert float(node.attrs["value"].array[0]) == 2.0


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    model = export_model(parse_graph("graph main(%x: f32[n]) {\n %y = exp(%x)\n return %y\n}"))
    with pytest.raises(ExportError, match="cannot be written"):
        write_model(model, tmp_path / "none" / "m.onnx")
