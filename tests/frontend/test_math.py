"""Elementwise operators and reductions against ONNX Runtime, at every opset where their form changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx_harness import check, floats, one_node

X = floats(2, 3, 4)
POSITIVE = floats(2, 3, 4, low=0.1)
SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -2.5], np.float32)

UNARY = [
    ("Neg", 7), ("Abs", 7), ("Exp", 7), ("Sigmoid", 13), ("Tanh", 7), ("Relu", 7), ("Relu", 14), ("Floor", 7),
    ("Ceil", 13), ("Round", 11), ("Sign", 9), ("Sin", 7), ("Cos", 22), ("Erf", 9), ("Softplus", 7), ("Softsign", 7),
    ("Selu", 7), ("Elu", 7), ("Celu", 12), ("LeakyRelu", 7), ("HardSigmoid", 7), ("HardSwish", 14), ("Mish", 18),
    ("Gelu", 20), ("ThresholdedRelu", 10), ("Shrink", 9), ("Identity", 7), ("Tan", 7), ("Neg", 13), ("Exp", 13),
]  # fmt: skip


@pytest.mark.parametrize("op_type, opset", UNARY)
def test_unary(op_type: str, opset: int) -> None:
    check(one_node(op_type, {"x": X}, opset), {"x": X}, rtol=1e-4)


@pytest.mark.parametrize("op_type", ["Log", "Sqrt", "Reciprocal"])
def test_unary_of_positive(op_type: str) -> None:
    check(one_node(op_type, {"x": POSITIVE}, 13), {"x": POSITIVE})


@pytest.mark.parametrize(
    "op_type, opset, attrs",
    [
        ("LeakyRelu", 16, {"alpha": 0.3}),
        ("Elu", 7, {"alpha": 0.5}),
        ("Celu", 12, {"alpha": 0.7}),
        ("Selu", 7, {"alpha": 1.1, "gamma": 2.0}),
        ("HardSigmoid", 7, {"alpha": 0.3, "beta": 0.4}),
        ("ThresholdedRelu", 10, {"alpha": 0.5}),
        ("Shrink", 9, {"bias": 0.2, "lambd": 0.9}),
        ("Gelu", 20, {"approximate": "tanh"}),
        ("Softmax", 7, {}),
        ("Softmax", 11, {"axis": 0}),
        ("Softmax", 13, {}),
        ("Softmax", 13, {"axis": 1}),
        ("LogSoftmax", 11, {"axis": 1}),
        ("LogSoftmax", 13, {"axis": 0}),
        ("LpNormalization", 7, {"p": 1, "axis": 1}),
        ("LpNormalization", 7, {}),
    ],
)
def test_attributes(op_type: str, opset: int, attrs: dict[str, Any]) -> None:
    check(one_node(op_type, {"x": X}, opset, **attrs), {"x": X}, rtol=1e-4)


@pytest.mark.parametrize("op_type, opset", [("IsNaN", 9), ("IsInf", 10), ("Relu", 13), ("Neg", 13), ("Sign", 13)])
def test_special_values(op_type: str, opset: int) -> None:
    check(one_node(op_type, {"x": SPECIAL}, opset), {"x": SPECIAL})


@pytest.mark.parametrize("attrs", [{"detect_negative": 0}, {"detect_positive": 0}])
def test_is_inf_of_one_sign(attrs: dict[str, int]) -> None:
    check(one_node("IsInf", {"x": SPECIAL}, 10, **attrs), {"x": SPECIAL})


@pytest.mark.parametrize(
    "op_type, opset", [("Add", 7), ("Sub", 13), ("Mul", 14), ("Div", 7), ("PRelu", 9), ("Mean", 8)]
)
def test_binary_broadcasts(op_type: str, opset: int) -> None:
    feeds = {"a": X, "b": floats(3, 1, seed=1, low=0.5)}
    check(one_node(op_type, feeds, opset), feeds)


@pytest.mark.parametrize("op_type", ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
def test_comparisons(op_type: str) -> None:
    feeds = {"a": SPECIAL, "b": SPECIAL[::-1].copy()}
    check(one_node(op_type, feeds, 16), feeds)


@pytest.mark.parametrize("op_type, opset", [("Max", 8), ("Min", 13), ("Sum", 8), ("Mean", 13)])
def test_variadic(op_type: str, opset: int) -> None:
    feeds = {"a": X, "b": floats(4, seed=1), "c": floats(3, 1, seed=2)}
    check(one_node(op_type, feeds, opset), feeds)


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logical(op_type: str) -> None:
    feeds = {"a": X > 0, "b": floats(4, seed=1) > 0}
    check(one_node(op_type, feeds, 7), feeds)


def test_where_and_not() -> None:
    feeds = {"c": X > 0, "a": X, "b": floats(4, seed=1)}
    check(one_node("Where", feeds, 9), feeds)
    check(one_node("Not", {"c": X > 0}, 7), {"c": X > 0})


@pytest.mark.parametrize("exponent", [np.float32(2.0), np.array([1, 2, 3, 0], np.int64), floats(4, seed=3)])
def test_pow(exponent: np.ndarray) -> None:
    feeds = {"x": POSITIVE, "e": np.asarray(exponent)}
    check(one_node("Pow", feeds, 13), feeds, rtol=1e-4)


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod(fmod: int) -> None:
    ints = {"a": np.array([-7, 7, 5, -5], np.int64), "b": np.array([3, -3, 3, -3], np.int64)}
    check(one_node("Mod", ints, 13, fmod=fmod), ints)
    if fmod:
        feeds = {k: v.astype(np.float32) for k, v in ints.items()}
        check(one_node("Mod", feeds, 13, fmod=1), feeds)


def test_integer_division_is_cut_toward_zero() -> None:
    feeds = {"a": np.array([-7, 7, 5, -5], np.int32), "b": np.array([3, -3, 3, -3], np.int32)}
    check(one_node("Div", feeds, 14), feeds)


@pytest.mark.parametrize("opset, attrs", [(7, {"min": -0.5, "max": 0.5}), (6 + 4, {"min": 0.0})])
def test_clip_by_attributes(opset: int, attrs: dict[str, float]) -> None:
    check(one_node("Clip", {"x": X}, opset, **attrs), {"x": X})


@pytest.mark.parametrize("inputs", [["x", "lo", "hi"], ["x", "lo"], ["x", "", "hi"], ["x"]])
@pytest.mark.parametrize("opset", [11, 13])
def test_clip_by_inputs(inputs: list[str], opset: int) -> None:
    bounds = {"lo": np.float32(-0.5), "hi": np.float32(0.7)}
    constants = {k: np.asarray(v) for k, v in bounds.items() if k in inputs}
    check(one_node("Clip", {"x": X}, opset, constants=constants, inputs=inputs), {"x": X})


def test_clip_of_integers() -> None:
    x = np.arange(-5, 5, dtype=np.int64)
    check(one_node("Clip", {"x": x}, 13, constants={"lo": np.array(-2), "hi": np.array(3)}), {"x": x})


@pytest.mark.parametrize("to", [np.int32, np.int64, np.uint8, np.bool_, np.float16, np.float64])
def test_cast(to: type) -> None:
    from onnx import helper

    x = np.array([0.0, 1.5, 2.9, 100.2], np.float32)
    check(one_node("Cast", {"x": x}, 13, to=helper.np_dtype_to_tensor_dtype(np.dtype(to))), {"x": x})


def test_cast_to_a_string_stays_opaque() -> None:
    x = np.array([1, 2], np.int64)
    check(one_node("Cast", {"x": x}, 13, to=8), {"x": x}, foreign=["Cast"])


REDUCTIONS = [
    "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
    "ReduceSumSquare",
]  # fmt: skip


@pytest.mark.parametrize("op_type", REDUCTIONS)
@pytest.mark.parametrize("opset", [7, 11, 13, 18])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reductions(op_type: str, opset: int, keepdims: int) -> None:
    by_input = opset >= (13 if op_type == "ReduceSum" else 18)
    axes = [0, -1] if opset >= 11 else [0, 2]
    if by_input:
        model = one_node(op_type, {"x": X}, opset, constants={"axes": np.array(axes)}, keepdims=keepdims)
    else:
        model = one_node(op_type, {"x": X}, opset, axes=axes, keepdims=keepdims)
    check(model, {"x": X}, rtol=1e-4)


@pytest.mark.parametrize("op_type", ["ReduceSum", "ReduceMean", "ReduceLogSum"])
def test_reductions_over_everything(op_type: str) -> None:
    check(one_node(op_type, {"x": POSITIVE}, 13), {"x": POSITIVE}, rtol=1e-4)
    check(one_node(op_type, {"x": POSITIVE}, 18, keepdims=0), {"x": POSITIVE}, rtol=1e-4)


def test_reduction_that_does_nothing() -> None:
    model = one_node("ReduceSum", {"x": X}, 13, noop_with_empty_axes=1)
    imported = check(model, {"x": X})
    assert [n.op for n in imported.graph.nodes] == []


def test_log_sum_exp_of_infinities() -> None:
    x = np.array([[-np.inf, -np.inf], [np.inf, 0.0], [1000.0, 1000.0]], np.float32)
    check(one_node("ReduceLogSumExp", {"x": x}, 18, constants={"axes": np.array([1])}), {"x": x})


@pytest.mark.parametrize("op_type", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("last", [0, 1])
def test_arg(op_type: str, last: int) -> None:
    x = np.array([[1, 3, 3, 0], [2, 0, 0, 2]], np.float32)
    check(one_node(op_type, {"x": x}, 13, axis=-1, keepdims=0, select_last_index=last), {"x": x})
    check(one_node(op_type, {"x": x}, 7, axis=0), {"x": x})
