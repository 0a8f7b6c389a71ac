"""How operators of sequence models, and writes at computed places, are written in ONNX."""

from __future__ import annotations

from typing import Any

from opcel_compiler.frontend.export_ops import exports, need
from opcel_compiler.frontend.limits import ExportError
from opcel_compiler.frontend.writer import Writer
from opcel_compiler.ir.graph import Node


def _reduction(w: Writer, node: Node, what: str) -> str | None:
    """The attribute of a scatter, None for its default."""
    reduction = str(node.attrs["reduction"])
    if reduction == "none":
        return None
    need(w, 16 if reduction in ("add", "mul") else 18, f"{what} with reduction {reduction}")
    return reduction


@exports("scatter_elements")
def scatter_elements(w: Writer, node: Node, xs: list[str]) -> str:
    if w.opset < 11:
        need(w, 9, "Scatter")
        _reduction(w, node, "Scatter")
        return w.node("Scatter", xs, axis=node.attrs["axis"])
    return w.node("ScatterElements", xs, axis=node.attrs["axis"], reduction=_reduction(w, node, "ScatterElements"))


@exports("scatter_nd")
def scatter_nd(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 11, "ScatterND")
    return w.node("ScatterND", xs, reduction=_reduction(w, node, "ScatterND"))


_FUNCTIONS = {
    "sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu", "affine": "Affine", "leaky_relu": "LeakyRelu",
    "thresholded_relu": "ThresholdedRelu", "scaled_tanh": "ScaledTanh", "hard_sigmoid": "HardSigmoid", "elu": "Elu",
    "softsign": "Softsign", "softplus": "Softplus",
}  # fmt: skip
_WITH_ALPHA = ("affine", "leaky_relu", "thresholded_relu", "scaled_tanh", "hard_sigmoid", "elu")
_WITH_BETA = ("affine", "scaled_tanh", "hard_sigmoid")


@exports("lstm", "gru", "rnn")
def recurrent(w: Writer, node: Node, xs: list[str]) -> list[str]:
    r, a, states = node.operand(1).tensor, node.attrs, len(node.results)
    if len(xs) < 3 or not xs[2]:
        raise ExportError(f"{w.where}: {node.op} without its input weights has no ONNX form")
    if not isinstance(r.dims[2], int):
        raise ExportError(f"{w.where}: {node.op} needs a constant number of hidden units, not {r.dims[2]}")
    attrs: dict[str, Any] = {"hidden_size": r.dims[2], "direction": a["direction"], "clip": a["clip"] or None}
    if node.op == "gru":
        attrs["linear_before_reset"] = int(a["reset_after"])
    if node.op == "lstm":
        attrs["input_forget"] = int(a["input_forget"]) or None
    if a["activations"]:
        attrs["activations"] = [_FUNCTIONS[f] for f in a["activations"]]
        for key, values, users in (("alpha", "alphas", _WITH_ALPHA), ("beta", "betas", _WITH_BETA)):
            given = [v for f, v in zip(a["activations"], a[values], strict=False) if f in users]
            attrs[f"activation_{key}"] = given or None
    x, r_, w_, bias, *rest = [*xs, *[""] * 8][: 6 + states]
    inputs = [x, w_, r_, bias, rest[states], *rest[:states], *rest[states + 1 :]]
    while not inputs[-1]:
        inputs.pop()
    return w.many(node.op.upper(), inputs, (True, False, True)[: 3 if node.op == "lstm" else 1], **attrs)
