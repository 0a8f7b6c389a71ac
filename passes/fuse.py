"""Group nodes into `fused` operators: an anchor with the elementwise work around it, or elementwise work alone.

One group becomes one kernel, so every value inside it stays in registers. An anchor (convolution, matrix product, row
operator) takes in the elementwise nodes after it as epilogue; a row operator also takes those before it as prologue.
A group has exactly one value that is used outside; that alone rules out cycles.

Around quantized values: a contraction takes in the dequantizations of its operands, so that its kernel may multiply the
integers; whatever reads a dequantized value that nothing else reads takes in the dequantization; an epilogue may end in
bytes. A norm that is read as it is and quantized writes both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeGuard

from opcel_compiler.ir.dims import equal
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.ops.control import nested
from opcel_compiler.ir.outline import move_into_region
from opcel_compiler.ir.types import F32, I8, U8, TensorType
from opcel_compiler.rewrite.pass_ import Pass, PassContext
from opcel_compiler.targets.cpu.lanes import in_lanes, lane_node

EPILOGUE_ANCHORS = frozenset({"conv", "matmul", "matmul_nbits"})
ROW_ANCHORS = frozenset({"softmax", "log_softmax", "layer_norm", "rms_norm"})
NORMS = frozenset({"layer_norm", "rms_norm"})
BYTES = frozenset({U8, I8})
MAX_ROW = 1 << 14
"""The longest row, in elements, that a row kernel holds in f32 before it writes it as bytes."""


@dataclass(frozen=True)
class Fuse(Pass):
    """Fuse elementwise prologues and epilogues into anchors, and the remaining elementwise nodes with each other."""

    name: ClassVar[str] = "fuse"
    summary: ClassVar[str] = "group anchors with their elementwise neighbours into one kernel each"

    max_nodes: int = 32

    def run(self, graph: Graph, ctx: PassContext) -> None:
        for part in nested(graph):
            self._group(part, ctx)

    def _group(self, graph: Graph, ctx: PassContext) -> None:
        taken: set[Node] = set()
        groups: list[tuple[list[Node], list[Node]]] = []

        def keep(group: list[Node], also: list[Node]) -> None:
            taken.update(group, also)
            groups.append((group, also))

        nodes = list(graph.nodes)
        for anchor in nodes:
            if anchor.op == "reduce_max" and (scaled := _rows_on_own_grids(anchor)):
                keep(*scaled)
        contractions = [n for n in nodes if n.op in EPILOGUE_ANCHORS and _f32(n)]
        contractions += [n for n in nodes if n.op == "conv_transpose" and _f32(n) and _of_integers(n)]
        prologues = [_dequantized(anchor) for anchor in contractions]
        taken.update(node for prologue in prologues for node in prologue)
        for anchor, prologue in zip(contractions, prologues, strict=True):
            keep(_grow_down([*prologue, anchor], taken, self.max_nodes), [])
        for anchor in nodes:
            if anchor.op in ROW_ANCHORS and _f32(anchor) and _last_axis(anchor):
                group = _grow_down(_grow_up(anchor, taken), taken, self.max_nodes)
                keep(group, _also_quantized(group, anchor))
        for anchor in nodes:
            if anchor.op == "attention" and _f32_result(anchor) and _whole_lanes(anchor):
                keep([anchor, *_quantizing(anchor.result, alone=True)], [])
        for node in nodes:
            if node not in taken and _elementwise(node):
                keep(_grow_down([node], taken, self.max_nodes), [])
        for group, also in groups:
            if len(group) + len(also) > 1 and ctx.allows(self.name, group[-1]):
                ctx.changed(self.name, group[-1])
                results = [*_live_out(group), *(n.result for n in also)]
                move_into_region(graph, "fused", [*group, *also], results, before=group[-1])


def _elementwise(node: Node) -> bool:
    if "elementwise" not in node.definition.traits or node.op in ("constant",):
        return False
    return all(isinstance(v.type, TensorType) and v.type.shape is not None for v in node.results) and bool(
        node.operands
    )


def _f32(node: Node) -> bool:
    operands = node.operands[:1] if node.op == "matmul_nbits" else node.operands
    return all(
        v is None or (isinstance(v.type, TensorType) and v.type.dtype == F32) for v in (*operands, *node.results)
    )


def _vector(node: Node) -> bool:
    """Whether an anchor's kernel can take in `node`: it has a form on lanes of f32."""
    return all(v is None or isinstance(v.type, TensorType) for v in node.operands) and lane_node(node)


def _last_axis(node: Node) -> bool:
    return bool(node.attrs["axis"] == len(node.result.tensor.dims) - 1)


def same_shape(a: TensorType, b: TensorType) -> bool:
    """Whether two shapes are provably the same."""
    return a.rank == b.rank and all(equal(x, y) is True for x, y in zip(a.dims, b.dims, strict=True))


def _is_vector(t: TensorType, like: TensorType, axis: int) -> bool:
    """Whether `t` broadcasts to `like` and varies along `axis` (counted from the end) only."""
    dims = t.dims
    return len(dims) <= len(like.dims) and all(
        d == 1 or (i - len(dims) == axis and equal(d, like.dims[axis]) is True) for i, d in enumerate(dims)
    )


def _extra_fits(value: Value, anchor: Node) -> bool:
    """Whether a kernel of this anchor can read `value` beside its result."""
    if not isinstance(value.type, TensorType) or not in_lanes(value.type.dtype):
        return False
    if value.type.dtype != F32 and anchor.op not in ROW_ANCHORS and value.type.dtype not in BYTES:
        return False
    like = anchor.result.tensor
    if value.type.size == 1 or (same_shape(value.type, like) and anchor.op != "conv_transpose"):
        return True
    if anchor.op in ("conv", "conv_transpose"):
        known = value.constant is not None or (value.type.rank == like.rank and _of_integers(anchor))
        return known and _is_vector(value.type, like, 1 - len(like.dims))
    return _is_vector(value.type, like, -1)


def _dequantized(anchor: Node) -> list[Node]:
    """The dequantizations that give the first two operands of a contraction, each its own: made anew where something
    else reads one too. None of either, unless the second operand is one of a constant."""
    makers = [anchor.operand(i).producer for i in (0, 1)]
    if not (_of_bytes(makers[1]) and makers[1].operand(0).constant is not None):
        return []
    out = []
    for i, node in enumerate(makers):
        if not _of_bytes(node) or node.graph is not anchor.graph:
            continue
        if len(node.result.uses) > 1:
            assert anchor.graph is not None
            node = anchor.graph.add(node.op, node.operands, node.attrs, before=anchor, origin=node.origin)
            anchor.set_operand(i, node.result)
        out.append(node)
    return out


def _of_integers(anchor: Node) -> bool:
    """Whether both factors of a contraction are dequantized, the second of a constant."""
    makers = [anchor.operand(i).producer for i in (0, 1)]
    return all(map(_of_bytes, makers)) and makers[1] is not None and makers[1].operand(0).constant is not None


def _of_bytes(node: Node | None) -> TypeGuard[Node]:
    return node is not None and node.op == "dequantize" and node.operand(0).tensor.dtype in BYTES and _f32_result(node)


def _f32_result(node: Node) -> bool:
    return node.result.tensor.dtype == F32


def _own_dequantization(value: Value, anchor: Node | None, like: TensorType, taken: set[Node]) -> Node | None:
    """The dequantization that gives `value`, of the shape `like`, to one user alone, if a kernel can take it in."""
    node = value.producer
    if node is None or node.op != "dequantize" or node in taken or len(value.uses) != 1:
        return None
    fits = same_shape(value.tensor, like) and (anchor is None or _vector(node))
    return node if fits and (anchor is None or all(_extra_fits(v, anchor) for v in _operands(node))) else None


def _operands(node: Node) -> list[Value]:
    return [v for v in node.operands if v is not None]


def _joining(node: Node, group: Sequence[Node], taken: set[Node]) -> list[Node]:
    """`node`, after the dequantizations that it alone reads, if it may join the group: elementwise over the same points
    as the group's first result. Else nothing."""
    if not _elementwise(node):
        return []
    anchor = next((n for n in group if not _elementwise(n)), None)
    like = (anchor or group[0]).result.tensor
    if not same_shape(node.result.tensor, like) or not (anchor is None or _vector(node)):
        return []
    inside = {n.result for n in group}
    out = []
    for v in dict.fromkeys(_operands(node)):
        if v in inside:
            continue
        maker = _own_dequantization(v, anchor, like, taken)
        if maker is not None and maker.graph is node.graph:
            out.append(maker)
        elif anchor is not None and not _extra_fits(v, anchor):
            return []
    return [*out, node]


def _live_out(group: Sequence[Node]) -> list[Value]:
    inside = set(group)
    return [n.result for n in group if any(not (isinstance(u, Node) and u in inside) for u, _ in n.result.uses)]


def _ends_well(value: Value, anchor: Node | None) -> bool:
    """Whether a kernel of this anchor can write `value` as its only result."""
    if anchor is None or value.tensor.dtype == F32:
        return True
    node = value.producer
    assert node is not None
    if anchor.op == "matmul_nbits":
        return False
    return node.op == "quantize" and value.tensor.dtype in BYTES and (anchor.op not in ROW_ANCHORS or _short(value))


def _short(value: Value) -> bool:
    row = value.tensor.dims[-1]
    return type(row) is int and row <= MAX_ROW


def _grow_down(group: list[Node], taken: set[Node], limit: int) -> list[Node]:
    """The largest extension of `group` by elementwise users that leaves one value alive, in a form that a kernel of its
    anchor can write."""
    best = list(group)
    current = list(group)
    anchor, last = next((n for n in group if not _elementwise(n)), None), group[-1]
    node = last._next
    steps = 0
    frontier = {n.result for n in group}
    while node is not None and len(current) < limit and steps < 64:
        if any(v in frontier for v in node.operands) and node not in taken:
            if joining := _joining(node, current, taken):
                current += joining
                frontier.update(n.result for n in joining)
                if len(alive := _live_out(current)) == 1 and _ends_well(alive[0], anchor):
                    best = list(current)
            steps += 1
        if not any(isinstance(u, Node) and u not in current for v in frontier for u, _ in v.uses):
            break
        node = node._next
    return best


def _also_quantized(group: Sequence[Node], anchor: Node) -> list[Node]:
    """The node that alone quantizes the f32 result of a norm's group, by a constant scale and zero point, or none."""
    alive = _live_out(group)
    if anchor.op not in NORMS or len(alive) != 1 or alive[0].tensor.dtype != F32 or not _short(alive[0]):
        return []
    return _quantizing(alive[0])


def _rows_on_own_grids(anchor: Node) -> tuple[list[Node], list[Node]] | None:
    """A row's maximum, what is made of it, and the node that quantizes the row by that: (the former with what comes
    before, the latter). None where it is no such reduction."""
    x = anchor.operand(0)
    last = (len(x.tensor.dims) - 1,)
    if x.tensor.dtype != F32 or anchor.attrs["axes"] != last or not anchor.attrs["keepdims"]:
        return None
    group = [anchor]
    if (maker := x.producer) is not None and maker.op == "abs" and len(x.uses) == 1 and maker.graph is anchor.graph:
        group, x = [maker, anchor], maker.operand(0)
    value = anchor.result
    while len(value.uses) == 1 and isinstance(user := value.uses[0][0], Node) and user.op != "quantize":
        others = [v for v in _operands(user) if v is not value]
        constant = all(v.constant is not None and v.tensor.size == 1 for v in others)
        if not (_elementwise(user) and _vector(user) and constant and user.graph is anchor.graph):
            return None
        group, value = [*group, user], user.result
    found = {u for u, i in value.uses if isinstance(u, Node) and u.op == "quantize" and i == 1}
    if len(found) != 1 or value.tensor.dtype != F32 or (node := found.pop()).operand(0) is not x or value.is_output:
        return None
    zeros = all(v.constant is not None and v.tensor.size == 1 for v in _operands(node)[2:])
    fits = zeros and node.result.tensor.dtype in BYTES and node.graph is anchor.graph and _live_out(group) == [value]
    return (group, [node]) if fits else None


def _whole_lanes(attention: Node) -> bool:
    """Whether kernels take the heads as they are, without zeros behind them."""
    sizes = (attention.operand(i).tensor.dims[-1] for i in (0, 2))
    return all(isinstance(size, int) and size % 4 == 0 for size in sizes)


def _quantizing(value: Value, alone: bool = False) -> list[Node]:
    """The only node that quantizes `value`, by a constant scale and zero point, to bytes; with `alone` nothing else may
    read it. Else none."""
    found = {u for u, i in value.uses if isinstance(u, Node) and u.op == "quantize" and i == 0}
    graph = value.producer.graph if value.producer is not None else None
    if len(found) != 1 or (node := found.pop()).result.tensor.dtype not in BYTES or node.graph is not graph:
        return []
    if alone and len(value.uses) != 1:
        return []
    return [node] if all(v.constant is not None and v.tensor.size == 1 for v in _operands(node)[1:]) else []


def _grow_up(anchor: Node, taken: set[Node]) -> list[Node]:
    """`anchor` preceded by the elementwise nodes that feed only it."""
    group = [anchor]
    value = anchor.operand(0)
    like = anchor.result.tensor
    while (node := value.producer) is not None and node not in taken and _elementwise(node) and _vector(node):
        alone = len(value.uses) == 1
        extras = _operands(node)
        own = [m for v in dict.fromkeys(extras) if (m := _own_dequantization(v, anchor, like, taken)) is not None]
        rest = [v for v in extras if v.producer is None or v.producer not in own]
        if not (alone and same_shape(node.result.tensor, like) and all(_extra_fits(v, anchor) for v in rest)):
            break
        if node.graph is not anchor.graph or any(m.graph is not anchor.graph for m in own):
            break
        group[:0] = [*own, node]
        inner = [v for v in rest if v.producer is not None and _elementwise(v.producer) and len(v.uses) == 1]
        if len(inner) != 1:
            break
        value = inner[0]
    return group
