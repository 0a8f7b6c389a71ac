"""Convolutions of bytes and what stands between them, against the interpreter, with the same bits on every level."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from test_quantized import KERNELS, Cases

import opcel_compiler as oc
from opcel_compiler.codegen.cpu.pack import packed
from opcel_compiler.compilation import prepare
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.program_split import source
from opcel_compiler.ir.types import I8
from opcel_compiler.schedule.choice.candidates import apply, candidates
from opcel_compiler.schedule.choice.integers import is_integer
from opcel_compiler.targets.load import load_target

PIPELINE = "fold-constants," + KERNELS
LEVELS = ("host", "x86-64-avx512", "x86-64-avx2", "x86-64")


class Images(Cases):
    def conv(self, x: Value, filters: int, kernel: int, *, bias: bool = True, scale: float = 0.02, zero: int = 131,
             w_zero: int | None = None, **attrs: Any) -> Value:  # fmt: skip
        """x, u8, dequantized and convolved with random s8 filters of a scale each; padded to its size by default."""
        rank, channels = len(x.tensor.dims) - 2, x.tensor.dims[1]
        assert isinstance(channels, int)
        groups = attrs.get("groups", 1)
        w = self.weights(filters, channels // groups, *[kernel] * rank)
        depth = channels // groups * kernel**rank
        scales = self.rng.uniform(0.5, 2.0, (filters, 1, *[1] * rank)) / (100 * depth**0.5)
        full = {
            "strides": (1,) * rank, "dilations": (1,) * rank, "pads": (kernel // 2,) * 2 * rank, "groups": groups,
            **attrs,
        }  # fmt: skip
        offset = [self.constant(self.rng.normal(size=filters))] if bias else []
        return self.add("conv", self.real(x, scale, zero), self.real(w, scales, w_zero), *offset, **full)

    def transposed(self, x: Value, filters: int, kernel: int, **attrs: Any) -> Value:
        """x, u8, dequantized and convolved transposed at stride 2."""
        channels, groups = x.tensor.dims[1], attrs.get("groups", 1)
        assert isinstance(channels, int)
        scales = self.rng.uniform(0.5, 2.0, (1, filters // groups, 1, 1)) / 1000
        w = self.real(self.weights(channels, filters // groups, kernel, kernel), scales, None)
        full = {"strides": (2, 2), "dilations": (1, 1), "pads": (0,) * 4, "output_padding": (0, 0), **attrs}
        bias = self.constant(self.rng.normal(size=filters))
        return self.add("conv_transpose", self.real(x), w, bias, **full)

    def compare(self, *outputs: Value, integers: int, levels: tuple[str, ...] = LEVELS[:1]) -> None:
        """As `check`, on each level that this machine runs; `integers`: how many convolutions multiply bytes."""
        for v in outputs:
            self.graph.add_output(v)
        want, first = run(self.graph, self.feeds), None
        model = export_model(self.graph, opset=21)
        for level in levels:
            program = prepare(model, level, pipeline=PIPELINE).program
            assert program is not None
            assert sum(k.family.startswith("conv.") and is_integer(k) for k in program.kernels) == integers
            try:
                compiled = oc.compile(model, target=level, proof=False, pipeline=PIPELINE, fallback="error")
            except oc.driver.TargetError:
                continue
            with compiled:
                got = compiled.run(self.feeds)
            for name, w in want.items():
                g = got[name]
                assert g.dtype == w.dtype and g.shape == w.shape, name
                off = np.abs(g.astype(np.float64) - w)
                if w.dtype == np.float32:
                    assert off.max(initial=0) <= 2e-5 * np.abs(w).max(), f"{name}: {off.max()} off"
                else:
                    assert off.max(initial=0) <= 1 and off.mean() <= 0.01, f"{name}: {off.max()} off, {off.mean()}"
                    assert first is None or (first[name] == g).all(), f"{name} has other bits on {level}"
            first = first or got


@pytest.fixture
def c() -> Images:
    return Images()


def test_layers_on_every_level(c: Images) -> None:
    x, small = c.bytes(2, 20, 9, 11), c.bytes(2, 3, 13, 10)
    a = c.quantized(c.add("relu", c.conv(x, 32, 3)), zero=0)
    b = c.quantized(c.conv(a, 20, 1, zero=0, scale=0.05))
    total = c.add("relu", c.add("add", c.conv(b, 20, 3, scale=0.05, zero=120), c.real(x)))
    stem = c.quantized(c.conv(small, 40, 7, strides=(2, 2), scale=0.01, zero=255))
    deep = c.quantized(c.conv(stem, 40, 3, groups=40, scale=0.05, zero=120))
    outputs = [
        c.quantized(total, 0.07, 3), b, deep,
        c.quantized(c.conv(deep, 40, 5, groups=40, strides=(2, 2), scale=0.05, zero=120), dtype=I8, zero=-5),
        c.conv(a, 7, 3, bias=False, strides=(2, 1), zero=0),
    ]  # fmt: skip
    c.compare(*outputs, integers=7, levels=LEVELS)


def test_windows(c: Images) -> None:
    """Readers of one image with borders of different widths, and one with none."""
    x, row = c.bytes(1, 24, 8, 9), c.bytes(2, 16, 40)
    outputs = [
        c.conv(x, 16, 3), c.conv(x, 16, 5), c.conv(x, 18, 1), c.add("max_pool", x, kernel=(3, 3), strides=(2, 2),
        pads=(1, 1, 1, 1), dilations=(1, 1)), c.conv(x, 32, 3, dilations=(2, 2), pads=(2, 2, 2, 2)),
        c.conv(x, 24, 3, groups=24, strides=(2, 2)), c.conv(x, 24, 3, groups=24, pads=(0, 0, 0, 0)),
        c.conv(x, 48, 3, groups=2), c.conv(row, 16, 3, groups=16), c.conv(row, 16, 5),
        c.conv(c.bytes(1, 16, 2, 2), 16, 3, groups=16, scale=0.01),
    ]  # fmt: skip
    c.compare(*outputs, integers=10)


def test_what_stands_between(c: Images) -> None:
    """Epilogues that a scale passes and that it doesn't, parts of one image, pools and enlargements of bytes."""
    x = c.bytes(1, 16, 10, 12)
    y = c.conv(x, 32, 3)
    sigmoid = c.add("mul", y, c.add("sigmoid", y))
    clipped = c.add("min", c.add("max", c.conv(x, 16, 3), c.constant(0.0)), c.constant(1.5))
    inner = c.real(c.quantized(c.conv(x, 16, 1)), 0.05, 120)
    left, right = c.quantized(c.conv(x, 16, 3)), c.quantized(c.conv(x, 32, 1))
    joined = c.add("concat", left, right, axis=1)
    rows, columns = (c.graph.constant(_places(n)) for n in (10, 12))
    large = c.add("resample", left, rows, None, columns, None)
    outputs = [
        c.quantized(sigmoid), c.quantized(clipped, zero=0), c.quantized(clipped, 0.004, zero=7),
        c.quantized(c.add("add", inner, c.real(x)), 0.0937), c.quantized(c.conv(joined, 16, 3, scale=0.05, zero=120)),
        c.conv(large, 16, 3, scale=0.05, zero=120),
        c.quantized(c.add("reduce_mean", c.real(left, 0.05, 120), axes=(2, 3), keepdims=True)),
        c.quantized(c.add("sub", c.add("leaky_relu", y, alpha=0.1), c.real(right, 0.05, 120))),
    ]  # fmt: skip
    c.compare(*outputs, integers=7)


def test_transposed(c: Images) -> None:
    """Divided into convolutions of bytes, written between one another; joined with what skips them; whole in f32 where
    they do not divide."""
    x, skipped = c.bytes(2, 16, 5, 6), c.bytes(2, 16, 10, 12)
    up = c.quantized(c.add("relu", c.transposed(x, 32, 2)), 0.03, 0)
    joined = c.add("concat", c.quantized(c.conv(skipped, 16, 3), 0.03, 0), up, axis=1)
    outputs = [
        up, c.conv(joined, 16, 3, scale=0.03, zero=0), c.transposed(x, 20, 3, pads=(1, 1, 1, 1)),
        c.quantized(c.transposed(x, 32, 4, groups=2, pads=(1, 1, 1, 1))),
        c.quantized(c.add("relu", c.transposed(x, 8, 1))),
    ]  # fmt: skip
    c.compare(*outputs, integers=4 + 2 + 4 + 4)


def _places(size: int) -> Any:
    from opcel_compiler.ir.encodings import Constant

    return Constant(np.repeat(np.arange(size, dtype=np.int32), 2)[None])


def test_what_integers_cannot_compute(c: Images) -> None:
    """A second zero point of one image, weights with one, depthwise filters with holes, volumes: the same in f32."""
    x = c.bytes(1, 16, 8, 9)
    outputs = [
        c.conv(x, 16, 3), c.conv(x, 16, 3, zero=3), c.conv(x, 16, 3, w_zero=2),
        c.conv(x, 16, 3, groups=16, dilations=(2, 2)), c.conv(c.bytes(1, 4, 5, 6, 7), 8, 3),
    ]  # fmt: skip
    c.compare(*outputs, integers=1)


def test_another_tile_takes_its_weights_along(c: Images) -> None:
    """What `opcel tune` measures: sums begin alike whatever the panels, and the filters are all there."""
    c.graph.add_output(c.quantized(c.conv(c.bytes(1, 20, 8, 9), 48, 3)))
    target = load_target("x86-64-avx512")
    program = prepare(export_model(c.graph, opset=21), "x86-64-avx512", pipeline=PIPELINE).program
    assert program is not None
    (kernel,) = (k for k in program.kernels if k.family == "conv.blocked")
    at = kernel.body.inputs.index(source(kernel.anchor.operand(1)))
    before, seen = packed(kernel.inputs[at].buffer), set()
    for params in candidates(kernel, target):
        apply(kernel, params, lambda base: f"{base}.{len(seen)}")
        after = packed(kernel.inputs[at].buffer)
        seen.add(kernel.params["out_blocks"])
        np.testing.assert_array_equal(after[: 4 * 48], before[: 4 * 48])
        np.testing.assert_array_equal(np.sort(after), np.sort(before))
    assert len(seen) > 1
