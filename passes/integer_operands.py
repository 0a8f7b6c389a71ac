"""Give products of quantized numbers the one form that integer kernels take (`rewrite/quantized.py`).

Activations of s8 become u8, by a shift of 128 of integers and zero points. Weights less their zero point become s8, or
the sum of two that are, for activations that come twice (exact). What can not have that form is computed in floats: its
weights become floats now, and the reason is reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.encodings import DENSE
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import F32, I8, U8
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import erase_unused, optimizable
from opcel_compiler.rewrite.emit import Emit
from opcel_compiler.rewrite.facts import dtype_of
from opcel_compiler.rewrite.pass_ import Pass
from opcel_compiler.rewrite.quantized import (
    KEEPS_GRID,
    byte,
    computes_integers,
    integer_operands,
    maker,
    per_tensor,
    scale_of,
    zero_number,
    zero_of,
)

HALF = 128


@dataclass(frozen=True)
class IntegerOperands(Pass):
    """Nothing changes where no product reads dequantized numbers."""

    name: ClassVar[str] = "integer-operands"
    summary: ClassVar[str] = "make u8 and s8 of the operands of products that integer kernels compute"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        anchors = [n for n in optimizable(graph) if computes_integers(n) and _quantized(n)]
        for anchor in anchors:
            source = maker(anchor.operand(0), "dequantize")
            if source is not None and dtype_of(source.operand(0)) == I8 and ctx.allows("unsigned", anchor):
                ctx.changed("unsigned", anchor)
                _Unsigned(source).run()
        for anchor in anchors:
            if ctx.allows("weights", anchor):
                self._settle(anchor, ctx)

    def _settle(self, anchor: Node, ctx: PassContext) -> None:
        """Bring the weights into form, or make them floats."""
        w = maker(anchor.operand(1), "dequantize")
        if w is None or w.operand(0).constant is None:
            return
        _with_zero_point(anchor)
        given = (anchor.operand(0), w.result)
        signed = _signed_weights(anchor, w)
        made = (given[0], signed) if signed is not None else _in_two_parts(anchor, w)
        _set_operands(anchor, made or given)
        found = integer_operands(anchor)
        if isinstance(found, str):
            ctx.refuse("weights", anchor, f"it is computed in floats: {found}")
            _set_operands(anchor, given)
            if (folded := _floats(anchor, w)) is not None:
                anchor.set_operand(1, folded)
        elif made is not None:
            ctx.changed("weights", anchor)
        erase_unused([v.producer for v in (*given, *(made or ())) if v.producer is not None])


def _set_operands(anchor: Node, operands: tuple[Value, Value]) -> None:
    for i, value in enumerate(operands):
        anchor.set_operand(i, value)


def _quantized(anchor: Node) -> bool:
    """Whether an anchor multiplies dequantized bytes with dequantized constants."""
    w = maker(anchor.operand(1), "dequantize")
    return w is not None and w.operand(0).constant is not None and byte(dtype_of(w.operand(0)))


def _with_zero_point(anchor: Node) -> None:
    """Give activations of u8 the zero point 0 where they have none."""
    x = maker(anchor.operand(0), "dequantize")
    if x is not None and zero_of(x) is None and dtype_of(x.operand(0)) == U8:
        emit = Emit(anchor)
        anchor.set_operand(0, emit("dequantize", x.operand(0), x.operand(1), emit.constant(0, U8), **x.attrs))
        erase_unused([x])


def _signed_weights(anchor: Node, w: Node) -> Value | None:
    """The weights as s8 without zero point, their scales shaped as integer kernels want them; None where they cannot
    be, or are."""
    data, scale = w.operand(0).constant, scale_of(w).constant
    steps, shape = _steps(w), _scale_shape(anchor, w)
    if data is None or scale is None or steps is None or shape is None or not _fits(steps):
        return None
    if data.dtype == I8 and zero_of(w) is None and scale.array.shape == shape:
        return None
    return _weights(anchor, w, steps, shape)


def _in_two_parts(anchor: Node, w: Node) -> tuple[Value, Value] | None:
    """(activations, weights) for weights that s8 does not hold less their zero point: sums of two terms that it holds,
    the first for the activations and the second for the same once more."""
    x, steps, shape = maker(anchor.operand(0), "dequantize"), _steps(w), _scale_shape(anchor, w)
    if x is None or steps is None or shape is None or _fits(steps) or not per_tensor(x):
        return None
    if anchor.op not in ("conv", "matmul") or anchor.attrs.get("groups", 1) != 1 or dtype_of(x.operand(0)) != U8:
        return None
    first = np.clip(steps, -HALF, HALF - 1)
    if not _fits(steps - first) or len(x.result.tensor.dims) < 2:
        return None
    emit = Emit(anchor)
    depth, along = (1, 1) if anchor.op == "conv" else (steps.ndim - 2, len(x.result.tensor.dims) - 1)
    twice = emit("concat", x.operand(0), x.operand(0), axis=along)
    weights = _weights(anchor, w, np.concatenate([first, steps - first], depth), shape)
    return emit("dequantize", twice, *x.operands[1:], **x.attrs), weights


def _steps(w: Node) -> np.ndarray | None:
    """The weights in steps, less their zero point, where that is one."""
    data, zero = w.operand(0).constant, zero_number(w)
    if data is None or zero is None or data.encoding != DENSE or data.dtype not in (I8, U8):
        return None
    return np.asarray(data.array.astype(np.int32) - zero)


def _fits(steps: np.ndarray) -> bool:
    return bool(steps.size) and steps.min() >= -HALF and steps.max() < HALF


def _scale_shape(anchor: Node, w: Node) -> tuple[int, ...] | None:
    """The shape that integer kernels want the constant scales of weights in."""
    scale, rank = scale_of(w).constant, len(w.result.tensor.dims)
    if scale is None:
        return None
    wide: tuple[int, ...] = (1,) * (rank - scale.array.ndim) + scale.array.shape
    shape = () if scale.array.size == 1 else wide[-1:] if anchor.op == "matmul" else wide
    return shape if int(np.prod(shape)) == scale.array.size else None


def _weights(anchor: Node, w: Node, steps: np.ndarray, shape: tuple[int, ...]) -> Value:
    scale, emit = scale_of(w).constant, Emit(anchor)
    assert scale is not None
    wq = emit.constant(steps.astype(np.int8), I8)
    return emit("dequantize", wq, emit.constant(scale.array.reshape(shape), scale.dtype), **w.attrs)


def _floats(anchor: Node, w: Node) -> Value | None:
    """The weights as f32; None where they are not all known."""
    given = [v.constant for v in w.operands if v is not None]
    evaluate = w.definition.evaluate
    if evaluate is None or any(c is None or c.encoding != DENSE for c in given):
        return None
    (array,) = evaluate([None if v is None or v.constant is None else v.constant.array for v in w.operands], w.attrs)
    return Emit(anchor).constant(array, w.result.tensor.dtype)


class _Unsigned:
    """The s8 values that hang together with what `source` dequantizes, by operators that keep the grid, as u8."""

    def __init__(self, source: Node) -> None:
        self.unsigned: dict[Value, Value] = {}
        self.todo: list[Value] = []
        self._of(source.operand(0))

    def run(self) -> None:
        while self.todo:
            for user, i in self.todo.pop().uses:
                if isinstance(user, Node) and _carries(user, i):
                    self._of(user.result)
        for v, u in self.unsigned.items():
            for user, i in v.uses:
                if isinstance(user, Node) and user.op == "dequantize" and i == 0:
                    self._reread(user, u)
        erase_unused([v.producer for v in reversed(self.unsigned) if v.producer is not None])

    def _of(self, v: Value) -> Value:
        """`v` as u8, made beside it."""
        if v not in self.unsigned:
            self.unsigned[v] = self._make(v)
            self.todo.append(v)
        return self.unsigned[v]

    def _make(self, v: Value) -> Value:
        node = v.producer
        emit = Emit(next(iter(v.graph.nodes))) if node is None else Emit(node, after=True)
        if node is not None and v.constant is not None:
            return emit.constant(v.constant.array.view(np.uint8) ^ np.uint8(HALF), U8)
        if node is not None and node.op == "quantize" and (zero := _shifted(emit, node)) is not None:
            return emit("quantize", node.operand(0), node.operand(1), zero, **{**node.attrs, "dtype": U8})
        if node is not None and node.op in KEEPS_GRID:
            operands = [self._of(o) if o is not None and _carries(node, i) else o for i, o in enumerate(node.operands)]
            if node.op == "pad" and node.attrs["mode"] == "constant" and (len(operands) < 2 or operands[1] is None):
                operands = [operands[0], emit.constant(HALF, U8)]
            return emit(node.op, *operands, **node.attrs)
        one = emit.constant(1, F32)
        return emit("quantize", emit("cast", v, dtype=F32), one, emit.constant(HALF, U8), dtype=U8)

    def _reread(self, dequantize: Node, u: Value) -> None:
        emit = Emit(dequantize)
        zero = _shifted(emit, dequantize)
        if zero is not None:
            new = emit("dequantize", u, dequantize.operand(1), zero, **dequantize.attrs)
            assert dequantize.graph is not None
            dequantize.graph.replace(dequantize, [new])


def _carries(user: Node, i: int) -> bool:
    """Whether the result of `user` holds elements of its operand i."""
    return user.op in KEEPS_GRID and (i == 0 or user.op == "concat" or (user.op == "pad" and i == 1))


def _shifted(emit: Emit, node: Node) -> Value | None:
    """The zero point of `node` plus 128, as u8."""
    zero = zero_of(node)
    if zero is None:
        return emit.constant(np.full((), HALF), U8)
    if zero.constant is not None:
        return emit.constant(zero.constant.array.view(np.uint8) ^ np.uint8(HALF), U8)
    one = emit.constant(1, F32)
    return emit("quantize", emit("cast", zero, dtype=F32), one, emit.constant(HALF, U8), dtype=U8)
