"""Winograd convolutions in artifacts: proved at every level, the same bits on any threads, refused by --small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import opcel_compiler as oc
from opcel_compiler.runtime.model import _cpu_features
from opcel_compiler.targets import load_target

from .builder import Net


def network() -> onnx.ModelProto:
    """Odd sizes; a residual block whose tiles stay in a cache, then one whose tiles go through memory."""
    net = Net("winograd")
    pads = {"pads": [1, 1, 1, 1]}
    x = net("Relu", net("Conv", net.input("x", 2, 40, 57, 41), net.weight(48, 40, 3, 3), net.weight(48), **pads))
    y = net("Conv", x, net.weight(48, 48, 3, 3), net.weight(48), **pads)
    y = net("Relu", net("Add", x, y))
    y = net("MaxPool", y, kernel_shape=[4, 4], strides=[4, 4])
    y = net("Sigmoid", net("Conv", y, net.weight(200, 48, 3, 3), **pads))
    net.output("y", net("Conv", y, net.weight(130, 200, 3, 3), net.weight(130), **pads))
    return net.model()


@pytest.mark.parametrize("level", ["x86-64", "x86-64-avx2", "x86-64-avx512"])
def test_proved_and_the_same_on_any_threads(level: str, tmp_path: Path) -> None:
    isa = load_target(level).isa
    assert isa is not None
    if missing := set(isa.features) - _cpu_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    feeds = {"x": np.random.default_rng(0).normal(size=(2, 40, 57, 41)).astype(np.float32)}
    with oc.compile(network(), level, tmp_path / "net.opcel", threads=1) as model:
        assert model.report["proof"]["status"] == "proved"
        assert [k["family"] for k in model.report["kernels"]].count("conv.winograd") == 4
        want = model.run(feeds)["y"]
    for threads in (2, 3):
        with oc.load(tmp_path / "net.opcel", threads=threads) as model:
            assert np.array_equal(model.run(feeds)["y"].view(np.uint32), want.view(np.uint32))


def test_small(tmp_path: Path) -> None:
    """A small artifact holds its weights and little else; the report of the other says what makes it larger."""
    model = network()
    parameters = sum(np.prod(i.dims) for i in model.graph.initializer) * 4
    with oc.compile(model, output=tmp_path / "large.opcel") as large:
        added = large.report["memory"]["transformed_bytes"]
        weights = large.report["memory"]["weights_bytes"]
    with oc.compile(model, output=tmp_path / "small.opcel", small=True) as small:
        assert not {"conv.winograd"} & {k["family"] for k in small.report["kernels"]}
        assert small.report["memory"]["transformed_bytes"] == 0
        assert small.report["artifact"]["bytes"] <= 1.2 * parameters + (2 << 20)
        assert added > parameters
        assert weights - added <= 1.3 * small.report["memory"]["weights_bytes"]
