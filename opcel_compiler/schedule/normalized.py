"""Softmax and normalisation over any axes, as kernels over the last one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opcel_compiler.ir.dims import product
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.program import View
from opcel_compiler.ir.types import TensorType

if TYPE_CHECKING:
    from opcel_compiler.schedule.lower import Lowering


def lower_softmax(lowering: Lowering, node: Node) -> None:
    """Kernels take the last axis: another one is moved there and back."""
    t, axis = lowering.type_of(node.result), node.attrs["axis"]
    last = len(t.dims) - 1
    if axis == last:
        lowering.whole_kernel(node)
        return
    perm = [*(i for i in range(last + 1) if i != axis), axis]
    x = lowering.contiguous(lowering.view(node.operand(0)).transpose(perm))
    out = lowering.temp(t.dtype, x.shape, node.result.name)
    body = Graph("body")
    row = body.add(node.op, [body.add_input("x", TensorType(t.dtype, x.shape))], {"axis": last}, origin=node.origin)
    body.add_output(row.result)
    lowering.emit(node.op, body, [x], [out], row)
    lowering.views[node.result] = out.transpose(sorted(range(last + 1), key=perm.__getitem__))


def lower_layer_norm(lowering: Lowering, node: Node) -> None:
    """Kernels take the last axis: several are made one, in dense memory."""
    t, axis = lowering.type_of(node.result), node.attrs["axis"]
    lead, row = t.dims[:axis], t.dims[axis:]
    if len(row) == 1:
        lowering.whole_kernel(node)
        return
    body, n = Graph("body"), product(row)
    views: list[View] = []
    operands: list[Value | None] = []
    for i, v in enumerate(node.operands):
        operands.append(None)
        if v is not None:
            view = lowering.contiguous(lowering.view(v) if i == 0 else lowering.view(v).expand(row))
            views.append(lowering.reshaped(view, (*lead, n) if i == 0 else (n,), node))
            operands[-1] = body.add_input(v.name, TensorType(view.dtype, views[-1].shape))
    anchor = body.add(node.op, operands, node.attrs, origin=node.origin)
    body.add_output(anchor.result)
    out = lowering.temp(t.dtype, (*lead, n), node.result.name)
    lowering.emit(node.op, body, views, [out], anchor)
    lowering.views[node.result] = lowering.reshaped(out, t.dims, node)
