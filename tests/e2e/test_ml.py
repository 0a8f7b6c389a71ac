"""ai.onnx.ml's other operators, compiled in one model and proved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

import opcel_compiler as oc
from opcel_compiler.driver import prove_artifact

from .conftest import assert_same, reference

RNG = np.random.default_rng(0)


def model() -> onnx.ModelProto:
    def node(op_type: str, reads: str, writes: str, **attrs: object) -> onnx.NodeProto:
        domain = "" if op_type == "TfIdfVectorizer" else "ai.onnx.ml"
        return helper.make_node(op_type, reads.split(), writes.split(), name=writes, domain=domain, **attrs)

    weights = RNG.standard_normal(12).tolist()
    nodes = [
        node("Imputer", "x", "full", imputed_value_floats=[0.5], replaced_value_float=float("nan")),
        node("Scaler", "full", "scaled", offset=[0.1, 0.2, 0.3, 0.4], scale=[2.0, 1.0, 0.5, 3.0]),
        node("Normalizer", "scaled", "unit", norm="L2"),
        node("LinearClassifier", "unit", "label score", coefficients=weights, intercepts=[0.1, 0.2, 0.3],
             classlabels_ints=[7, 8, 9], post_transform="SOFTMAX"),
        node("LinearRegressor", "unit", "line", coefficients=weights[:4], intercepts=[1.0]),
        node("SVMRegressor", "unit", "svm", kernel_type="RBF", kernel_params=[0.5, 0.0, 0.0], n_supports=3,
             coefficients=[1.0, -1.0, 0.5], support_vectors=weights, rho=[0.1]),
        node("Binarizer", "unit", "bits", threshold=0.1),
        node("LabelEncoder", "k", "coded", keys_int64s=[1, 3], values_floats=[0.5, 1.5], default_float=-1.0),
        node("OneHotEncoder", "k", "hot", cats_int64s=[0, 2, 4]),
        node("ArrayFeatureExtractor", "k one", "column"),
        node("TfIdfVectorizer", "k", "grams", mode="TF", min_gram_length=1, max_gram_length=2, max_skip_count=1,
             ngram_counts=[0, 2], ngram_indexes=[1, 0, 2], pool_int64s=[1, 2, 3, 4]),
    ]  # fmt: skip
    kinds = dict.fromkeys("label score line svm bits coded hot column grams".split(), TensorProto.FLOAT)
    kinds |= {"label": TensorProto.INT64, "column": TensorProto.INT64}
    graph = helper.make_graph(
        nodes, "ml",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4]),
         helper.make_tensor_value_info("k", TensorProto.INT64, ["n", 4])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [helper.make_tensor("one", TensorProto.INT64, [2], [1, 3])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_operators_of_classical_models(tmp_path: Path) -> None:
    proto = model()
    with oc.compile(proto, output=tmp_path / "m", fallback="error", threads=2) as compiled:
        assert compiled.report["proof"]["status"] == "proved"
        for count in (1, 40):
            x = RNG.standard_normal((count, 4)).astype(np.float32)
            x[RNG.random(x.shape) < 0.2] = np.nan
            feeds = {"x": x, "k": RNG.integers(0, 5, (count, 4))}
            assert_same(compiled.run(feeds), reference(proto, feeds), rows=count)


def test_maps_are_made_by_the_python_face(tmp_path: Path) -> None:
    """A ZipMap at the end: dicts of labels for the user, the tensor of their values for everyone else."""
    proto = model()
    for name, labels in (
        ("numbered", {"classlabels_int64s": [9, 7, 8]}),
        ("named", {"classlabels_strings": ["c", "a", "b"]}),
    ):
        node = helper.make_node("ZipMap", ["score"], [name], name=name, domain="ai.onnx.ml", **labels)
        proto.graph.node.append(node)
        proto.graph.output.append(helper.make_empty_tensor_value_info(name))
    feeds = {"x": RNG.standard_normal((5, 4)).astype(np.float32), "k": RNG.integers(0, 5, (5, 4))}
    with oc.compile(proto, output=tmp_path / "m", fallback="error") as compiled:
        assert compiled.report["proof"]["status"] == "proved"
        got = compiled.run(feeds)
    for name, keys in (("numbered", [9, 7, 8]), ("named", ["c", "a", "b"])):
        assert [list(row) for row in got[name]] == [keys] * 5
        assert [[row[key] for key in keys] for row in got[name]] == got["score"].tolist()
    assert prove_artifact(tmp_path / "m", proto).status == "proved"
