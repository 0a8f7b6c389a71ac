"""Operators that draw random numbers, compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import opcel_compiler as oc
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.interpret import run

N = 40_000


def model() -> onnx.ModelProto:
    nodes = [
        helper.make_node("RandomUniform", [], ["fixed"], shape=[2, N], low=-1.0, high=3.0, seed=5.0),
        helper.make_node("RandomUniform", [], ["loose"], shape=[N]),
        helper.make_node("RandomUniform", [], ["other"], shape=[N]),
        helper.make_node("RandomNormalLike", ["x"], ["normal"], mean=2.0, scale=3.0, seed=1.0),
        helper.make_node("RandomNormalLike", ["x"], ["double"], dtype=TensorProto.DOUBLE),
        helper.make_node("Bernoulli", ["x"], ["coin"], dtype=TensorProto.INT32, seed=2.0),
        helper.make_node("Multinomial", ["logits"], ["classes"], sample_size=N, seed=3.0),
        helper.make_node("Dropout", ["x", "ratio", "training"], ["kept", "mask"], seed=4),
        helper.make_node("Neg", ["x"], ["sure"]),
    ]
    names = ["fixed", "loose", "other", "normal", "double", "coin", "classes", "kept", "mask", "sure"]
    graph = helper.make_graph(
        nodes, "random",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"]),
         helper.make_tensor_value_info("logits", TensorProto.FLOAT, [2, 3]),
         helper.make_tensor_value_info("ratio", TensorProto.FLOAT, []),
         helper.make_tensor_value_info("training", TensorProto.BOOL, [])],
        [helper.make_empty_tensor_value_info(n) for n in names],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def near(values: np.ndarray, mean: float, deviation: float) -> None:
    """Mean and deviation within five of their own deviations, or close."""
    assert abs(values.mean() - mean) < 5 * deviation / values.size**0.5
    assert abs(values.std() - deviation) < 0.02 * deviation


def test_distributions_seeds_and_threads(tmp_path: Path) -> None:
    proto = model()
    oc.compile(proto, output=tmp_path / "m", fallback="error").close()
    logits = np.log(np.float32([[1, 2, 5], [0.5, 0.25, 0.25]]))
    feeds = {
        "x": np.full(N, 0.3, np.float32), "logits": logits, "ratio": np.array(0.25, np.float32),
        "training": np.array(True),
    }  # fmt: skip
    runs = []
    for threads in (1, 2):
        with oc.load(tmp_path / "m", threads=threads) as compiled:
            assert compiled.report["proof"]["status"] == "proved"
            runs += [{k: v.copy() for k, v in compiled.run(feeds).items()} for _ in range(2)]
    first = runs[0]
    for other in runs[1:]:
        for name in ("fixed", "normal", "coin", "classes", "kept", "mask"):
            np.testing.assert_array_equal(first[name], other[name], name)
        for name in ("loose", "double"):
            assert (first[name] != other[name]).mean() > 0.99
    near(first["fixed"], 1, 4 / 12**0.5)
    near(first["loose"], 0.5, 1 / 12**0.5)
    near(first["normal"], 2, 3)
    near(first["double"], 0, 1)
    near(first["coin"], 0.3, 0.21**0.5)
    assert abs(np.corrcoef(first["loose"], first["other"])[0, 1]) < 0.03
    for row, weights in zip(first["classes"], np.exp(logits), strict=True):
        np.testing.assert_allclose(np.bincount(row, minlength=3) / N, weights / weights.sum(), atol=0.015)
    near(first["mask"].astype(float), 0.75, 0.1875**0.5)
    np.testing.assert_allclose(first["kept"], np.where(first["mask"], 0.4, 0), rtol=1e-6)
    imported = import_model(proto)
    named = {v.name: feeds[n] for v, n in zip(imported.graph.inputs, imported.input_names, strict=True)}
    want = run(imported.graph, named)
    for name in ("fixed", "coin", "classes", "mask"):
        np.testing.assert_array_equal(first[name], want[name])
    np.testing.assert_allclose(first["normal"], want["normal"], rtol=1e-4, atol=1e-4)
    with oc.load(tmp_path / "m") as compiled:
        still = compiled.run({**feeds, "training": np.array(False)})
    assert still["mask"].all() and np.array_equal(still["kept"], feeds["x"])


def test_a_model_that_is_all_random_stays_unproved() -> None:
    node = helper.make_node("RandomNormal", [], ["y"], shape=[3])
    graph = helper.make_graph([node], "g", [], [helper.make_empty_tensor_value_info("y")])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with oc.compile(proto, fallback="error") as compiled:
        assert compiled.report["proof"]["reason"] == "every output depends on random numbers"
        assert np.isfinite(compiled.run({})["y"]).all()
