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
    for shape in ((4, 5), (7, -1), (-1, -1), ((1 << 62) + 9, 2), (1 << 62, 1 << 62)):
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


# -- operators ---------------------------------------------------------------------------------------------------------


def _arguments() -> dict[str, np.ndarray]:
    """Arguments that models usually hold as constants, by the name of the input."""
    one = {
        "starts": [-1, 0], "ends": [-100, 5], "axes": [0, -1], "steps": [-1, 2], "parts": [4, 2], "squeezed": [1],
        "wider": [1, 6], "times": [2, 1], "pads": [1, -1, 0, 2], "few": [3], "depth": [4], "k": [-1], "low": 3,
        "high": 20, "by": 4, "shape": [2, 5], "reduced": [-1], "several": [0, 2], "along": 1,
    }  # fmt: skip
    return {name: np.array(value, np.int64) for name, value in one.items()}


def operators() -> Net:
    net = Net("operators", 18)
    x, images = net.input("x", "n", 6), net.input("images", 2, 3, "m")
    given = {name: net.input(name, *value.shape, dtype=INT64) for name, value in _arguments().items()}

    def out(name: str, value: str, kind: int = TensorProto.FLOAT) -> None:
        net.output(name, value, kind)

    sliced = net("Slice", x, given["starts"], given["ends"], given["axes"], given["steps"])
    out("slice", net("Exp", sliced))
    left, right = net.many(2, "Split", x, given["parts"], axis=1)
    out("split", net("Concat", right, left, axis=1))
    column = net("Slice", x, np.array([0]), np.array([1]), np.array([1]))
    out("squeeze", net("Squeeze", column, given["squeezed"]))
    out("unsqueeze", net("Unsqueeze", x, given["axes"]))
    out("expand", net("Mul", net("Expand", column, given["wider"]), x))
    out("tile", net("Tile", x, given["times"]))
    out("pad", net("Pad", x, given["pads"], 2.5))
    values, places = net.many(2, "TopK", x, given["few"], largest=0)
    out("topk", values)
    out("topk_places", places, INT64)
    out("one_hot", net("OneHot", places, given["depth"], np.array([0, 1], np.float32)))
    out("trilu", net("Trilu", x, given["k"]))
    out("range", net("Range", given["low"], given["high"], given["by"]), INT64)
    out("constant", net("ConstantOfShape", given["shape"]))
    out("reduce", net("ReduceMax", x, given["reduced"], keepdims=0))
    out("reduce_several", net("ReduceMean", images, given["several"]))
    out("reduce_several_away", net("ReduceL2", images, given["several"], keepdims=0))
    out("cumulate", net("CumSum", images, given["along"], exclusive=1, reverse=1))
    kept = net("Compress", x, net("Greater", net("ReduceSum", x, np.array([1]), keepdims=0), 0.0), axis=0)
    out("compress", net("Softmax", kept))
    rounded = net("Round", x)
    for name, attrs in (("sorted", {}), ("as they are", {"sorted": 0}), ("rows", {"axis": 0})):
        parts = net.many(4, "Unique", rounded, **attrs)
        for part, value in zip(("values", "first", "which", "counts"), parts, strict=True):
            out(f"unique {name} {part}", value, TensorProto.FLOAT if part == "values" else INT64)
    boxes, scores = net.input("boxes", 1, "boxes", 4), net.input("scores", 1, 2, "boxes")
    chosen = net("NonMaxSuppression", boxes, scores, np.array([5]), 0.5, 0.2)
    out("boxes chosen", net("GatherND", scores, chosen))
    out("chosen", chosen, INT64)
    return net


def test_operators_whose_arguments_are_computed() -> None:
    net = operators()
    random = np.random.default_rng(3)
    with oc.compile(net.model(), fallback="error", proof=False) as model:
        for n, m, count, changes in (
            (4, 5, 40, {}), (1, 1, 1, {"few": [0], "high": [3], "reduced": [0], "along": [2]}),
            (9, 70, 300, {"starts": [0, 1], "steps": [3, 1], "ends": [8, 99], "several": [1, 2], "wider": [9, 6]}),
            (30, 2, 0, {"pads": [0, 0, -3, -2], "parts": [0, 6], "few": [6], "times": [0, 3], "squeezed": [-1]}),
        ):  # fmt: skip
            arguments = _arguments()
            for name, value in changes.items():
                arguments[name] = np.array(value, np.int64).reshape(arguments[name].shape)
            corners = random.random((1, count, 4)).astype(np.float32) * 10
            feeds = {
                "x": (random.standard_normal((n, 6)) * 2).astype(np.float32),
                "images": random.standard_normal((2, 3, m)).astype(np.float32), **arguments,
                "boxes": np.concatenate([corners[..., :2], corners[..., :2] + corners[..., 2:]], -1),
                "scores": random.random((1, 2, count)).astype(np.float32),
            }  # fmt: skip
            assert_same(model.run(feeds), reference(net.model(), feeds), n=n)
        with pytest.raises(RunError, match="few is 7, and must be 0 to 6"):
            model.run({**feeds, "few": np.array([7])})
