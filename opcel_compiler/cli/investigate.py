"""What `opcel opt` finds out about passes: which rewrite spoils a result, and why a rule was not applied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opcel_compiler.cli.console import CommandError, note
from opcel_compiler.cli.files import read_arrays
from opcel_compiler.cli.source import Source, Subject, check, lowered
from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.interpret import run as interpret
from opcel_compiler.proof import Bound, OutputError_, compare, given_inputs, sample_inputs
from opcel_compiler.rewrite.bisect import Culprit, find_culprit
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.errors import suggest
from opcel_compiler.rewrite.pass_ import RulePass
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline, discover
from opcel_compiler.rewrite.report import Report

if TYPE_CHECKING:
    from opcel_compiler.rewrite.pass_ import Pass

Rows = Iterator[tuple[str, str]]
NODES = 8
"""At so many nodes a rule's refusals are listed."""


# -- bisection ---------------------------------------------------------------------------------------------------------


@dataclass
class _Judge:
    """Whether a subject is valid and gives the outputs `want` for `feeds`, both in the order of the subject's own."""

    feeds: list[np.ndarray]
    want: Mapping[str, np.ndarray]
    target: Any
    bound: Bound

    def __call__(self, subject: Subject) -> bool:
        found = self.measure(subject)
        return not isinstance(found, str) and all(o.within for o in found)

    def measure(self, subject: Subject) -> list[OutputError_] | str:
        """How far each output is off, or why the subject cannot be run."""
        try:
            check(subject)
            got = self._run(subject)
        except OpcelError as error:
            return str(error).splitlines()[0]
        pairs = zip(self.want.items(), got.values(), strict=True)
        return [compare(name, np.asarray(a), w, self.bound) for (name, w), a in pairs]

    def _run(self, subject: Subject) -> dict[str, np.ndarray]:
        feeds = dict(zip((v.name for v in subject.inputs), self.feeds, strict=True))
        if isinstance(subject, Graph):
            return interpret(subject, feeds, foreign=_by_onnxruntime)
        from opcel_compiler.ir.program_interpret import run_program

        return run_program(subject, feeds, self.target)


def _by_onnxruntime(node: Node, operands: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """The results of an operator that has no definition of ours. Raises CommandError when there are none to be had."""
    import onnxruntime

    from opcel_compiler.frontend.exporter import export_region

    inputs = {v: a for v, a in zip(node.operands, operands, strict=True) if v is not None and v.constant is None}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        region = export_region([node], list(inputs), node.results)
        data = region.model.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return list(session.run(None, dict(zip(region.inputs, inputs.values(), strict=True))))
    except Exception as error:  # it raises many kinds, none of them derived from one of its own
        what = f"{node.attrs['op_type']} ({', '.join(node.origin) or 'unnamed'})"
        reason = str(error).splitlines()[0]
        raise CommandError(f"nothing here can run {what}, so results cannot be compared: {reason}") from error


def bisect(source: Source, pipeline: Pipeline, ctx: PassContext, inputs: Path | None, lower: bool) -> Rows:
    """Run `pipeline` on fresh copies of the source and interpret them against the source itself; with `lower` also its
    passes for Programs. Gives rows about the first pass and rewrite that spoil an output; no rows when all is well.

    Raises OpcelError when the source cannot be interpreted or the inputs do not fit.
    """
    graph = source.subject
    if not isinstance(graph, Graph):
        raise CommandError("a Program has no graph to be compared with; bisect from the model or the graph's text")
    names = source.input_names
    feeds = given_inputs(read_arrays(inputs), graph, names) if inputs else sample_inputs(graph, names)
    given = list(feeds.values())
    want = interpret(graph, dict(zip((v.name for v in graph.inputs), given, strict=True)), foreign=_by_onnxruntime)
    if not all(np.all(np.isfinite(a)) for a in want.values() if a.dtype.kind == "f"):
        note("outputs of the input graph are not finite on these inputs, which hides errors; give others with --inputs")
    judge = _Judge(given, want, ctx.target, Bound())
    upper = pipeline.at("graph")
    culprit = find_culprit(lambda: clone(graph), upper, judge, ctx)
    if culprit is None and lower:

        def fresh() -> Subject:
            subject = clone(graph)
            PassManager.run(subject, upper, PassContext(ctx.target, ctx.forbidden))
            return lowered(subject)

        culprit = find_culprit(fresh, pipeline.at("program"), judge, ctx)
    return iter(()) if culprit is None else _culprit_rows(culprit, judge)


def _culprit_rows(culprit: Culprit, judge: _Judge) -> Rows:
    yield "first bad", f"pass {culprit.pass_name}, number {culprit.index + 1} of the pipeline"
    if culprit.change is not None:
        yield "", f"rule {culprit.rule} at %{culprit.at}, change {culprit.change} of the pipeline"
    else:
        yield "", "the pass counts no changes, or spoils the result beside them"
    if culprit.origin:
        yield "nodes", ", ".join(culprit.origin)
    for label, subject in (("before", culprit.before), ("after", culprit.after)):
        if culprit.change is not None and isinstance(subject, Graph):
            yield from _made(label, subject, culprit.at)
    found = judge.measure(culprit.after)
    if isinstance(found, str):
        yield "result", found
        return
    worst = max(found, key=lambda o: (not o.within, o.max_abs))
    errors = f"largest error {worst.max_abs:.3g}, relative L2 {worst.relative_l2:.3g}"
    yield "result", f"output {worst.name!r} is off: {errors} (bound: {judge.bound})"


def _made(label: str, graph: Graph, name: str) -> Rows:
    from opcel_compiler.ir.text import print_node

    for node in graph.walk():
        if any(v.name == name for v in node.results):
            for i, line in enumerate(print_node(node).splitlines()):
                yield "" if i else label, line


# -- why a rule was not applied ----------------------------------------------------------------------------------------


def explain(graph: Graph, pipeline: Pipeline, rule: str, name: str, target: Any) -> Rows:
    """Run `pipeline` on `graph`. Rows that say what `rule` did at the nodes called `name` or made from the ONNX node of
    that name: where it was applied, or how far its pattern matched and which check failed.

    Raises CommandError for a rule or node that there is not.
    """
    name = name.removeprefix("%")
    own = {v.name: n for n in graph.walk() for v in n.results}
    from_onnx = {o for n in graph.walk() for o in n.origin}
    if name not in own and name not in from_onnx:
        raise CommandError(f"the model has no node {name!r}{suggest(name, {*own, *from_onnx})}")
    ctx = PassContext(target=target, explain=True, focus=rule)
    PassManager.run(graph, pipeline, ctx)
    report = ctx.report
    _check_rule(rule, pipeline, report)
    here = False
    for change in report.log:
        if change.rule == rule and (change.value == name or name in change.origin):
            here = True
            yield "applied", f"by {change.pass_name} at %{change.value}{_origin(change.origin)}"
    refused = [r for r in report.refusals(near_misses=True) if r.rule == rule]
    mine = [r for r in refused if r.value == name or name in r.origin]
    for r in mine:
        yield "refused", f"by {r.pass_name} at %{r.value}{_origin(r.origin)}: {r.reason}"
    if here or mine:
        return
    yield "not tried", f"{rule} was tried at no node {name!r}"
    if rule in (roots := _roots(pipeline)):
        yield "starts at", " or ".join(roots[rule])
    earlier = dict.fromkeys(f"{c.pass_name}: {c.rule}" for c in report.log if c.value == name or name in c.origin)
    if earlier:
        yield "rewritten", f"before that, by {', '.join(earlier)}"
    places = dict.fromkeys(r.origin[0] if r.origin else f"%{r.value}" for r in refused)
    for i, place in enumerate(list(places)[:NODES]):
        yield "" if i else "tried at", place
    if len(places) > NODES:
        yield "", f"and {len(places) - NODES} more"


def _check_rule(rule: str, pipeline: Pipeline, report: Report) -> None:
    recorded = {c.rule for c in report.log} | {r.rule for r in report.refusals(near_misses=True)}
    known = {r.name for p in pipeline.passes for r in _rules(type(p))} | recorded
    if rule in known:
        return
    elsewhere = [p for p, cls in discover().items() if rule in {r.name for r in _rules(cls)}]
    if elsewhere:
        raise CommandError(f"rule {rule} is of the pass {elsewhere[0]}, which is not in the pipeline")
    raise CommandError(f"no pass of the pipeline tried a rule {rule!r}{suggest(rule, known)}")


def _rules(cls: type[Pass]) -> Iterable[Any]:
    return cls.rules if issubclass(cls, RulePass) else ()


def _roots(pipeline: Pipeline) -> dict[str, tuple[str, ...]]:
    from opcel_compiler.rewrite.pattern import root_ops

    return {r.name: root_ops(r.pattern) for p in pipeline.passes for r in _rules(type(p))}


def _origin(origin: tuple[str, ...]) -> str:
    return f" (from {', '.join(origin)})" if origin else ""
