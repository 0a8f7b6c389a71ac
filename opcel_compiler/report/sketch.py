"""What a picture of a graph or a Program needs: boxes, and arrows between them. Plain data, kept in the report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from opcel_compiler.ir.analysis import dependences
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.opdef import op_def
from opcel_compiler.ir.program import Buffer, Kernel, Program, Region

KINDS = ("contraction", "row", "reduction", "elementwise", "movement", "fallback", "port")
"""What a box stands for; `port` is an input or output."""

Sketch = dict[str, Any]
"""{"nodes": [[kind, title, subtitle], ...], "edges": [[from, to], ...]}, where every edge goes forward."""

HIDDEN = frozenset({"constant", "dims"})


def graph_sketch(graph: Graph, input_names: tuple[str, ...]) -> Sketch:
    """The nodes of a graph but for constants, with the names of the ONNX nodes that they come from."""
    nodes: list[list[str]] = [["port", name, "input"] for name in input_names]
    index: dict[Any, int] = {value: i for i, value in enumerate(graph.inputs)}
    edges: dict[tuple[int, int], None] = {}
    for node in graph.nodes:
        if node.op in HIDDEN:
            continue
        at = len(nodes)
        nodes.append([_kind(node), _title(node), node.origin[0] if node.origin else ""])
        for value in dependences(node):
            if value in index:
                edges[index[value], at] = None
        index.update(dict.fromkeys(node.results, at))
    for name, value in zip(graph.output_names, graph.outputs, strict=True):
        if value in index:
            edges[index[value], len(nodes)] = None
        nodes.append(["port", name, "output"])
    return {"nodes": nodes, "edges": [list(e) for e in edges]}


def program_sketch(program: Program, input_names: tuple[str, ...], output_names: tuple[str, ...]) -> Sketch:
    """The steps of a Program, with the operators that each computes."""
    nodes: list[list[str]] = [["port", name, "input"] for name in input_names]
    writers: dict[Buffer, list[int]] = {b: [i] for i, b in enumerate(program.inputs)}
    edges: dict[tuple[int, int], None] = {}
    for step in program.launches:
        at = len(nodes)
        nodes.append(_step(step))
        for view in step.inputs:
            edges.update(dict.fromkeys((w, at) for w in writers.get(view.buffer, ())))
        for view in step.outputs:
            writers.setdefault(view.buffer, []).append(at)
    for name, buffer in zip(output_names, program.outputs, strict=True):
        edges.update(dict.fromkeys((w, len(nodes)) for w in writers.get(buffer, ())))
        nodes.append(["port", name, "output"])
    return {"nodes": nodes, "edges": [list(e) for e in edges if e[0] != e[1]]}


def whole_sketch(input_names: tuple[str, ...], output_names: tuple[str, ...]) -> Sketch:
    """A model that runs whole in another engine."""
    at = len(input_names)
    nodes = [*(["port", n, "input"] for n in input_names), ["fallback", "ONNX Runtime", "the whole model"]]
    edges = [[i, at] for i in range(at)] + [[at, at + 1 + i] for i in range(len(output_names))]
    return {"nodes": [*nodes, *(["port", n, "output"] for n in output_names)], "edges": edges}


def _step(step: Kernel | Region) -> list[str]:
    if not isinstance(step, Kernel):
        return ["fallback", "ONNX Runtime", ", ".join(_counted(_title(n) for n in step.nodes))]
    inner = [n for n in step.body.nodes if n.op not in HIDDEN]
    anchor = step.anchor or next((n for n in inner), None)
    kind = "movement" if anchor is None else _kind(anchor)
    return [kind, step.family, ", ".join(_counted(n.op for n in inner))]


def _counted(names: Iterator[str]) -> Iterator[str]:
    return (name if n == 1 else f"{n}×{name}" for name, n in Counter(names).items())


def _title(node: Node) -> str:
    return str(node.attrs["op_type"]) if node.op == "foreign" else node.op


def _kind(node: Node) -> str:
    if node.op in ("foreign", "external"):
        return "fallback"
    traits = op_def(node.op).traits
    return next((kind for kind in KINDS if kind in traits), "row" if node.op in ("attention", "lstm") else "movement")
