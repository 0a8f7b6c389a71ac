"""Sizes, axes and positions that are computed from data.

They are made absolute and non-negative on tensors, by kernels, and only then read: so the symbols of what follows are
plain, and the same arithmetic serves whatever the numbers turn out to be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, nonnegative
from opcel_compiler.ir.dims import Dim, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F64, I64

ANY = -(1 << 62)
"""The least value of a symbol that may be negative."""


# -- vectors of sizes ------------------------------------------------------------------------------------------------


def vector(c: Lowering, value: Value, what: str) -> tuple[Value, int]:
    """An integer tensor as i64[n], and n; Unsupported when n is not constant."""
    n = product(c.shape(value))
    if not isinstance(n, int):
        raise Unsupported(f"the length of {what} (%{value.name}) is known only when the model runs")
    return c.reshape(c.cast(value, I64), (n,)), n


def number(c: Lowering, x: int) -> Value:
    return c.constant(np.array(x, np.int64))


def clipped(c: Lowering, x: Value, low: Value, high: Value) -> Value:
    return c.emit("min", c.emit("max", x, low), high)


def total(c: Lowering, x: Value, axis: int = 0) -> Value:
    return c.emit("reduce_sum", x, axes=(axis,), keepdims=False)


def known_axes(c: Lowering, value: Value | None) -> bool:
    """Whether axes are absent or known at compile time."""
    content = None if value is None else c.builder.content(value)
    return value is None or (content is not None and all(isinstance(v, int) for v in content.flat))


def hits(c: Lowering, axes: Value, rank: int) -> tuple[Value, int]:
    """(i64[rank, n], n) with 1 where axis i is the j-th of n `axes`, which count from the end where they are
    negative."""
    given, n = vector(c, axes, "the axes")
    given = c.emit("where", c.emit("less", given, number(c, 0)), c.emit("add", given, number(c, rank)), given)
    same = c.emit("equal", c.constant(np.arange(rank).reshape(rank, 1)), c.reshape(given, (1, n)))
    return c.cast(same, I64), n


def hit_axes(c: Lowering, axes: Value, rank: int) -> tuple[Value, int]:
    """(i64[rank], n) with 1 where an axis is among n `axes`."""
    found, n = hits(c, axes, rank)
    return c.emit("min", total(c, found, 1), number(c, 1)), n


def scattered(c: Lowering, hit: tuple[Value, int], values: Value, default: Value) -> Value:
    """i64[rank]: for each axis the one of the values that `hits` gives it, else `default`."""
    found, n = hit
    given = total(c, c.emit("mul", found, c.reshape(values, (1, n))), 1)
    return c.emit("where", c.emit("less", number(c, 0), total(c, found, 1)), given, default)


def placed(c: Lowering, chosen: Value, rank: int) -> Value:
    """i64[rank]: how many of the axes before each are `chosen` (1, else 0)."""
    before = c.constant(np.tril(np.ones((rank, rank), np.int64), -1))
    return total(c, c.emit("mul", before, c.reshape(chosen, (1, rank))), 1)


def picked(c: Lowering, values: Value, chosen: Value, rank: int, count: int) -> Value:
    """i64[count]: the `chosen` ones of `rank` values, in order."""
    at = c.reshape(placed(c, chosen, rank), (1, rank))
    same = c.cast(c.emit("equal", c.constant(np.arange(count).reshape(count, 1)), at), I64)
    return total(c, c.emit("mul", same, c.reshape(c.emit("mul", values, chosen), (1, rank))), 1)


# -- operators -------------------------------------------------------------------------------------------------------


def reshaped(c: Lowering, x: Value, target: Value, allow_zero: bool) -> tuple[Dim, ...]:
    """The shape that Reshape gives `x`, whose target shape is computed from data."""
    size, rank = vector(c, target, "the target shape")
    source = c.shape(x)
    known = c.builder.content(target)
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


def sliced(c: Lowering, x: Value, starts: Value, ends: Value, axes: Value | None, steps: Value | None) -> Value:
    """Slice with starts, ends, axes and steps of which some are computed from data."""
    dims = c.shape(x)
    rank = len(dims)
    first, n = vector(c, starts, "the starts")
    last, m = vector(c, ends, "the ends")
    if max(n, m) > rank:
        raise ModelError(f"node {c.origin!r} (Slice): it has {max(n, m)} starts or ends for {rank} axes")
    axes = c.constant(np.arange(n)) if axes is None else axes
    step = c.constant(np.ones(n, np.int64)) if steps is None else vector(c, steps, "the steps")[0]
    hit = hits(c, axes, rank)
    if not n == m == hit[1] == product(c.shape(step)):
        raise ModelError(f"node {c.origin!r} (Slice): its starts, ends, axes and steps are not of one length")
    zero, one, size = number(c, 0), number(c, 1), c.of_dims(dims)
    by = scattered(c, hit, step, one)
    down = c.emit("less", by, zero)
    edges = []
    for given, default in ((first, zero), (last, size)):
        edge = scattered(c, hit, given, default)
        edges.append(c.emit("where", c.emit("less", edge, zero), c.emit("add", edge, size), edge))
    high = c.emit("where", down, c.emit("sub", size, one), size)
    begin = clipped(c, edges[0], zero, high)
    end = clipped(c, edges[1], c.emit("where", down, number(c, -1), zero), high)
    span = c.emit("where", down, c.emit("sub", begin, end), c.emit("sub", end, begin))
    stride = c.emit("max", c.emit("abs", by), one)
    count = c.emit("div", c.emit("sub", c.emit("add", span, stride), one), stride)
    sizes = list(c.sizes(c.emit("max", count, zero), "the size of the slice"))
    begins = list(c.sizes(c.emit("max", begin, zero), "the starts"))
    known = _known(c, steps)
    strides: list[Dim] = [1] * rank if known is not None and set(known) <= {1} else []
    strides = strides or list(c.sizes(by, "the steps", ANY))
    if known_axes(c, axes):
        named = {a % rank for a in _known(c, axes) or ()}
        for i in set(range(rank)) - named:
            begins[i], sizes[i], strides[i] = 0, dims[i], 1
        for i, s in zip([a % rank for a in _known(c, axes) or ()], known or (), strict=False):
            strides[i] = s
    return c.emit("slice", x, starts=tuple(begins), sizes=tuple(sizes), steps=tuple(strides))


def _known(c: Lowering, value: Value | None) -> list[int] | None:
    """The integers of a tensor, where they are known; of no tensor, none."""
    content = np.empty(0, object) if value is None else c.builder.content(value)
    flat = None if content is None else content.reshape(-1).tolist()
    return None if flat is None or not all(isinstance(v, int) for v in flat) else [int(v) for v in flat]


def squeezed(c: Lowering, x: Value, axes: Value) -> Value:
    """Squeeze with axes that are computed from data."""
    dims = c.shape(x)
    hit, n = hit_axes(c, axes, len(dims))
    kept = c.emit("sub", number(c, 1), hit)
    shape = picked(c, c.of_dims(dims), kept, len(dims), len(dims) - n)
    return c.reshape(x, c.sizes(shape, "the squeezed shape"))


def unsqueezed(c: Lowering, x: Value, axes: Value) -> Value:
    """Unsqueeze with axes that are computed from data."""
    dims = c.shape(x)
    rank = len(dims) + vector(c, axes, "the axes")[1]
    hit, _ = hit_axes(c, axes, rank)
    if not dims:
        return c.reshape(x, (1,) * rank)
    at = c.reshape(placed(c, c.emit("sub", number(c, 1), hit), rank), (rank, 1))
    same = c.cast(c.emit("equal", at, c.constant(np.arange(len(dims)).reshape(1, -1))), I64)
    size = total(c, c.emit("mul", same, c.reshape(c.of_dims(dims), (1, len(dims)))), 1)
    shape = c.emit("where", c.emit("less", number(c, 0), hit), number(c, 1), size)
    return c.reshape(x, c.sizes(shape, "the unsqueezed shape"))


def paddings(c: Lowering, pads: Value, axes: Value | None, rank: int) -> Value:
    """i64[2 rank]: begins, then ends, for all axes."""
    given, n = vector(c, pads, "the pads")
    if axes is None:
        if n != 2 * rank:
            raise ModelError(f"node {c.origin!r} (Pad): {n} pads for rank {rank}")
        return given
    hit = hits(c, axes, rank)
    if n != 2 * hit[1]:
        raise ModelError(f"node {c.origin!r} (Pad): {n} pads for {hit[1]} axes")
    parts = [scattered(c, hit, c.slice(given, 0, at, n // 2), number(c, 0)) for at in (0, n // 2)]
    return c.emit("concat", *parts, axis=0)


def cropped(c: Lowering, x: Value, pads: Value) -> tuple[Value, tuple[Dim, ...]]:
    """`x` less what negative pads cut off, and the pads that remain."""
    dims = c.shape(x)
    rank = len(dims)
    zero = number(c, 0)
    grown = c.sizes(c.emit("max", pads, zero), "the pads")
    cuts = c.sizes(c.emit("max", c.emit("neg", pads), zero), "the pads")
    sizes = tuple(d - cuts[i] - cuts[rank + i] for i, d in enumerate(dims))
    return c.emit("slice", x, starts=tuple(cuts[:rank]), sizes=sizes, steps=(1,) * rank), grown


def around(c: Lowering, x: Value, axis: Value) -> Value:
    """`x` as [before, n, after], where n is the size of an axis that is computed from data."""
    dims = c.shape(x)
    rank = len(dims)
    at, _ = vector(c, axis, "the axis")
    at = c.emit("where", c.emit("less", at, number(c, 0)), c.emit("add", at, number(c, rank)), at)
    places, size = c.constant(np.arange(rank)), c.of_dims(dims)
    parts = []
    for hit in (c.emit("less", places, at), c.emit("equal", places, at), c.emit("less", at, places)):
        parts.append(c.emit("reduce_prod", c.emit("where", hit, size, number(c, 1)), axes=(0,), keepdims=True))
    return c.reshape(x, c.sizes(c.emit("concat", *parts, axis=0), "the sizes around the axis"))


def without_axes(c: Lowering, dims: Sequence[Dim], axes: Value, keep: bool) -> tuple[Dim, ...]:
    """A shape without axes that are computed from data, or with ones in their place."""
    rank = len(dims)
    hit, n = hit_axes(c, axes, rank)
    size, one = c.of_dims(dims), number(c, 1)
    if keep:
        return c.sizes(c.emit("where", c.emit("less", number(c, 0), hit), one, size), "the sizes of the result")
    return c.sizes(picked(c, size, c.emit("sub", one, hit), rank, rank - n), "the sizes of the result")


def split_axes(c: Lowering, x: Value, axes: Value) -> tuple[Value, tuple[Dim, ...], tuple[Dim, ...]]:
    """(y, its shape, the kept shape): `x` as [k0, ..., r0, ...], where axis i of `x` is k_i r_i, and k_i or r_i is 1 as
    `axes`, which are computed from data, have it or not. The kept shape leaves the axes out."""
    dims = c.shape(x)
    rank = len(dims)
    hit, n = hit_axes(c, axes, rank)
    size, one = c.of_dims(dims), number(c, 1)
    is_hit = c.emit("less", number(c, 0), hit)
    kept = c.sizes(c.emit("where", is_hit, one, size), "the sizes of the axes that stay")
    gone = c.sizes(c.emit("where", is_hit, size, one), "the sizes of the axes")
    rest = c.sizes(picked(c, size, c.emit("sub", one, hit), rank, rank - n), "the sizes of the result")
    pairs = [d for pair in zip(kept, gone, strict=True) for d in pair]
    y = c.transpose(c.reshape(x, pairs), [*range(0, 2 * rank, 2), *range(1, 2 * rank, 2)])
    return y, kept, rest


def count_of_range(c: Lowering, start: Value, limit: Value, step: Value) -> Dim:
    """The number of elements of a Range between scalars that are computed from data."""
    low, high, by = (c.cast(v, F64) for v in (start, limit, step))
    count = c.emit("ceil", c.emit("div", c.emit("sub", high, low), by))
    return c.size(c.cast(c.emit("max", count, c.number(0, count)), I64), "the number of elements")
