"""A copy of a graph that shares the constants' data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opcel_compiler.ir.graph import Graph, Node, Value


def clone(graph: Graph) -> Graph:
    """A copy of a graph without enclosing graph: the same names, types, attributes and origins, other objects."""
    out = Graph(graph.name)
    _copy(graph, out, {})
    return out


def regions_of(node: Node, values: dict[Value, Value]) -> Callable[[Node], Sequence[Graph]] | None:
    """What makes copies of the node's regions inside a copy of it; None when it has none.

    `values`: what the copies take in place of the values outside; those inside are added.
    """

    def made(parent: Node) -> Sequence[Graph]:
        out = []
        for region in node.regions:
            inner = Graph(region.name, parent=parent)
            _copy(region, inner, values)
            out.append(inner)
        return out

    return made if node.regions else None


def _copy(source: Graph, target: Graph, values: dict[Value, Value]) -> None:
    for v in source.inputs:
        values[v] = target.add_input(v.name, v.type)
    for node in source.nodes:
        made = target.add(
            node.op,
            [None if v is None else values[v] for v in node.operands],
            node.attrs,
            origin=node.origin,
            names=[v.name for v in node.results],
            types=[v.type for v in node.results],
            regions=regions_of(node, values),
        )
        for old, new in zip(node.results, made.results, strict=True):
            new.name = old.name
            values[old] = new
    for v, name in zip(source.outputs, source.output_names, strict=True):
        target.add_output(values[v], name)
