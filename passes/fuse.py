"""Group nodes into `fused` operators: an anchor with the elementwise work around it, or elementwise work alone.

One group becomes one kernel, so every value inside it stays in registers. An anchor (convolution, matrix product, row
operator) takes in the elementwise nodes after it as epilogue; a row operator also takes those before it as prologue.
A group has exactly one value that is used outside; that alone rules out cycles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.dims import equal
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.ops.control import nested
from opcel_compiler.ir.outline import move_into_region
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.rewrite.pass_ import Pass, PassContext
from opcel_compiler.targets.cpu.lanes import in_lanes, lane_node

EPILOGUE_ANCHORS = frozenset({"conv", "matmul"})
ROW_ANCHORS = frozenset({"softmax", "log_softmax", "layer_norm", "rms_norm"})


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
        groups: list[list[Node]] = []

        def keep(group: list[Node]) -> None:
            taken.update(group)
            groups.append(group)

        nodes = list(graph.nodes)
        for anchor in nodes:
            if anchor.op in EPILOGUE_ANCHORS and _f32(anchor):
                keep(_grow_down([anchor], taken, self.max_nodes))
        for anchor in nodes:
            if anchor.op in ROW_ANCHORS and _f32(anchor) and _last_axis(anchor):
                keep(_grow_down(_grow_up(anchor, taken), taken, self.max_nodes))
        for node in nodes:
            if node not in taken and _elementwise(node):
                keep(_grow_down([node], taken, self.max_nodes))
        for group in groups:
            if len(group) > 1 and ctx.allows(self.name, group[-1]):
                ctx.changed(self.name, group[-1])
                move_into_region(graph, "fused", group, _live_out(group), before=group[-1])


def _elementwise(node: Node) -> bool:
    if "elementwise" not in node.definition.traits or node.op in ("constant",):
        return False
    return all(isinstance(v.type, TensorType) and v.type.shape is not None for v in node.results) and bool(
        node.operands
    )


def _f32(node: Node) -> bool:
    return all(
        v is None or (isinstance(v.type, TensorType) and v.type.dtype == F32) for v in (*node.operands, *node.results)
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
    if value.type.dtype != F32 and anchor.op not in ROW_ANCHORS:
        return False
    like = anchor.result.tensor
    if same_shape(value.type, like) or value.type.size == 1:
        return True
    if anchor.op == "conv":
        return value.constant is not None and _is_vector(value.type, like, 1 - len(like.dims))
    return _is_vector(value.type, like, -1)


def _fits(node: Node, group: Sequence[Node]) -> bool:
    """Whether `node` may join the group: elementwise over the same points as the group's first result."""
    if not _elementwise(node):
        return False
    first = group[0]
    anchor = next((n for n in group if not _elementwise(n)), None)
    if not same_shape(node.result.tensor, (anchor or first).result.tensor):
        return False
    if anchor is None:
        return True
    inside = {n.result for n in group}
    return _vector(node) and all(v is None or v in inside or _extra_fits(v, anchor) for v in node.operands)


def _live_out(group: Sequence[Node]) -> list[Value]:
    inside = set(group)
    return [n.result for n in group if any(not (isinstance(u, Node) and u in inside) for u, _ in n.result.uses)]


def _grow_down(group: list[Node], taken: set[Node], limit: int) -> list[Node]:
    """The largest extension of `group` by elementwise users that leaves one value alive, in f32 if it has an anchor."""
    best = list(group)
    current = list(group)
    alone, last = all(map(_elementwise, group)), group[-1]
    node = last._next
    steps = 0
    frontier = {n.result for n in group}
    while node is not None and len(current) < limit and steps < 64:
        if any(v in frontier for v in node.operands) and node not in taken:
            if _fits(node, current):
                current.append(node)
                frontier.add(node.result)
                if len(alive := _live_out(current)) == 1 and (alone or alive[0].tensor.dtype == F32):
                    best = list(current)
            steps += 1
        if not any(isinstance(u, Node) and u not in current for v in frontier for u, _ in v.uses):
            break
        node = node._next
    return best


def _grow_up(anchor: Node, taken: set[Node]) -> list[Node]:
    """`anchor` preceded by the elementwise nodes that feed only it."""
    group = [anchor]
    value = anchor.operand(0)
    while (node := value.producer) is not None and node not in taken and _elementwise(node) and _vector(node):
        alone = len(value.uses) == 1
        fits = same_shape(node.result.tensor, anchor.result.tensor)
        extras = [v for v in node.operands if v is not None]
        if not (alone and fits and all(_extra_fits(v, anchor) for v in extras)) or node.graph is not anchor.graph:
            break
        group.insert(0, node)
        inner = [v for v in extras if v.producer is not None and _elementwise(v.producer) and len(v.uses) == 1]
        if len(inner) != 1:
            break
        value = inner[0]
    return group
