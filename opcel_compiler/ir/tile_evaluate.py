"""Evaluation of a kernel's body on one tile of its iteration domain, with NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opcel_compiler.ir.access import Access, Interval, clip, interval
from opcel_compiler.ir.dims import evaluate
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.interpret import bind_attrs
from opcel_compiler.ir.ops.common import widen
from opcel_compiler.ir.ops.reduction import lowest
from opcel_compiler.ir.program import AccessMap

Box = tuple[Interval, ...]


class Uncovered(Exception):
    """A node reads elements of a body input outside the loaded tile."""


def extents(box: Sequence[Interval]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in box)


def box_of(access: AccessMap, shape: Sequence[int], tile: Sequence[Interval]) -> Box:
    """The elements, inside `shape`, that `tile` reads by `access`. An axis of extent 1 is read whole: it may be one
    that is broadcast at run time only."""
    return tuple(
        (0, 1) if n == 1 else clip(interval(ix, n, tile), n) for ix, n in zip(access, shape, strict=True)
    )  # fmt: skip


@dataclass
class Tile:
    """One tile: an interval per axis, the loaded part of each body input, and what is computed from them.

    `known` maps a value to (the box it covers, its elements). Values are computed on demand.
    """

    access: Access
    sizes: Mapping[str, int]
    intervals: Sequence[Interval]
    known: dict[Value, tuple[Box, np.ndarray]]
    partial: Node | None = None
    shapes: dict[Value, tuple[int, ...]] = field(default_factory=dict)

    def shape(self, value: Value) -> tuple[int, ...]:
        if value not in self.shapes:
            self.shapes[value] = tuple(evaluate(d, self.sizes) for d in value.tensor.dims)
        return self.shapes[value]

    def box(self, value: Value) -> Box:
        return box_of(self.access.values[value], self.shape(value), self.intervals)

    def value(self, value: Value) -> np.ndarray:
        """The elements of `value` in its own box."""
        return self.part(value, self.box(value))

    def part(self, value: Value, box: Box) -> np.ndarray:
        """The elements of `value` in `box`."""
        if value not in self.known:
            node = value.producer
            if node is None:
                raise Uncovered(f"%{value.name} is not loaded")
            for result, array in zip(node.results, self.compute(node), strict=True):
                if result in self.access.values:
                    self.known[result] = (self.box(result), array)
        have, array = self.known[value]
        inside = []
        for (start, stop), (low, high) in zip(box, have, strict=True):
            if stop > start and not (low <= start and stop <= high):
                raise Uncovered(f"%{value.name} is read at {start}..{stop} but loaded at {low}..{high}")
            inside.append(slice(max(start - low, 0), max(stop - low, 0)))
        return np.asarray(array[tuple(inside)])

    def operand(self, node: Node, i: int) -> np.ndarray | None:
        value = node.optional(i)
        if value is None:
            return None
        return self.part(value, box_of(self.access.operands[node, i], self.shape(value), self.intervals))

    def attrs(self, node: Node) -> dict[str, Any]:
        """The attributes with every symbol replaced by its value."""
        return bind_attrs(node.attrs, node.definition.attrs, self.sizes)

    def compute(self, node: Node) -> Sequence[np.ndarray]:
        """The results of `node`, each in its own box."""
        handler = HANDLERS.get(node.op)
        if handler is not None:
            return [handler(self, node)]
        return self.run(node, [self.operand(node, i) for i in range(len(node.operands))], self.attrs(node))

    @staticmethod
    def run(node: Node, arrays: Sequence[np.ndarray | None], attrs: Mapping[str, Any]) -> Sequence[np.ndarray]:
        fn = node.definition.evaluate
        if fn is None:
            raise NotImplementedError(f"{node!r} has no evaluation")
        return fn(arrays, attrs)


# -- operators whose evaluation depends on where the tile lies --------------------------------------------------------


def _source(t: Tile, node: Node) -> np.ndarray:
    (whole,) = t.run(node, [], t.attrs(node))
    return np.asarray(whole[tuple(slice(a, b) for a, b in t.box(node.result))])


def _expand(t: Tile, node: Node) -> np.ndarray:
    x = t.operand(node, 0)
    assert x is not None
    return np.broadcast_to(x, extents(t.box(node.result)))


def _reshape(t: Tile, node: Node) -> np.ndarray:
    x = t.operand(node, 0)
    assert x is not None
    return x.reshape(extents(t.box(node.result)))


def _slice(t: Tile, node: Node) -> np.ndarray:
    attrs = t.attrs(node)
    places = [
        start + step * np.arange(low, high)
        for start, step, (low, high) in zip(attrs["starts"], attrs["steps"], t.box(node.result), strict=True)
    ]
    box = tuple((int(p.min()), int(p.max()) + 1) if p.size else (0, 0) for p in places)
    x = t.part(node.operand(0), box)
    return x[np.ix_(*(p - low for p, (low, _) in zip(places, box, strict=True)))] if places else x


def _window(
    t: Tile, node: Node, lead: Box, taps: Sequence[Interval], fill: Any, attrs: Mapping[str, Any]
) -> np.ndarray:
    """The part of the window operator's x that its result's box reads through the kernel positions `taps`, padded."""
    x = node.operand(0)
    shape, inside, pads = t.shape(x), list(lead), [(0, 0), (0, 0)]
    for i, (low, high) in enumerate(t.box(node.result)[2:]):
        stride, dilation, before = attrs["strides"][i], attrs["dilations"][i], attrs["pads"][i]
        start = low * stride + taps[i][0] * dilation - before
        stop = (high - 1) * stride + (taps[i][1] - 1) * dilation - before + 1
        kept = clip((start, stop), shape[2 + i])
        inside.append(kept)
        need, have = max(stop - start, 0), kept[1] - kept[0]
        left = min(max(-start, 0), need)
        pads.append((left, need - have - left))
    return np.pad(t.part(x, tuple(inside)), pads, constant_values=fill)


def _conv(t: Tile, node: Node) -> np.ndarray:
    w = node.operand(1)
    out = t.box(node.result)
    if 0 in extents(out):
        return np.zeros(extents(out), node.result.tensor.dtype.numpy)
    filters = box_of(t.access.operands[node, 1], t.shape(w), t.intervals)
    groups = node.attrs["groups"]
    x_box = box_of(t.access.operands[node, 0], t.shape(node.operand(0)), t.intervals)
    rank = len(out) - 2
    lead = (out[0], x_box[1])
    if groups > 1 and t.shape(w)[1] == 1 and t.shape(w)[0] == groups:
        lead, groups = (out[0], out[1]), out[1][1] - out[1][0]
    x = _window(t, node, lead, filters[2:], 0, node.attrs)
    bias = None if t.partial is node else t.operand(node, 2)
    weights = t.part(w, filters)
    if t.partial is node:
        x, weights = widen(x), widen(weights)
    return t.run(node, [x, weights, bias], {**node.attrs, "pads": (0,) * (2 * rank), "groups": groups})[0]


def _pool(t: Tile, node: Node) -> np.ndarray:
    a, out = node.attrs, t.box(node.result)
    if 0 in extents(out):
        return np.zeros(extents(out), node.result.tensor.dtype.numpy)
    taps = [(0, k) for k in a["kernel"]]
    plain = {**a, "pads": (0,) * len(a["pads"]), "ceil_mode": False}
    dtype = node.operand(0).tensor.dtype.numpy
    if node.op == "max_pool":
        fill = lowest(widen(np.empty(0, dtype)).dtype)
        return t.run(node, [_window(t, node, out[:2], taps, fill, a)], plain)[0]
    x = _window(t, node, out[:2], taps, 0, a).astype(np.float64)
    total = t.run(node, [x], plain)[0] * float(np.prod(a["kernel"]))
    rank = len(taps)
    for i, (low, high) in enumerate(out[2:]):
        at = (
            np.arange(low, high)[:, None] * a["strides"][i]
            - a["pads"][i]
            + np.arange(a["kernel"][i]) * a["dilations"][i]
        )
        size = t.shape(node.operand(0))[2 + i]
        first, last = (-a["pads"][i], size + a["pads"][rank + i]) if a["count_include_pad"] else (0, size)
        with np.errstate(all="ignore"):
            total /= ((at >= first) & (at < last)).sum(1).reshape(-1, *[1] * (rank - 1 - i))
    return total.astype(dtype)


def _attention_operands(t: Tile, node: Node) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """q, k, v, mask of the tile: one key head per query head, a causal mask made explicit."""
    q, k, v, mask = (t.operand(node, i) for i in range(4))
    assert q is not None and k is not None and v is not None
    heads, kv_heads = t.shape(node.operand(0))[1], t.shape(node.operand(1))[1]
    boxes = [box_of(t.access.operands[node, i], t.shape(node.operand(i)), t.intervals) for i in (0, 1)]
    if heads != kv_heads:
        pick = np.arange(*boxes[0][1]) // (heads // kv_heads) - boxes[1][1][0]
        k, v = k[:, pick], v[:, pick]
    if node.attrs["causal"]:
        shift = t.shape(node.operand(1))[2] - t.shape(node.operand(0))[2]
        hidden = np.arange(*boxes[1][2]) > np.arange(*boxes[0][2])[:, None] + shift
        causal = np.where(hidden, -np.inf, 0.0).astype(q.dtype)
        with np.errstate(all="ignore"):
            mask = causal if mask is None else np.asarray(mask + causal)
    return q, k, v, mask


def _attention(t: Tile, node: Node) -> np.ndarray:
    q, k, v, mask = _attention_operands(t, node)
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    return t.run(node, [q, k, v, mask], {**node.attrs, "causal": False})[0]


HANDLERS: dict[str, Callable[[Tile, Node], np.ndarray]] = {
    "constant": _source, "dims": _source, "range_": _source, "expand": _expand, "reshape": _reshape, "slice": _slice,
    "conv": _conv, "max_pool": _pool, "avg_pool": _pool, "attention": _attention,
}  # fmt: skip


# -- accumulation over the tiles of the reduce axes -------------------------------------------------------------------


@dataclass
class Accumulator:
    """Combines the partial results of an anchor over the tiles of its reduce axes; floats in float64.

    An attention keeps a running maximum, a running sum of exponentials and the weighted values.
    """

    node: Node
    total: np.ndarray | None = None
    peak: np.ndarray | None = None
    weight: np.ndarray | None = None

    def add(self, t: Tile) -> None:
        with np.errstate(all="ignore"):
            if self.node.op == "attention":
                self._attend(t)
                return
            part = self._partial(t)
            if self.total is None:
                self.total = part
            elif self.node.op in ("reduce_max", "reduce_min"):
                self.total = (np.maximum if self.node.op == "reduce_max" else np.minimum)(self.total, part)
            elif self.node.op == "reduce_prod":
                self.total = self.total * part
            else:
                self.total = self.total + part

    def _partial(self, t: Tile) -> np.ndarray:
        node = self.node
        if node.op == "conv":
            return _wide(_conv(t, node))
        arrays = [t.operand(node, i) for i in range(len(node.operands))]
        if node.op == "matmul":
            return _wide(t.run(node, [None if a is None else widen(a) for a in arrays], node.attrs)[0])
        x = arrays[0]
        assert x is not None
        axes, keep = node.attrs["axes"], node.attrs["keepdims"]
        if node.op == "reduce_mean":
            return np.asarray(_wide(x).sum(axes, keepdims=keep))
        return np.asarray(t.run(node, [_wide(x)], node.attrs)[0])

    def _attend(self, t: Tile) -> None:
        q, k, v, mask = (None if a is None else _wide(a) for a in _attention_operands(t, self.node))
        assert q is not None and k is not None and v is not None
        scores = np.matmul(q * self.node.attrs["scale"], k.swapaxes(2, 3))
        if mask is not None:
            scores = scores + mask
        top = scores.max(3, keepdims=True)
        if self.peak is not None:
            top = np.maximum(self.peak, top)
        floor = np.where(np.isneginf(top), 0.0, top)
        e = np.exp(scores - floor)
        total, weight = np.matmul(e, v), e.sum(3, keepdims=True)
        if self.peak is not None and self.total is not None and self.weight is not None:
            keep = np.exp(self.peak - floor)
            total, weight = total + keep * self.total, weight + keep * self.weight
        self.total, self.weight, self.peak = total, weight, top

    def result(self, t: Tile) -> np.ndarray:
        """The anchor's result; `t` is a tile whose reduce axes are whole, from which a bias is read."""
        node, total = self.node, self.total
        assert total is not None
        dtype = node.result.tensor.dtype
        with np.errstate(all="ignore"):
            if node.op == "attention":
                assert self.weight is not None
                total = total / self.weight
            if node.op == "reduce_mean":
                shape = t.shape(node.operand(0))
                count = int(np.prod([shape[i] for i in node.attrs["axes"]]))
                total = total / count if dtype.is_float else np.trunc(total / count)
            if node.op == "conv" and (bias := t.operand(node, 2)) is not None:
                total = total + _wide(bias).reshape(-1, *[1] * (total.ndim - 2))
            return total.astype(dtype.numpy)


def _wide(x: np.ndarray) -> np.ndarray:
    wide = widen(x)
    return wide.astype(np.float64) if wide.dtype.kind == "f" else wide
