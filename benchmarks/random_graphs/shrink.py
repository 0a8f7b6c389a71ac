"""A failing graph made small: results become inputs, outputs and nodes go, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from benchmarks.random_graphs.values import Sample
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.graph import Graph, Value

Fails = Callable[[Sample], bool]


def _copy(s: Sample) -> Sample:
    """A copy with a graph of its own."""
    graph = clone(s.graph)
    names = {v.name: a for v, a in s.arrays.items()}
    arrays = {v: names[v.name] for v in graph.values() if v.name in names}
    return Sample(graph, s.rng, dict(s.sizes), arrays)


def _clean(graph: Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not any(v.uses for v in node.results):
            graph.erase(node)
    for v in [v for v in graph.inputs if not v.uses]:
        graph.inputs.remove(v)
    for i, v in enumerate(graph.inputs):
        v.index = i


def _only(s: Sample, name: str) -> Sample:
    """With the value of that name as the only output."""
    out = _copy(s)
    graph = out.graph
    value = next(v for v in graph.values() if v.name == name)
    for k in range(len(graph.outputs)):
        del graph.outputs[k]._uses[(graph, k)]
    graph._outputs, graph.output_names = [], []
    graph.add_output(value, "y")
    _clean(graph)
    return out


def _cut(s: Sample, name: str) -> Sample:
    """With the value of that name as an input."""
    out = _copy(s)
    value = next(v for v in out.graph.values() if v.name == name)
    made = out.graph.add_input(f"cut_{name}", value.type)
    out.arrays[made] = out.arrays[value]
    value.replace_with(made)
    _clean(out.graph)
    return out


def _cuttable(v: Value) -> bool:
    return v.producer is not None and not v.is_output


def shrink(s: Sample, fails: Fails) -> Sample:
    """The smallest sample that still fails on the way from `s`, which does."""

    def still(candidate: Sample) -> bool:
        try:
            return fails(candidate)
        except Exception:
            return False

    for name in [v.name for v in s.graph.values() if v.producer is not None and v.constant is None]:
        if still(candidate := _only(s, name)):
            s = candidate
            break
    again = True
    while again:
        again = False
        for name in [v.name for v in s.graph.values() if _cuttable(v)]:
            if any(v.name == name and _cuttable(v) for v in s.graph.values()) and still(candidate := _cut(s, name)):
                s, again = candidate, True
    return s


def save(s: Sample, folder: Path, name: str) -> Path:
    """Write the sample as NAME.onnx, or as text where ONNX cannot express it, and its feeds as NAME.npz."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **s.feeds)
    try:
        onnx.save(export_model(clone(s.graph)), folder / f"{name}.onnx")
        return folder / f"{name}.onnx"
    except Exception:
        from opcel_compiler.ir.text import print_graph

        (folder / f"{name}.txt").write_text(print_graph(s.graph, max_elements=1 << 20))
        return folder / f"{name}.txt"
