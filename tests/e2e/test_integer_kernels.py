"""Every kernel of integers beside ONNX Runtime's, on the same codes: within one step of the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

import opcel_compiler as oc
from opcel_compiler.compilation import prepare
from opcel_compiler.ir.program import Kernel

from .test_quantized_forms import MS, RNG, Model, i8, u8

STEP, ZERO = 0.02, 117
CONVS = {
    # name: (channels, filters, size, image, attributes)
    "first layer": (3, 32, 3, (25, 23), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "patches": (3, 24, 4, (16, 24), {"strides": [4, 4]}),
    "1x1": (32, 48, 1, (9, 11), {}),
    "1x1, stride 2": (48, 32, 1, (9, 11), {"strides": [2, 2]}),
    "3x3": (32, 32, 3, (10, 13), {"pads": [1, 1, 1, 1]}),
    "3x3, odd channels": (19, 21, 3, (8, 8), {"pads": [1, 1, 1, 1]}),
    "5x5, stride 2": (16, 24, 5, (11, 12), {"strides": [2, 2], "pads": [2, 2, 2, 2]}),
    "3x3, one side padded": (16, 16, 3, (9, 9), {"strides": [2, 2], "pads": [0, 0, 1, 1]}),
    "3x3, dilated": (16, 16, 3, (12, 12), {"dilations": [2, 2], "pads": [2, 2, 2, 2]}),
    "groups": (32, 32, 3, (8, 9), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": (40, 40, 3, (9, 14), {"group": 40, "pads": [1, 1, 1, 1]}),
    "depthwise, stride 2": (48, 48, 3, (11, 14), {"group": 48, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise 5x5": (16, 16, 5, (12, 9), {"group": 16, "pads": [2, 2, 2, 2]}),
    "one axis": (16, 24, 3, (33,), {"pads": [1, 1]}),
}
PRODUCTS = {"1x64x40": (1, 64, 40), "4x100x48": (4, 100, 48), "7x70x33": (7, 70, 33), "65x257x129": (65, 257, 129)}
LARGEST = {"1x9000x16": (1, 9000, 16), "5x9000x16": (5, 9000, 16)}


class Codes(Model):
    """A model between codes, whose outputs have names."""

    def __init__(self) -> None:
        super().__init__()
        self.called: dict[str, str] = {}

    def grid(self, scale: float = STEP, zero: int = ZERO) -> list[str]:
        return [self.hold(scale), self.hold(zero, np.uint8)]

    def real(self, codes: str, scale: float = STEP, zero: int = ZERO) -> str:
        return self.node("DequantizeLinear", [codes, *self.grid(scale, zero)])[0]

    def rounded(self, real: str, scale: float, zero: int = ZERO) -> str:
        return self.node("QuantizeLinear", [real, *self.grid(scale, zero)])[0]

    def named(self, title: str, codes: str) -> None:
        self.called[codes] = title
        self.out(codes)

    def scales(self, depth: int, count: int) -> str:
        """Of weights, so that a sum of `depth` products is about as large as what it adds up."""
        return self.hold(RNG.uniform(0.5, 2, count) / (73 * depth**0.5))


def convolution(m: Codes, channels: int, filters: int, size: int, image: tuple[int, ...], **attrs: Any) -> str:
    """Codes of the grid (0.03, ZERO)."""
    depth = channels // attrs.get("group", 1)
    w = m.hold(i8(filters, depth, *[size] * len(image)), np.int8)
    scales = m.scales(depth * size ** len(image), filters)
    args = [m.feed(u8(1, channels, *image)), *m.grid(), w, scales, m.hold(np.zeros(filters), np.int8), *m.grid(0.03)]
    return m.node("QLinearConv", [*args, m.hold(RNG.integers(-3000, 3000, filters), np.int32)], **attrs)[0]


def convolutions(m: Codes) -> None:
    for title, (*sizes, attrs) in CONVS.items():
        m.named(title, convolution(m, *sizes, **attrs))


def products(m: Codes) -> None:
    for title, (rows, depth, columns) in {**PRODUCTS, **LARGEST}.items():
        ends = title in LARGEST
        x = np.full((rows, depth), 255, np.uint8) if ends else u8(rows, depth)
        w = np.full((depth, columns), 127, np.int8) if ends else i8(depth, columns)
        scale = m.hold(2e-6) if ends else m.scales(depth, columns)
        zero = m.hold(0 if ends else np.zeros(columns), np.int8)
        args = [m.feed(x), *m.grid(zero=0 if ends else ZERO), m.hold(w, np.int8), scale, zero, *m.grid(0.03, 100)]
        m.named(title, m.node("QLinearMatMul", args)[0])
    bias = m.hold(RNG.integers(-3000, 3000, 32), np.int32)
    args = [m.feed(u8(6, 48)), *m.grid(), m.hold(i8(32, 48), np.int8), m.hold(0.002), m.hold(0, np.int8), bias]
    m.named("gemm", m.node("QGemm", [*args, *m.grid(0.04)], domain=MS, transB=1)[0])


def epilogues(m: Codes) -> None:
    """A convolution and a product with what networks put behind them before they round."""
    w = m.node("DequantizeLinear", [m.hold(i8(32, 32, 1, 1), np.int8), m.scales(32, 32)], axis=0)[0]
    image = u8(1, 32, 9, 9)
    c = m.node("Conv", [m.real(m.feed(image)), w, m.hold(RNG.standard_normal(32))])[0]
    c = m.node("Add", [m.real(m.rounded(c, 0.03)), m.real(m.feed(u8(1, 32, 9, 9)))])[0]
    m.named("residual", m.rounded(m.node("Relu", [c])[0], 0.02, 0))
    for title, shape, zero in (("u8 filters", (24, 16, 3, 3), 108), ("u8 weights", (40, 24), 129)):
        w = m.node("DequantizeLinear", [m.hold(u8(*shape), np.uint8), m.hold(2e-3), m.hold(zero, np.uint8)])[0]
        x = m.real(m.feed(u8(1, 16, 9, 9) if len(shape) == 4 else u8(5, 40)))
        y = m.node("Conv", [x, w], pads=[1] * 4)[0] if len(shape) == 4 else m.node("MatMul", [x, w])[0]
        m.named(title, m.rounded(y, 0.04))
    for title, op in (("sigmoid", "Sigmoid"), ("tanh", "Tanh")):
        w = m.node("DequantizeLinear", [m.hold(i8(64, 48), np.int8), m.scales(64, 48)], axis=1)[0]
        y = m.node("MatMul", [m.real(m.feed(u8(6, 64))), w])[0]
        m.named(title, m.rounded(m.node(op, [m.real(m.rounded(y, 0.05))])[0], 0.01, 100))


def elementwise(m: Codes) -> None:
    for op in ("QLinearAdd", "QLinearMul"):
        args = [m.feed(u8(1, 24, 7, 9)), *m.grid(), m.feed(u8(1, 24, 7, 9)), *m.grid(0.03, 90), *m.grid(0.05, 128)]
        m.named(op, m.node(op, args, domain=MS)[0])
    m.named(
        "leaky relu", m.node("QLinearLeakyRelu", [m.feed(u8(5, 33)), *m.grid(), *m.grid()], domain=MS, alpha=0.1)[0]
    )
    m.named("sigmoid alone", m.node("QLinearSigmoid", [m.feed(u8(5, 33)), *m.grid(), *m.grid(0.004, 0)], domain=MS)[0])


def images(m: Codes) -> None:
    """What reads the results of convolutions, as these lie."""
    a = convolution(m, 16, 32, 1, (9, 9))
    b = convolution(m, 16, 32, 3, (9, 9), pads=[1, 1, 1, 1])
    m.named("images added", m.node("QLinearAdd", [a, *m.grid(0.03), b, *m.grid(0.03), *m.grid(0.05)], domain=MS)[0])
    args = [*m.grid(0.04), a, *m.grid(0.03), b, *m.grid(0.03)]
    m.named("concat", m.node("QLinearConcat", args, domain=MS, axis=1)[0])
    a = convolution(m, 16, 32, 1, (9, 9))
    m.named("mean", m.node("QLinearGlobalAveragePool", [a, *m.grid(0.03), *m.grid(0.01)], domain=MS)[0])
    window = {"kernel_shape": [3, 3], "strides": [2, 2]}
    m.named("mean pool", m.node("QLinearAveragePool", [a, *m.grid(0.03), *m.grid(0.023)], domain=MS, **window)[0])
    m.named("max pool", m.node("MaxPool", [a], **window)[0])
    m.named("nearest", m.node("Resize", [b, "", m.hold([1, 1, 2, 2])], mode="nearest")[0])


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_ALL"])
def test_within_one_step(level: str, compiled: tuple[Codes, dict[str, np.ndarray]]) -> None:
    model, got = compiled
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    session = onnxruntime.InferenceSession(
        model.proto().SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    for name, want in zip(model.outputs, session.run(model.outputs, model.feeds), strict=True):
        title = model.called[name]
        assert got[name].dtype == np.uint8 and got[name].shape == want.shape, title
        off = np.abs(got[name].astype(int) - want)
        assert off.max() <= 1 and (off > 0).mean() < 0.01, (title, off.max(), (off > 0).mean())
        assert title in LARGEST or np.ptp(want) > 60, f"{title}: the codes differ too little to tell anything"


def test_products_are_of_integers(compiled: tuple[Codes, dict[str, np.ndarray]]) -> None:
    program = prepare(compiled[0].proto(), "host").program
    assert program is not None
    kernels = [k for k in program.kernels if k.anchor is not None and k.anchor.op in ("conv", "matmul")]
    assert len(kernels) == len(CONVS) + len(PRODUCTS) + len(LARGEST) + 9
    floats = [k.family for k in kernels if not _multiplies_bytes(k)]
    assert not floats


def _multiplies_bytes(kernel: Kernel) -> bool:
    return all(v.dtype.bits == 8 for v in kernel.inputs[:2])


@pytest.fixture(scope="module")
def compiled() -> tuple[Codes, dict[str, np.ndarray]]:
    m = Codes()
    for part in (convolutions, products, epilogues, elementwise, images):
        part(m)
    with oc.compile(m.proto(), fallback="error", threads=2, inputs=m.feeds) as model:
        return m, {name: array.copy() for name, array in model.run(m.feeds).items()}
