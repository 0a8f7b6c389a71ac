"""ONNX Runtime's quantized operators, and integer products, against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper
from onnx_harness import interpret, reference

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.verify import verify

RNG = np.random.default_rng(0)


def u8(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape, np.uint8)


def i8(*shape: int) -> np.ndarray:
    return RNG.integers(-128, 128, shape, np.int8)


def real(x: float) -> np.ndarray:
    return np.array(x, np.float32)


def point(x: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.array(x, dtype)


A, B = (u8(2, 3, 4, 5), real(0.02), point(100)), (u8(2, 3, 4, 5), real(0.03), point(90))
Y = (real(0.05), point(128))


def agrees(op: str, arrays: list[np.ndarray | None], attrs: dict[str, Any], domain: str, steps: int = 0) -> None:
    names = ["" if a is None else f"i{k}" for k, a in enumerate(arrays)]
    feeds = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], domain=domain, **attrs)],
        "g",
        infos,
        [helper.make_empty_tensor_value_info("y")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    imported = import_model(model)
    verify(imported.graph)
    assert all(n.op != "foreign" for n in imported.graph.nodes)
    ((got,), (want,)) = interpret(imported, feeds), reference(model, feeds)
    assert got.dtype == want.dtype and got.shape == want.shape
    if got.dtype.kind == "f":
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    else:
        np.testing.assert_allclose(got.astype(np.int64), want.astype(np.int64), rtol=0, atol=steps)


@pytest.mark.parametrize(
    "op, arrays, attrs",
    [
        ("QLinearAdd", [*A, *B, *Y], {}),
        ("QLinearMul", [*A, *B, *Y], {}),
        ("QLinearSigmoid", [*A, real(1 / 256), point(0)], {}),
        ("QLinearLeakyRelu", [*A, *Y], {"alpha": 0.1}),
        ("QLinearConcat", [*Y, *A, *B], {"axis": 1}),
        ("QLinearGlobalAveragePool", [*A, *Y], {"channels_last": 0}),
        ("QLinearAveragePool", [u8(1, 3, 6, 7), real(0.02), point(9), *Y],
                   {"kernel_shape": [2, 3], "pads": [1, 1, 0, 1]}),
        ("QLinearAveragePool", [u8(1, 6, 7, 3), real(0.02), point(9), *Y],
                   {"kernel_shape": [2, 2], "strides": [2, 2], "channels_last": 1}),
        ("QLinearSoftmax", [*A, real(1 / 256), point(0)], {"axis": -1, "opset": 13}),
        ("QLinearWhere", [RNG.integers(0, 2, (4, 1)).astype(bool), *A, *B, *Y], {}),
        ("QGemm", [u8(4, 7), real(0.02), point(9), i8(7, 5), real(0.03), point(0, np.int8),
                   None, real(2), point(99)], {}),
        ("QGemm", [u8(4, 7), real(0.02), point(9), i8(5, 7), np.float32([1, 2, 3, 4, 5]), np.zeros(5, np.int8),
                   np.arange(5, dtype=np.int32)], {"transB": 1}),
    ],
)  # fmt: skip
def test_linear(op: str, arrays: list[np.ndarray | None], attrs: dict[str, Any]) -> None:
    """Within a step: where ONNX Runtime looks results up or adds in another order, a tie may fall to either side."""
    agrees(op, arrays, attrs, "com.microsoft", 1)


@pytest.mark.parametrize(
    "op, arrays",
    [
        ("MatMulIntegerToFloat", [u8(4, 7), i8(7, 5), real(0.1), np.float32([1, 2, 3, 4, 5]), point(7), None,
                                  np.ones(5, np.float32)]),
        ("DynamicQuantizeMatMul", [RNG.standard_normal((4, 7)).astype(np.float32), i8(7, 5), real(0.1)]),
        ("DynamicQuantizeMatMul", [RNG.standard_normal((2, 4, 7)).astype(np.float32), u8(7, 5),
                                   np.float32([1, 2, 3, 4, 5]),
                                   u8(5), np.ones(5, np.float32)]),
    ],
)  # fmt: skip
def test_products_to_floats(op: str, arrays: list[np.ndarray | None]) -> None:
    agrees(op, arrays, {}, "com.microsoft")


@pytest.mark.parametrize(
    "op, arrays, attrs",
    [
        ("MatMulInteger", [u8(2, 300), u8(300, 5), point(200), u8(5)], {}),
        ("MatMulInteger", [u8(2, 9000), i8(9000, 3)], {}),
        ("ConvInteger", [u8(1, 3, 8, 8), u8(4, 3, 3, 3), point(99), point(7)], {"pads": [1, 1, 1, 1]}),
        ("ConvInteger", [u8(1, 64, 6, 6), u8(5, 64, 3, 3), point(255)], {"strides": [2, 2]}),
        ("QLinearConv", [u8(2, 6, 8, 8), real(0.02), point(120), i8(4, 3, 3, 3), np.float32([0.1, 0.2, 0.3, 0.4]),
                         np.zeros(4, np.int8), real(5), point(17), np.arange(-900, 900, 450, dtype=np.int32)],
         {"group": 2, "auto_pad": "SAME_UPPER"}),
    ],
)  # fmt: skip
def test_integer_products(op: str, arrays: list[np.ndarray | None], attrs: dict[str, Any]) -> None:
    agrees(op, arrays, attrs, "")
