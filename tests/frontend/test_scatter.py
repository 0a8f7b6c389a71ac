"""Writes at computed places, and reversed sequences, against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx_harness import check, floats, interpret, one_node, same

from opcel_compiler.frontend.importer import import_model

X = floats(2, 3, 4)
PLACES = np.array([[[0, -1]], [[2, 1]]])


def against_reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    imported = import_model(model)
    assert not imported.foreign
    same(interpret(imported, feeds), ReferenceEvaluator(model).run(None, feeds))


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "min", "max"])
def test_scatter(reduction: str) -> None:
    feeds = {"x": X, "i": PLACES, "u": floats(2, 1, 2, seed=1)}
    check(one_node("ScatterElements", feeds, 18, axis=2, reduction=reduction), feeds)
    feeds = {"x": X, "i": np.array([[0, 1], [1, -1]]), "u": floats(2, 4, seed=2)}
    check(one_node("ScatterND", feeds, 18, reduction=reduction), feeds)


def test_scatter_of_old_opsets() -> None:
    feeds = {"x": X, "i": PLACES, "u": floats(2, 1, 2, seed=1)}
    check(one_node("Scatter", feeds, 10, axis=1), feeds)
    check(one_node("ScatterElements", feeds, 11, axis=-2), feeds)


@pytest.mark.parametrize("batch", [0, 1])
def test_reverse_sequence(batch: int) -> None:
    feeds = {"x": floats(3, 3, 2), "n": np.array([1, 3, 2])}
    check(one_node("ReverseSequence", feeds, 13, batch_axis=batch, time_axis=1 - batch), feeds)


@pytest.mark.parametrize("mode", ["linear", "circular"])
@pytest.mark.parametrize("shape, axis", [((2, 3, 5, 4), -2), ((2, 5, 4), 1), ((2, 4, 5), 2)])
def test_tensor_scatter(mode: str, shape: tuple[int, ...], axis: int) -> None:
    part = tuple(2 if i == axis % len(shape) else n for i, n in enumerate(shape))
    starts = np.array([1, 4 if mode == "circular" else 3])
    feeds = {"x": floats(*shape), "u": floats(*part, seed=1), "w": starts}
    against_reference(one_node("TensorScatter", feeds, 24, mode=mode, axis=axis), feeds)


def test_tensor_scatter_from_the_start() -> None:
    feeds = {"x": floats(2, 5, 3), "u": floats(2, 4, 3, seed=1)}
    against_reference(one_node("TensorScatter", feeds, 24), feeds)
