"""Kernels that read or write quantized values, against the interpreter: many cases a compile."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import opcel_compiler as oc
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.types import F32, I8, U8, DType, TensorType
from opcel_compiler.targets.host import cpu_levels, missing_features

KERNELS = "dead-code,fuse,relayout,choose-kernels,pad-rows"


class Cases:
    """One graph, and what to feed it."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.graph = Graph()
        self.feeds: dict[str, np.ndarray] = {}

    def bytes(self, *shape: int, dtype: DType = U8) -> Value:
        low = 0 if dtype == U8 else -128
        return self._input(self.rng.integers(low, low + 256, shape).astype(dtype.numpy), dtype)

    def floats(self, *shape: int) -> Value:
        return self._input(self.rng.normal(size=shape).astype(np.float32), F32)

    def _input(self, data: np.ndarray, dtype: DType) -> Value:
        value = self.graph.add_input(f"x{len(self.feeds)}", TensorType(dtype, data.shape))
        self.feeds[value.name] = data
        return value

    def constant(self, data: Any, dtype: DType = F32) -> Value:
        return self.graph.constant(Constant(np.asarray(data, dtype.numpy), dtype))

    def weights(self, *shape: int) -> Value:
        return self.constant(self.rng.integers(-128, 128, shape), I8)

    def add(self, op: str, *operands: Value | None, **attrs: Any) -> Value:
        return self.graph.add(op, operands, attrs).result

    def real(self, x: Value, scale: Any = 0.02, zero: int | None = 131) -> Value:
        z = [] if zero is None else [self.constant(zero, x.tensor.dtype)]
        return self.add("dequantize", x, self.constant(scale), *z, dtype=F32)

    def quantized(self, x: Value, scale: float = 0.05, zero: int = 120, dtype: DType = U8) -> Value:
        return self.add("quantize", x, self.constant(scale), self.constant(zero, dtype), dtype=dtype)

    def product(self, x: Value, k: int, n: int) -> Value:
        """x times random weights of s8 with a scale for each column, and a bias."""
        scale = self.rng.uniform(0.5, 2.0, n) / (100 * k**0.5)
        y = self.add("matmul", x, self.real(self.weights(k, n), scale, None))
        return self.add("add", y, self.constant(self.rng.normal(size=n)))

    def check(self, *outputs: Value, integers: int | None = None) -> None:
        """Compiled results: bytes within one step, one in fifty of them at most; floats nearly equal. `integers`: how
        many products are to be ones of integers."""
        for v in outputs:
            self.graph.add_output(v)
        want = run(self.graph, self.feeds)
        with oc.compile(
            export_model(self.graph, opset=21), proof=False, pipeline=KERNELS, fallback="error"
        ) as compiled:
            computed = [k["family"] for k in compiled.report["kernels"]]
            assert integers is None or computed.count("gemm.int8") == integers
            got = compiled.run(self.feeds)
        for name, w in want.items():
            g = got[name]
            assert g.dtype == w.dtype and g.shape == w.shape, name
            if w.dtype == np.float32:
                np.testing.assert_allclose(g, w, rtol=2e-5, atol=2e-5, err_msg=name)
            else:
                off = np.abs(g.astype(int) - w.astype(int))
                assert off.max(initial=0) <= 1 and off.mean() <= 0.02, f"{name}: {off.max()} off, {off.mean()} of them"


@pytest.fixture
def c() -> Cases:
    return Cases()


def model() -> onnx.ModelProto:
    """Rows that are quantized by a scale of their own, and products of them."""
    c = Cases()
    for v in rows_of_their_own_scale(c):
        c.graph.add_output(v)
    return export_model(c.graph, opset=21)


def test_rows(c: Cases) -> None:
    x, y, f = c.bytes(3, 5, 40), c.bytes(3, 5, 40, dtype=I8), c.floats(3, 5, 40)
    gamma, beta = c.constant(c.rng.normal(size=40)), c.constant(c.rng.normal(size=40))
    outputs = []
    total = c.add("add", c.real(x), c.real(y, 0.03, 3))
    norm = c.add("layer_norm", total, gamma, beta, axis=2, epsilon=1e-5)
    outputs.append(c.quantized(norm))
    both = c.add("layer_norm", c.add("add", c.real(x), f), gamma, beta, axis=2, epsilon=1e-5)
    outputs += [c.quantized(both), c.add("relu", both)]
    outputs.append(c.quantized(c.add("rms_norm", f, gamma, axis=2, epsilon=1e-5), dtype=I8, zero=-3))
    outputs.append(c.quantized(c.add("softmax", c.real(x, 0.1), axis=2), 1 / 255, 0))
    outputs.append(c.quantized(c.add("log_softmax", c.real(x, 0.1), axis=2)))
    outputs.append(c.quantized(c.add("gelu", c.real(x), approximate="none")))
    c.check(*outputs)


def test_products(c: Cases) -> None:
    outputs = []
    for m, k, n in ((1, 8, 16), (5, 40, 33), (30, 65, 100), (130, 36, 24)):
        x, r = c.bytes(m, k), c.bytes(m, n)
        outputs.append(c.product(c.real(x), k, n))
        outputs.append(c.quantized(c.add("relu", c.product(c.real(x), k, n))))
        outputs.append(c.quantized(c.add("add", c.product(c.real(x), k, n), c.real(r)), dtype=I8, zero=3))
    x = c.bytes(2, 3, 7, 40)
    outputs.append(c.product(c.real(x, zero=None), 40, 64))
    weights = c.real(c.weights(40, 30), 0.001, None)
    outputs.append(c.quantized(c.add("gelu", c.add("matmul", c.real(x), weights), approximate="none")))
    c.check(*outputs, integers=len(outputs))


def test_products_of_rows_with_their_own_grid(c: Cases) -> None:
    """Scales and zero points that are known only in a run: for each row, or one for all."""
    outputs = []
    for shape in ((5, 40), (2, 9, 33)):
        x = c.bytes(*shape)
        scale = c.add("abs", c.floats(*shape[:-1], 1))
        zero = c.bytes(*shape[:-1], 1)
        one, nought = c.add("abs", c.floats(1)), c.bytes(1)
        for s, z in ((scale, [zero]), (scale, []), (one, [nought]), (scale, [nought]), (c.constant(0.02), [zero])):
            real = c.add("dequantize", x, s, *z, dtype=F32)
            outputs.append(c.product(real, shape[-1], 48))
    c.check(*outputs, integers=len(outputs))


def rows_of_their_own_scale(c: Cases) -> list[Value]:
    """Read by products and by others; a row of zeros, one with a NaN."""
    outputs = []
    for shape in ((6, 40), (2, 9, 33)):
        x = c.floats(*shape)
        rows = c.feeds[x.name].reshape(-1, shape[-1])
        rows[0], rows[1, 3] = 0, np.nan
        most = c.add("reduce_max", c.add("abs", x), axes=(len(shape) - 1,), keepdims=True)
        scale = c.add("mul", c.add("max", most, c.constant(1e-30)), c.constant(1 / 127))
        codes = c.add("quantize", x, scale, c.constant(128, U8), dtype=U8)
        real = c.add("dequantize", codes, scale, c.constant(128, U8), dtype=F32)
        outputs += [c.product(real, shape[-1], 48), codes]
    return outputs


def test_rows_quantized_by_their_own_scale(c: Cases) -> None:
    c.check(*rows_of_their_own_scale(c), integers=2)


def test_every_level_gives_the_same_bytes() -> None:
    """Sums, scale, bias, residual, relu and quantization: nothing depends on the instructions there are."""
    c = Cases()
    for m, k, n in ((9, 40, 33), (3, 130, 20)):
        x, r = c.bytes(m, k), c.bytes(m, n)
        total = c.add("add", c.product(c.real(x, 0.9), k, n), c.real(r, 0.07))
        c.graph.add_output(c.quantized(c.add("relu", total), 0.031, 9))
        c.graph.add_output(c.product(c.real(x), k, n))
    model = export_model(c.graph, opset=21)
    found = []
    for target in cpu_levels():
        if not missing_features(target):
            with oc.compile(model, target=target.id, proof=False, pipeline=KERNELS, fallback="error") as compiled:
                found.append(compiled.run(c.feeds))
    assert len(found) > 1
    for other in found[1:]:
        for name, y in found[0].items():
            np.testing.assert_array_equal(other[name], y, err_msg=name)


def test_products_that_integers_cannot_compute(c: Cases) -> None:
    """Other types, weights with a zero point, scales along the sum: the same numbers in f32."""
    x, s8 = c.bytes(6, 40), c.bytes(6, 40, dtype=I8)
    w = c.weights(40, 24)
    plain = c.real(w, 0.001, None)
    outputs = [
        c.add("matmul", c.real(s8, zero=3), plain),
        c.add("matmul", c.real(x), c.real(w, 0.001, 3)),
        c.add("matmul", c.real(x), c.real(w, c.rng.uniform(0.001, 0.002, (40, 1)), None)),
        c.add("matmul", c.real(x, c.rng.uniform(0.01, 0.02, 40), None), plain),
        c.quantized(c.add("matmul", c.real(x), c.real(c.weights(3, 40, 24), 0.001, None))),
    ]
    c.check(*outputs, integers=0)


def test_attention(c: Cases) -> None:
    """Results as bytes: heads apart and side by side, more keys than a block holds, rows that see no key."""
    outputs = []
    for queries, keys, size, causal in ((9, 33, 64, False), (5, 700, 12, False), (40, 420, 64, True), (7, 4, 8, True)):
        q, k, v = c.floats(1, 3, queries, size), c.floats(1, 3, keys, size), c.floats(1, 3, keys, size)
        y = c.quantized(c.add("attention", q, k, v, None, scale=0.2, causal=causal), 0.01, 100)
        outputs.append(y)
        masked = c.add("attention", q, k, v, c.floats(1, 1, queries, keys), scale=0.2)
        y = c.quantized(masked, 0.01, 7, I8)
        turned = c.add("transpose", y, perm=(0, 2, 1, 3))
        outputs.append(c.add("reshape", turned, shape=(1, queries, 3 * size)))
    c.check(*outputs)


def test_convolutions(c: Cases) -> None:
    x = c.bytes(1, 16, 9, 9)
    window = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    scale = c.rng.uniform(0.5, 2.0, (32, 1, 1, 1)) / 1000
    w = c.real(c.weights(32, 16, 3, 3), scale, None)
    bias = c.constant(c.rng.normal(size=32))
    y = c.add("relu", c.add("conv", c.real(x), w, bias, **window))
    c.check(c.quantized(y), c.add("conv", c.real(x), w, None, **window))
