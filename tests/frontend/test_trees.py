"""Ensembles of decision trees against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from onnx_harness import interpret, reference, same
from tree_models import ORDERED, classifier, ensemble, regressor, rows

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.ir.verify import verify


def check(model: onnx.ModelProto, x: np.ndarray) -> None:
    imported = import_model(model)
    verify(imported.graph)
    assert not imported.foreign, imported.foreign[0].attrs["reason"]
    same(interpret(imported, {"x": x}), reference(model, {"x": x}), 1e-5, 1e-5)


@pytest.mark.parametrize("mode", [*ORDERED, "BRANCH_EQ", "BRANCH_NEQ"])
def test_each_mode(mode: str) -> None:
    check(regressor(1, [mode]), rows(2))


@pytest.mark.parametrize(
    "attrs",
    [
        {}, {"targets": 3}, {"targets": 3, "dense": True}, {"aggregate_function": "AVERAGE"},
        {"aggregate_function": "MIN"}, {"aggregate_function": "MAX", "targets": 3, "base_values": [1.0, 2.0, -3.0]},
        {"aggregate_function": "MIN", "targets": 2, "dense": True}, {"base_values": [0.5]}, {"opset": 1},
        {"post_transform": "LOGISTIC"}, {"post_transform": "SOFTMAX", "targets": 3},
        {"post_transform": "LOGISTIC", "targets": 2}, {"post_transform": "SOFTMAX_ZERO", "targets": 3},
        {"dtype": TensorProto.DOUBLE}, {"dtype": TensorProto.DOUBLE, "targets": 2, "dense": True},
    ],
)  # fmt: skip
@pytest.mark.parametrize("seed", [0, 1])
def test_regressor(attrs: dict[str, Any], seed: int) -> None:
    dtype = np.float64 if attrs.get("dtype") == TensorProto.DOUBLE else np.float32
    check(regressor(seed, [*ORDERED, "BRANCH_EQ", "BRANCH_NEQ"], **attrs), rows(seed, dtype=dtype))


@pytest.mark.parametrize("post", ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"])
@pytest.mark.parametrize(
    ("classes", "ids", "dense", "positive", "base"),
    [
        (3, [0, 1, 2], False, False, False), (3, [0, 1, 2], True, True, True), (2, [0, 1], True, False, False),
        (2, [0, 1], True, True, False), (2, [0], False, False, False), (2, [0], False, True, False),
        (2, [0], False, False, True),
    ],
)  # fmt: skip
def test_classifier(post: str, classes: int, ids: list[int], dense: bool, positive: bool, base: bool) -> None:
    if post == "PROBIT" and not positive:
        pytest.skip("the inverse error function of what is no probability")
    values = {"base_values": [0.1 * (i + 1) for i in range(len(ids))]} if base else {}
    model = classifier(5, classes, ids, dense, post_transform=post, positive=positive, **values)
    if post == "PROBIT" and len(ids) == 1:
        assert "has no lowering" in import_model(model).foreign[0].attrs["reason"]
    else:
        check(model, rows(3))


@pytest.mark.parametrize(
    ("attrs", "reason"),
    [
        ({"ids": [1]}, "the second alone"),
        ({"ids": [0, 1], "dense": True, "labels": [3, 4]}, "labels other than 0 and 1"),
        ({"classes": 1, "ids": [0]}, "a classifier of 1 classes"),
        ({"classes": 3, "ids": [0, 2]}, "no tree gives every row a score"),
    ],
)  # fmt: skip
def test_what_stays_opaque(attrs: dict[str, Any], reason: str) -> None:
    imported = import_model(classifier(5, **{"classes": 2, **attrs}))
    assert reason in imported.foreign[0].attrs["reason"]


@pytest.mark.parametrize("aggregate", [0, 1, 2, 3])
@pytest.mark.parametrize("targets", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ensemble_with_every_mode(aggregate: int, targets: int, dtype: type) -> None:
    for seed in range(3):
        check(ensemble(seed, aggregate, targets, dtype), rows(seed, missing=False, dtype=dtype))


def test_integer_features() -> None:
    model = classifier(5, 3, [0, 1, 2], dtype=TensorProto.INT64)
    check(model, np.random.default_rng(0).integers(-2, 3, (20, 4)))


def test_a_subnormal_and_infinities() -> None:
    x = np.float32([[v] * 4 for v in (-np.inf, -1, -1e-45, -0.0, 0.0, 1e-45, 1, np.inf, np.nan)])
    for mode in ORDERED:
        check(regressor(3, [mode]), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"nodes_nodeids": lambda v: [9, *v[1:]]}, "there is no node|two nodes of a tree"),
        ({"nodes_truenodeids": lambda v: [77, *v[1:]]}, "there is no node 77 in tree 0"),
        ({"nodes_treeids": lambda v: v[:-1]}, "nodes_treeids has"),
        ({"nodes_modes": lambda v: [b"BRANCH_ODD", *v[1:]]}, "BRANCH_ODD"),
    ],
)
def test_broken_trees(change: dict[str, Any], message: str) -> None:
    model = regressor(4, ["BRANCH_LEQ"])
    for a in model.graph.node[0].attribute:
        if a.name in change:
            field = a.ints if len(a.ints) else a.strings
            values = change[a.name](list(field))
            del field[:]
            field.extend(values)
    with pytest.raises(ModelError, match=message):
        import_model(model)


def test_a_circle_stays_opaque() -> None:
    model = regressor(4, ["BRANCH_LEQ"])
    attrs = {a.name: a for a in model.graph.node[0].attribute}
    inner = [i for i, m in enumerate(attrs["nodes_modes"].strings) if m != b"LEAF"]
    first = inner[0]
    child = next(
        i for i in inner if attrs["nodes_treeids"].ints[i] == attrs["nodes_treeids"].ints[first] and i != first
    )
    attrs["nodes_truenodeids"].ints[child] = attrs["nodes_nodeids"].ints[child]
    imported = import_model(model)
    assert "circle" in imported.foreign[0].attrs["reason"]
