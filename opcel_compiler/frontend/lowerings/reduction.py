"""Reductions."""

from __future__ import annotations

from typing import Any

from opcel_compiler.frontend.lowering import Lowering, lowers
from opcel_compiler.frontend.lowerings import late
from opcel_compiler.frontend.lowerings.shape import axes_of
from opcel_compiler.ir.graph import Value

_PLAIN = {
    "ReduceSum": "reduce_sum",
    "ReduceMean": "reduce_mean",
    "ReduceMax": "reduce_max",
    "ReduceMin": "reduce_min",
    "ReduceProd": "reduce_prod",
}


@lowers(*_PLAIN, "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceSumSquare")
def reduce(c: Lowering) -> Value:
    x, keep = c.x(), bool(c.attr_int("keepdims", 1))
    rank = c.rank(x)
    since = 13 if c.op_type == "ReduceSum" else 18
    given = c.opt(1) if c.opset >= since else None
    if given is not None and c.shape(given) != (0,) and not late.known_axes(c, given):
        return _over_late_axes(c, x, given, keep)
    none = given is not None and c.shape(given) == (0,)
    axes = () if none else axes_of(c, rank, since)
    if not axes and not c.attr_int("noop_with_empty_axes", 0):
        axes = tuple(range(rank))
    return _over(c, x, axes or (), keep)


def _over_late_axes(c: Lowering, x: Value, axes: Value, keep: bool) -> Value:
    """A reduction over axes that are computed from data."""
    rank = c.rank(x)
    if c.shape(axes) in ((), (1,)):
        y = _over(c, late.around(c, x, axes), (1,), False)
        return c.reshape(y, late.without_axes(c, c.shape(x), axes, keep))
    y, kept, rest = late.split_axes(c, x, axes)
    return c.reshape(_over(c, y, tuple(range(rank, 2 * rank)), False), kept if keep else rest)


def _over(c: Lowering, x: Value, axes: tuple[int, ...], keep: bool) -> Value:
    """The reduction over known axes; over none, what it does to each element alone."""

    def over(op: str, y: Value, keepdims: bool = keep) -> Value:
        return c.emit(op, y, axes=axes, keepdims=keepdims) if axes else y

    if c.op_type in _PLAIN:
        return over(_PLAIN[c.op_type], x)
    if c.op_type == "ReduceL1":
        return over("reduce_sum", c.emit("abs", x))
    if c.op_type == "ReduceLogSum":
        return c.emit("log", over("reduce_sum", x))
    if c.op_type == "ReduceLogSumExp":
        if not axes:
            return x
        top = over("reduce_max", x, True)
        top = c.emit("where", c.emit("is_inf", top), c.number(0, top), top)
        y = c.emit("add", c.emit("log", over("reduce_sum", c.emit("exp", c.emit("sub", x, top)), True)), top)
        dims = c.shape(x)
        return y if keep else c.reshape(y, [d for i, d in enumerate(dims) if i not in axes])
    squares = over("reduce_sum", c.emit("mul", x, x))
    return c.emit("sqrt", squares) if c.op_type == "ReduceL2" else squares


@lowers("CumSum", "CumProd", first=11)
def cumulate(c: Lowering) -> Value:
    x, axis = c.x(), c.x(1)
    dims = c.shape(x)
    attrs: dict[str, Any] = {
        "kind": "sum" if c.op_type == "CumSum" else "product",
        "exclusive": bool(c.attr_int("exclusive", 0)), "reverse": bool(c.attr_int("reverse", 0)),
    }  # fmt: skip
    if late.known_axes(c, axis):
        (at,) = c.known_ints(axis, "the axis")
        return c.emit("cumulate", x, axis=c.axis(at, len(dims)), **attrs)
    return c.reshape(c.emit("cumulate", late.around(c, x, axis), axis=1, **attrs), dims)


@lowers("ArgMax", "ArgMin")
def arg(c: Lowering) -> Value:
    x = c.x()
    return c.emit(
        "arg_max" if c.op_type == "ArgMax" else "arg_min",
        x,
        axis=c.axis(c.attr_int("axis", 0), c.rank(x)),
        keepdims=bool(c.attr_int("keepdims", 1)),
        last=bool(c.attr_int("select_last_index", 0)),
    )


@lowers("GlobalAveragePool", "GlobalMaxPool")
def global_pool(c: Lowering) -> Value:
    x = c.x()
    op = "reduce_mean" if c.op_type == "GlobalAveragePool" else "reduce_max"
    return c.emit(op, x, axes=tuple(range(2, c.rank(x))), keepdims=True)
