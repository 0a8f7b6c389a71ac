"""Recurrent layers as two kernels: the inputs' part of the gates for all steps at once, then the steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.program import View, whole
from opcel_compiler.ir.recurrent import bias_parts, special
from opcel_compiler.ir.types import TensorType

if TYPE_CHECKING:
    from opcel_compiler.schedule.lower import Lowering


GENERAL = "recurrent.general"
"""The family of the forms that the kernels of a call a step do not take."""


def lower_recurrent(lowering: Lowering, node: Node) -> list[View]:
    """Emit the kernels of an lstm, gru or rnn; gives the views of its results.

    Of a plain layer's biases, only what a gru's reset gate scales stays with the steps; any other's all do.
    """
    states, plain = len(node.results), not special(node)
    x, r, w, bias, *rest = (*node.operands, *[None] * 5)[: 7 + states]
    assert x is not None and r is not None
    sides = bias_parts(node) if plain else (None, None)
    if w is not None:
        gates = _input_gates(lowering, node, sides[0])
    else:
        gates = lowering.contiguous(lowering.view(x))
        gates = gates if sides[0] is None else _plus(lowering, node, gates, sides[0])
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


def _plus(lowering: Lowering, node: Node, gates: View, bias: np.ndarray) -> View:
    body = Graph("body")
    added = whole(lowering.weight(Constant(bias), "bias"))
    operands = [body.add_input(name, TensorType(v.dtype, v.shape)) for name, v in (("gates", gates), ("bias", added))]
    body.add_output(body.add("add", operands, origin=node.origin).result)
    total = lowering.temp(gates.dtype, gates.shape, f"{node.results[0].name}.gates")
    lowering.emit("elementwise", body, [gates, added], [total])
    return total


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
