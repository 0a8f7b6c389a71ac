"""What a compile would do with a model, without generating code: what falls back, what is refused, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from opcel_compiler.codegen.cpu.host import unbound_symbols
from opcel_compiler.compilation import Compilation, prepare
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.proto_types import DimValue
from opcel_compiler.ir.analysis import symbols_in
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.regions import region_models
from opcel_compiler.report.facts import coverage_facts, fallback_facts
from opcel_compiler.report.quantized import quantized_facts
from opcel_compiler.schedule.coverage import Coverage


@dataclass
class Check:
    """`fallbacks`: as in the report of an artifact. `refused`: what makes a compile fail, each with the origin of the
    node at fault ("origin"), its operators in the model and the reason; empty when the model compiles. `quantized`: as
    in the report, where the model is."""

    target: str
    coverage: Coverage
    fallbacks: list[dict[str, Any]] = field(default_factory=list)
    refused: list[dict[str, Any]] = field(default_factory=list)
    quantized: dict[str, Any] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of the work that would be native: 0 when the model is refused."""
        return 0.0 if self.refused else self.coverage.share

    def as_dict(self) -> dict[str, Any]:
        facts = {**coverage_facts(self.coverage), "share": self.share}
        found = {"target": self.target, "coverage": facts, "fallback": self.fallbacks, "refused": self.refused}
        return {**found, "quantization": {"imported": self.quantized}} if self.quantized else found


def check(
    model: Any, target: str = "host", *, pipeline: str | None = None, dims: Mapping[str, DimValue] | None = None,
    precision: str = "f32",
) -> Check:  # fmt: skip
    """Import, optimize, place and lower a model as `compile` does, and say what it would say; `dims` and `precision` as
    there.

    Raises ModelError, TargetError or PipelineError when the model, the target or the pipeline cannot be read.
    """
    seen: list[Compilation] = []
    fault: OpcelError | None = None
    try:
        work = prepare(model, target, pipeline=pipeline, dims=dims, precision=precision, placed=seen.append)
    except OpcelError as error:
        if not seen:
            raise
        work, fault = seen[0], error
    refused = list(_refused(work))
    if fault is not None and not refused:
        refused.append(_refusal(work, None, str(fault)))
    quantized = quantized_facts(work) if work.quantized_layers else {}
    return Check(work.target.id, work.coverage, [fallback_facts(f, work) for f in work.fallbacks], refused, quantized)


def _refusal(work: Compilation, node: Node | None, reason: str) -> dict[str, Any]:
    origin = node.origin if node is not None else ()
    known = work.imported.operators
    operators = list(dict.fromkeys(known[o] for o in origin if o in known))
    return {"op": node.op if node is not None else "", "origin": list(origin), "operators": operators, "reason": reason}


def _refused(work: Compilation) -> Iterator[dict[str, Any]]:
    if work.target.codegen != "cpu":
        yield _refusal(work, None, f"target {work.target.id} has no code generator")
    elif work.program is not None:
        try:
            for _ in region_models(work):
                pass
        except OpcelError as error:
            yield _refusal(work, None, str(error))
    if work.program is not None and not work.whole:
        sizes: dict[Node | None, list[str]] = {}
        for name in unbound_symbols(work.program):
            sizes.setdefault(_first_with(work.graph, name), []).append(name)
        for at, names in sizes.items():
            what = f"the size {names[0]} of its result" if len(names) == 1 else f"the sizes {', '.join(names)}"
            way = f"fix it in the model or with --dim {names[0]}=VALUE"
            yield _refusal(work, at, f"{what} cannot be read from any input's shape; {way}")


def _first_with(graph: Graph, name: str) -> Node | None:
    """The first node whose results' types mention the symbol; one inside a region before the region's own node."""
    for node in graph.nodes:
        if any(s.name == name for r in node.results for s in symbols_in(r.type)):
            inner = _first_with(node.regions[0], name) if node.regions else None
            return inner or node
    return None
