"""A batch whose images leave the caches, in an artifact: it runs sample by sample and gives what each gives alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

import opcel_compiler as oc

from .builder import Net

SAMPLES, SHAPE = 26, (16, 150, 149)


def network(samples: int) -> onnx.ModelProto:
    """A residual block of depthwise and pointwise convolutions, then what a classifier ends with."""
    net = Net("batch")
    x = net.input("x", samples, *SHAPE)
    y = net("Relu", net("Conv", x, net.weight(16, 1, 3, 3), pads=[1, 1, 1, 1], group=16))
    y = net("Add", x, net("Conv", y, net.weight(16, 16, 1, 1), net.weight(16)))
    y = net("Flatten", net("GlobalAveragePool", net("Conv", y, net.weight(24, 16, 3, 3), strides=[2, 2])))
    net.output("y", net("MatMul", y, net.weight(24, 10)))
    return net.model()


def test_each_sample_alone(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((SAMPLES, *SHAPE)).astype(np.float32)
    with oc.compile(network(SAMPLES), "host", tmp_path / "batch.opcel") as model:
        assert "split-batch" in [change["rule"] for change in model.report["passes"]]
        together = model.run({"x": x})["y"]
    with oc.compile(network(1), "host", tmp_path / "one.opcel") as model:
        alone = [model.run({"x": x[i : i + 1]})["y"][0] for i in range(3)]
    np.testing.assert_allclose(together[:3], alone, rtol=1e-5, atol=1e-5)
