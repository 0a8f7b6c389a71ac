"""A quantized network of images from its file to its artifact: whole in integers, its numbers those of ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort

import opcel_compiler as oc
from opcel_compiler.compilation import prepare
from opcel_compiler.ir.types import F32
from opcel_compiler.schedule.choice.integers import is_integer

from .builder import Net

STEP = 0.05


class Quantized(Net):
    """Activations of u8 between all layers, filters of s8 with a scale each."""

    def grid(self, x: str, zero: int, scale: float = STEP) -> str:
        at = np.float32(scale), np.uint8(zero)
        return self("DequantizeLinear", self("QuantizeLinear", x, *at), *at)

    def conv(self, x: str, channels: int, filters: int, size: int, op: str = "Conv", **attrs: Any) -> str:
        axis = 0 if op == "Conv" else 1
        shape = [filters, channels // attrs.get("group", 1), size, size]
        if axis:
            shape[:2] = channels, filters
        depth = channels // attrs.get("group", 1) * size * size
        codes = self.random.integers(-128, 128, shape).astype(np.int8)
        scales = self.random.uniform(0.5, 2, filters).astype(np.float32) / np.float32(80 * depth**0.5)
        w = self("DequantizeLinear", codes, scales, np.zeros(filters, np.int8), axis=axis)
        pads = {"pads": [size // 2] * 4} if size % 2 else {}
        return self(op, x, w, self.weight(filters, scale=0.1), kernel_shape=[size, size], **{**pads, **attrs})


def network() -> Quantized:
    net = Quantized("images")
    x = net.grid(net.input("x", 1, 3, 26, 30), 117, 0.02)
    stem = net.grid(net("Relu", net.conv(x, 3, 32, 3, strides=[2, 2])), 0)
    deep = net.grid(net("Clip", net.conv(stem, 32, 32, 3, group=32), np.float32(0), np.float32(6)), 0)
    narrow = net.grid(net.conv(deep, 32, 24, 1), 128)
    total = net.grid(net("Add", net.conv(narrow, 24, 24, 3), narrow), 121)
    small = net("MaxPool", net.grid(net("Relu", net.conv(total, 24, 48, 5, strides=[2, 2])), 0), kernel_shape=[2, 2])
    up = net.grid(net.conv(small, 48, 16, 2, op="ConvTranspose", strides=[2, 2]), 128)
    wide = net.grid(net("Resize", up, None, np.float32([1, 1, 2, 2]), mode="nearest"), 128)
    skipped = net.grid(net.conv(wide, 16, 16, 3), 128)
    joined = net("Concat", net.grid(net.conv(wide, 16, 32, 1), 128), skipped, axis=1)
    net.output("map", net.conv(net.grid(joined, 128), 48, 5, 3))
    net.output("mean", net("GlobalAveragePool", joined))
    return net


def test_a_network_of_images_stays_in_integers() -> None:
    model = network().model()
    program = prepare(model, "host").program
    assert program is not None
    convolutions = [k for k in program.kernels if k.family.startswith("conv")]
    assert len(convolutions) == 12 and all(map(is_integer, convolutions))
    floats = {v.buffer for k in convolutions for v in (k.inputs[0], *k.outputs) if v.dtype == F32}
    assert len(floats) == 2, f"but for the result and what is resized: {floats}"
    x = np.random.default_rng(5).normal(size=(1, 3, 26, 30)).astype(np.float32)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    want = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )
    with oc.compile(model, proof=False) as compiled:
        got = compiled.run({"x": x})
    for name, w in zip(("map", "mean"), want, strict=True):
        off = np.abs(got[name] - w)
        assert off.max() <= 4 * STEP * np.abs(w).max() and off.mean() <= STEP / 10, (name, off.max(), off.mean())
