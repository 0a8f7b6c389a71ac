"""Every way to write a quantized product in ONNX, compiled and beside ONNX Runtime: within one step of the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import opcel_compiler as oc

RNG = np.random.default_rng(3)
MS = "com.microsoft"


class Model:
    """One ONNX model of many layers, each with an input and an output of its own."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.held: dict[str, np.ndarray] = {}
        self.feeds: dict[str, np.ndarray] = {}
        self.outputs: list[str] = []

    def hold(self, data: Any, dtype: Any = np.float32) -> str:
        name = f"c{len(self.held)}"
        self.held[name] = np.asarray(data, dtype)
        return name

    def feed(self, data: np.ndarray) -> str:
        name = f"x{len(self.feeds)}"
        self.feeds[name] = data
        return name

    def node(self, op: str, inputs: list[str], count: int = 1, domain: str = "", **attrs: Any) -> list[str]:
        made = [f"{op}_{len(self.nodes)}_{i}" for i in range(count)]
        self.nodes.append(helper.make_node(op, inputs, made, name=f"{op}_{len(self.nodes)}", domain=domain, **attrs))
        return made

    def out(self, name: str) -> None:
        self.outputs.append(name)

    def proto(self) -> onnx.ModelProto:
        infos = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in self.feeds.items()
        ]
        held = [numpy_helper.from_array(a, n) for n, a in self.held.items()]
        results = [helper.make_empty_tensor_value_info(n) for n in self.outputs]
        graph = helper.make_graph(self.nodes, "forms", infos, results, held)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MS, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def u8(*shape: int) -> np.ndarray:
    return RNG.integers(0, 256, shape).astype(np.uint8)


def i8(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def qlinear(m: Model) -> None:
    """QLinearConv, QLinearMatMul and QGemm, of u8 and s8, with s8 and centred u8 weights."""
    for x, zx, signed in ((u8(1, 8, 9, 9), 120, False), (i8(1, 8, 9, 9), -5, True)):
        kind = np.int8 if signed else np.uint8
        s, z = m.hold(0.02), m.hold(zx, kind)
        ys, yz = m.hold(0.5), m.hold(0 if signed else 100, kind)
        w, ws = m.hold(i8(16, 8, 3, 3), np.int8), m.hold(RNG.uniform(0.005, 0.02, 16))
        b = m.hold(RNG.integers(-2000, 2000, 16), np.int32)
        wz = m.hold(np.zeros(16), np.int8)
        m.out(m.node("QLinearConv", [m.feed(x), s, z, w, ws, wz, ys, yz, b], pads=[1, 1, 1, 1])[0])
    s, z, ys, yz = m.hold(0.02), m.hold(120, np.uint8), m.hold(0.5), m.hold(100, np.uint8)
    centred, cz = m.hold(i8(40, 24).view(np.uint8) ^ np.uint8(128), np.uint8), m.hold(128, np.uint8)
    m.out(m.node("QLinearMatMul", [m.feed(u8(7, 40)), s, z, centred, m.hold(0.01), cz, ys, yz])[0])
    b = m.hold(RNG.integers(-2000, 2000, 24), np.int32)
    args = [m.feed(u8(7, 40)), s, z, m.hold(i8(24, 40), np.int8), m.hold(0.01), m.hold(0, np.int8), b, ys, yz]
    m.out(m.node("QGemm", args, domain=MS, transB=1)[0])


def dynamic(m: Model) -> None:
    """DynamicQuantizeLinear with MatMulInteger, Cast and Mul; DynamicQuantizeMatMul; MatMulIntegerToFloat."""
    x = m.feed(RNG.standard_normal((7, 40)).astype(np.float32))
    xq, xs, xz = m.node("DynamicQuantizeLinear", [x], 3)
    ws = m.hold(RNG.uniform(0.005, 0.02, 24))
    sums = m.node("MatMulInteger", [xq, m.hold(i8(40, 24), np.int8), xz])[0]
    real = m.node("Cast", [sums], to=TensorProto.FLOAT)[0]
    scaled = m.node("Mul", [real, m.node("Mul", [xs, ws])[0]])[0]
    m.out(m.node("Add", [scaled, m.hold(RNG.standard_normal(24))])[0])
    y = m.feed(RNG.standard_normal((7, 40)).astype(np.float32))
    m.out(m.node("DynamicQuantizeMatMul", [y, m.hold(i8(40, 24), np.int8), m.hold(0.01)], domain=MS)[0])
    args = [m.feed(u8(7, 40)), m.hold(i8(40, 24), np.int8), m.hold(0.02), ws, m.hold(9, np.uint8)]
    m.out(m.node("MatMulIntegerToFloat", args, domain=MS)[0])


def recurrent(m: Model) -> None:
    """DynamicQuantizeLSTM in both directions, with scales for each column and with one."""
    for hidden, count in ((24, 96), (19, 1)):
        x = m.feed(RNG.standard_normal((5, 1, 20)).astype(np.float32))
        args = [x, m.hold(i8(2, 20, 4 * hidden), np.int8), m.hold(i8(2, hidden, 4 * hidden), np.int8)]
        args += [m.hold(RNG.standard_normal((2, 8 * hidden)) / 4), "", "", "", ""]
        shape = (2, count) if count > 1 else (2,)
        for depth in (20, hidden):
            args += [m.hold(RNG.uniform(0.5, 2, shape) / (73 * depth**0.5)), m.hold(np.zeros(shape), np.int8)]
        attrs = {"hidden_size": hidden, "direction": "bidirectional"}
        for y in m.node("DynamicQuantizeLSTM", args, 3, domain=MS, **attrs):
            m.out(y)


def qdq(m: Model) -> None:
    """An island of u8 and one of s8: conv, relu, pool, conv, and a Gemm with weights that are transposed."""
    for kind, zeros in ((np.uint8, (110, 0)), (np.int8, (-10, -128))):

        def pair(x: str, scale: float, zero: int, kind: Any = kind) -> str:
            s, z = m.hold(scale), m.hold(zero, kind)
            return m.node("DequantizeLinear", [m.node("QuantizeLinear", [x, s, z])[0], s, z])[0]

        def weights(axis: int, *shape: int) -> str:
            scale = m.hold(RNG.uniform(0.005, 0.02, shape[axis]))
            return m.node("DequantizeLinear", [m.hold(i8(*shape), np.int8), scale], axis=axis)[0]

        x = pair(m.feed(RNG.standard_normal((1, 8, 10, 10)).astype(np.float32)), 0.03, zeros[0])
        c = m.node("Relu", m.node("Conv", [x, weights(0, 16, 8, 3, 3), m.hold(RNG.standard_normal(16))]))[0]
        c = pair(c, 0.02, zeros[1])
        p = pair(m.node("MaxPool", [c], kernel_shape=[2, 2], strides=[2, 2])[0], 0.02, zeros[1])
        d = pair(m.node("Conv", [p, weights(0, 16, 16, 1, 1)])[0], 0.1, zeros[0])
        flat = m.node("Flatten", [d])[0]
        m.out(m.node("Gemm", [flat, weights(0, 12, 256), m.hold(RNG.standard_normal(12))], transB=1)[0])


def forms() -> Model:
    """All of them in one model."""
    m = Model()
    qlinear(m)
    dynamic(m)
    recurrent(m)
    qdq(m)
    sums = m.node("MatMulInteger", [m.feed(u8(7, 700)), m.hold(i8(700, 24), np.int8)])[0]
    m.out(sums)
    return m


@pytest.fixture(scope="module")
def model() -> Model:
    return forms()


def test_every_form(model: Model) -> None:
    proto = model.proto()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    want = dict(zip(model.outputs, session.run(model.outputs, model.feeds), strict=True))
    with oc.compile(proto, fallback="error", threads=2, inputs=model.feeds) as compiled:
        got, report = compiled.run(model.feeds), compiled.report["quantization"]["imported"]
    assert report["layers"] == 16
    (left,) = report["in_floats"]  # sums that are results are exact in floats
    assert left["operators"] == ["MatMulInteger:21"]
    for name, w in want.items():
        g = got[name]
        assert g.dtype == w.dtype and g.shape == w.shape
        if w.dtype == np.int32:
            np.testing.assert_array_equal(g, w)
        elif w.dtype.kind in "iu":
            off = np.abs(g.astype(np.int32) - w.astype(np.int32))
            assert off.max() <= 1 and (off > 0).mean() < 0.01, name
        else:
            # One code that is rounded the other way moves a result by a step times a weight.
            assert np.linalg.norm(g - w) <= 5e-3 * np.linalg.norm(w), name
