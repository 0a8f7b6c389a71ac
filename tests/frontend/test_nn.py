"""Contractions, windows and normalisations against ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx_harness import check, floats, one_node

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ModelError

IMAGE = floats(1, 4, 7, 8)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((2, 1, 2, 3), (4, 3, 2)), ((3,), (3, 4))])
def test_matmul(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    feeds = {"a": floats(*shapes[0]), "b": floats(*shapes[1], seed=1)}
    check(one_node("MatMul", feeds, 13), feeds)


@pytest.mark.parametrize(
    "attrs", [{}, {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}, {"transB": 1, "beta": 0.0}]
)
@pytest.mark.parametrize("opset", [7, 11, 13])
def test_gemm(attrs: dict[str, Any], opset: int) -> None:
    a, b = floats(2, 3), floats(3, 4, seed=1)
    feeds = {
        "a": a.T.copy() if attrs.get("transA") else a,
        "b": b.T.copy() if attrs.get("transB") else b,
        "c": floats(4, seed=2),
    }
    check(one_node("Gemm", feeds, opset, **attrs), feeds)


def test_gemm_without_bias() -> None:
    feeds = {"a": floats(2, 3), "b": floats(3, 4, seed=1)}
    check(one_node("Gemm", feeds, 13), feeds)


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"pads": [1, 0, 1, 2], "strides": [2, 1]},
        {"dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"auto_pad": "SAME_LOWER", "strides": [2, 3]},
        {"auto_pad": "VALID", "kernel_shape": [3, 2]},
    ],
)
def test_conv(attrs: dict[str, Any]) -> None:
    weights = {"w": floats(6, 4, 3, 2, seed=1), "b": floats(6, seed=2)}
    check(one_node("Conv", {"x": IMAGE}, 11, constants=weights, **attrs), {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_conv_of_other_ranks(rank: int) -> None:
    x = floats(2, 4, *[5] * rank)
    weights = {"w": floats(2, 2, *[3] * rank, seed=1)}
    check(one_node("Conv", {"x": x}, 13, constants=weights, group=2), {"x": x}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "attrs",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 0, 1], "output_padding": [1, 0]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "output_shape": [15, 16]},
        {"dilations": [2, 1]},
    ],
)
def test_conv_transpose(attrs: dict[str, Any]) -> None:
    weights = {"w": floats(4, 3, 3, 2, seed=1), "b": floats(3, seed=2)}
    check(one_node("ConvTranspose", {"x": IMAGE}, 11, constants=weights, **attrs), {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("op_type", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    "attrs",
    [
        {"kernel_shape": [2, 2]},
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 1, 1]},
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"kernel_shape": [3, 2], "strides": [3, 2], "auto_pad": "SAME_LOWER"},
    ],
)
def test_pools(op_type: str, attrs: dict[str, Any]) -> None:
    check(one_node(op_type, {"x": IMAGE}, 11, **attrs), {"x": IMAGE})


def test_pool_variants() -> None:
    attrs: dict[str, Any] = {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]}
    check(one_node("AveragePool", {"x": IMAGE}, 11, count_include_pad=1, **attrs), {"x": IMAGE})
    check(one_node("MaxPool", {"x": IMAGE}, 12, dilations=[2, 3], kernel_shape=[2, 2]), {"x": IMAGE})


@pytest.mark.parametrize("op_type", ["GlobalAveragePool", "GlobalMaxPool"])
def test_global_pools(op_type: str) -> None:
    check(one_node(op_type, {"x": IMAGE}, 7), {"x": IMAGE})


@pytest.mark.parametrize("opset", [7, 9, 14, 15])
@pytest.mark.parametrize("rank", [2, 4])
def test_batch_normalization(opset: int, rank: int) -> None:
    x = IMAGE if rank == 4 else floats(3, 4)
    constants = {k: floats(4, seed=i, low=0.5) for i, k in enumerate(("s", "b", "m", "v"))}
    model = one_node("BatchNormalization", {"x": x}, opset, constants=constants, epsilon=1e-3)
    check(model, {"x": x}, rtol=1e-4, atol=1e-5)


def test_instance_normalization() -> None:
    constants = {"s": floats(4, seed=1), "b": floats(4, seed=2)}
    check(one_node("InstanceNormalization", {"x": IMAGE}, 7, constants=constants), {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset", [18, 21])
def test_group_normalization(opset: int) -> None:
    count = 2 if opset < 21 else 4
    constants = {"s": floats(count, seed=1), "b": floats(count, seed=2)}
    model = one_node("GroupNormalization", {"x": IMAGE}, opset, constants=constants, num_groups=2)
    check(model, {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(axis: int, bias: bool) -> None:
    x = floats(2, 3, 4)
    constants = {"s": floats(*x.shape[axis:], seed=1)}
    if bias:
        constants["b"] = floats(*x.shape[axis:], seed=2)
    check(one_node("LayerNormalization", {"x": x}, 17, constants=constants, axis=axis), {"x": x}, rtol=1e-4, atol=1e-5)


def test_layer_normalization_with_statistics_is_inlined_or_opaque() -> None:
    x = floats(2, 3, 4)
    model = one_node("LayerNormalization", {"x": x}, 17, constants={"s": floats(4, seed=1)}, outputs=2)
    check(model, {"x": x}, rtol=1e-4, atol=1e-5)


def test_rms_normalization() -> None:
    x = floats(2, 3, 4)
    model = one_node("RMSNormalization", {"x": x}, 23, constants={"s": floats(4, seed=1)})
    check(model, {"x": x}, rtol=1e-4, atol=1e-5)


def test_mean_variance_normalization_by_its_body() -> None:
    check(one_node("MeanVarianceNormalization", {"x": IMAGE}, 13), {"x": IMAGE}, rtol=1e-4, atol=1e-5)


EQUATIONS = [
    "ij,jk->ik", "bhqd,bhkd->bhqk", "bij,jk->kbi", "i,j->ij", "bi,bi->b", "ii->i", "bii->b", "ij->ji", "ij->", "iij->j",
    "ij,jk", "ij", "ii", "bij,bjk,kd->bid", "i,i", "i,i,i->i", "...ij,...jk->...ik", "b...i,bi->b...", "...->...",
    "ij...->...", "i...,...->i...", "bij,b->ij", "bhqd,khd->bhqk",
]  # fmt: skip


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    size = dict(zip("bhqdkij", (2, 3, 4, 5, 6, 7, 8), strict=True))
    feeds = {}
    for i, term in enumerate(equation.split("->")[0].split(",")):
        dots = [3, 2] if "..." in term else []
        head, _, tail = term.partition("...")
        shape = [*(size[k] for k in head), *dots, *(size[k] for k in tail)]
        feeds[f"x{i}"] = floats(*shape, seed=i)
    model = one_node("Einsum", feeds, 12, equation=equation)
    check(model, feeds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "equation, why", [("ij,j->i", "2 terms for 1 operands"), ("ijk->i", "rank 2"), ("ij->k", "is not valid")]
)
def test_bad_equations(equation: str, why: str) -> None:
    model = one_node("Identity", {"x": floats(2, 3)}, 12)
    model.graph.node[0].op_type = "Einsum"
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("equation", equation))
    with pytest.raises(ModelError, match=why):
        import_model(model)


@pytest.mark.parametrize("opset, attrs", [(7, {"scales": [1.0, 1.0, 2.0, 3.0]}), (9, {})])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsample(opset: int, attrs: dict[str, Any], mode: str) -> None:
    constants = {} if attrs else {"s": np.array([1, 1, 2, 2.5], np.float32)}
    check(one_node("Upsample", {"x": IMAGE}, opset, constants=constants, mode=mode, **attrs), {"x": IMAGE})


@pytest.mark.parametrize("how", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("scales", [[1, 1, 2, 2], [1, 1, 1.7, 0.6], [1, 1, 0.5, 3]])
def test_resize_by_factors(how: str, mode: str, scales: list[float]) -> None:
    if how == "align_corners" and scales != [1, 1, 2, 2]:
        pytest.skip("the new corner: ONNX takes the extent before it is cut to an integer, ONNX Runtime after")
    constants = {"s": np.array(scales, np.float32)}
    attrs = {"mode": mode, "coordinate_transformation_mode": how}
    model = one_node("Resize", {"x": IMAGE}, 13, constants=constants, inputs=["x", "", "s"], **attrs)
    check(model, {"x": IMAGE}, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("opset", [11, 13, 18, 19])
def test_resize_by_sizes(rounding: str, opset: int) -> None:
    sizes, attrs = np.array([1, 4, 10, 5]), {"nearest_mode": rounding}
    constants = {"r": np.zeros(0, np.float32), "f": np.zeros(0, np.float32), "s": sizes}
    check(one_node("Resize", {"x": IMAGE}, opset, constants=constants, **attrs), {"x": IMAGE})


def test_resize_of_chosen_axes_and_old_resize() -> None:
    model = one_node(
        "Resize", {"x": IMAGE}, 18, constants={"s": np.array([14, 16])}, inputs=["x", "", "", "s"], axes=[2, -1]
    )
    assert [n.op for n in check(model, {"x": IMAGE}).graph.nodes if n.op != "constant"] == ["resample"]
    check(one_node("Resize", {"x": IMAGE}, 10, constants={"s": np.array([1, 1, 2, 2], np.float32)}), {"x": IMAGE})


def test_resize_of_symbolic_sizes() -> None:
    constants = {"s": np.array([1, 1, 2, 3], np.float32)}
    attrs = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    inputs, symbolic = ["x", "", "s"], {"x": [1, 4, "h", "w"]}
    model = one_node("Resize", {"x": IMAGE}, 13, constants=constants, inputs=inputs, symbolic=symbolic, **attrs)
    assert str(check(model, {"x": IMAGE}).graph.outputs[0].type) == "f32[1, 4, 2*h, 3*w]"


@pytest.mark.parametrize("size", [3, 5])
def test_lrn(size: int) -> None:
    check(one_node("LRN", {"x": IMAGE}, 13, size=size, alpha=0.3, beta=0.6, bias=1.5), {"x": IMAGE}, rtol=1e-4)


def qkv(heads: int = 4, shared: int = 4, keys: int = 5) -> dict[str, np.ndarray]:
    return {
        "q": floats(2, heads, 3, 8),
        "k": floats(2, shared, keys, 8, seed=1),
        "v": floats(2, shared, keys, 6, seed=2),
    }


@pytest.mark.parametrize(
    "feeds, attrs",
    [
        (qkv(), {}),
        (qkv(shared=2), {"scale": 0.7}),
        (qkv(keys=3), {"is_causal": 1}),
        (
            {"q": floats(2, 3, 32), "k": floats(2, 5, 16, seed=1), "v": floats(2, 5, 24, seed=2)},
            {"q_num_heads": 4, "kv_num_heads": 2},
        ),
    ],
)
def test_attention(feeds: dict[str, np.ndarray], attrs: dict[str, Any]) -> None:
    imported = check(one_node("Attention", feeds, 23, **attrs), feeds, rtol=1e-4, atol=1e-5)
    assert [n.op for n in imported.graph.nodes if n.op not in ("reshape", "transpose")] == ["attention"]


@pytest.mark.parametrize("attrs", [{"is_causal": 1}, {"softcap": 2.0}])
def test_attention_by_its_body(attrs: dict[str, Any]) -> None:
    feeds = qkv() | {"m": floats(3, 5, seed=3)}
    check(one_node("Attention", feeds, 23, **attrs), feeds, rtol=1e-4, atol=1e-5)


def test_rotary_embedding_by_its_body() -> None:
    feeds = {"x": floats(2, 4, 3, 8), "c": floats(2, 3, 4, seed=1), "s": floats(2, 3, 4, seed=2)}
    check(one_node("RotaryEmbedding", feeds, 23), feeds, rtol=1e-4, atol=1e-5)
