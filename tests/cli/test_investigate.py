"""`opcel opt --stats`, `--bisect` and `--explain`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from commands import Opcel

from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.program import Program
from opcel_compiler.rewrite import pass_
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pass_ import Pass, RulePass
from opcel_compiler.rewrite.pattern import Match, op, value
from opcel_compiler.rewrite.pipeline import discover
from opcel_compiler.rewrite.rule import Builder, Rule, rule

TEXT = """\
graph main(%x: f32[n, 4]) {
  %one = f32[] 1.0
  %a = mul(%x, %one) from "first"
  %b = tanh(%a) from "second"
  %c = neg(%b) from "third"
  %d = tanh(%c) from "fourth"
  %y = exp(%d) from "fifth"
  return %y as "out"
}
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes with a wrong rewrite (`wrong`), a wrong change that is not counted (`silent`), and one on Programs."""
    discover()
    monkeypatch.setattr(pass_, "_REGISTRY", dict(pass_._REGISTRY))

    @rule(op("tanh", op("mul|neg", value("x"), rest=True)))
    def right(m: Match, build: Builder) -> Value:
        """tanh(-x) is -tanh(x), which is right, and so is a tanh made anew"""
        if m.node.operand(0).producer is not None and m.node.operand(0).producer.op == "mul":
            return build("sigmoid", m.node.operand(0))  # the planted fault
        return build("neg", build("tanh", m["x"]))

    @dataclass(frozen=True)
    class Wrong(RulePass):
        name: ClassVar[str] = "wrong"
        summary: ClassVar[str] = "spoils a tanh"
        rules: ClassVar[Sequence[Rule]] = (right,)

    @dataclass(frozen=True)
    class Silent(Pass):
        name: ClassVar[str] = "silent"
        summary: ClassVar[str] = "spoils an output without a word"

        def run(self, graph: Graph, ctx: PassContext) -> None:
            last = graph.outputs[0].producer
            assert last is not None
            graph.replace(last, [graph.add("abs", [last.operand(0)], before=last).result])

    @dataclass(frozen=True)
    class Swap(Pass):
        name: ClassVar[str] = "swap"
        summary: ClassVar[str] = "drops the last step of a Program's work"
        level: ClassVar[str] = "program"

        def run(self, program: Program, ctx: PassContext) -> None:
            (kernel,) = program.kernels
            node = next(n for n in kernel.body.nodes if n.op == "exp")
            kernel.body.replace(node, [kernel.body.add("neg", [node.operand(0)], before=node).result])
            kernel.body.erase(node)


def test_stats_count_each_rule(opcel: Opcel, text: Path) -> None:
    assert opcel("opt", text, "--pipeline", "simplify,dead-code", "--stats", "-o", "o.txt").err.split() == [
        "1", "simplify:", "times-one",
    ]  # fmt: skip
    assert opcel("opt", "o.txt", "--pipeline", "simplify", "--stats", "-o", "p.txt").err == "no pass changed anything\n"


def test_bisect_names_pass_rule_value_and_nodes(opcel: Opcel, text: Path, planted: None) -> None:
    result = opcel("opt", text, "--pipeline", "dead-code,wrong,simplify", "--bisect")
    assert result.code == 6 and result.err == ""
    lines = result.out.splitlines()
    assert lines[0] == "first bad   pass wrong, number 2 of the pipeline"
    assert lines[1].strip() == "rule right at %b, change 1 of the pipeline"
    assert lines[2] == "nodes       second, first"
    assert lines[3].startswith("before      %b = tanh(%a)") and lines[4].startswith("after       %b = sigmoid(%a)")
    assert lines[5].startswith("result      output 'out' is off: largest error ") and "bound: |err| <= " in lines[5]


def test_bisect_says_when_a_pass_hides_its_changes(opcel: Opcel, text: Path, planted: None) -> None:
    result = opcel("opt", text, "--pipeline", "simplify,silent", "--bisect")
    assert result.code == 6
    assert "pass silent, number 2" in result.out and "the pass counts no changes" in result.out


def test_bisect_goes_on_into_programs(opcel: Opcel, text: Path, planted: None) -> None:
    command = ["opt", text, "--pipeline", "simplify,dead-code,fuse,swap", "--bisect"]
    assert opcel(*command).code == 0
    result = opcel(*command, "--lower")
    assert result.code == 6 and "pass swap, number 1" in result.out


def test_bisect_is_content_with_good_passes_on_given_inputs(opcel: Opcel, models: Path) -> None:
    result = opcel(
        "opt", models / "mlp.onnx", "--target", "x86-64", "--bisect", "--inputs", models / "x.npz", "--lower"
    )
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("all good    ") and "keep every output within its bound" in result.out


def test_bisect_runs_what_has_no_definition_in_onnx_runtime(opcel: Opcel, models: Path, planted: None) -> None:
    command = ["opt", models / "det.onnx", "--bisect", "--pipeline"]
    assert opcel(*command, "simplify").code == 0
    assert "pass silent, number 1" in opcel(*command, "silent").out


def test_bisect_warns_of_inputs_that_hide_errors(opcel: Opcel, text: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "nan.npz", x=np.full((2, 4), np.nan, np.float32))
    result = opcel("opt", text, "--pipeline", "simplify", "--bisect", "--inputs", "nan.npz")
    assert result.code == 0 and "note: outputs of the input graph are not finite" in result.err


def test_explain_shows_the_deepest_match_and_what_failed(opcel: Opcel, text: Path) -> None:
    command = ["opt", text, "--pipeline", "recognize-activations,simplify", "--explain"]
    result = opcel(*command, "log-softmax", "fifth")
    assert result.out.splitlines()[:2] == ["not tried   log-softmax was tried at no node 'fifth'", "starts at   log"]
    result = opcel(*command, "silu", "first")
    assert result.out == "refused     by recognize-activations at %a (from first): matched mul; then " + (
        "%one is made by constant, not sigmoid\n"
    )
    result = opcel(*command, "times-one", "%a")
    assert result.code == 0 and result.out == "applied     by simplify at %a (from first)\n"
    result = opcel("opt", text, "--pipeline", "simplify,recognize-activations", "--explain", "silu", "first")
    assert "rewritten   before that, by simplify: times-one" in result.out


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["in.txt", "--explain", "gelu", "nine"], 1, "the model has no node 'nine'"),
        (["in.txt", "--explain", "gelu", "fift"], 1, "the model has no node 'fift'; did you mean 'fifth'"),
        (["in.txt", "--explain", "gelu", "fifth"], 1, "rule gelu is of the pass recognize-activations, which"),
        (["in.txt", "--pipeline", "simplify", "--explain", "times-won", "y"], 1, "did you mean 'times-one'?"),
        (["in.txt", "--bisect", "-o", "x.txt"], 2, "--bisect gives no result"),
        (["in.txt", "--bisect", "--explain", "a", "b"], 2, "ask one thing at a time"),
        (["in.txt", "--bisect", "--inputs", "none.npz"], 1, "cannot read none.npz"),
        (["frob.onnx", "--bisect"], 1, "nothing here can run Frob (frob_0), so results cannot be compared"),
    ],
)
def test_errors(
    opcel: Opcel, text: Path, models: Path, tmp_path: Path, argv: list[str], status: int, message: str
) -> None:
    (tmp_path / "frob.onnx").write_bytes((models / "frob.onnx").read_bytes())
    result = opcel("opt", *argv)
    assert (result.code, result.out) == (status, "")
    assert result.err.startswith("opcel: error: ") and message in result.err
