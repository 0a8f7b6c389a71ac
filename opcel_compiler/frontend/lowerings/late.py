"""Sizes, axes and positions that are computed from data.

They are made absolute and non-negative on tensors, by kernels, and only then read: so the symbols of what follows are
plain, and the same arithmetic serves whatever the numbers turn out to be.
"""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.lowering import Lowering, Unsupported, nonnegative
from opcel_compiler.ir.dims import Dim, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import I64


def vector(c: Lowering, value: Value, what: str) -> tuple[Value, int]:
    """An integer tensor as i64[n], and n; Unsupported when n is not constant."""
    shape = c.shape(value)
    n = product(shape)
    if not isinstance(n, int):
        raise Unsupported(f"the length of {what} (%{value.name}) is known only when the model runs")
    return c.reshape(c.cast(value, I64), (n,)), n


def number(c: Lowering, x: int) -> Value:
    return c.constant(np.array(x, np.int64))


def reshaped(c: Lowering, x: Value, target: Value, allow_zero: bool) -> tuple[Dim, ...]:
    """The shape that Reshape gives `x`, whose target shape is computed from data."""
    wanted, rank = vector(c, target, "the target shape")
    source = c.shape(x)
    known = c.builder.content(target)
    size = wanted
    if not allow_zero:
        copied = c.of_dims([*source[:rank], *[0] * (rank - len(source))])
        size = c.emit("where", c.emit("equal", size, number(c, 0)), copied, size)
    is_open = c.emit("less", size, number(c, 0))
    told = c.emit("reduce_prod", c.emit("where", is_open, number(c, 1), size), axes=(0,), keepdims=True)
    rest = c.emit("div", c.of_dims([product(source)]), c.emit("max", told, number(c, 1)))
    sizes = list(c.sizes(c.emit("where", is_open, rest, size), "the target shape"))
    for i, d in enumerate([] if known is None else known.reshape(-1).tolist()):
        if not isinstance(d, int) and nonnegative(d):
            sizes[i] = d
    return tuple(sizes)


def known_axes(c: Lowering, value: Value | None) -> bool:
    """Whether axes are absent or known at compile time."""
    content = None if value is None else c.builder.content(value)
    return value is None or (content is not None and all(isinstance(v, int) for v in content.flat))


def hits(c: Lowering, axes: Value, rank: int, what: str = "the axes") -> Value:
    """i64[rank, n]: 1 where axis i is the j-th of `axes`, which count from the end where they are negative."""
    given, n = vector(c, axes, what)
    given = c.emit("where", c.emit("less", given, number(c, 0)), c.emit("add", given, number(c, rank)), given)
    same = c.emit("equal", c.constant(np.arange(rank).reshape(rank, 1)), c.reshape(given, (1, n)))
    return c.cast(same, I64)


def scattered(c: Lowering, hit: Value, values: Value, n: int, default: Value | int) -> Value:
    """i64[rank]: for each axis the one of the n `values` that `hits` gives it, else `default`."""
    told = c.emit("reduce_sum", hit, axes=(1,), keepdims=False)
    given = c.emit("reduce_sum", c.emit("mul", hit, c.reshape(values, (1, n))), axes=(1,), keepdims=False)
    other = number(c, default) if isinstance(default, int) else default
    return c.emit("where", c.emit("less", number(c, 0), told), given, other)
