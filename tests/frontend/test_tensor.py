"""Operators that make, move and reshape tensors against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_harness import check, floats, model_of, one_node

from opcel_compiler.frontend.importer import import_model

X = floats(2, 3, 4)
I64 = np.int64


@pytest.mark.parametrize("target", [[6, 4], [-1], [0, -1], [2, 0, 2, 2], [0, 0, 0]])
@pytest.mark.parametrize("opset", [7, 13, 21])
def test_reshape(target: list[int], opset: int) -> None:
    check(one_node("Reshape", {"x": X}, opset, constants={"s": np.array(target)}), {"x": X})


def test_reshape_that_allows_zero() -> None:
    x = floats(0, 3)
    check(one_node("Reshape", {"x": x}, 14, constants={"s": np.array([3, 0])}, allowzero=1), {"x": x})


def test_reshape_of_nothing() -> None:
    x = floats(0, 3)
    check(one_node("Reshape", {"x": x}, 14, constants={"s": np.array([-1, 3])}), {"x": x})


@pytest.mark.parametrize(("target", "shape"), [([0, -1], (0, 3)), ([-1, 3], (0, 3)), ([0, 1, -1], (0, 1, 3))])
def test_reshape_that_copies_a_size_of_nothing(target: list[int], shape: tuple[int, ...]) -> None:
    """The -1 is then what is left of the sizes that are not copied, as it is where those are symbols."""
    imported = import_model(one_node("Reshape", {"x": floats(0, 3)}, 14, constants={"s": np.array(target)}))
    assert imported.graph.outputs[0].tensor.shape == shape


@pytest.mark.parametrize("shape", [[4, 6], [-1, 2], [0, -1], [0, 0, -1], [1, 24, 1]])
def test_reshape_to_a_computed_shape(shape: list[int]) -> None:
    feeds = {"x": X, "s": np.array(shape)}
    imported = check(one_node("Reshape", feeds, 13), feeds)
    assert "read_dims" in [n.op for n in imported.graph.nodes]


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1])
def test_flatten(axis: int) -> None:
    check(one_node("Flatten", {"x": X}, 13, axis=axis), {"x": X})


def test_transpose() -> None:
    check(one_node("Transpose", {"x": X}, 7), {"x": X})
    check(one_node("Transpose", {"x": X}, 13, perm=[1, 0, 2]), {"x": X})


def test_squeeze_and_unsqueeze() -> None:
    x = floats(1, 3, 1)
    check(one_node("Squeeze", {"x": x}, 11), {"x": x})
    check(one_node("Squeeze", {"x": x}, 11, axes=[-1]), {"x": x})
    check(one_node("Squeeze", {"x": x}, 13, constants={"a": np.array([0])}), {"x": x})
    check(one_node("Unsqueeze", {"x": x}, 11, axes=[0, 4]), {"x": x})
    check(one_node("Unsqueeze", {"x": x}, 13, constants={"a": np.array([-1, 1])}), {"x": x})


@pytest.mark.parametrize("opset", [10, 11, 13])
@pytest.mark.parametrize(
    "starts, ends, axes, steps",
    [
        ([1], [3], [2], [1]),
        ([-3, 0], [-1, 100], [2, 1], [1, 2]),
        ([3], [0], [2], [-1]),
        ([-1], [-(2**63)], [2], [-2]),
        ([100], [-100], [1], [-1]),
        ([2], [1], [2], [1]),
        ([0], [2**63 - 1], [0], [1]),
    ],
)
def test_slice(opset: int, starts: list[int], ends: list[int], axes: list[int], steps: list[int]) -> None:
    constants = {k: np.array(v, I64) for k, v in zip("seap", (starts, ends, axes, steps), strict=True)}
    check(one_node("Slice", {"x": X}, opset, constants=constants), {"x": X})


def test_slice_by_attributes() -> None:
    check(one_node("Slice", {"x": X}, 9, starts=[1, -3], ends=[2, 9999], axes=[1, 2]), {"x": X})
    check(one_node("Slice", {"x": X}, 7, starts=[0, 1], ends=[1, 3]), {"x": X})


def test_slice_without_axes() -> None:
    check(one_node("Slice", {"x": X}, 13, constants={"s": np.array([1, 1]), "e": np.array([2, 3])}), {"x": X})


@pytest.mark.parametrize(
    "opset, parts, constants, attrs",
    [
        (7, 2, {}, {"axis": 2}),
        (11, 2, {}, {"axis": -1, "split": [1, 3]}),
        (13, 2, {"s": np.array([3, 1])}, {"axis": 2}),
        (13, 3, {}, {"axis": 1}),
        (18, 3, {}, {"axis": 1, "num_outputs": 3}),
        (18, 2, {}, {"axis": 1, "num_outputs": 2}),
    ],
)
def test_split(opset: int, parts: int, constants: dict[str, np.ndarray], attrs: dict[str, Any]) -> None:
    check(one_node("Split", {"x": X}, opset, constants=constants, outputs=parts, **attrs), {"x": X})


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(axis: int) -> None:
    feeds = {"a": X, "b": X + 1}
    check(one_node("Concat", feeds, 13, axis=axis), feeds)


@pytest.mark.parametrize("indices", [np.array(1), np.array([[0, -1], [2, 1]]), np.array([-2], np.int32)])
def test_gather(indices: np.ndarray) -> None:
    feeds = {"x": X, "i": indices}
    check(one_node("Gather", feeds, 13, axis=1), feeds)


def test_gather_elements_and_nd() -> None:
    feeds = {"x": X, "i": np.array([[[0, -1]], [[2, 1]]])}
    check(one_node("GatherElements", feeds, 13, axis=2), feeds)
    feeds = {"x": X, "i": np.array([[0, 1], [1, -1]])}
    check(one_node("GatherND", feeds, 13), feeds)
    feeds = {"x": X, "i": np.array([[0], [2]])}
    check(one_node("GatherND", feeds, 13, batch_dims=1), feeds)


def test_expand_and_tile() -> None:
    x = floats(3, 1)
    check(one_node("Expand", {"x": x}, 13, constants={"s": np.array([2, 1, 4])}), {"x": x})
    check(one_node("Expand", {"x": X}, 13, constants={"s": np.array([3, 1])}), {"x": X})
    check(one_node("Tile", {"x": X}, 13, constants={"r": np.array([2, 1, 3])}), {"x": X})
    check(one_node("Tile", {"x": x}, 7, constants={"r": np.array([1, 5])}), {"x": x})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
@pytest.mark.parametrize("opset", [7, 11, 18])
def test_pad(mode: str, opset: int) -> None:
    pads = [0, 1, 2, 0, 1, 1]
    if opset < 11:
        check(one_node("Pad", {"x": X}, opset, pads=pads, mode=mode, value=0.5), {"x": X})
    else:
        constants = {"p": np.array(pads), "v": np.array(0.5, np.float32)}
        inputs = ["x", "p", "v"] if mode == "constant" else ["x", "p"]
        constants = {k: v for k, v in constants.items() if k in inputs}
        check(one_node("Pad", {"x": X}, opset, constants=constants, inputs=inputs, mode=mode), {"x": X})


def test_pad_that_cuts_and_pad_of_chosen_axes() -> None:
    check(one_node("Pad", {"x": X}, 13, constants={"p": np.array([0, -1, 1, 0, 0, -2])}), {"x": X})
    constants = {"p": np.array([1, 2]), "a": np.array([-1])}
    check(one_node("Pad", {"x": X}, 18, constants=constants, inputs=["x", "p", "", "a"]), {"x": X})


def test_depth_and_space() -> None:
    x = floats(1, 8, 2, 3)
    for mode in ("DCR", "CRD"):
        check(one_node("DepthToSpace", {"x": x}, 13, blocksize=2, mode=mode), {"x": x})
    x = floats(1, 2, 4, 6)
    check(one_node("SpaceToDepth", {"x": x}, 13, blocksize=2), {"x": x})


@pytest.mark.parametrize("attrs", [{}, {"start": 1}, {"start": -2, "end": -1}, {"end": 2}])
def test_shape(attrs: dict[str, int]) -> None:
    check(one_node("Shape", {"x": X}, 15, **attrs), {"x": X})


def test_size() -> None:
    check(one_node("Size", {"x": X}, 13), {"x": X})


def test_constant_of_shape() -> None:
    value = numpy_helper.from_array(np.array([7], np.int32))
    for attrs in ({}, {"value": value}):
        node = helper.make_node("ConstantOfShape", ["s"], ["c"], **attrs)
        add = helper.make_node("Cast", ["c"], ["y"], to=TensorProto.INT64)
        check(model_of([node, add], {}, 13, {"s": np.array([2, 100])}), {})


@pytest.mark.parametrize(
    "attr",
    [
        {"value": numpy_helper.from_array(floats(2, 2))},
        {"value_float": 1.5},
        {"value_floats": [1.5, 2.5]},
        {"value_int": 3},
        {"value_ints": [1, 2, 3]},
        {"value_string": "text"},
        {"value_strings": ["a", "bc"]},
    ],
)
def test_constant(attr: dict[str, Any]) -> None:
    check(model_of([helper.make_node("Constant", [], ["y"], **attr)], {}, 13), {})


def test_sparse_constant() -> None:
    values = helper.make_tensor("values", TensorProto.FLOAT, [2], [1.5, 2.5])
    for indices in (helper.make_tensor("i", TensorProto.INT64, [2], [1, 5]),
                    helper.make_tensor("i", TensorProto.INT64, [2, 2], [0, 1, 1, 2])):  # fmt: skip
        node = helper.make_node("Constant", [], ["c"], sparse_value=helper.make_sparse_tensor(values, indices, [2, 3]))
        imported = check(model_of([node, helper.make_node("Neg", ["c"], ["y"])], {}, 13), {})
        assert np.count_nonzero(imported.graph.outputs[0].constant.array) == 2  # type: ignore[union-attr]


@pytest.mark.parametrize("ends", [(0, 10, 3), (10, 0, -4), (3, 3, 1), (0, 100, 1)])
def test_range(ends: tuple[int, int, int]) -> None:
    for dtype in (np.int64, np.float32):
        constants = {k: np.array(v, dtype) for k, v in zip("sld", ends, strict=True)}
        node = helper.make_node("Range", ["s", "l", "d"], ["y"])
        check(model_of([node], {}, 13, constants), {})


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("k", [None, -1, 2])
def test_trilu(upper: int, k: int | None) -> None:
    constants = {} if k is None else {"k": np.array(k)}
    check(one_node("Trilu", {"x": X}, 14, constants=constants, upper=upper), {"x": X})


def test_eye_like() -> None:
    x = floats(3, 4)
    check(one_node("EyeLike", {"x": x}, 9, k=1, dtype=TensorProto.FLOAT), {"x": x})


@pytest.mark.parametrize("axis", [-1, 0])
def test_one_hot(axis: int) -> None:
    feeds = {"i": np.array([[0, 2], [-1, 1]])}
    constants = {"d": np.array(3), "v": np.array([0.5, 2.0], np.float32)}
    check(one_node("OneHot", feeds, 13, constants=constants, axis=axis), feeds)


def test_dropout() -> None:
    check(one_node("Dropout", {"x": X}, 7), {"x": X})
    check(one_node("Dropout", {"x": X}, 13, outputs=2), {"x": X})
