"""NaN, infinities, empty batches, and channel counts that leave vector lanes unused."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

import opcel_compiler as oc

from .builder import Net
from .conftest import GetTwin, assert_same, reference
from .twins import TWINS, feeds

CHANNELS = 19
"""No multiple of any vector width."""


def _convolutions(between: Callable[[Net, str], str], positive: bool = False) -> onnx.ModelProto:
    """Convolutions around `between`, which maps images of CHANNELS channels; `positive`: all weights are."""
    net = Net("edges")

    def weight(*shape: int) -> np.ndarray:
        values = net.weight(*shape)
        return np.abs(values) if positive else values

    x = net.input("x", 2, 8, 6, 6)
    x = between(net, net("Conv", x, weight(CHANNELS, 8, 3, 3), weight(CHANNELS), pads=[1, 1, 1, 1]))
    x = net("Conv", x, weight(5, CHANNELS, 3, 3), pads=[1, 1, 1, 1])
    net.output("y", net("Conv", x, weight(4, 5, 1, 1)))
    return net.model()


def _per_channel(net: Net, low: float) -> np.ndarray:
    return net.random.uniform(low, low + 1, (CHANNELS, 1, 1)).astype(np.float32)


def _depthwise(net: Net, x: str) -> str:
    return net("Conv", x, net.weight(CHANNELS, 1, 3, 3), pads=[1, 1, 1, 1], group=CHANNELS)


BETWEEN: dict[str, Callable[[Net, str], str]] = {
    "divided by a channel's constant": lambda net, x: net("Div", net("Relu", x), _per_channel(net, 1)),
    "logarithm": lambda net, x: net("Log", net("Abs", x)),
    "reciprocal": lambda net, x: net("Reciprocal", net("Add", net("Abs", x), _per_channel(net, 1))),
    "depthwise, divided": lambda net, x: net("Div", _per_channel(net, 1), net("Exp", _depthwise(net, x))),
    "depthwise, logarithm": lambda net, x: net("Log", net("Abs", _depthwise(net, x))),
    "pooled, then divided": lambda net, x: net(
        "Div", _per_channel(net, 1), net("MaxPool", net("Exp", x), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
    ),
    "divided by an image": lambda net, x: net("Div", x, net("Exp", net("GlobalAveragePool", x))),
    "logarithm, not fused": lambda net, x: net("Log", net("AveragePool", net("Abs", x), kernel_shape=[2, 2])),
    "exponential, then logarithm": lambda net, x: net("Log", net("Sub", net("Exp", net("Abs", x)), 0.99)),
    "no vector form": lambda net, x: net("Div", net("Sign", x), _per_channel(net, 1)),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_unused_lanes_leak_nothing(name: str) -> None:
    model = _convolutions(BETWEEN[name])
    with oc.compile(model, fallback="error", proof=False) as compiled:
        given = feeds(model)
        want = reference(model, given)
        assert np.isfinite(want["y"]).all()
        assert_same(compiled.run(given), want)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_special_values_in_images(value: float) -> None:
    """One special pixel: an infinity times the zero weight of an unused lane is NaN and has to stay there."""
    model = _convolutions(lambda net, x: net("Relu", x), positive=True)
    given = feeds(model)
    given["x"][1, 3, 2, 2] = value
    want = reference(model, given)
    assert np.isnan(want["y"]).any() == np.isnan(value)
    with oc.compile(model, fallback="error") as compiled:
        assert_same(compiled.run(given), want)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_special_values_in_rows(twin: GetTwin, value: float) -> None:
    """relu, softmax, reductions and products of a twin, against ONNX Runtime."""
    for name in ("reductions", "mlp-symbolic"):
        model = TWINS[name].build()
        given = feeds(model, {"batch": 3})
        given["x"].reshape(3, -1)[1, 4] = value
        want = reference(model, given)
        got = twin(name).run(given)
        for key in want:
            if np.isnan(value) and key in ("max", "min"):  # ONNX Runtime may skip a NaN, NumPy and OPCEL do not
                assert np.isnan(got[key]).any()
            elif key not in ("argmax", "argmin"):  # ONNX does not say where a NaN ranks
                assert_same({key: got[key]}, {key: want[key]}, twin=name)


def test_minimum_and_maximum_keep_nan() -> None:
    net = Net("minmax")
    x, y = net.input("x", 40), net.input("y", 40)
    net.output("max", net("Max", x, y))
    net.output("min", net("Min", x, y))
    net.output("relu", net("Relu", x))
    net.output("clip", net("Clip", x, -1.0, 1.0))
    model = net.model()
    given = feeds(model)
    given["x"][::3] = np.nan
    given["y"][::4] = np.nan
    got = oc.compile(model, fallback="error").run(given)
    assert_same(got, reference(model, given))
    assert np.isnan(got["max"][:36:3]).all() and np.isnan(got["min"][:36:4]).all() and np.isnan(got["relu"][::3]).all()
