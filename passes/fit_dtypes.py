"""Give operators element types that their kernels compute with.

Floats of 16 bits and less are computed in f32 between two casts, which is what they are defined to be (exact); so are
pools of small integers. Softmax, norms and attention in f64 are written with simpler operators (reassociates).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.dims import floordiv
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import F32, F64, I64, DType, TensorType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import optimizable
from opcel_compiler.rewrite.emit import Emit
from opcel_compiler.rewrite.pass_ import Pass
from opcel_compiler.rewrite.rule import Numerics
from opcel_compiler.targets.cpu.constraints import accepts
from opcel_compiler.targets.kernels import kernel_table

OF_INTEGERS = frozenset({"max_pool"})
"""Operators whose results on integers are the same computed in f32."""


@dataclass(frozen=True)
class FitDtypes(Pass):
    """Nothing changes where a kernel takes the type as it is."""

    name: ClassVar[str] = "fit-dtypes"
    summary: ClassVar[str] = "compute narrow floats in f32 and f64 with what has kernels for it"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for node in list(optimizable(graph)):
            dtype = _wanted(node)
            if dtype is None:
                continue
            if dtype == F64:
                simpler = SIMPLER.get(node.op)
                if simpler is not None and ctx.allows("simpler", node, Numerics.REASSOCIATES):
                    ctx.changed("simpler", node)
                    _replace(node, simpler(_Emit(node)))
            elif ctx.allows("widen", node):
                ctx.changed("widen", node)
                _widen(node, dtype)


def _wanted(node: Node) -> DType | None:
    """The type of the first operand, where no kernel of the operator takes it and something can be done about it."""
    row = kernel_table().operators.get(node.op)
    if row is None or not node.operands or node.operands[0] is None or node.regions:
        return None
    types = [v.type for v in (*node.operands, *node.results) if v is not None]
    if not all(isinstance(t, TensorType) for t in types):
        return None
    dtype = node.operand(0).tensor.dtype
    if node.attrs.get("reduction", "none") != "none" and dtype.is_float and dtype.bits < 32:
        return dtype  # kernels move any type, and join those that C++ has
    if accepts(row.dtypes, dtype) or not accepts(row.dtypes, F32):
        return None
    narrow = dtype.is_float or (node.op in OF_INTEGERS and dtype.is_integer and dtype.bits <= 16)
    return dtype if narrow else None


def _widen(node: Node, dtype: DType) -> None:
    """`node` in f32, its operands of `dtype` cast before, its results of `dtype` after it."""
    emit = _Emit(node)
    operands = [
        emit("cast", v, dtype=F32) if v is not None and v.tensor.dtype == dtype else v for v in node.operands
    ]  # fmt: skip
    wide = emit.graph.add(node.op, operands, node.attrs, before=node, origin=node.origin)
    results = []
    for old, new in zip(node.results, wide.results, strict=True):
        back = old.tensor.dtype != new.tensor.dtype
        results.append(emit("cast", new, dtype=old.tensor.dtype) if back else new)
    _replace(node, *results)


def _replace(node: Node, *values: Value) -> None:
    assert node.graph is not None
    for old, new in zip(node.results, values, strict=True):
        old.name, new.name = new.name, old.name
    node.graph.replace(node, values)


class _Emit(Emit):
    """Adds nodes in front of `node`, as its simpler form needs them."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self.node = node

    def number(self, x: float) -> Value:
        return self.constant(x, F64)

    def over(self, op: str, x: Value, axes: tuple[int, ...]) -> Value:
        return self(op, x, axes=axes, keepdims=True)


def _softmax(e: _Emit) -> Value:
    axes = (e.node.attrs["axis"],)
    powers = e("exp", _below_maximum(e, e.node.operand(0), axes))
    return e("div", powers, e.over("reduce_sum", powers, axes))


def _log_softmax(e: _Emit) -> Value:
    axes = (e.node.attrs["axis"],)
    below = _below_maximum(e, e.node.operand(0), axes)
    return e("sub", below, e("log", e.over("reduce_sum", e("exp", below), axes)))


def _below_maximum(e: _Emit, x: Value, axes: tuple[int, ...]) -> Value:
    return e("sub", x, e.over("reduce_max", x, axes))


def _layer_norm(e: _Emit) -> Value:
    x = e.node.operand(0)
    return _normalised(e, e("sub", x, e.over("reduce_mean", x, _trailing(e))))


def _rms_norm(e: _Emit) -> Value:
    return _normalised(e, e.node.operand(0))


def _trailing(e: _Emit) -> tuple[int, ...]:
    return tuple(range(e.node.attrs["axis"], len(e.node.operand(0).tensor.dims)))


def _normalised(e: _Emit, x: Value) -> Value:
    variance = e("add", e.over("reduce_mean", e("mul", x, x), _trailing(e)), e.number(e.node.attrs["epsilon"]))
    y = e("div", x, e("sqrt", variance))
    scale, bias = (*e.node.operands[1:], None, None)[:2]
    y = e("mul", y, scale) if scale is not None else y
    return e("add", y, bias) if bias is not None else y


def _attention(e: _Emit) -> Value:
    q, k, v = (e.node.operand(i) for i in range(3))
    (b, h, s, d), (_, groups, t, _), dv = q.tensor.dims, k.tensor.dims, v.tensor.dims[-1]
    share = floordiv(h, groups)
    q = e("reshape", e("mul", q, e.number(e.node.attrs["scale"])), shape=(b, groups, share, s, d))
    k = e("transpose", e("reshape", k, shape=(b, groups, 1, t, d)), perm=(0, 1, 2, 4, 3))
    scores = e("reshape", e("matmul", q, k), shape=(b, h, s, t))
    if e.node.attrs["causal"]:
        rows = e("reshape", e("range_", start=(t - s,), size=(s,), step=1, dtype=I64), shape=(s, 1))
        hidden = e("less", rows, e("range_", start=(0,), size=(t,), step=1, dtype=I64))
        scores = e("where", hidden, e.number(-np.inf), scores)
    if len(e.node.operands) > 3 and e.node.operands[3] is not None:
        scores = e("add", scores, e.node.operands[3])
    powers = e("exp", _below_maximum(e, scores, (3,)))
    weights = e("div", powers, e.over("reduce_sum", powers, (3,)))
    weights = e("reshape", weights, shape=(b, groups, share, s, t))
    return e("reshape", e("matmul", weights, e("reshape", v, shape=(b, groups, 1, t, dv))), shape=(b, h, s, dv))


SIMPLER: dict[str, Callable[[_Emit], Value]] = {
    "softmax": _softmax,
    "log_softmax": _log_softmax,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "attention": _attention,
}
