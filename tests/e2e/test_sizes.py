"""Sizes that depend on data, compiled: results that grow and shrink, and values that cannot be sizes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from onnx import TensorProto

import opcel_compiler as oc
from opcel_compiler.runtime.errors import FeedError, RunError

from .builder import Net
from .conftest import assert_same, reference

INT64 = TensorProto.INT64


def _net() -> Net:
    """One input that becomes a shape, and the places of what is positive, through kernels before and after."""
    net = Net("sizes")
    x, shape = net.input("x", "n", 6), net.input("shape", 2, dtype=INT64)
    net.output("reshaped", net("Reshape", net("Relu", x), shape))
    wide = net("Softmax", net("Reshape", x, shape), axis=-1)
    net.output("scaled", net("Mul", wide, 2.0))
    places = net("NonZero", net("Greater", x, 0.0))
    net.output("places", places, INT64)
    chosen = net("Transpose", places, perm=[1, 0])
    net.output("chosen", net("Exp", net("GatherND", x, chosen)))
    return net


@pytest.fixture(scope="module")
def sizes() -> Iterator[tuple[Net, oc.CompiledModel]]:
    net = _net()
    with oc.compile(net.model(), fallback="error") as model:
        yield net, model


def test_results_take_the_size_that_the_data_gives(sizes: tuple[Net, oc.CompiledModel]) -> None:
    net, model = sizes
    random = np.random.default_rng(1)
    for rows, shape in ((4, (8, 3)), (2, (-1, 2)), (50, (0, 6)), (1, (3, -1)), (0, (0, 6)), (40, (240, 1))):
        feeds = {"x": random.standard_normal((rows, 6)).astype(np.float32), "shape": np.array(shape)}
        assert_same(model.run(feeds), reference(net.model(), feeds), shape=shape)
    feeds["x"][:] = -1
    got = model.run(feeds)
    assert got["places"].shape == (2, 0) and got["chosen"].shape == (0,)


def test_results_of_one_run_outlive_the_next(sizes: tuple[Net, oc.CompiledModel]) -> None:
    _, model = sizes
    feeds = {"x": np.ones((3, 6), np.float32), "shape": np.array([9, 2])}
    first = model.run(feeds)
    model.run({"x": np.full((3, 6), 2, np.float32), "shape": np.array([6, 3])})
    np.testing.assert_array_equal(first["reshaped"], np.ones((9, 2), np.float32))


def test_what_cannot_be_a_size_is_an_error_at_its_node(sizes: tuple[Net, oc.CompiledModel]) -> None:
    _, model = sizes
    feeds = {"x": np.ones((3, 6), np.float32)}
    for shape in ((4, 5), (7, -1), (-1, -1)):
        with pytest.raises(RunError, match="node_reshape_"):
            model.run({**feeds, "shape": np.array(shape)})
    np.testing.assert_array_equal(model.run({**feeds, "shape": np.array([2, 9])})["reshaped"], np.ones((2, 9)))


def test_memory_for_such_a_result_has_just_its_shape(sizes: tuple[Net, oc.CompiledModel]) -> None:
    _, model = sizes
    feeds = {"x": np.ones((3, 6), np.float32), "shape": np.array([9, 2])}
    mine = np.zeros((9, 2), np.float32)
    assert model.run(feeds, {"reshaped": mine})["reshaped"] is mine
    assert mine.all()
    with pytest.raises(FeedError, match=r"output 'reshaped': shape \[2, 9\] given, \[9, 2\] expected"):
        model.run(feeds, {"reshaped": np.zeros((2, 9), np.float32)})


def test_such_a_run_can_be_profiled(sizes: tuple[Net, oc.CompiledModel]) -> None:
    _, model = sizes
    seconds = model.profile({"x": np.ones((3, 6), np.float32), "shape": np.array([9, 2])}, 3)
    assert len(seconds) > 5 and all(s >= 0 for s in seconds)
