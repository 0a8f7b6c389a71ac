"""LinearAttention against the standard's reference."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_harness import floats, interpret, same

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.ir.opdef import InferenceError, op_def
from opcel_compiler.ir.types import TensorType, dtype_of

B, T, H, K, V = 2, 5, 2, 4, 3


def model(rule: str, decay: int, rates: int, past: bool, queries: int, dtype: type = np.float32, **attrs: float):
    feeds = {"q": floats(B, T, queries * K), "k": floats(B, T, H * K, seed=1) / 2, "v": floats(B, T, H * V, seed=2)}
    if past:
        feeds["s"] = floats(B, H, K, V, seed=3)
    if "gated" in rule:
        feeds["g"] = -np.abs(floats(B, T, decay, seed=4))
    if "delta" in rule:
        feeds["b"] = np.abs(floats(B, T, rates, seed=5)) / 2
    feeds = {n: a.astype(dtype) for n, a in feeds.items()}
    names = [n if n in feeds else "" for n in ("q", "k", "v", "s", "g", "b")]
    node = helper.make_node(
        "LinearAttention", names, ["y", "p"], q_num_heads=queries, kv_num_heads=H, update_rule=rule, **attrs
    )
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given = [helper.make_tensor_value_info(n, element, a.shape) for n, a in feeds.items()]
    outputs = [helper.make_tensor_value_info(n, element, None) for n in "yp"]
    graph = helper.make_graph([node], "g", given, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 27)], ir_version=13), feeds


@pytest.mark.parametrize("past", [False, True])
@pytest.mark.parametrize(
    "rule, decay, rates",
    [("linear", 0, 0), ("gated", H, 0), ("gated", H * K, 0), ("delta", 0, 1), ("gated_delta", H, H)],
)
def test_rules(rule: str, decay: int, rates: int, past: bool) -> None:
    for queries in (H, 3 * H):
        made, feeds = model(rule, decay, rates, past, queries)
        imported = import_model(made)
        assert "linear_attention" in {n.op for n in imported.graph.nodes}
        same(interpret(imported, feeds), ReferenceEvaluator(made).run(None, feeds), 1e-4, 1e-5)


def test_half_precision_is_computed_in_single() -> None:
    made, feeds = model("gated_delta", H, H, True, H, np.float16, scale=0.5)
    same(interpret(import_model(made), feeds), ReferenceEvaluator(made).run(None, feeds), 1e-2, 1e-2)


def test_what_does_not_fit() -> None:
    with pytest.raises(ModelError, match="5 query and 2 key heads do not fit"):
        import_model(model("linear", 0, 0, False, 5)[0])
    with pytest.raises(InferenceError, match="beta belongs to the delta rule"):
        types = [TensorType(dtype_of(np.float32(0)), (B, T, H, K))] * 3
        op_def("linear_attention").infer(types, {"delta": True})
