"""Compiled tree ensembles against ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import opcel_compiler as oc

from .conftest import assert_same, reference

sys.path.insert(0, str(Path(__file__).parents[1] / "frontend"))
from tree_models import ORDERED, classifier, ensemble, regressor, rows


def joined(models: list[onnx.ModelProto]) -> onnx.ModelProto:
    """One model of the nodes of several, which all read x."""
    nodes, outputs = [], []
    for i, model in enumerate(models):
        (node,) = model.graph.node
        node.name = f"trees{i}"
        for j, value in enumerate(model.graph.output):
            node.output[j] = value.name = f"{value.name}{i}"
            outputs.append(value)
        nodes.append(node)
    graph = helper.make_graph(nodes, "trees", list(models[0].graph.input), outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", models[0].opset_import[1].version)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


GROUPS = {
    "opset 3": [
        regressor(1, ORDERED, 1), regressor(2, ["BRANCH_LEQ"], 3), regressor(3, ORDERED, 2, True),
        regressor(4, ORDERED, 2, aggregate_function="MIN"), classifier(5, 3, [0, 1, 2], post_transform="SOFTMAX"),
        classifier(6, 2, [0], post_transform="LOGISTIC"),
    ],
    "opset 5": [ensemble(seed, aggregate) for seed, aggregate in enumerate((0, 1, 2, 3))],
    "doubles": [ensemble(seed, 1, dtype=np.float64) for seed in range(2)],
}  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_models_of_all_kinds(group: str, tmp_path: Path) -> None:
    model = joined(GROUPS[group])
    dtype = np.float64 if group == "doubles" else np.float32
    oc.compile(model, output=tmp_path / "m", fallback="error").close()
    for threads in (1, 2):
        with oc.load(tmp_path / "m", threads=threads) as compiled:
            for count in (0, 1, 11, 12, 61, 1000):
                x = rows(count, count, missing=group == "opset 3", dtype=dtype)
                assert_same(compiled.run({"x": x}), reference(model, {"x": x}), rows=count, threads=threads)


def test_many_trees_in_parts_and_far_apart(tmp_path: Path) -> None:
    """Trees divided among tasks, and a tree whose steps need more than 16 bits."""
    import benchmarks.trees as trees

    rng = np.random.default_rng(0)
    trees_of = {"parts": trees.ensemble(rng, 400, trees.unbalanced), "wide": trees.ensemble(rng, 2, deep, 5)}
    for name, model in trees_of.items():
        oc.compile(model, output=tmp_path / name, fallback="error").close()
        features = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        with oc.load(tmp_path / name, threads=2) as compiled:
            for count in (1, 70):
                x = rng.standard_normal((count, features)).astype(np.float32)
                assert_same(compiled.run({"x": x}), reference(model, {"x": x}), rows=count, model=name)


def deep(rng: np.random.Generator, _: int) -> tuple[np.ndarray, np.ndarray]:
    """A complete tree of 2**17 leaves."""
    import benchmarks.trees as trees

    return trees.complete(rng, 17)
