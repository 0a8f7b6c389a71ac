"""Operators whose results depend in size on data."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.lowering import Lowering, lowers
from opcel_compiler.ir.dims import dim_max, dim_min, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import BOOL, I64


@lowers("Compress", first=9)
def compress(c: Lowering) -> Value:
    x, condition = c.x(), c.x(1)
    if not c.has("axis"):
        x = c.reshape(x, (product(c.shape(x)),))
    axis = c.attr_int("axis", 0)
    at = places(c, condition)
    return c.emit("gather", x, c.reshape(at, c.shape(at)[1:]), axis=c.axis(axis, c.rank(x)))


@lowers("TopK", first=7)
def topk(c: Lowering) -> list[Value]:
    x = c.x()
    dims = c.shape(x)
    axis = c.axis(c.attr_int("axis", -1), len(dims))
    n = dims[axis]
    k = c.attr_int("k") if c.opset < 10 else c.size(c.x(1), "k", 0, n if isinstance(n, int) else None)
    attrs = {"axis": axis, "k": (k,), "largest": bool(c.attr_int("largest", 1))}
    return list(c.builder.add("topk", (x,), attrs, c.origin).results)


@lowers("Unique", first=11)
def unique(c: Lowering) -> list[Value]:
    x = c.x()
    dims = c.shape(x)
    if not c.has("axis"):
        dims = (product(dims),)
        x = c.reshape(x, dims)
    axis = c.axis(c.attr_int("axis", 0), len(dims))
    n = dims[axis]
    rest = [i for i in range(len(dims)) if i != axis]
    rows = c.reshape(c.transpose(x, [axis, *rest]), (n, product([dims[i] for i in rest])))
    attrs = {"sorted": bool(c.attr_int("sorted", 1))}
    first, which, counts, number = c.builder.add("unique", (rows,), attrs, c.origin).results
    found = c.size(number, "the number of distinct elements", 0, _most(n))
    first, counts = (c.slice(v, 0, 0, found) for v in (first, counts))
    return [c.emit("gather", x, first, axis=axis), first, which, counts]


@lowers("NonMaxSuppression", first=10)
def non_max_suppression(c: Lowering) -> Value:
    boxes, scores = c.x(0), c.x(1)
    most, overlap, least = (None if v is None else c.reshape(v, ()) for v in (c.opt(2), c.opt(3), c.opt(4)))
    room = c.shape(boxes)[1]
    limit = None if most is None else c.builder.content(most)
    if most is None:
        room = 0
    elif limit is not None:
        room = dim_min(room, dim_max(limit.item(), 0))
    operands = [
        c.constant(np.zeros((), np.int64)) if most is None else most,
        c.constant(np.zeros((), np.float32)) if overlap is None else overlap,
        c.constant(np.array(-np.inf, np.float32)) if least is None else least,
    ]
    attrs = {"room": (room,), "center": bool(c.attr_int("center_point_box", 0))}
    kept, _ = c.builder.add("suppress", (boxes, scores, *operands), attrs, c.origin).results
    hit = c.emit("less_equal", c.constant(np.zeros((), np.int64)), kept)
    at = c.transpose(places(c, hit), (1, 0))
    found = c.shape(at)[0]
    box = c.emit("gather_nd", kept, at, batch_dims=0)
    return c.emit("concat", c.slice(at, 1, 0, 2), c.reshape(box, (found, 1)), axis=1)


@lowers("NonZero", first=9)
def nonzero(c: Lowering) -> Value:
    return places(c, c.x())


def places(c: Lowering, x: Value) -> Value:
    """The indices of the elements of `x` that are not zero: i64[rank, count]."""
    hit = x if c.dtype(x) == BOOL else c.emit("not", c.emit("equal", x, c.number(0, x)))
    total = product(c.shape(x))
    count = c.emit("reduce_sum", c.reshape(c.cast(hit, I64), (total,)), axes=(0,), keepdims=False)
    return c.emit("nonzero", hit, count=c.sizes(count, "the number of elements that are not zero", 0, _most(total)))


def _most(total: object) -> int | None:
    return total if isinstance(total, int) else None
