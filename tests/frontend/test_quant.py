"""Quantization and operators on bits: imports against ONNX's reference, and our operators written as ONNX."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import helper

from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ExportError
from opcel_compiler.frontend.proto_types import code_of
from opcel_compiler.frontend.reference import evaluate_onnx
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.types import DTYPES, F32, DType, TensorType, dtype_of
from opcel_compiler.ir.verify import verify

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 6, 5)).astype(np.float32) * 40


def u8(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def i8(*shape: int) -> np.ndarray:
    return RNG.integers(-128, 128, shape, np.int8)


def number(x: float, dtype: Any = np.float32) -> np.ndarray:
    return np.array(x, dtype)


def agrees(op: str, arrays: list[np.ndarray | None], attrs: dict[str, Any], outputs: int = 1, opset: int = 25) -> None:
    """The import, interpreted without opaque nodes, is what ONNX's reference gives."""
    names = ["" if a is None else f"i{k}" for k, a in enumerate(arrays)]
    feeds = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
    infos = [helper.make_tensor_value_info(n, code_of(dtype_of(a)), a.shape) for n, a in feeds.items()]
    results = [f"o{k}" for k in range(outputs)]
    node = helper.make_node(op, names, results, **attrs)
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info(n) for n in results])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)
    imported = import_model(model)
    verify(imported.graph)
    assert all(n.op != "foreign" for n in imported.graph.nodes)
    named = {v.name: feeds[n] for v, n in zip(imported.graph.inputs, imported.input_names, strict=True)}
    got = list(run(imported.graph, named).values())
    for g, w in zip(got, evaluate_onnx(model, results, feeds), strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        np.testing.assert_array_equal(g, w)


SCALES = np.float32([0.5, 2, 1, 0.1, 3, 0.25])


@pytest.mark.parametrize(
    "op, arrays, attrs",
    [
        ("QuantizeLinear", [X, number(0.5), number(3, np.uint8)], {}),
        ("QuantizeLinear", [X, number(0.5)], {}),
        ("QuantizeLinear", [X, SCALES, i8(6)], {"axis": -2}),
        ("QuantizeLinear", [X, SCALES], {"axis": 1, "output_dtype": code_of(DTYPES["i16"])}),
        ("QuantizeLinear", [X, abs(X[:, :3]) + 1, u8(2, 3, 5).astype(ml_dtypes.int4)], {"block_size": 2}),
        ("QuantizeLinear", [X, abs(X[:, :2]) + 1], {"block_size": 4}),
        ("QuantizeLinear", [X, abs(X[:, :1]) + 1], {"block_size": 6}),
        ("QuantizeLinear", [np.arange(9, dtype=np.int32), number(0.7)], {}),
        ("QuantizeLinear", [X.astype("e"), number(0.7)], {"precision": 1}),
        ("DequantizeLinear", [u8(2, 6, 5), SCALES, u8(6)], {"axis": 1}),
        ("DequantizeLinear", [u8(6, 4), abs(X[0, :3, :4]), u8(3, 4)], {"axis": 0, "block_size": 2}),
        ("DequantizeLinear", [i8(7), number(0.3, "e")], {"output_dtype": 1}),
        ("DynamicQuantizeLinear", [X], {}),
        ("DynamicQuantizeLinear", [abs(X)], {}),
        ("DynamicQuantizeLinear", [X * 0], {}),
        ("MatMulInteger", [u8(3, 4), i8(4, 5)], {}),
        ("MatMulInteger", [u8(2, 3, 4), u8(4, 5), number(9, np.uint8), u8(5)], {}),
        ("QLinearMatMul", [u8(3, 4), number(0.1), number(7, np.uint8), i8(4, 5), number(0.2), number(-3, np.int8),
                           number(1.5), number(99, np.uint8)], {}),
    ],
)  # fmt: skip
def test_imports(op: str, arrays: list[np.ndarray | None], attrs: dict[str, Any]) -> None:
    agrees(op, arrays, attrs, 3 if op == "DynamicQuantizeLinear" else 1)


def exported(op: str, arrays: list[np.ndarray], attrs: dict[str, Any], opset: int) -> None:
    graph = Graph()
    values = [graph.add_input(f"x{i}", TensorType(dtype_of(a), a.shape)) for i, a in enumerate(arrays)]
    graph.add_output(graph.add(op, values, attrs).result, "y")
    feeds = {v.name: a for v, a in zip(values, arrays, strict=True)}
    (got,) = run(graph, feeds).values()
    (want,) = evaluate_onnx(export_model(graph, opset=opset), ["y"], feeds)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
    "op, arrays, attrs",
    [
        ("quantize", [X, number(0.5), number(3, np.uint8)], {"dtype": DTYPES["u8"]}),
        ("quantize", [X, SCALES[:, None]], {"dtype": DTYPES["i8"]}),
        ("quantize", [X, SCALES[:, None], number(1, np.int8)], {"dtype": DTYPES["i8"]}),
        ("quantize", [X, abs(X[:, :1]) + 1], {"dtype": DTYPES["f8e5m2"], "saturate": False}),
        ("quantize", [X, abs(X) + 1], {"dtype": DTYPES["i4"]}),
        ("dequantize", [u8(2, 6, 5), SCALES[:, None], u8(6, 1)], {"dtype": F32}),
        ("dequantize", [u8(6), number(0.5)], {"dtype": DTYPES["f16"]}),
        ("matmul_nbits", [np.float32([[1, 2, 3, 4]]), u8(4, 5), SCALES[:2, None] * np.ones(5, "f")], {"group": 2}),
        ("cast", [X], {"dtype": DTYPES["f8e4m3fn"], "saturate": False}),
        ("cast", [abs(X)], {"dtype": DTYPES["f8e8m0"], "round_mode": "nearest"}),
        ("bit_xor", [u8(3, 4), u8(4)], {}),
        ("bit_not", [i8(5)], {}),
        ("shift_left", [u8(3), u8(3) % 8], {}),
    ],
)  # fmt: skip
def test_exports(op: str, arrays: list[np.ndarray], attrs: dict[str, Any]) -> None:
    exported(op, arrays, attrs, 25)


def test_an_old_opset_lacks_them() -> None:
    with pytest.raises(ExportError, match="needs opset 21"):
        exported("quantize", [X, number(0.5)], {"dtype": DTYPES["i8"]}, 13)
    with pytest.raises(ExportError, match="needs opset 21"):
        exported("matmul_nbits", [np.ones((1, 1), "f"), u8(1, 1), np.ones((1, 1), "f")], {"group": 1}, 17)
    with pytest.raises(ExportError, match="BitwiseNot needs opset 18"):
        exported("bit_not", [i8(5)], {}, 17)


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.kind in "iu" and d.bits <= 8], ids=str)
def test_every_small_integer_comes_back(dtype: DType) -> None:
    agrees("DequantizeLinear", [np.arange(1 << dtype.bits).astype(np.uint8).astype(dtype.numpy), number(1)], {})


@pytest.mark.parametrize("dtype, size, known", [("f16", 7, True), ("f16", 4099, False), ("u8", 300, False)])
def test_sizes_that_a_narrow_type_rounds_are_not_known(dtype: str, size: int, known: bool) -> None:
    """A size that goes through a narrow type: what the type makes of it, not the size, is the shape."""
    to = code_of(DTYPES[dtype])
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["c"], to=to),
        helper.make_node("Cast", ["c"], ["t"], to=7),
        helper.make_node("Expand", ["y", "t"], ["o"]),
    ]
    infos = [helper.make_tensor_value_info("x", 1, [size]), helper.make_tensor_value_info("y", 1, [1])]
    graph = helper.make_graph(nodes, "g", infos, [helper.make_empty_tensor_value_info("o")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    shape = import_model(model).graph.outputs[0].tensor.shape
    assert (shape == (size,)) == known
