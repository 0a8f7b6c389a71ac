"""Reductions."""

from __future__ import annotations

from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
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
    x = c.x()
    rank = c.rank(x)
    axes = axes_of(c, rank, 13 if c.op_type == "ReduceSum" else 18)
    if not axes:
        if c.attr_int("noop_with_empty_axes", 0):
            if c.op_type not in _PLAIN:
                raise Unsupported(f"{c.op_type} without axes is left to the fallback")
            return x
        axes = tuple(range(rank))
    keep = bool(c.attr_int("keepdims", 1))
    if not axes:
        if c.op_type not in _PLAIN:
            raise Unsupported(f"{c.op_type} of a scalar is left to the fallback")
        return x

    def over(op: str, y: Value, keepdims: bool = keep) -> Value:
        return c.emit(op, y, axes=axes, keepdims=keepdims)

    if c.op_type in _PLAIN:
        return over(_PLAIN[c.op_type], x)
    if c.op_type == "ReduceL1":
        return over("reduce_sum", c.emit("abs", x))
    if c.op_type == "ReduceLogSum":
        return c.emit("log", over("reduce_sum", x))
    if c.op_type == "ReduceLogSumExp":
        top = over("reduce_max", x, True)
        top = c.emit("where", c.emit("is_inf", top), c.number(0, top), top)
        y = c.emit("add", c.emit("log", over("reduce_sum", c.emit("exp", c.emit("sub", x, top)), True)), top)
        dims = c.shape(x)
        return y if keep else c.reshape(y, [d for i, d in enumerate(dims) if i not in axes])
    squares = over("reduce_sum", c.emit("mul", x, x))
    return c.emit("sqrt", squares) if c.op_type == "ReduceL2" else squares


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
