"""ONNX's Attention in its many forms, against the standard's reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx_harness import floats, interpret, same

from opcel_compiler.frontend.importer import import_model


def forms(outputs: list[str], opset: int = 25, **attrs: Any) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    feeds = {"q": floats(2, 4, 5, 8), "k": floats(2, 2, 7, 8, seed=1), "v": floats(2, 2, 7, 6, seed=2)}
    given = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, a.shape) for n, a in feeds.items()]
    made = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in outputs if n]
    graph = helper.make_graph([helper.make_node("Attention", list(feeds), outputs, **attrs)], "g", given, made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=13), feeds


@pytest.mark.parametrize(
    "attrs", [{"left_window_size": 1}, {"right_window_size": 2}, {"left_window_size": 0, "right_window_size": 1}]
)
def test_windows(attrs: dict[str, int]) -> None:
    model, feeds = forms(["y"], **attrs)
    imported = import_model(model)
    assert not imported.foreign
    same(interpret(imported, feeds), ReferenceEvaluator(model).run(None, feeds), 1e-4, 1e-5)


@pytest.mark.parametrize("mode", [1, 2, 3])
def test_scores_without_caches(mode: int) -> None:
    """The body gives all four outputs; those that the call leaves out need not exist in it."""
    model, feeds = forms(["y", "", "", "scores"], softcap=2.0, is_causal=1, qk_matmul_output_mode=mode)
    imported = import_model(model)
    assert not imported.foreign
    same(interpret(imported, feeds), ReferenceEvaluator(model).run(None, feeds), 1e-4, 1e-5)
