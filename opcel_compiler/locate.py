"""Where a compiled model first differs from its reference."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.codegen.artifact import FORMAT, MANIFEST, write_json
from opcel_compiler.codegen.cpu.build import build
from opcel_compiler.compilation import Compilation
from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.interpret import run as interpret
from opcel_compiler.ir.types import TensorType
from opcel_compiler.proof import Bound, Feeds, compare
from opcel_compiler.rewrite.pipeline import PassManager
from opcel_compiler.runtime.integrity import stamped
from opcel_compiler.runtime.model import CompiledModel
from opcel_compiler.schedule.lower import lower


def first_wrong_node(work: Compilation, feeds: Feeds, want: Sequence[np.ndarray], engine: str, bound: Bound) -> str:
    """A sentence that names the first kernel whose result differs from the interpreter's on the same graph, or says
    that a pass changed the graph's meaning, or why neither could be found out."""
    try:
        return _search(work, feeds, want, engine, bound)
    except OpcelError as error:
        return f"The first wrong node could not be searched for: {error}"


def _search(work: Compilation, feeds: Feeds, want: Sequence[np.ndarray], engine: str, bound: Bound) -> str:
    graph = work.graph
    names = work.imported.input_names
    given = {v.name: feeds[n] for n, v in zip(names, graph.inputs, strict=True)}
    if work.regions:
        return "The model has regions in another engine, so the first wrong node was not searched for."
    values: dict[str, tuple[Node, np.ndarray]] = {}

    def observe(node: Node, results: Sequence[np.ndarray]) -> None:
        if node.op not in ("constant", "dims"):
            for value, array in zip(node.results, results, strict=True):
                values[value.name] = (node, np.asarray(array))

    final = interpret(graph, given, observe=observe)
    got = _run_observed(work, graph, list(values), feeds)
    for name, (node, array) in values.items():
        if name in got and not compare(name, got[name], array, bound).within:
            return f"The first node that is off is {_label(node)} (%{name})."
    meaning = [compare(n, np.asarray(a), w, bound).within for (n, a), w in zip(final.items(), want, strict=True)]
    if not all(meaning):
        return (
            f"Every kernel agrees with the interpreter, so a pass changed what the graph computes (against {engine}); "
            f"`opcel opt MODEL --target {work.target.id} --bisect` names the pass and the rewrite."
        )
    return "Every kernel is within the bound by itself; the error adds up over the network."


def _label(node: Node) -> str:
    return ", ".join(node.origin[:4]) or node.op


def _run_observed(work: Compilation, graph: Graph, names: Sequence[str], feeds: Feeds) -> dict[str, np.ndarray]:
    """The compiled results of all named values, from a build of the same graph that returns them too."""
    wanted = set(names)
    extra = [
        r for n in graph.nodes for r in n.results
        if r.name in wanted and isinstance(r.type, TensorType) and r.type.shape is not None
    ]  # fmt: skip
    before = len(graph.outputs)
    for value in extra:
        graph.add_output(value, f"observed.{value.name}")
    program = lower(graph)
    PassManager.run(program, work.pipeline.at("program"), work.context)
    outputs = [*work.imported.output_names, *(f"observed.{v.name}" for v in extra)]
    assert len(outputs) == before + len(extra)
    with tempfile.TemporaryDirectory(prefix="opcel-") as name:
        folder = Path(name)
        build(program, work.target, folder, (work.imported.input_names, outputs))
        write_json(folder / MANIFEST, _minimal(work, folder))
        with CompiledModel(folder) as model:
            got = model.run(dict(feeds))
    return {v.name: np.asarray(got[f"observed.{v.name}"]) for v in extra}


def _minimal(work: Compilation, folder: Path) -> dict[str, Any]:
    weights = folder / "weights.bin"
    return stamped({
        "format": FORMAT, "inputs": [], "outputs": [], "modules": [{"kind": "cpu", "file": "model.so"}],
        "weights": {"file": "weights.bin", "bytes": weights.stat().st_size if weights.exists() else 0},
    })  # fmt: skip
