"""Attention for heads of any size, as a kernel for multiples of four."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.program import View
from opcel_compiler.ir.types import TensorType

if TYPE_CHECKING:
    from opcel_compiler.schedule.lower import Lowering


def lower_attention(lowering: Lowering, node: Node) -> None:
    """Heads are widened with zeros to the multiple of four that kernels take; the result is cut back."""
    body = Graph("body")
    operands, views = [], []
    for i, v in enumerate(node.operands):
        if v is not None:
            views.append(_widened(lowering, lowering.view(v), v.name) if i < 3 else lowering.view(v))
            operands.append(body.add_input(v.name, TensorType(views[-1].dtype, views[-1].shape)))
    inner = body.add("attention", operands, node.attrs, origin=node.origin, names=[node.result.name])
    body.add_output(inner.result)
    t = lowering.type_of(node.result)
    if inner.result.tensor.dims == t.dims:
        lowering.kernel(node, body, views)
        return
    views = [lowering.suited(x, v, inner) for x, v in zip(views, body.inputs, strict=True)]
    out = lowering.temp(t.dtype, inner.result.tensor.dims, node.result.name)
    lowering.emit("attention", body, views, [out], inner)
    lowering.views[node.result] = out.slice([0] * 4, t.dims, [1] * 4)


def _widened(lowering: Lowering, view: View, name: str) -> View:
    """`view` with zeros behind its last axis, which has a constant extent, up to the next multiple of four."""
    *lead, size = view.shape
    assert isinstance(size, int)
    if size % 4 == 0:
        return view
    out = lowering.temp(view.dtype, (*lead, size + -size % 4), f"{name}.wide")
    rest = out.slice([*[0] * len(lead), size], (*lead, -size % 4), [1] * len(view.shape))
    zero = lowering.weight(Constant(np.zeros((), view.dtype.numpy), view.dtype), "zero")
    lowering.copy(View(zero, (), ()).expand(rest.shape), rest)
    lowering.copy(view, out.slice([0] * len(view.shape), view.shape, [1] * len(view.shape)))
    return out
