"""Recurrent layers as two kernels: the inputs' part of the gates for all steps at once, then the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.program import View, whole
from opcel_compiler.ir.types import TensorType

if TYPE_CHECKING:
    from opcel_compiler.schedule.lower import Lowering


def lower_recurrent(lowering: Lowering, node: Node) -> list[View]:
    """Emit the kernels of an lstm, gru or rnn with constant weights; gives the views of its results.

    Of the biases, only what a gru's reset gate scales stays with the steps.
    """
    x, r, _, bias, *initial = (*node.operands, None, None, None)[:6]
    assert x is not None and r is not None
    sides = _bias(node, bias)
    gates = _input_gates(lowering, node, sides[0])
    body = Graph("body")
    views = [gates]
    operands: list[Value | None] = [body.add_input("gates", TensorType(gates.dtype, gates.shape))]

    def use(name: str, view: View | None) -> None:
        if view is None:
            operands.append(None)
            return
        views.append(view)
        operands.append(body.add_input(name, TensorType(view.dtype, view.shape)))

    use("r", lowering.view(r))
    use("w", None)
    use("bias", None if sides[1] is None else whole(lowering.weight(Constant(sides[1]), "bias")))
    for value in initial[: len(node.results)]:
        zero = value is None or (value.constant is not None and not value.constant.array.any())
        use("state", None if value is None or zero else lowering.contiguous(lowering.view(value)))
    copy = body.add(node.op, operands, node.attrs, origin=node.origin, names=[v.name for v in node.results])
    for result in copy.results:
        body.add_output(result)
    outputs = [lowering.temp(v.tensor.dtype, v.tensor.dims, v.name) for v in node.results]
    lowering.emit(node.op, body, views, outputs, copy)
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
    assert w.constant is not None
    array = w.constant.array
    flat = np.ascontiguousarray(array.reshape(-1, array.shape[2]))
    weights = whole(lowering.weight(Constant(flat), w.name)).transpose((1, 0))
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
