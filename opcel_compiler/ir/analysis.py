"""Read-only analyses of a graph: its symbols, and its dependences as a networkx graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import networkx as nx

from opcel_compiler.ir.dims import Dim, Expr, Symbol, symbols_of
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import MapType, OptionalType, SequenceType, TensorType


def symbols_in(item: Any) -> Iterator[Symbol]:
    """The symbols in a dim, a type or an attribute's value, with repetitions."""
    if isinstance(item, Expr):
        yield from symbols_of(item)
    elif isinstance(item, TensorType):
        yield from symbols_in(item.shape)
    elif isinstance(item, (SequenceType, OptionalType)):
        yield from symbols_in(item.element)
    elif isinstance(item, MapType):
        yield from symbols_in(item.value)
    elif isinstance(item, tuple):
        for part in item:
            yield from symbols_in(part)


def graph_symbols(graph: Graph) -> dict[str, Symbol]:
    """Every symbol in the types and attributes of `graph` and its regions, by name, in order of appearance. Where one
    name comes with two ranges, which is invalid, the first."""
    out: dict[str, Symbol] = {}
    for place in symbol_places(graph):
        for s in symbols_in(place[1]):
            out.setdefault(s.name, s)
    return out


def symbol_places(graph: Graph) -> Iterator[tuple[Node | None, Any]]:
    """(node, type or attribute's value) for all that may hold symbols; the node is None for the graph's inputs."""
    for value in graph.inputs:
        yield None, value.type
    for node in graph.nodes:
        for item in node.attrs.values():
            yield node, item
        for value in node.results:
            yield node, value.type
        for region in node.regions:
            for inner, item in symbol_places(region):
                yield inner or node, item


def named_symbols(node: Node) -> Iterator[Symbol]:
    """The symbols that must have values before `node` runs: those that its attributes, the types of its results and its
    regions name, less those that it or a node of its regions makes; with repetitions."""
    made = set(made_symbols(node))
    for region in node.regions:
        for inner in region.walk():
            made.update(made_symbols(inner))
    items: list[Any] = [*node.attrs.values(), *(v.type for v in node.results)]
    for region in node.regions:
        items += [item for _, item in symbol_places(region)]
    return (s for item in items for s in symbols_in(item) if s not in made)


def made_symbols(node: Node) -> tuple[Symbol, ...]:
    """The symbols that `node` gives values."""
    if node.op != "read_dims":
        return ()
    return tuple(symbols_in(node.attrs["symbols"]))


def symbol_makers(graph: Graph) -> dict[Symbol, Node]:
    """The `read_dims` of each symbol, of those in `graph` itself."""
    return {s: node for node in graph.nodes for s in made_symbols(node)}


def dead_nodes(nodes: Sequence[Node]) -> Iterator[Node]:
    """Those of `nodes`, given in order, that have no used result and make no symbol that a living node names; users
    come before what they use. The caller erases a node when it gets it, else it counts as living."""
    named: set[Symbol] | None = set() if any(made_symbols(n) for n in nodes) else None
    for node in reversed(nodes):
        if node.graph is None:
            continue
        if not any(v.uses for v in node.results) and not (named and not named.isdisjoint(made_symbols(node))):
            yield node
        if named is not None and node.graph is not None:
            named.update(named_symbols(node))


def captured(node: Node) -> Iterator[Value]:
    """The values from outside that the regions of `node` use, with repetitions."""
    inside = set(node.regions)
    for region in node.regions:
        for inner in region.walk():
            inside.update(inner.regions)
    for region in inside:
        for v in region.outputs:
            if v.graph not in inside:
                yield v
        for inner in region.nodes:
            yield from (v for v in inner.operands if v is not None and v.graph not in inside)


def dependences(node: Node) -> Iterator[Value]:
    """The values that must exist before `node` runs: its operands and what its regions capture; with repetitions."""
    yield from (v for v in node.operands if v is not None)
    if node.regions:
        yield from captured(node)


def as_networkx(graph: Graph) -> nx.DiGraph:
    """The nodes of `graph` (not those of regions) as vertices, in order; an edge from each node to every node that
    depends on it, also by a symbol."""
    view = nx.DiGraph()
    makers = symbol_makers(graph)
    for node in graph.nodes:
        view.add_node(node)
        view.add_edges_from((makers[s], node) for s in named_symbols(node) if s in makers)
        for value in dependences(node):
            if value.producer is not None and value.graph is graph:
                view.add_edge(value.producer, node)
    return view


def reachable(view: nx.DiGraph, sources: Iterable[Node]) -> set[Node]:
    """`sources` and all that depends on them. `view.reverse(copy=False)` gives what they depend on."""
    found = set(sources)
    stack = list(found)
    while stack:
        for following in view.successors(stack.pop()):
            if following not in found:
                found.add(following)
                stack.append(following)
    return found


def _immediate(view: nx.DiGraph, roots: Iterable[Node]) -> dict[Node, Node | None]:
    source = object()
    view.add_edges_from((source, node) for node in roots)
    idom = nx.immediate_dominators(view, source)
    return {n: None if d is source else d for n, d in idom.items() if n is not source}


def dominators(graph: Graph) -> dict[Node, Node | None]:
    """For each node the nearest other node that lies on every path to it from the graph's inputs and constants; None
    when there is no such node."""
    view = as_networkx(graph)
    fed = [n for n in view if view.in_degree(n) == 0 or any(v.producer is None for v in dependences(n))]
    return _immediate(view, fed)


def post_dominators(graph: Graph) -> dict[Node, Node | None]:
    """For each node the nearest other node that lies on every path from it to the graph's outputs or to a node whose
    results are unused; None when there is no such node."""
    view = as_networkx(graph)
    ends = [n for n in view if view.out_degree(n) == 0 or any(v.is_output for v in n.results)]
    return _immediate(view.reverse(), ends)


def flops(node: Node) -> Dim:
    """The multiplies and adds of a node, one each, with those of its regions (a region that may run several times or
    not at all counts once)."""
    types = [None if v is None else v.type for v in node.operands]
    out = node.definition.flops(types, [v.type for v in node.results], node.attrs)
    for region in node.regions:
        for inner in region.nodes:
            out = out + flops(inner)
    return out
