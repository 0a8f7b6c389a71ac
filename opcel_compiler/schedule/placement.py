"""Which nodes the target runs itself, and which go to another engine in regions cut as large as they can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from opcel_compiler.ir.analysis import dependences, named_symbols, symbol_makers
from opcel_compiler.ir.dims import Symbol
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.outline import move_into_region
from opcel_compiler.schedule.coverage import NOTHING, Work

Reason = Callable[[Node], "str | None"]
"""Why the target cannot run a node, or None."""


@dataclass(frozen=True)
class Fallback:
    """A node that the target cannot run, by its origin in the model, and why."""

    op: str
    origin: tuple[str, ...]
    reason: str
    work: Work = NOTHING


def place(
    graph: Graph, reason: Reason, work: Callable[[Node], Work] = lambda node: NOTHING,
    stuck: Callable[[Value], bool] = lambda value: False,
) -> list[Fallback]:  # fmt: skip
    """Wrap what the target cannot run into `external` nodes, as few as dependencies allow; returns why, by node.

    Each external region is convex: no path leaves it and comes back. Values that are `stuck`, of which only nodes with
    a reason may know, stay within one region.
    """
    reasons = {node: why for node in graph.nodes if (why := reason(node)) is not None}
    while True:
        depth = _depths(graph, reasons)
        between = _between(graph, reasons, depth, stuck)
        if not between:
            break
        reasons.update(between)
    groups: dict[int, list[Node]] = {}
    for node in graph.nodes:
        if node in reasons:
            groups.setdefault(depth[node], []).append(node)
    fallbacks = [Fallback(label(n), n.origin, reasons[n], work(n)) for n in graph.nodes if n in reasons]
    for group in groups.values():
        _wrap(graph, group, "; ".join(dict.fromkeys(reasons[n] for n in group)))
    return fallbacks


def _depths(graph: Graph, reasons: Mapping[Node, str]) -> dict[Node, int]:
    """How often the way to a node changes between engines: odd for nodes with a reason, even for the others."""
    depth: dict[Node, int] = {}
    makers = symbol_makers(graph)
    for node in graph.nodes:
        level = 0
        for source in _sources(node, makers):
            crossing = (source in reasons) != (node in reasons)
            level = max(level, depth[source] + crossing)
        if node in reasons and level % 2 == 0:
            level += 1
        if node not in reasons and level % 2 == 1:
            level += 1
        depth[node] = level
    return depth


def _between(
    graph: Graph, reasons: Mapping[Node, str], depth: Mapping[Node, int], stuck: Callable[[Value], bool]
) -> dict[Node, str]:
    """The native nodes on a way beside a stuck value that would pass from one region to another."""
    out: dict[Node, str] = {}
    for value in (v for maker in reasons for v in maker.results if stuck(v)):
        maker = value.producer
        users = [u for u in (_holder(user, graph) for user, _ in value.uses) if isinstance(u, Node)]
        last = max((depth[u] for u in users), default=0)
        if maker is None or last <= depth[maker]:
            continue
        why = f"it stands between nodes that hand on %{value.name}, which only ONNX Runtime can hold"
        after = {maker}
        makers = symbol_makers(graph)
        for node in graph.nodes:
            if not after.isdisjoint(_sources(node, makers)):
                after.add(node)
        out |= {n: why for n in graph.nodes if n in after and n not in reasons and depth[n] < last}
    return out


def label(node: Node) -> str:
    return str(node.attrs["op_type"]) if node.op == "foreign" else node.op


def _sources(node: Node, makers: Mapping[Symbol, Node]) -> set[Node]:
    """The nodes of its graph that must run before `node`."""
    made = {v.producer for v in dependences(node) if v.producer is not None and v.graph is node.graph}
    if makers:
        made |= {makers[s] for s in named_symbols(node) if s in makers}
    return made


def _wrap(graph: Graph, group: Sequence[Node], reason: str) -> None:
    """Replace `group` by one `external` node placed after everything it needs; later users move behind it."""
    inside = set(group)
    outputs = [r for n in group for r in n.results if any(_holder(u, graph) not in inside for u, _ in r.uses)]
    move_into_region(graph, "external", group, outputs, {"reason": reason}, literals=False)
    _sort(graph)


def _holder(user: Node | Graph, graph: Graph) -> Node | Graph:
    """The node of `graph` that is `user` or holds it in a region; `graph` itself for its outputs."""
    while user is not graph:
        around = user if isinstance(user, Graph) else user.graph
        if isinstance(user, Node) and around is graph:
            return user
        assert around is not None and around.parent is not None
        user = around.parent
    return user


def _sort(graph: Graph) -> None:
    """Restore a valid order, moving as few nodes as a stable topological sort does."""
    done: set[Node] = set()
    order: list[Node] = []
    pending = list(graph.nodes)
    makers = symbol_makers(graph)
    needs = {node: _sources(node, makers) for node in pending}
    while pending:
        later = []
        for node in pending:
            if needs[node] <= done:
                done.add(node)
                order.append(node)
            else:
                later.append(node)
        if len(later) == len(pending):
            raise ValueError("the graph has a cycle")
        pending = later
    for node in order:
        graph.move(node, None)
