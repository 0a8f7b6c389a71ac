from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import Opcel

from opcel_compiler.ir.compare import equal
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.rewrite import pass_
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pass_ import Pass

TEXT = """\
graph main(%x: f32[n, 4]) {
  %one = f32[] 1.0
  %a = mul(%x, %one)
  %y = relu(%a)
  return %y as "y"
}
"""
LARGE = "graph main(%x: f32[40]) {\n  %c = f32[40] [" + ", ".join(f"{i}.5" for i in range(40)) + "]\n"
LARGE += '  %y = add(%x, %c)\n  return %y as "y"\n}\n'


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "in.txt"
    path.write_text(TEXT)
    return path


def ops(printed: str) -> list[str]:
    return [node.op for node in parse_graph(printed).nodes]


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_without_passes_the_graph_comes_back(opcel: Opcel, text: Path) -> None:
    result = opcel("opt", text)
    assert (result.code, result.err) == (0, "")
    assert equal(parse_graph(result.out), parse_graph(TEXT)) is None


def test_passes_run_in_their_order(opcel: Opcel, text: Path) -> None:
    assert ops(opcel("opt", text, "--pipeline", "simplify,dead-code").out) == ["relu"]


def test_a_target_brings_its_pipeline_unless_one_is_given(opcel: Opcel, models: Path) -> None:
    command = ["opt", models / "mlp.onnx", "--target", "x86-64", "--print-after=all", "--pipeline"]
    assert opcel(*command[:-1]).err.count("fuse{") == 1
    assert "fuse{" not in opcel(*command, "simplify").err and opcel(*command, "").err == ""


def test_a_program_in_bf16(opcel: Opcel, models: Path) -> None:
    command = ["opt", models / "mlp.onnx", "--lower", "--print", "--target"]
    assert "bf16" in opcel(*command, "x86-64-avx512-vnni-bf16", "--precision", "bf16").out
    refused = opcel(*command, "x86-64", "--precision", "bf16")
    assert refused.code != 0 and "no instructions for products in bf16" in refused.err


def test_onnx_in_and_out(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    result = opcel("opt", models / "mlp.onnx", "--pipeline", "fold-constants,fuse", "-o", "out.onnx")
    assert (result.code, result.out, result.err) == (0, "", "")
    model = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(model)
    assert [v.name for v in model.graph.input] == ["x"] and [v.name for v in model.graph.output] == ["y"]
    assert left_in(tmp_path) == ["out.onnx"]


def test_an_unknown_operator_goes_through(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    assert opcel("opt", models / "frob.onnx", "-o", "out.onnx").code == 0
    assert [node.op_type for node in onnx.load(tmp_path / "out.onnx").graph.node] == ["Frob", "Relu"]


def test_full_text_can_be_read_again(opcel: Opcel, tmp_path: Path) -> None:
    (tmp_path / "large.opcel-ir").write_text(LARGE)
    assert opcel("opt", "large.opcel-ir", "-o", "short.txt").code == 0
    result = opcel("opt", "short.txt")
    assert result.code == 1 and "short.txt: line 2" in result.err and "write the text with --full" in result.err
    assert opcel("opt", "large.opcel-ir", "-o", "full.txt", "--full", "--print").out.startswith("graph main")
    assert equal(parse_graph((tmp_path / "full.txt").read_text()), parse_graph(LARGE)) is None


def test_run_interprets_the_result_of_either_level(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    plain = opcel("opt", models / "mlp.onnx", "--pipeline", "fuse", "--run", models / "x.npz")
    lowered = opcel("opt", models / "mlp.onnx", "--pipeline", "fuse", "--lower", "--run", models / "x.npz")
    assert plain.code == lowered.code == 0
    assert plain.out.startswith("output      y float32[3, 5]  min 0, ")
    assert lowered.out.splitlines()[0].split()[:3] == plain.out.splitlines()[0].split()[:3]


def test_lower_prints_a_program_that_can_be_read_again(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    command = ["opt", models / "mlp.onnx", "--target", "x86-64", "--lower", "--verify-each", "--full"]
    result = opcel(*command, "-o", "program.txt", "--print")
    assert result.code == 0 and result.out.startswith("program small(@x) -> (")
    again = opcel("opt", "program.txt", "--full")
    assert (again.code, again.out) == (0, result.out)
    error = opcel("opt", "program.txt", "-o", "out.onnx")
    assert error.code == 1 and "a Program has no ONNX form" in error.err
    wrong = opcel("opt", "program.txt", "--pipeline", "fuse")
    assert wrong.code == 1 and "pass fuse works on a graph" in wrong.err


def test_print_after_shows_the_passes_named(opcel: Opcel, text: Path) -> None:
    one = opcel("opt", text, "--pipeline", "dead-code,simplify,dead-code", "--print-after=simplify")
    assert one.err.count("; after simplify") == 1 and "dead-code" not in one.err
    every = opcel("opt", text, "--pipeline", "dead-code,simplify", "--print-after=all")
    assert "; dead-code changed nothing" in every.err and "; after simplify" in every.err


def test_dump_writes_numbered_files(opcel: Opcel, text: Path, tmp_path: Path) -> None:
    assert opcel("opt", text, "--pipeline", "simplify,dead-code", "--lower", "--dump", "d").code == 0
    assert left_in(tmp_path / "d") == ["00-input.txt", "01-simplify.txt", "02-dead-code.txt"]
    assert "mul" in ops((tmp_path / "d/00-input.txt").read_text())
    assert ops((tmp_path / "d/02-dead-code.txt").read_text()) == ["relu"]


def test_time_lists_the_passes(opcel: Opcel, text: Path) -> None:
    lines = opcel("opt", text, "--pipeline", "simplify,dead-code", "--time").err.splitlines()
    assert lines[0].endswith(" s  pipeline")
    assert {"simplify", "dead-code"} <= {line.split()[-1] for line in lines}


def test_list_names_every_pass_with_its_options(opcel: Opcel) -> None:
    out = opcel("opt", "--list").out
    from opcel_compiler.rewrite.pipeline import discover

    for name, cls in discover().items():
        row = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert cls.level in row and cls.summary in row
    assert "{max-nodes=32}" in out


def crash(self: Pass, graph: Graph, ctx: PassContext) -> None:
    raise ZeroDivisionError("oops")


def spoil(self: Pass, graph: Graph, ctx: PassContext) -> None:
    next(n for n in graph.nodes if n.op == "relu").result.type = parse_graph(LARGE).inputs[0].type


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes `crash`, which raises, and `spoil`, which leaves an invalid graph."""
    from opcel_compiler.rewrite.pipeline import discover

    discover()
    monkeypatch.setattr(pass_, "_REGISTRY", dict(pass_._REGISTRY))
    for run in (crash, spoil):
        body = {"name": run.__name__, "summary": "fails", "run": run}
        dataclasses.dataclass(frozen=True, repr=False)(type(run.__name__, (Pass,), body))


def test_a_failing_pass_leaves_a_reproducer_that_fails_again(
    opcel: Opcel, text: Path, tmp_path: Path, broken: None
) -> None:
    result = opcel("opt", text, "--pipeline", "simplify,crash,dead-code")
    assert result.code == 1
    assert "opcel: note: pass crash failed; in.reproducer.txt holds" in result.err
    assert "opcel: error: pass crash failed: ZeroDivisionError: oops" in result.err
    left = (tmp_path / "in.reproducer.txt").read_text()
    assert left.startswith("; pipeline: crash,dead-code\n") and "mul(" not in left
    again = opcel("opt", "in.reproducer.txt", "--reproducer", "again.txt")
    assert again.code == 1 and "pass crash failed: ZeroDivisionError" in again.err
    assert (tmp_path / "again.txt").read_text() == left
    assert opcel("opt", "in.reproducer.txt", "--pipeline", "dead-code").code == 0


def test_verify_each_finds_the_pass_that_broke_the_graph(opcel: Opcel, text: Path, broken: None) -> None:
    result = opcel("opt", text, "--pipeline", "spoil,dead-code", "--verify-each", "--dump", "d")
    assert result.code == 1
    assert "note: pass spoil failed; d/in.reproducer.txt holds" in result.err
    assert "opcel: error: the graph breaks invariant" in result.err


def test_the_result_is_always_verified(opcel: Opcel, text: Path, broken: None) -> None:
    assert opcel("opt", text, "--pipeline", "spoil").code == 1


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["none.onnx"], 1, "none.onnx does not exist"),
        (["none.txt"], 1, "cannot read none.txt: No such file or directory"),
        (["noise.txt"], 1, "noise.txt is not UTF-8 text"),
        (["wrong.txt"], 1, "wrong.txt: line 2, column "),
        (["in.txt", "--pipeline", "dead"], 1, "no pass is called 'dead'; did you mean 'dead-code'?"),
        (["in.txt", "--pipeline", "fuse{max-nodes=x}"], 1, "pass fuse, option max-nodes: 'x' is not an integer"),
        (["in.txt", "--print-after", "fuze"], 1, "--print-after: no pass is called 'fuze'; did you mean 'fuse'?"),
        (["in.txt", "--pipeline", "relayout"], 2, "relayout works on a Program; add --lower"),
        (["in.txt", "--target", "x86"], 1, "no target 'x86'"),
        (["in.txt", "-o", "none/out.txt"], 1, "cannot write none/out.txt: No such file or directory"),
        (["in.txt", "--run", "none.npz"], 1, "cannot read none.npz"),
        (["in.txt", "--run", "z.npz"], 1, "z.npz lacks x; the model takes x, the file has z"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(
    opcel: Opcel, text: Path, tmp_path: Path, argv: list[str], status: int, message: str
) -> None:
    (tmp_path / "noise.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "wrong.txt").write_text("graph main(%x: f32[4]) {\n  %y = fly(%x)\n  return %y\n}\n")
    np.savez(tmp_path / "z.npz", z=np.zeros(3))
    before = left_in(tmp_path)
    result = opcel("opt", *argv)
    assert (result.code, result.out) == (status, "")
    assert result.err.startswith("opcel: error: ") and result.err.count("\n") == 1
    assert message in result.err
    assert left_in(tmp_path) == before
