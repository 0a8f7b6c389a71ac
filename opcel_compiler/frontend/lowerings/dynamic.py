"""Operators whose results depend in size on data."""

from __future__ import annotations

from opcel_compiler.frontend.lowering import Lowering, lowers
from opcel_compiler.ir.dims import product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import BOOL, I64


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
