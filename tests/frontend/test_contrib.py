"""ONNX Runtime's own operators against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_harness import check, floats

from opcel_compiler.frontend.importer import Imported, import_model

B, S, H, D = 2, 5, 3, 4
IDS = np.int32([[1, 4, 2, 0, 3], [5, 5, 1, 2, 0]])
MASK = np.int32([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
Feeds = dict[str, np.ndarray | None]


def build(
    op_type: str, operands: Feeds, outputs: Sequence[str] = ("y",), domain: str = "com.microsoft",
    integers: Sequence[str] = (), **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:  # fmt: skip
    """A model of one node. Operands named x, ids, mask... are inputs, those that begin with w_ are constants, None is
    an absent operand; outputs are floats but for `integers`."""
    names = ["" if array is None else name for name, array in operands.items()]
    node = helper.make_node(op_type, names, list(outputs), name="the_node", domain=domain, **attrs)
    stored = [numpy_helper.from_array(a, n) for n, a in operands.items() if a is not None and n.startswith("w_")]
    feeds = {n: a for n, a in operands.items() if a is not None and not n.startswith("w_")}
    given = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    given_out = [
        helper.make_tensor_value_info(n, TensorProto.INT32 if n in integers else TensorProto.FLOAT, None)
        for n in outputs if n
    ]  # fmt: skip
    graph = helper.make_graph([node], "g", given, given_out, stored)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), feeds


def same(op_type: str, operands: Feeds, *args: Any, tolerance: float = 1e-5, **attrs: Any) -> Imported:
    model, feeds = build(op_type, operands, *args, **attrs)
    return check(model, feeds, rtol=tolerance, atol=tolerance)


def ops(imported: Imported) -> set[str]:
    return {n.op for n in imported.graph.nodes}


@pytest.mark.parametrize("op_type", ["Gelu", "FastGelu", "QuickGelu"])
def test_activations(op_type: str) -> None:
    assert ops(same(op_type, {"x": floats(2, 7)})) & {"gelu", "sigmoid"}


@pytest.mark.parametrize("op_type", ["BiasGelu", "FastGelu"])
def test_activations_with_bias(op_type: str) -> None:
    assert "gelu" in ops(same(op_type, {"x": floats(2, 7), "w_bias": floats(7, seed=1)}))


def test_quick_gelu_of_one_is_silu() -> None:
    assert ops(same("QuickGelu", {"x": floats(2, 7)}, alpha=1.0)) == {"silu"}


@pytest.mark.parametrize("attrs", [{}, {"transB": 1, "alpha": 0.5}, {"transA": 1}, {"transA": 1, "transB": 1}])
def test_fused_matmul(attrs: dict[str, Any]) -> None:
    a, b = floats(2, 3, 4), floats(2, 4, 5, seed=1)
    a = a.swapaxes(1, 2).copy() if attrs.get("transA") else a
    b = b.swapaxes(1, 2).copy() if attrs.get("transB") else b
    same("FusedMatMul", {"x": a, "z": b}, **attrs)


@pytest.mark.parametrize(
    "attrs",
    [
        {"activation": "Relu", "transB": 1}, {"activation": "LeakyRelu", "activation_alpha": 0.2},
        {"activation": "Tanh"}, {"activation": "Sigmoid"},
    ],
)  # fmt: skip
def test_fused_gemm(attrs: dict[str, Any]) -> None:
    b = floats(3, 4, seed=1)
    same("FusedGemm", {"x": floats(2, 3), "w_b": b.T.copy() if "transB" in attrs else b, "w_c": floats(4)}, **attrs)


@pytest.mark.parametrize(
    "attrs",
    [
        {"activation": "Relu"}, {"activation": "LeakyRelu", "activation_params": [0.1]},
        {"activation": "Clip", "activation_params": [-0.5, 0.5]},
        {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("residual", [False, True])
def test_fused_conv(attrs: dict[str, Any], residual: bool) -> None:
    operands: Feeds = {"x": floats(1, 4, 6, 6), "w_k": floats(5, 4, 3, 3, seed=1), "w_b": floats(5, seed=2)}
    if residual:
        operands["z"] = floats(1, 5, 6, 6, seed=3)
    same("FusedConv", operands, pads=[1, 1, 1, 1], kernel_shape=[3, 3], tolerance=1e-4, **attrs)


def test_simplified_layer_norm_in_onnx_domain() -> None:
    operands: Feeds = {"x": floats(2, 3, 8), "w_scale": floats(8, seed=1)}
    assert ops(same("SimplifiedLayerNormalization", operands, domain="", epsilon=1e-3, axis=-1)) >= {"rms_norm"}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("simplified", [False, True])
@pytest.mark.parametrize("outputs", [("y",), ("y", "", "", "sum")])
def test_skip_norms(bias: bool, simplified: bool, outputs: Sequence[str]) -> None:
    operands: Feeds = {"x": floats(2, 3, 8), "skip": floats(2, 3, 8, seed=1), "w_gamma": floats(8, seed=2)}
    if not simplified:
        operands["w_beta"] = floats(8, seed=3)
    if bias:
        operands["w_bias"] = floats(8, seed=4)
    name = "SkipSimplifiedLayerNormalization" if simplified else "SkipLayerNormalization"
    found = same(name, operands, outputs, epsilon=1e-5)
    assert ("rms_norm" if simplified else "layer_norm") in ops(found)


@pytest.mark.parametrize("segments", [False, True])
@pytest.mark.parametrize("places", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_embed_layer_norm(segments: bool, places: bool, masked: bool) -> None:
    operands: Feeds = {
        "ids": IDS, "segments": IDS % 2 if segments else None,
        "w_words": floats(6, 8), "w_places": floats(9, 8, seed=1),
        "w_segments": floats(2, 8, seed=2) if segments else None,
        "w_gamma": floats(8, seed=3), "w_beta": floats(8, seed=4),
        "mask": MASK if masked else None, "places": IDS[::-1].copy() if places else None,
    }  # fmt: skip
    same("EmbedLayerNormalization", operands, ("y", "count", "sum"), integers=("count",))


def attention_operands(mask: np.ndarray | None) -> Feeds:
    return {
        "x": floats(B, S, 8), "w_qkv": floats(8, 3 * H * D, seed=1), "w_bias": floats(3 * H * D, seed=2), "mask": mask,
    }  # fmt: skip


THREE = np.int32(np.tril(np.ones((B, S, S))))


@pytest.mark.parametrize(
    "mask", [None, MASK, np.int32([3, 5]), THREE], ids=["none", "of-keys", "counts", "of-queries-and-keys"]
)
@pytest.mark.parametrize("attrs", [{}, {"unidirectional": 1}, {"scale": 0.3}])
def test_attention(mask: np.ndarray | None, attrs: dict[str, Any]) -> None:
    found = same("Attention", attention_operands(mask), num_heads=H, tolerance=1e-4, **attrs)
    assert "attention" in ops(found)


def test_attention_with_a_bias_and_another_width_of_v() -> None:
    operands: Feeds = {
        "x": floats(B, S, 8), "w_qkv": floats(8, 2 * H * D + 6, seed=1), "w_bias": floats(2 * H * D + 6, seed=2),
        "mask": None, "past": None, "bias": floats(B, H, S, S, seed=3),
    }  # fmt: skip
    same("Attention", operands, num_heads=H, qkv_hidden_sizes=[H * D, H * D, 6], tolerance=1e-4)


T = 7


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", [None, np.int32([4, 7]), np.int32(np.ones((B, T)))], ids=["none", "counts", "of-keys"])
@pytest.mark.parametrize("added", [False, True])
def test_multi_head_attention(bias: bool, mask: np.ndarray | None, added: bool) -> None:
    operands: Feeds = {
        "q": floats(B, S, H * D), "k": floats(B, T, H * D, seed=1), "v": floats(B, T, H * D, seed=2),
        "w_bias": floats(3 * H * D, seed=3) if bias else None, "mask": mask,
        "added": floats(1, 1, S, T, seed=4) if added else None,
    }  # fmt: skip
    same("MultiHeadAttention", operands, num_heads=H, tolerance=1e-4)


def test_multi_head_attention_with_a_past() -> None:
    operands: Feeds = {
        "q": floats(B, 1, H * D), "k": floats(B, 1, H * D, seed=1), "v": floats(B, 1, H * D, seed=2), "bias": None,
        "mask": None, "added": None, "past_k": floats(B, H, S, D, seed=3), "past_v": floats(B, H, S, D, seed=4),
    }  # fmt: skip
    same("MultiHeadAttention", operands, ("y", "k_now", "v_now"), num_heads=H, unidirectional=1, tolerance=1e-4)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("by_heads", [False, True])
@pytest.mark.parametrize("places", [np.int64([2]), np.int64([[0, 1, 2, 3, 4], [4, 3, 2, 1, 0]])], ids=["start", "each"])
def test_rotary_embedding(interleaved: int, by_heads: bool, places: np.ndarray) -> None:
    x = floats(B, H, S, D) if by_heads else floats(B, S, H * D)
    operands: Feeds = {"x": x, "places": places, "w_cos": floats(9, D // 2, seed=1), "w_sin": floats(9, D // 2, seed=2)}
    same("RotaryEmbedding", operands, interleaved=interleaved)


def test_rotary_embedding_of_a_part() -> None:
    operands: Feeds = {
        "x": floats(B, S, H * 8), "places": np.int64([1]), "w_cos": floats(9, 2, seed=1), "w_sin": floats(9, 2, seed=2)
    }  # fmt: skip
    same("RotaryEmbedding", operands, rotary_embedding_dim=4, num_heads=H)


@pytest.mark.parametrize(
    ("op_type", "operands", "attrs", "reason"),
    [
        ("FusedMatMul", {"x": floats(2, 2, 2), "z": floats(2, 2, 2)}, {"transBatchA": 1}, "transposed batches"),
        ("FusedGemm", {"x": floats(2, 3), "w_b": floats(3, 4), "w_c": floats(4)}, {"activation": "Elu"}, "'Elu'"),
        ("Attention", attention_operands(np.int32(np.ones(6))), {"num_heads": H}, "a mask of shape [6]"),
        ("MultiHeadAttention", {"q": floats(B, S, H, 3, D)}, {"num_heads": H}, "packed q, k and v"),
    ],
)
def test_what_has_no_lowering_stays_with_its_reason(
    op_type: str, operands: Feeds, attrs: dict[str, Any], reason: str
) -> None:
    model, _ = build(op_type, operands, **attrs)
    (node,) = import_model(model).foreign
    assert reason in node.attrs["reason"]


@pytest.mark.parametrize("attrs", [{}, {"do_rotary": 1}, {"local_window_size": 3}, {"scale": 0.3, "packed": 1}])
@pytest.mark.parametrize("past", [0, 6])
def test_group_query_attention(attrs: dict[str, Any], past: int) -> None:
    attrs, groups, size, length = dict(attrs), 2, 16, 1 if past else 5
    width, narrow = 4 * size, groups * size
    packed = attrs.pop("packed", 0)
    operands: Feeds = {
        "q": floats(B, length, width + 2 * narrow if packed else width),
        "k": None if packed else floats(B, length, narrow, seed=1),
        "v": None if packed else floats(B, length, narrow, seed=2),
        "past_k": floats(B, groups, past, size, seed=3), "past_v": floats(B, groups, past, size, seed=4),
        "last": np.int32([past + length - 1] * B), "total": np.array(past + length, np.int32),
        "w_cos": floats(20, size // 2, seed=5) if attrs.get("do_rotary") else None,
        "w_sin": floats(20, size // 2, seed=6) if attrs.get("do_rotary") else None,
    }  # fmt: skip
    found = same(
        "GroupQueryAttention",
        operands,
        ("y", "k_now", "v_now"),
        num_heads=4,
        kv_num_heads=groups,
        tolerance=1e-4,
        **attrs,
    )
    assert "attention" in ops(found)
