"""Regions for another engine: convex, as few as dependencies allow, with their reasons."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.verify import verify
from opcel_compiler.schedule.placement import place


def placed(body: str, foreign: set[str]) -> tuple[Graph, list[str]]:
    text = "graph main(%x: f32[4]) {\n" + "\n".join(body.split("|")) + "\n}"
    graph, before = parse_graph(text), parse_graph(text)

    def reason(node: Node) -> str | None:
        return f"no {node.op}" if node.op in foreign else None

    reasons = [f.reason for f in place(graph, reason)]
    verify(graph)
    feeds = {"x": np.array([-1.5, 0.25, 1.0, 2.0], np.float32)}
    for a, b in zip(run(before, feeds).values(), run(graph, feeds).values(), strict=True):
        np.testing.assert_array_equal(a, b)
    return graph, reasons


def regions(graph: Graph) -> list[list[str]]:
    return [[n.op for n in node.regions[0].nodes] for node in graph.nodes if node.op == "external"]


def test_nothing_to_place() -> None:
    graph, reasons = placed("%y = exp(%x)|return %y", set())
    assert regions(graph) == [] and reasons == []


def test_neighbours_share_a_region() -> None:
    graph, reasons = placed("%a = exp(%x)|%b = sin(%a)|%c = cos(%b)|%y = abs(%c)|return %y", {"sin", "cos"})
    assert regions(graph) == [["sin", "cos"]]
    assert reasons == ["no sin", "no cos"]
    (external,) = [n for n in graph.nodes if n.op == "external"]
    assert external.attrs["reason"] == "no sin; no cos"


def test_independent_nodes_of_one_depth_share_a_region() -> None:
    graph, _ = placed("%a = sin(%x)|%b = exp(%x)|%c = sin(%b)|%y = add(%a, %c)|return %y", {"sin"})
    assert regions(graph) == [["sin", "sin"]] or len(regions(graph)) == 1


def test_a_region_is_convex() -> None:
    # sin → exp → sin: the native exp lies between, so that one region would depend on its own result.
    graph, _ = placed("%a = sin(%x)|%b = exp(%a)|%c = sin(%b)|%y = add(%a, %c)|return %y", {"sin"})
    assert regions(graph) == [["sin"], ["sin"]]


def test_a_value_used_inside_and_outside_leaves_the_region() -> None:
    graph, _ = placed("%a = sin(%x)|%b = sin(%a)|return %a, %b", {"sin"})
    (external,) = [n for n in graph.nodes if n.op == "external"]
    assert len(external.results) == 2


def test_what_only_another_engine_holds_stays_in_one_region() -> None:
    """%s passes from the first to the last node beside %n and %m, which therefore go with it."""
    graph = parse_graph(
        "graph main(%x: f32[4]) {\n%a = exp(%x)\n%s = sin(%a)\n%n = neg(%s)\n%m = abs(%n)\n%y = add(%s, %m)\n"
        "%z = neg(%y)\nreturn %z\n}"
    )

    def reason(node: Node) -> str | None:
        return "it is foreign" if node.results[0].name in ("s", "y") else None

    found = place(graph, reason, stuck=lambda value: value.name == "s")
    verify(graph)
    assert [f.op for f in found] == ["sin", "neg", "abs", "add"]
    assert found[1].reason == "it stands between nodes that hand on %s, which only ONNX Runtime can hold"
    assert [n.op for n in graph.nodes] == ["exp", "external", "neg"]
