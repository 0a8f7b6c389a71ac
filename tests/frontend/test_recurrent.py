"""Recurrent layers against ONNX Runtime: import, evaluation and export in every form that has a lowering."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_harness import ORT_OPSET, check, floats, interpret, one_node, reference, same

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.opdef import op_def
from opcel_compiler.ir.types import F32, TensorType

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
STEPS, BATCH, SIZE, HIDDEN = 5, 3, 4, 6


def layer(
    op: str, direction: str = "forward", *, bias: bool = True, initial: bool = True,
    extra: dict[str, np.ndarray] | None = None, **attrs: Any,
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:  # fmt: skip
    directions, gates = 2 if direction == "bidirectional" else 1, GATES[op]
    feeds = {"x": floats(STEPS, BATCH, SIZE)}
    constants = {
        "w": floats(directions, gates * HIDDEN, SIZE, seed=1), "r": floats(directions, gates * HIDDEN, HIDDEN, seed=2),
    }  # fmt: skip
    names = ["x", "w", "r", "", "", "", "", ""]
    if bias:
        constants["b"], names[3] = floats(directions, 2 * gates * HIDDEN, seed=3), "b"
    if initial:
        for i, name in enumerate(("h", "c")[: 2 if op == "LSTM" else 1]):
            feeds[name], names[5 + i] = floats(directions, BATCH, HIDDEN, seed=4 + i), name
    for name, array in (extra or {}).items():
        constants[name], names[{"lengths": 4, "p": 7}[name]] = array, name
    while not names[-1]:
        names.pop()
    if attrs.get("layout"):
        feeds = {n: np.ascontiguousarray(a.swapaxes(0, 1)) for n, a in feeds.items()}
    outputs = 3 if op == "LSTM" else 2
    attrs |= {"direction": direction, "hidden_size": HIDDEN}
    model = one_node(op, feeds, 14, constants=constants, inputs=names, outputs=outputs, **attrs)
    return model, feeds


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("bias, initial", [(True, True), (False, False), (True, False)])
@pytest.mark.parametrize(
    "op, attrs", [("LSTM", {}), ("GRU", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {}), ("RNN", {"relu": 1})]
)
def test_layers(op: str, attrs: dict[str, Any], direction: str, bias: bool, initial: bool) -> None:
    attrs = dict(attrs)
    if attrs.pop("relu", 0):
        attrs["activations"] = ["Relu"] * (2 if direction == "bidirectional" else 1)
    model, feeds = layer(op, direction, bias=bias, initial=initial, **attrs)
    imported = check(model, feeds, rtol=1e-4, atol=1e-5)
    assert op.lower() in {n.op for n in imported.graph.nodes}


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op: str) -> None:
    """ONNX Runtime has no kernel for this layout: the other one, transposed, is the reference."""
    model, feeds = layer(op, "bidirectional")
    want = reference(model, feeds)
    other, swapped = layer(op, "bidirectional", layout=1)
    got = interpret(import_model(other), swapped)
    perms = [(2, 0, 1, 3), (1, 0, 2), (1, 0, 2)]
    same(got, [w.transpose(p) for w, p in zip(want, perms, strict=False)], 1e-4, 1e-5)


FORMS: list[tuple[str, dict[str, Any], dict[str, np.ndarray]]] = [
    ("LSTM", {}, {"lengths": np.array([5, 2, 3], np.int32)}),
    ("GRU", {"linear_before_reset": 1}, {"lengths": np.array([1, 5, 3], np.int32)}),
    ("RNN", {}, {"lengths": np.array([4, 4, 2], np.int32)}),
    ("LSTM", {}, {"p": floats(1, 3 * HIDDEN, seed=7)}),
    ("LSTM", {"clip": 0.5}, {}),
    ("GRU", {"clip": 0.5}, {}),
    ("RNN", {"clip": 0.5}, {}),
    ("LSTM", {"input_forget": 1}, {}),
    ("LSTM", {"activations": ["HardSigmoid", "Relu", "Softsign"]}, {}),
    ("GRU", {"activations": ["HardSigmoid", "Tanh"], "activation_alpha": [0.3], "activation_beta": [0.4]}, {}),
    ("RNN", {"activations": ["Sigmoid"]}, {}),
    ("RNN", {"activations": ["Elu"], "activation_alpha": [0.5]}, {}),
    ("RNN", {"activations": ["LeakyRelu"], "activation_alpha": [0.2]}, {}),
    ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [0.7], "activation_beta": [0.6]}, {}),
    ("RNN", {"activations": ["Affine"], "activation_alpha": [0.2], "activation_beta": [0.1]}, {}),
    ("RNN", {"activations": ["Softplus"]}, {}),
]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("op, attrs, extra", FORMS)
def test_other_forms(op: str, attrs: dict[str, Any], extra: dict[str, np.ndarray], direction: str) -> None:
    attrs = dict(attrs)
    if direction == "bidirectional":
        attrs |= {k: v * 2 for k, v in attrs.items() if isinstance(v, list)}
        extra = {k: np.concatenate([v, v + 1]) if k == "p" else v for k, v in extra.items()}
    model, feeds = layer(op, direction, extra=extra, **attrs)
    check(model, feeds, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("names, why", [(["Tanh"], "1 activations, and it needs 2"), (["Tanh", "Sine"], "'sine'")])
def test_bad_activations(names: list[str], why: str) -> None:
    model, _ = layer("GRU", activations=names)
    with pytest.raises(ModelError, match=why):
        import_model(model)


@pytest.mark.parametrize(
    "extra", [{"lengths": np.full(BATCH, STEPS, np.int32)}, {"p": np.zeros((1, 3 * HIDDEN), np.float32)}]
)
def test_operands_that_change_nothing(extra: dict[str, np.ndarray]) -> None:
    model, feeds = layer("LSTM", extra=extra)
    check(model, feeds, rtol=1e-4, atol=1e-5)


def test_symbolic_sizes() -> None:
    t, b = symbol("t", 1), symbol("b", 1)
    types = [TensorType(F32, (t, b, 4)), TensorType(F32, (2, 24, 6)), TensorType(F32, (2, 24, 4))]
    full = op_def("lstm").complete({"direction": "bidirectional"})
    y, c = op_def("lstm").infer(types, full)
    assert y == TensorType(F32, (t, 2, b, 6)) and c == TensorType(F32, (2, b, 6))
    assert str(op_def("lstm").flops(types, (y, c), full)) == str(t * b * 2 * 6 * (10 * 8 + 16))


def test_model_with_only_the_last_state() -> None:
    weights = [floats(1, 3 * HIDDEN, n, seed=n) for n in (SIZE, HIDDEN)]
    nodes = [helper.make_node("GRU", ["x", "w", "r"], ["", "h"], hidden_size=HIDDEN, linear_before_reset=1)]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["t", BATCH, SIZE])
    y = helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, BATCH, HIDDEN])
    stored = [onnx.numpy_helper.from_array(a, n) for a, n in zip(weights, "wr", strict=True)]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", min(17, ORT_OPSET))], ir_version=8)
    check(model, {"x": floats(STEPS, BATCH, SIZE)}, rtol=1e-4, atol=1e-5)
