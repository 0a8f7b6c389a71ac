"""Copy some nodes of a graph into a graph of their own: the body of a fused node, a region, a kernel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opcel_compiler.ir.analysis import dependences
from opcel_compiler.ir.clone import regions_of
from opcel_compiler.ir.dims import equal
from opcel_compiler.ir.graph import Graph, Node, Value


def outside_values(nodes: Sequence[Node], literals: bool = True) -> list[Value]:
    """The values that `nodes` use and do not compute, in order of first use. With `literals`, one-element constants
    that only elementwise nodes use are left out: they belong to the code."""
    own = {r for node in nodes for r in node.results}
    uses: dict[Value, bool] = {}
    for node in nodes:
        for v in dependences(node):
            if v not in own:
                uses[v] = uses.get(v, True) and "elementwise" in node.definition.traits
    return [v for v, elementwise in uses.items() if not (literals and elementwise and _one_element(v))]


def _one_element(v: Value) -> bool:
    return v.constant is not None and equal(v.tensor.size, 1) is True


def outline(
    nodes: Sequence[Node], outputs: Iterable[Value], literals: bool = True, *, name: str = "body",
    parent: Node | None = None,
) -> Graph:  # fmt: skip
    """A graph that computes `outputs` with copies of `nodes`, given in order; its inputs are `outside_values`."""
    body = Graph(name, parent)
    known: dict[Value, Value] = {v: body.add_input(v.name, v.type) for v in outside_values(nodes, literals)}
    for node in nodes:
        for v in dependences(node):
            if v not in known and v.constant is not None:
                known[v] = body.constant(v.constant, name=v.name)
        copy = body.add(
            node.op, [None if v is None else known[v] for v in node.operands], node.attrs, origin=node.origin,
            names=[r.name for r in node.results], types=[r.type for r in node.results],
            regions=regions_of(node, known),
        )  # fmt: skip
        known.update(zip(node.results, copy.results, strict=True))
    for v in outputs:
        body.add_output(known[v])
    return body


def move_into_region(
    graph: Graph, op: str, nodes: Sequence[Node], outputs: Sequence[Value], attrs: Mapping[str, Any] | None = None, *,
    literals: bool = True, before: Node | None = None,
) -> Node:  # fmt: skip
    """Replace `nodes` by one node `op` with one region that computes `outputs`, placed before `before`."""
    node = graph.add(
        op, outside_values(nodes, literals), attrs, before=before, origin=[o for n in nodes for o in n.origin],
        names=[v.name for v in outputs], types=[v.type for v in outputs],
        regions=lambda parent: [outline(nodes, outputs, literals, name=parent.op, parent=parent)],
    )  # fmt: skip
    inside = {inner for n in nodes for inner in (n, *(i for region in n.regions for i in region.walk()))}
    regions = {region for n in inside for region in n.regions}
    for old, new in zip(outputs, node.results, strict=True):
        for user, i in old.uses:
            if isinstance(user, Graph):
                if user not in regions:
                    user.set_output(i, new)
            elif user not in inside:
                user.set_operand(i, new)
    for old_node in reversed(nodes):
        graph.erase(old_node)
    return node
