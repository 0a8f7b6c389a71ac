"""Passes as classes, pipelines as text, the driver's bounds, instruments, and bisection."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.text import print_graph
from opcel_compiler.ir.verify import verify
from opcel_compiler.rewrite.bisect import find_culprit
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import apply_rules
from opcel_compiler.rewrite.errors import PassError, PipelineError, RewriteError
from opcel_compiler.rewrite.instruments import (
    Counters,
    Dumps,
    Instrument,
    PrintChanges,
    Reproducer,
    Skip,
    Step,
    Timing,
    Verify,
)
from opcel_compiler.rewrite.pass_ import Pass, RulePass
from opcel_compiler.rewrite.pattern import Match, op, value
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline, discover, read_reproducer
from opcel_compiler.rewrite.rule import Builder, Numerics, rule

GRAPH = """graph main(%x: f32[2, 3]) {
  %a = neg(%x)
  %b = exp(%a) from "E"
  %c = abs(%b)
  return %c
}"""


@rule(op("neg", value("x")))
def neg_to_abs(m: Match, build: Builder) -> Value:
    """neg becomes abs"""
    return build("abs", m["x"])


@rule(op("abs", value("x")))
def abs_to_neg(m: Match, build: Builder) -> Value:
    """abs becomes neg"""
    return build("neg", m["x"])


@rule(op("exp", value("x")))
def exp_to_tanh(m: Match, build: Builder) -> Value:
    """exp becomes tanh, which is wrong"""
    return build("tanh", m["x"])


@dataclass(frozen=True)
class Tune(Pass):
    """Options of each type."""

    name: ClassVar[str] = "test-tune"
    summary: ClassVar[str] = "carries options"

    count: int = 2
    rate: float = 0.5
    deep: bool = False
    mode: str = "fast"
    axes: tuple[int, ...] = ()
    names: tuple[str, ...] = ("a",)

    def run(self, graph: Graph, ctx: PassContext) -> None:
        if self.mode == "fail":
            graph.name = "half_done"
            raise KeyError("lost")


class Spoil(RulePass):
    """One sound change, then a wrong one."""

    name = "test-spoil"
    summary = "replaces exp by tanh"
    rules = (neg_to_abs, exp_to_tanh)


class OnProgram(Pass):
    """Works on the lower level."""

    name = "test-on-program"
    summary = "takes a program"
    level = "program"

    def run(self, program: object, ctx: PassContext) -> None:
        raise AssertionError("never run")


# -- passes as classes ---------------------------------------------------------------------------------------------


def test_name_taken() -> None:
    with pytest.raises(TypeError, match=r"'test-tune' is taken by .*Tune"):

        class Second(Pass):
            name = "test-tune"
            summary = "a second one"

            def run(self, graph: Graph, ctx: PassContext) -> None: ...


def test_misspelt_hook() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.runn: .*did you mean 'run'"):

        class Wrong(Pass):
            name = "test-wrong"
            summary = "misspelt"

            def runn(self, graph: Graph, ctx: PassContext) -> None: ...


def test_option_of_unsupported_type() -> None:
    with pytest.raises(TypeError, match=r"Wrong\.table: an option cannot be of type dict"):

        @dataclass(frozen=True)
        class Wrong(Pass):
            name: ClassVar[str] = "test-wrong"
            summary: ClassVar[str] = "bad option"
            table: dict = None  # type: ignore[assignment, type-arg]

            def run(self, graph: Graph, ctx: PassContext) -> None: ...


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"summary": "s", "run": lambda *_: None}, "name '' is not lower-case"),
        ({"name": "Bad_Name", "summary": "s", "run": lambda *_: None}, "not lower-case words"),
        ({"name": "test-x", "run": lambda *_: None}, "one-line summary"),
        ({"name": "test-x", "summary": "s"}, "does not define run"),
        ({"name": "test-x", "summary": "s", "level": "node", "run": lambda *_: None}, "level 'node'"),
    ],
)
def test_incomplete_class(members: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        type("Wrong", (Pass,), members)


def test_misspelt_instrument_hook() -> None:
    with pytest.raises(TypeError, match="did you mean 'before'"):

        class Wrong(Instrument):
            def befor(self, step: Step) -> None: ...


def test_every_pass_has_a_docstring_and_prints_as_text() -> None:
    for name, cls in discover().items():
        assert cls.__doc__, name
        assert Pipeline.parse(str(cls())).passes == (cls(),)


# -- pipelines as text ---------------------------------------------------------------------------------------------


def test_pipeline_round_trip() -> None:
    text = 'test-tune{count=7,mode="a b",axes=[1,2],names=[x,y],deep=true},dead-code,test-tune'
    pipeline = Pipeline.parse(text)
    assert pipeline.passes[0] == Tune(count=7, mode="a b", axes=(1, 2), names=("x", "y"), deep=True)
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert str(pipeline.passes[2]) == "test-tune{count=2,rate=0.5,deep=false,mode=fast,axes=[],names=[a]}"
    assert Pipeline.parse("") == Pipeline()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dead-cod", "no pass is called 'dead-cod'; did you mean 'dead-code'"),
        ("test-tune{counts=1}", "pass test-tune has no option 'counts'; did you mean 'count'"),
        ("test-tune{count=many}", "pass test-tune, option count: 'many' is not an integer"),
        ("test-tune{deep=yes}", "option deep: 'yes' is not true or false"),
        ("test-tune{axes=1}", "option axes: '1' is not a list of integers"),
        ("test-tune{count}", "option 'count' is not of the form key=value"),
        ("test-tune{count=1,count=2}", "option count is given twice"),
        ("test-tune{count=1", "not closed"),
        ("test-tune}", "closes nothing"),
        ("test-tune{count=1}x", "do not end with '}'"),
        ("dead-code,,dead-code", "a pass name is missing"),
    ],
)
def test_pipeline_errors(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as error:
        Pipeline.parse(text)
    assert message in str(error.value)


def test_pass_of_the_other_level() -> None:
    pipeline = Pipeline.parse("dead-code,test-on-program")
    with pytest.raises(PassError, match="test-on-program works on a program, and was given a graph"):
        PassManager.run(parse_graph(GRAPH), pipeline)
    assert str(pipeline.at("graph")) == "dead-code"


# -- the driver ----------------------------------------------------------------------------------------------------


def test_rules_that_cycle_are_named() -> None:
    graph = parse_graph(GRAPH)
    with pytest.raises(RewriteError, match=r"rules (neg-to-abs, abs-to-neg|abs-to-neg, neg-to-abs) undo each other"):
        apply_rules(graph, (neg_to_abs, abs_to_neg), PassContext())
    verify(graph)


def test_rule_that_never_ends_is_named() -> None:
    @rule(op("neg", value("x")))
    def grow(m: Match, build: Builder) -> Value:
        """neg becomes three of them"""
        return build("neg", build("neg", build("neg", m["x"])))

    with pytest.raises(RewriteError, match="rule grow never ends"):
        apply_rules(parse_graph(GRAPH), (grow,), PassContext())


def test_origins_merge_and_names_stay() -> None:
    graph = parse_graph('graph main(%x: f32[2]) {\n %a = exp(%x) from "A"\n %b = neg(%a) from "B"\n return %b\n}')

    @rule(op("neg", op("exp", value("x"))))
    def both(m: Match, build: Builder) -> Value:
        """neg of exp becomes tanh of abs"""
        return build("tanh", build("abs", m["x"]))

    ctx = PassContext()
    assert apply_rules(graph, (both,), ctx) == 1
    assert [(n.op, n.origin) for n in graph.nodes] == [("abs", ("B", "A")), ("tanh", ("B", "A"))]
    assert graph.outputs[0].name == "b"
    assert ctx.report.log == [("", "both", "b", ("B", "A"))]


def test_replacement_of_another_type() -> None:
    @rule(op("exp", value("x")))
    def shrink(m: Match, build: Builder) -> Value:
        """exp becomes a sum"""
        return build("reduce_sum", m["x"], axes=(0,), keepdims=False)

    graph = parse_graph(GRAPH)
    text = print_graph(graph)
    with pytest.raises(RewriteError, match=r"rule shrink at %b = exp \(from E\) replaces f32\[2, 3\] by f32\[3\]"):
        apply_rules(graph, (shrink,), PassContext())
    assert print_graph(graph) == text


def test_replacement_of_perhaps_another_type_is_refused() -> None:
    @rule(op("add", value("x"), value("y")))
    def left(m: Match, build: Builder) -> Value:
        """x + y becomes y"""
        return build("neg", m["y"])

    graph = parse_graph("graph main(%x: f32[n], %y: f32[m]) {\n %z = add(%x, %y) : f32[n]\n return %z\n}")
    ctx = PassContext()
    assert apply_rules(graph, (left,), ctx) == 0
    assert "cannot tell whether f32[m] is the same as f32[n]" in str(next(ctx.report.refusals()))
    verify(graph)


def test_forbidden_numerics_class() -> None:
    text = "graph main(%x: f32[2]) {\n %y = sigmoid(%x)\n %z = mul(%x, %y)\n return %z\n}"
    ctx = PassContext(forbidden=frozenset({Numerics.REASSOCIATES}))
    graph = parse_graph(text)
    PassManager.run(graph, Pipeline.parse("recognize-activations"), ctx)
    assert print_graph(graph) == print_graph(parse_graph(text))
    assert "silu at %z: it reassociates, and the pipeline forbids that" in str(next(ctx.report.refusals()))


def test_limit_stops_all_passes() -> None:
    graph = parse_graph(GRAPH)
    ctx = PassContext(limit=1)
    PassManager.run(graph, Pipeline.parse("test-spoil,dead-code"), ctx)
    assert ctx.report.total == 1
    assert [n.op for n in graph.nodes] == ["abs", "exp", "abs"]


def test_near_miss_names_the_first_failed_check() -> None:
    @rule(op("abs", op("exp", op("sqrt", value("x")))))
    def deep(m: Match, build: Builder) -> Value:
        """never matches here"""
        return m["x"]

    ctx = PassContext(explain=True)
    apply_rules(parse_graph(GRAPH), (deep,), ctx)
    (refusal,) = ctx.report.refusals(near_misses=True)
    assert refusal.reason == "matched abs <- exp; then %a is made by neg, not sqrt"
    assert list(ctx.report.refusals()) == []


# -- instruments ---------------------------------------------------------------------------------------------------


def test_instruments_watch(tmp_path: Path) -> None:
    stream, timing, counters = io.StringIO(), Timing(), Counters()
    tools = [
        Verify(verify),
        timing,
        counters,
        Dumps(tmp_path),
        PrintChanges(stream=stream),
        Skip(frozenset({"simplify"})),
    ]
    PassManager.run(parse_graph(GRAPH), Pipeline.parse("test-spoil,simplify,dead-code"), None, tools)
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["00-input.txt", "01-test-spoil.txt", "03-dead-code.txt"]
    assert "tanh" in (tmp_path / "01-test-spoil.txt").read_text()
    assert counters.changes == {("test-spoil", "neg-to-abs"): 1, ("test-spoil", "exp-to-tanh"): 1}
    assert [name for name, *_ in timing.seconds] == ["test-spoil", "dead-code"]
    assert "pipeline" in str(timing) and "exp-to-tanh" in str(counters)
    assert "; after test-spoil\ngraph main" in stream.getvalue()
    assert "; dead-code changed nothing" in stream.getvalue()


def test_failing_pass_leaves_a_reproducer(tmp_path: Path) -> None:
    path = tmp_path / "reproducer.txt"
    pipeline = Pipeline.parse("dead-code,test-tune{mode=fail},simplify")
    with pytest.raises(PassError, match=f"pass test-tune failed: KeyError: 'lost'. A reproducer is in {path}"):
        PassManager.run(parse_graph(GRAPH), pipeline, None, [Reproducer(path)])
    graph, rest = read_reproducer(path.read_text(), parse_graph)
    assert rest == Pipeline(pipeline.passes[1:])
    assert print_graph(graph) == print_graph(parse_graph(GRAPH))
    with pytest.raises(PassError, match="pass test-tune failed"):
        PassManager.run(graph, rest)


def test_not_a_reproducer() -> None:
    with pytest.raises(PipelineError, match="not a reproducer"):
        read_reproducer(GRAPH, parse_graph)


def test_verifier_blames_the_pass() -> None:
    class Break(Pass):
        """Leaves an operand out."""

        name = "test-break"
        summary = "breaks the graph"

        def run(self, graph: Graph, ctx: PassContext) -> None:
            next(iter(graph.nodes)).set_operand(0, None)

    seen: list[str] = []

    class Note(Instrument):
        """Notes who failed."""

        def failed(self, step: Step, error: Exception) -> None:
            seen.append(step.current.name)

    with pytest.raises(OpcelError):
        PassManager.run(parse_graph(GRAPH), Pipeline.parse("test-break"), None, [Verify(verify), Note()])
    assert seen == ["test-break"]


# -- bisection -----------------------------------------------------------------------------------------------------


def test_bisection_finds_the_change() -> None:
    feeds = {"x": np.ones((2, 3), np.float32)}
    wanted = run(parse_graph(GRAPH), feeds)["c"]

    def good(graph: Graph) -> bool:
        found = run(graph, feeds)["c"]
        return bool(np.allclose(found, wanted) or np.allclose(found, np.exp(1)))

    pipeline = Pipeline.parse("dead-code,test-spoil,simplify,dead-code")
    culprit = find_culprit(lambda: parse_graph(GRAPH), pipeline, good)
    assert culprit is not None
    assert str(culprit) == "pass test-spoil (number 2 of the pipeline), change 2: exp-to-tanh at %b"
    assert find_culprit(lambda: parse_graph(GRAPH), Pipeline.parse("dead-code"), good) is None
    with pytest.raises(PassError, match="before any pass has run"):
        find_culprit(lambda: parse_graph(GRAPH), pipeline, lambda _: False)


def test_clone_is_equal_and_apart() -> None:
    graph = parse_graph(GRAPH)
    copy = clone(graph)
    assert print_graph(copy, origins=True) == print_graph(graph, origins=True)
    apply_rules(copy, (exp_to_tanh,), PassContext())
    assert "exp" in print_graph(graph)
