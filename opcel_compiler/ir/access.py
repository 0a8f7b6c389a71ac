"""Which elements a tile of a kernel reads and writes: access maps of every value in a kernel's body.

`analyze` walks a body from its outputs to its inputs. The axes of the iteration domain are the dims of the body's
principal output, then the reduce axes that the anchor opens. An operator that needs an axis whole (a softmax its row,
a concat its joined axis) pins it: a pinned axis is no axis of the domain, and every index on it reads `WHOLE`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from opcel_compiler.ir.dims import Dim, equal, evaluate
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.program import AccessMap, Axis, Index, Kernel, View

WHOLE = Index(whole=True)
FIRST = Index()
"""The index of an axis of extent 1."""

ACCUMULATES = frozenset(
    {"matmul", "conv", "reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod", "attention"}
)
"""Anchors whose reduce axes may be tiled: partial results of two tiles can be combined."""

Interval = tuple[int, int]
"""[start, stop) along one axis."""


@dataclass
class Access:
    """`axes` of the domain, the map of every value that the outputs need, and of every operand as its node reads it.

    Where nodes read the same value by different indices the value's own index is `WHOLE`.
    """

    axes: tuple[Axis, ...]
    values: dict[Value, AccessMap]
    operands: dict[tuple[Node, int], AccessMap]


def analyze(body: Graph, anchor: Node | None) -> Access:
    """The access maps of `body`; only `anchor` opens reduce axes, any other reduction takes its axes whole."""
    pinned: set[str] = set()
    while True:
        walk = _Walk(body, anchor, frozenset(pinned))
        walk.run()
        if not walk.pins - pinned:
            return Access(tuple(walk.axes), walk.values, walk.operands)
        pinned |= walk.pins


def interval(index: Index, extent: int, tile: Sequence[Interval]) -> Interval:
    """The hull of what `index` reads on an axis of `extent`, for a tile given as an interval per domain axis.

    Not clipped: a convolution reads outside [0, extent) where its padding is.
    """
    if index.whole:
        return 0, extent
    low = high = index.base
    for axis, factor in index.terms:
        start, stop = tile[axis]
        if stop <= start:
            return 0, 0
        ends = factor * start, factor * (stop - 1)
        low, high = low + min(ends), high + max(ends)
    return low, high + 1


def clip(span: Interval, extent: int) -> Interval:
    start = min(max(span[0], 0), extent)
    return start, max(start, min(span[1], extent))


class TileBytes:
    """How many bytes the tiles of a kernel touch, for one value of every symbol.

    A tile is an extent per domain axis. `extents` are those of the whole domain.
    """

    def __init__(self, kernel: Kernel, sizes: Mapping[str, int]) -> None:
        if len(kernel.maps) != len(kernel.views):
            raise ValueError(f"{kernel.family} kernel: {len(kernel.maps)} access maps for {len(kernel.views)} views")
        self.inputs = len(kernel.inputs)
        self.extents = tuple(evaluate(a.extent, sizes) for a in kernel.axes)
        self.reduce = tuple(i for i, a in enumerate(kernel.axes) if a.kind == "reduce")
        self.maps = kernel.maps
        self._views = [self._axes(v, m, sizes) for v, m in zip(kernel.views, kernel.maps, strict=True)]
        self._bits = [16 if v.buffer.layout.storage == "bf16" else v.dtype.bits for v in kernel.views]
        self._widening = max((max(32, v.dtype.bits) / max(v.dtype.bits, 1) for v in kernel.outputs), default=1.0)
        self._keys: int | None = None
        if kernel.anchor is not None and kernel.anchor.op == "attention":
            self._keys = evaluate(kernel.anchor.operand(1).tensor.dims[2], sizes)

    @property
    def signature(self) -> object:
        """Kernels of equal signatures touch equally many bytes by equal tiles."""
        views = tuple(map(tuple, self._views))
        return self.extents, self.reduce, self.inputs, self.maps, views, tuple(self._bits), self._keys

    @staticmethod
    def _axes(view: View, access: AccessMap, sizes: Mapping[str, int]) -> list[tuple[int, Index, int]]:
        """(extent, index, block) of each axis that takes room: not of one that is broadcast."""
        layout, out = view.buffer.layout, []
        for axis, (index, dim, stride) in enumerate(zip(access, view.shape, view.strides, strict=True)):
            blocked = layout.block > 1 and axis == layout.block_axis
            if stride != 0 or blocked:
                out.append((evaluate(dim, sizes), index, layout.block if blocked else 1))
        return out

    def view(self, i: int, tile: Sequence[int]) -> int:
        """Bytes of view `i` that one tile touches: the hull of its indices, a blocked axis in whole blocks."""
        count = 1
        for extent, index, block in self._views[i]:
            if not index.whole:
                reach = 1
                for axis, factor in index.terms:
                    reach += abs(factor) * (max(tile[axis], 1) - 1)
                extent = min(extent, reach)
            count *= -(-extent // block) * block
        return (count * self._bits[i] + 7) // 8

    def footprint(self, tile: Sequence[int], buffering: int = 1) -> int:
        """Bytes that one tile occupies in an on-chip memory: every input `buffering` times (2: double buffering) and
        the outputs, which are widened to 32 bits while a reduce axis is tiled; an attention also holds its scores.
        What lies between the operators of the body is streamed and takes no room.
        """
        loads = sum(self.view(i, tile) for i in range(self.inputs))
        stores = sum(self.view(i, tile) for i in range(self.inputs, len(self._views)))
        if any(tile[i] < self.extents[i] for i in self.reduce):
            stores = int(stores * self._widening)
        if self._keys is not None:
            scores = 4 * min((tile[i] for i in self.reduce), default=self._keys)
            for axis in range(len(tile)):
                scores *= 1 if axis in self.reduce else tile[axis]
            stores += scores
        return loads * buffering + stores


def domain_text(axes: Sequence[Axis]) -> str:
    return ", ".join(f"{a.name}={a.extent}" for a in axes)


# -- the walk ----------------------------------------------------------------------------------------------------------


@dataclass
class _Walk:
    body: Graph
    anchor: Node | None
    pinned: frozenset[str]
    axes: list[Axis] = field(default_factory=list)
    pins: set[str] = field(default_factory=set)
    values: dict[Value, AccessMap] = field(default_factory=dict)
    operands: dict[tuple[Node, int], AccessMap] = field(default_factory=dict)
    node: Node | None = None

    def run(self) -> None:
        principal = self._principal()
        if principal is None:
            return
        self.values[principal] = frame = tuple(
            self.axis(f"d{i}", d, "parallel") for i, d in enumerate(principal.tensor.dims)
        )
        outputs = set(self.body.outputs)
        for node in reversed(list(self.body.nodes)):
            for result in node.results:
                if result in outputs and result not in self.values:
                    self.values[result] = self._secondary(result, principal, frame)
            if any(r in self.values for r in node.results):
                self._visit(node)
        for value in (*self.body.inputs, *self.body.outputs):
            self.values.setdefault(value, self._secondary(value, principal, frame))
        for index in (ix for v in self.body.outputs for ix in self.values[v]):
            self.pin(Index(tuple(t for t in index.terms if self.axes[t[0]].kind == "reduce")))

    def _principal(self) -> Value | None:
        """The output that is computed last, of those that depend on the anchor if any does."""
        if not self.body.outputs:
            return None
        order = {r: i for i, n in enumerate(self.body.nodes, 1) for r in n.results}
        after: set[Value] = set() if self.anchor is None else set(self.anchor.results)
        for node in self.body.nodes:
            if any(v in after for v in node.operands):
                after.update(node.results)
        return max(self.body.outputs, key=lambda v: (v in after, order.get(v, 0)))

    @staticmethod
    def _secondary(value: Value, principal: Value, frame: AccessMap) -> AccessMap:
        dims, wanted = value.tensor.dims, principal.tensor.dims
        if len(dims) == len(wanted) and all(equal(a, b) is True for a, b in zip(dims, wanted, strict=True)):
            return frame
        return tuple(FIRST if d == 1 else WHOLE for d in dims)

    def _visit(self, node: Node) -> None:
        self.node = node
        rule = RULES.get(node.op)
        if rule is None:
            rule = _elementwise if "elementwise" in node.definition.traits else _opaque
        out = self.values.get(node.results[0])
        if out is None or len(node.results) > 1:
            for result in node.results:
                self.values.setdefault(result, tuple(WHOLE for _ in result.tensor.dims))
                for index in self.values[result]:
                    self.pin(index)
            rule, out = _opaque, self.values[node.results[0]]
        for i, (value, access) in enumerate(zip(node.operands, rule(self, node, out), strict=True)):
            if value is None or access is None:
                continue
            self.operands[node, i] = access
            known = self.values.get(value)
            if known is not None:
                access = tuple(a if a == b else WHOLE for a, b in zip(known, access, strict=True))
            self.values[value] = access

    # what rules use

    def axis(self, name: str, extent: Dim, kind: str) -> Index:
        """The index that runs over a new axis: FIRST for extent 1, WHOLE for a pinned one."""
        if extent == 1:
            return FIRST
        if name in self.pinned:
            return WHOLE
        self.axes.append(Axis(name, extent, kind))
        return Index(((len(self.axes) - 1, 1),))

    def reduce(self, name: str, extent: Dim) -> Index:
        """The index over a reduce axis of the anchor; WHOLE for any other node."""
        if extent == 1:
            return FIRST
        return self.axis(name, extent, "reduce") if self.node is self.anchor else WHOLE

    def pin(self, index: Index) -> Index:
        """State that the axes of `index` must not be tiled."""
        self.pins.update(self.axes[a].name for a, _ in index.terms)
        return WHOLE


Rule = Callable[[_Walk, Node, AccessMap], "list[AccessMap | None]"]


def affine(index: Index, factor: int, base: int) -> Index:
    """factor · index + base."""
    if index.whole:
        return WHOLE
    return Index(tuple((a, c * factor) for a, c in index.terms), index.base * factor + base)


def plus(a: Index, b: Index) -> Index:
    if a.whole or b.whole:
        return WHOLE
    terms: dict[int, int] = {}
    for axis, factor in (*a.terms, *b.terms):
        terms[axis] = terms.get(axis, 0) + factor
    return Index(tuple(sorted(terms.items())), a.base + b.base)


def broadcast(out: AccessMap, dims: Sequence[Dim]) -> AccessMap:
    """The map of an operand of shape `dims` that NumPy broadcasts to a value read by `out`."""
    return tuple(FIRST if d == 1 else ix for d, ix in zip(dims, out[len(out) - len(dims) :], strict=True))


def _dims(node: Node, i: int) -> tuple[Dim, ...]:
    return node.operand(i).tensor.dims


def _elementwise(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    return [None if v is None else broadcast(out, v.tensor.dims) for v in node.operands]


def _opaque(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    for index in out:
        w.pin(index)
    return [None if v is None else tuple(FIRST if d == 1 else WHOLE for d in v.tensor.dims) for v in node.operands]


def _matmul(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    a, b = _dims(node, 0), _dims(node, 1)
    k = w.reduce("k", a[-1])
    rest = list(out)
    col = (rest.pop(),) if len(b) > 1 else ()
    row = (rest.pop(),) if len(a) > 1 else ()
    left = broadcast(tuple(rest), a[:-2])
    right = broadcast(tuple(rest), b[:-2])
    return [(*left, *row, k), (*right, k, *col)]


def _matmul_nbits(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    column: AccessMap = (WHOLE, out[-1])
    maps: list[AccessMap | None] = [(*out[:-1], WHOLE), column, column, column]
    return maps[: len(node.operands)]


def _conv(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    weight = _dims(node, 1)
    groups, rank = node.attrs["groups"], len(weight) - 2
    if groups == 1:
        channel = filters = w.reduce("ic", weight[1])
    elif weight[1] == 1 and equal(weight[0], groups) is True:
        channel, filters = out[1], FIRST
    else:
        w.pin(out[1])
        channel = filters = WHOLE
    x, kernel = [out[0], channel], []
    for i in range(rank):
        k = w.reduce(f"k{i}", weight[2 + i])
        step = affine(out[2 + i], node.attrs["strides"][i], -node.attrs["pads"][i])
        x.append(plus(step, affine(k, node.attrs["dilations"][i], 0)))
        kernel.append(k)
    maps: list[AccessMap | None] = [tuple(x), (out[1], filters, *kernel)]
    return [*maps, (out[1],)][: len(node.operands)]


def _conv_transpose(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    for index in out[1:]:
        w.pin(index)
    maps = _opaque(w, node, ())
    maps[0] = (out[0], *(WHOLE for _ in out[1:]))
    return maps


def _pool(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    a = node.attrs
    x = list(out[:2])
    for i, index in enumerate(out[2:]):
        k = w.reduce(f"k{i}", a["kernel"][i])
        x.append(plus(affine(index, a["strides"][i], -a["pads"][i]), affine(k, a["dilations"][i], 0)))
    return [tuple(x)]


def _reduce(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    dims = _dims(node, 0)
    axes = node.attrs["axes"] if "axes" in node.attrs else (node.attrs["axis"],)
    kept = list(out)
    if node.attrs["keepdims"]:
        kept = [ix for i, ix in enumerate(kept) if i not in axes]
    opens = node.op in ACCUMULATES
    return [
        tuple(
            (w.reduce(f"r{i}", d) if opens else FIRST if d == 1 else WHOLE) if i in axes else kept.pop(0)
            for i, d in enumerate(dims)
        )
    ]


def _row(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    axis = node.attrs["axis"]
    last = len(out) if node.op.endswith("norm") else axis + 1
    x = tuple(w.pin(ix) if axis <= i < last and ix != FIRST else ix for i, ix in enumerate(out))
    return [None if v is None else broadcast(x, v.tensor.dims) for v in node.operands]


def _attention(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    q, k = _dims(node, 0), _dims(node, 1)
    b, h, s = out[:3]
    w.pin(out[3])
    keys = w.reduce("t", k[2])
    heads = h if equal(q[1], k[1]) is True else FIRST if k[1] == 1 else WHOLE
    maps: list[AccessMap | None] = [(b, h, s, WHOLE), (b, heads, keys, WHOLE), (b, heads, keys, WHOLE)]
    if len(node.operands) > 3 and node.operands[3] is not None:
        maps.append(broadcast((b, h, s, keys), _dims(node, 3)))
    return [*maps, None][: len(node.operands)]


def _transpose(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    perm = node.attrs["perm"]
    return [tuple(out[perm.index(i)] for i in range(len(perm)))]


def _slice(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    a = node.attrs
    return [
        tuple(
            affine(index, step, start) if isinstance(start, int) and isinstance(step, int) else WHOLE
            for index, start, step in zip(out, a["starts"], a["steps"], strict=True)
        )
    ]


def _reshape(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    dims = _dims(node, 0)
    pairs = dict(same_axes(dims, node.result.tensor.dims))
    for i, index in enumerate(out):
        if i not in pairs.values():
            w.pin(index)
    return [tuple(out[pairs[i]] if i in pairs else FIRST if d == 1 else WHOLE for i, d in enumerate(dims))]


def same_axes(old: Sequence[Dim], new: Sequence[Dim]) -> list[tuple[int, int]]:
    """The axes (old, new) that a reshape leaves alone: equal extent, and as many elements before them."""
    pairs: list[tuple[int, int]] = []
    i = j = 0
    a: Dim = 1
    b: Dim = 1
    while i < len(old) and j < len(new):
        if equal(a, b) is True and equal(old[i], new[j]) is True:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif old[i] == 1:
            i += 1
        elif new[j] == 1:
            j += 1
        elif a == b:
            a, b, i, j = a * old[i], b * new[j], i + 1, j + 1
        elif isinstance(a, int) and isinstance(b, int) and a > b:
            b, j = b * new[j], j + 1
        elif isinstance(a, int) and isinstance(b, int):
            a, i = a * old[i], i + 1
        elif equal(a, b * new[j]) is True:
            b, j = b * new[j], j + 1
        elif equal(a * old[i], b) is True:
            a, i = a * old[i], i + 1
        else:
            break
        if equal(a, b) is True:
            a = b = 1
    return pairs


def _expand(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    return [broadcast(out, _dims(node, 0))]


def _concat(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    axis = node.attrs["axis"]
    w.pin(out[axis])
    return [
        tuple(FIRST if d == 1 else WHOLE if i == axis else out[i] for i, d in enumerate(v.tensor.dims))
        for v in node.operands
        if v is not None
    ]


def _pad(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    pads, dims = node.attrs["pads"], _dims(node, 0)
    x = tuple(ix if pads[i] == 0 == pads[i + len(dims)] else w.pin(ix) for i, ix in enumerate(out))
    return [x, *(None if v is None else (WHOLE,) * len(v.tensor.dims) for v in node.operands[1:])]


def _gather(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    axis, rank = node.attrs["axis"], len(_dims(node, 1))
    return [(*out[:axis], WHOLE, *out[axis + rank :]), out[axis : axis + rank]]


def _gather_elements(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    axis = node.attrs["axis"]
    return [tuple(WHOLE if i == axis else ix for i, ix in enumerate(out)), out]


def _source(w: _Walk, node: Node, out: AccessMap) -> list[AccessMap | None]:
    return []


RULES: dict[str, Rule] = {
    "constant": _source, "dims": _source, "range_": _source,
    "matmul": _matmul, "matmul_nbits": _matmul_nbits,
    "conv": _conv, "conv_transpose": _conv_transpose, "max_pool": _pool, "avg_pool": _pool,
    **dict.fromkeys(("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod"), _reduce),
    "arg_max": _reduce, "arg_min": _reduce,
    **dict.fromkeys(("softmax", "log_softmax", "layer_norm", "rms_norm"), _row),
    "attention": _attention, "transpose": _transpose, "slice": _slice, "reshape": _reshape, "expand": _expand,
    "concat": _concat, "pad": _pad, "gather": _gather, "gather_elements": _gather_elements,
}  # fmt: skip
