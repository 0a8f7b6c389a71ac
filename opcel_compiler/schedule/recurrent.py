"""Recurrent layers as two kernels: the inputs' part of the gates for all steps at once, then the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.program import View, whole
from opcel_compiler.ir.types import F32, TensorType

if TYPE_CHECKING:
    from opcel_compiler.schedule.lower import Lowering


GENERAL = "recurrent.general"
"""The family of the forms that the kernels of a call a step do not take."""


def is_plain(node: Node) -> bool:
    """Whether a layer has the form of the kernels of a call a step."""
    a, states = node.attrs, len(node.results)
    weights, behind = [*node.operands, None][1:4], node.operands[4 + states : 6 + states]
    plain = node.op == "rnn" and set(a["activations"]) == {"relu"}
    return (
        all(v is None or v.constant is not None for v in weights)
        and all(v is None for v in behind)
        and (plain or not a["activations"])
        and a["clip"] <= 0
        and not a.get("input_forget")
        and a.get("reset_after", True)
        and node.operand(0).tensor.dtype == F32
    )


def lower_recurrent(lowering: Lowering, node: Node) -> list[View]:
    """Emit the kernels of an lstm, gru or rnn; gives the views of its results.

    Of a plain layer's biases, only what a gru's reset gate scales stays with the steps; any other's all do.
    """
    states, plain = len(node.results), is_plain(node)
    x, r, w, bias, *rest = (*node.operands, *[None] * 5)[: 7 + states]
    assert x is not None and r is not None
    sides = _bias(node, bias) if plain else (None, None)
    gates = lowering.contiguous(lowering.view(x)) if w is None else _input_gates(lowering, node, sides[0])
    body = Graph("body")
    views = [gates]
    operands: list[Value | None] = [body.add_input("gates", TensorType(gates.dtype, gates.shape))]

    def use(name: str, view: View | None) -> None:
        if view is None:
            operands.append(None)
            return
        views.append(view)
        operands.append(body.add_input(name, TensorType(view.dtype, view.shape)))

    use("r", lowering.contiguous(lowering.view(r)))
    use("w", None)
    if plain:
        use("bias", None if sides[1] is None else whole(lowering.weight(Constant(sides[1]), "bias")))
    for i, value in enumerate(rest if plain else [bias, *rest]):
        zero = value is None or (value.constant is not None and not value.constant.array.any())
        lengths = not plain and i == 1 + states
        use("side", None if value is None or (zero and not lengths) else lowering.contiguous(lowering.view(value)))
    while operands[-1] is None:
        operands.pop()
    copy = body.add(node.op, operands, node.attrs, origin=node.origin, names=[v.name for v in node.results])
    for result in copy.results:
        body.add_output(result)
    outputs = [lowering.temp(v.tensor.dtype, v.tensor.dims, v.name) for v in node.results]
    lowering.emit(node.op if plain else GENERAL, body, views, outputs, copy)
    return outputs


def _bias(node: Node, bias: Value | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(what is added for all steps [d·g·n], what the steps add [d, 2·g·n]); None for zero."""
    if bias is None:
        return None, None
    assert bias.constant is not None
    array = bias.constant.array
    half, n = array.shape[1] // 2, node.operand(1).tensor.static_shape[2]
    of_w, of_r = array[:, :half], array[:, half:].copy()
    kept = np.zeros_like(array)
    if node.op == "gru" and node.attrs["reset_after"]:
        kept[:, -n:] = of_r[:, -n:]
        of_r[:, -n:] = 0
    total = np.ascontiguousarray((of_w + of_r).reshape(-1))
    return total if total.any() else None, kept if kept.any() else None


def _input_gates(lowering: Lowering, node: Node, bias: np.ndarray | None) -> View:
    """x·wᵀ + bias as [t, b, d·g·n]."""
    x, w = node.operand(0), node.operand(2)
    if w.constant is not None:
        array = w.constant.array
        flat = whole(lowering.weight(Constant(np.ascontiguousarray(array.reshape(-1, array.shape[2]))), w.name))
    else:
        d, rows, size = w.tensor.dims
        view = lowering.contiguous(lowering.view(w))
        flat = View(view.buffer, (d * rows, size), (size, 1), view.offset)
    weights = flat.transpose((1, 0))
    body = Graph("body")
    views = [lowering.rows(lowering.view(x)), weights]
    product = body.add(
        "matmul", [body.add_input("x", x.type), body.add_input("w", TensorType(weights.dtype, weights.shape))],
        origin=node.origin,
    )  # fmt: skip
    result = product.result
    if bias is not None:
        views.append(whole(lowering.weight(Constant(bias), "bias")))
        added = body.add_input("bias", TensorType(weights.dtype, bias.shape))
        result = body.add("add", [result, added], origin=node.origin).result
    body.add_output(result)
    gates = lowering.temp(x.tensor.dtype, result.tensor.dims, f"{node.results[0].name}.gates")
    lowering.emit("matmul", body, views, [gates], product)
    return gates
