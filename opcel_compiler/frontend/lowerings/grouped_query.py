"""ONNX Runtime's attention of decoders: queries in groups that share a key, rotations, and a cache that grows."""

from __future__ import annotations

import math

from opcel_compiler.frontend.lowering import Lowering, Unsupported
from opcel_compiler.frontend.lowerings.contrib import by_heads, contrib, joined, rotated
from opcel_compiler.frontend.lowerings.late import number
from opcel_compiler.frontend.lowerings.scatter import index_vectors, numbers
from opcel_compiler.ir.dims import Dim, dim_max, floordiv
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, I64


@contrib("GroupQueryAttention")
def group_query_attention(c: Lowering) -> list[Value | None]:
    """Each batch's new keys go behind the seqlens_k + 1 - length that its cache holds; a query sees those before it."""
    if c.attr_int("smooth_softmax", 0) or c.attr_float("softcap", 0.0) or any(c.opt(i) is not None for i in (10, 11)):
        raise Unsupported("softcaps, sinks and biases of GroupQueryAttention have no lowering")
    if c.wants(3) or c.dtype(c.x(0)) != F32:
        raise Unsupported("the scores of GroupQueryAttention, and types other than f32, have no lowering")
    q, k, v = _projections(c)
    batch, _, length, size = c.shape(k)
    total = c.size(c.x(6), "the length of all sequences", lo=1)
    last = c.reshape(c.cast(c.x(5), I64), (batch, 1))
    before = c.emit("sub", last, c.of_dims([length - 1], scalar=True))
    first_run = c.emit("equal", c.of_dims([total], scalar=True), c.of_dims([length], scalar=True))
    before = c.emit("where", first_run, number(c, 0), before)
    places = c.emit("add", before, numbers(c, length, 1, 2))
    if c.attr_int("do_rotary", 0):
        angles = c.x(7), c.x(8)
        turns = places if (given := c.opt(9)) is None else given
        interleaved = bool(c.attr_int("rotary_interleaved", 0))
        q, k = (rotated(c, x, turns, angles, interleaved, c.shape(angles[0])[1] * 2) for x in (q, k))
    keys, values = (_grown(c, c.opt(i), x, places, total) for i, x in ((3, k), (4, v)))
    length_now = c.shape(keys)[2]
    at = c.reshape(places, (batch, 1, length, 1))
    key = numbers(c, length_now, 3, 4)
    seen = c.emit("less_equal", key, at)
    if (window := c.attr_int("local_window_size", -1)) > 0:
        seen = c.emit("and", seen, c.emit("less", at, c.emit("add", key, number(c, window))))
    mask = c.emit("where", seen, c.number(0.0, q), c.number(-math.inf, q))
    scale = c.attr_float("scale", 0.0) or (1.0 / math.sqrt(size) if isinstance(size, int) else 0.0)
    if not scale:
        raise Unsupported("the size of the heads is symbolic")
    y = joined(c, c.emit("attention", q, keys, values, mask, scale=scale, causal=False))
    return [y, keys if c.wants(1) else None, values if c.wants(2) else None][: len(c.node.output)]


def _projections(c: Lowering) -> tuple[Value, Value, Value]:
    """q, k and v as [batch, heads, length, size]; without k and v they lie in q one after the other."""
    heads, groups = c.attr_int("num_heads"), c.attr_int("kv_num_heads")
    q, k, v = c.x(0), c.opt(1), c.opt(2)
    if k is None or v is None:
        size = floordiv(c.shape(q)[2], heads + 2 * groups)
        starts: tuple[Dim, ...] = (0, size * heads, size * (heads + groups))
        widths = (size * heads, size * groups, size * groups)
        q, k, v = (c.slice(c.x(0), 2, start, width) for start, width in zip(starts, widths, strict=True))
    return by_heads(c, q, heads), by_heads(c, k, groups), by_heads(c, v, groups)


def _grown(c: Lowering, past: Value | None, new: Value, places: Value, total: Dim) -> Value:
    """The cache [batch, heads, keys, size] with the new keys at their places, long enough for `total` of them."""
    batch, heads, length, _ = c.shape(new)
    if past is None:
        return new
    have = c.shape(past)[2]
    longer = dim_max(have, total)
    base = c.emit("pad", past, pads=(0, 0, 0, 0, 0, 0, longer - have, 0), mode="constant")
    lead = (batch, heads, length)
    parts = [numbers(c, batch, 0, 3), numbers(c, heads, 1, 3), c.reshape(places, (batch, 1, length))]
    return c.emit("scatter_nd", base, index_vectors(c, parts, lead), new)
