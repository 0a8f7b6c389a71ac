"""ai.onnx.ml's preparation of features, linear models and support vector regression against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_harness import interpret, reference, same

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.verify import verify

RNG = np.random.default_rng(0)
X = RNG.standard_normal((5, 4)).astype(np.float32)
FLAWED = np.where(RNG.random((5, 4)) < 0.3, np.float32(np.nan), X)
WHOLE = RNG.integers(0, 5, (5, 4))
F, I = TensorProto.FLOAT, TensorProto.INT64  # noqa: E741


def build(
    op_type: str, feeds: dict[str, np.ndarray], kinds: tuple[int, ...], attrs: dict[str, Any], opset: int = 3
) -> onnx.ModelProto:
    names = ["y", "z"][: len(kinds)]
    node = helper.make_node(op_type, list(feeds), names, name="it", domain="ai.onnx.ml", **attrs)
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    wanted = [helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)]
    graph = helper.make_graph([node], "g", given, wanted)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


CASES: list[tuple[str, dict[str, np.ndarray], tuple[int, ...], dict[str, Any]]] = [
    ("ArrayFeatureExtractor", {"x": X, "i": np.array([[3, 0]])}, (F,), {}),
    ("ArrayFeatureExtractor", {"x": X[0], "i": np.array([2, 1, 1])}, (F,), {}),
    ("ArrayFeatureExtractor", {"x": WHOLE, "i": np.array([2])}, (I,), {}),
    ("Binarizer", {"x": X}, (F,), {"threshold": 0.25}),
    ("Scaler", {"x": X}, (F,), {"offset": [0.5], "scale": [2.0]}),
    ("Scaler", {"x": X}, (F,), {"offset": [0.5, 1.0, -1.0, 0.0], "scale": [1.0, 2.0, 3.0, 4.0]}),
    ("Scaler", {"x": WHOLE}, (F,), {"offset": [0.5], "scale": [2.0]}),
    ("Imputer", {"x": FLAWED}, (F,), {"imputed_value_floats": [1.0, 2.0, 3.0, 4.0], "replaced_value_float": np.nan}),
    ("Imputer", {"x": WHOLE}, (I,), {"imputed_value_int64s": [7], "replaced_value_int64": 2}),
    *(("Normalizer", {"x": x}, (F,), {"norm": n}) for n in ("L1", "L2") for x in (X, WHOLE * (WHOLE[:, :1] > 1))),
    ("Normalizer", {"x": np.abs(X)}, (F,), {"norm": "MAX"}),
    ("FeatureVectorizer", {"x": X, "w": WHOLE.astype(np.float32)}, (F,), {"inputdimensions": [4, 4]}),
    ("OneHotEncoder", {"x": WHOLE}, (F,), {"cats_int64s": [3, 1, 4]}),
    ("OneHotEncoder", {"x": WHOLE[0].astype(np.float32)}, (F,), {"cats_int64s": [3, 1, 4]}),
    ("LabelEncoder", {"x": WHOLE}, (F,), {"keys_int64s": [3, 1], "values_floats": [0.5, 2.0], "default_float": 9.0}),
    ("LabelEncoder", {"x": WHOLE}, (I,), {"keys_int64s": [3, 1, 4], "values_int64s": [30, 10, 40]}),
    (
        "LabelEncoder", {"x": np.where(WHOLE == 1, np.nan, WHOLE).astype(np.float32)}, (F,),
        {"keys_floats": [3.0, float("nan")], "values_floats": [0.5, 2.0]},
    ),
    *(
        (
            "LinearRegressor", {"x": X}, (F,),
            {"coefficients": c, "intercepts": b, "targets": len(b), "post_transform": p},
        )
        for p in ("NONE", "SOFTMAX", "LOGISTIC") for c, b in (([0.1, 0.2, 0.3, -0.4] * 2, [0.5, -0.5]),)
    ),
    *(
        (
            "LinearClassifier", {"x": X}, (I, F),
            {"coefficients": (np.arange(4 * n) * 0.1 - 0.2).tolist(), "intercepts": [0.1] * n,
             "classlabels_ints": [5, 6, 7][: max(n, 2)], "post_transform": p, "multi_class": n > 1},
        )
        for p in ("NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT") for n in (1, 2, 3)
        if n > 1 or p in ("NONE", "LOGISTIC")
    ),
    *(
        (
            "SVMRegressor", {"x": X}, (F,),
            {"kernel_type": k, "kernel_params": [0.3, 0.5, 3.0], "coefficients": [0.5, -1.0, 2.0], "n_supports": 3,
             "support_vectors": RNG.standard_normal(12).tolist(), "rho": [0.25], "one_class": one},
        )
        for k in ("LINEAR", "POLY", "RBF", "SIGMOID") for one in (0, 1)
    ),
    *(
        (
            "SVMClassifier", {"x": X}, (I, F),
            {"kernel_type": "RBF", "kernel_params": [0.3, 0.0, 3.0], "classlabels_ints": list(range(5, 5 + n)),
             "vectors_per_class": [2, 3, 1, 2][:n], "support_vectors": RNG.standard_normal(4 * s).tolist(),
             "coefficients": RNG.standard_normal((n - 1) * s).tolist(), "post_transform": p,
             "rho": (RNG.standard_normal(n * (n - 1) // 2) / 4).tolist()},
        )
        for n, s in ((2, 5), (3, 6), (4, 8)) for p in ("NONE", "LOGISTIC", "SOFTMAX") if n > 2 or p != "SOFTMAX"
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op_type", "feeds", "kinds", "attrs"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_against_onnxruntime(
    op_type: str, feeds: dict[str, np.ndarray], kinds: tuple[int, ...], attrs: dict[str, Any]
) -> None:
    model = build(op_type, feeds, kinds, attrs)
    imported = import_model(model)
    verify(imported.graph)
    assert not imported.foreign, imported.foreign[0].attrs["reason"]
    same(interpret(imported, feeds), reference(model, feeds), 1e-5, 1e-5)


def test_label_encoder_of_tensors() -> None:
    tensors = {"keys": np.int64([3, 1]), "values": np.float64([0.5, 2]), "default": np.float64([7])}
    attrs = {k: numpy_helper.from_array(v, k) for k, v in tensors.items()}
    attrs = {f"{k}_tensor": v for k, v in attrs.items()}
    imported = import_model(build("LabelEncoder", {"x": WHOLE}, (TensorProto.DOUBLE,), attrs, opset=4))
    (y,) = interpret(imported, {"x": WHOLE})
    np.testing.assert_array_equal(y, np.select([WHOLE == 3, WHOLE == 1], [0.5, 2.0], 7.0))


@pytest.mark.parametrize(
    ("op_type", "attrs", "reason"),
    [
        ("OneHotEncoder", {"cats_int64s": [1], "zeros": 0}, "zeros=0"),
        (
            "SVMClassifier",
            {
                "classlabels_ints": [1, 2],
                "vectors_per_class": [1, 1],
                "support_vectors": [0.0] * 8,
                "coefficients": [1.0, 1.0],
                "rho": [0.0],
                "prob_a": [-1.0],
                "prob_b": [0.0],
            },
            "found step by step",
        ),
        ("OneHotEncoder", {"cats_strings": ["a"]}, "its categories are strings"),
        ("LabelEncoder", {"keys_int64s": [1], "values_strings": ["a"]}, "its values are strings"),
        ("LinearClassifier", {"coefficients": [1.0] * 4, "classlabels_strings": ["a", "b"]}, "its labels are strings"),
    ],
)
def test_what_stays_opaque(op_type: str, attrs: dict[str, Any], reason: str) -> None:
    kinds = (I, F) if op_type.endswith("Classifier") else (F,)
    imported = import_model(build(op_type, {"x": WHOLE}, kinds, attrs))
    assert reason in imported.foreign[0].attrs["reason"]


GRAMS: dict[str, Any] = {
    "min_gram_length": 1, "max_gram_length": 3, "max_skip_count": 2, "ngram_counts": [0, 3, 9],
    "pool_int64s": [1, 2, 4, 0, 1, 3, 3, 1, 4, 0, 1, 2, 4, 4, 4],
}  # fmt: skip


@pytest.mark.parametrize("mode", ["TF", "IDF", "TFIDF"])
@pytest.mark.parametrize(
    ("columns", "weights"), [([2, 0, 1, 5, 4, 3, 8, 6], []), ([2, 0, 1, 5, 4, 3, 7, 6], [1.5, 2, 3, 4, 5, 6, 7, 8])]
)
@pytest.mark.parametrize("x", [WHOLE[0], WHOLE.astype(np.int32), np.tile(WHOLE, (1, 3))])
def test_ngrams(mode: str, columns: list[int], weights: list[float], x: np.ndarray) -> None:
    attrs = {**GRAMS, "mode": mode, "ngram_indexes": columns, **({"weights": weights} if weights else {})}
    model = build("TfIdfVectorizer", {"x": x}, (F,), attrs)
    model.graph.node[0].domain = ""
    imported = import_model(model)
    assert not imported.foreign, imported.foreign[0].attrs["reason"]
    same(interpret(imported, {"x": x}), reference(model, {"x": x}))


@pytest.mark.parametrize("updates", [0, 3])
@pytest.mark.parametrize(
    ("op_type", "states", "attrs"),
    [
        ("Adagrad", 1, {"decay_factor": 0.1, "epsilon": 1e-3, "norm_coefficient": 0.01}),
        ("Adam", 2, {"alpha": 0.9, "beta": 0.8, "norm_coefficient": 0.01, "norm_coefficient_post": 0.1}),
        ("Momentum", 1, {"alpha": 0.9, "beta": 0.7, "norm_coefficient": 0.01, "mode": "standard"}),
        ("Momentum", 1, {"alpha": 0.9, "beta": 0.7, "norm_coefficient": 0.01, "mode": "nesterov"}),
    ],
)
def test_optimizers(op_type: str, states: int, attrs: dict[str, Any], updates: int) -> None:
    """Two tensors, against ONNX's own evaluation."""
    feeds: dict[str, np.ndarray] = {"r": np.array(0.1, np.float32), "t": np.array(updates, np.int64)}
    for group in range(2 + states):
        for tensor, shape in enumerate(((3,), (2, 2))):
            feeds[f"v{group}{tensor}"] = np.abs(RNG.standard_normal(shape)).astype(np.float32)
    outputs = [f"y{i}" for i in range(2 + 2 * states)]
    domain = "ai.onnx.preview.training"
    node = helper.make_node(op_type, list(feeds), outputs, name="it", domain=domain, **attrs)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_tensor_value_info(n, F, None) for n in outputs],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    imported = import_model(model)
    assert not imported.foreign, imported.foreign[0].attrs["reason"]
    same(interpret(imported, feeds), ReferenceEvaluator(model).run(None, feeds), 1e-5, 1e-6)
