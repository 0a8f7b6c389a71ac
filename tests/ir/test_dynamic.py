"""Sizes from data: `read_dims` in text, under the interpreters and the passes."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.analysis import as_networkx
from opcel_compiler.ir.compare import equal
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import InterpretError, run
from opcel_compiler.ir.opdef import InferenceError
from opcel_compiler.ir.parse import ParseError, parse_graph
from opcel_compiler.ir.program_interpret import ProgramError, run_program
from opcel_compiler.ir.program_text import equal_programs, parse_program, print_program
from opcel_compiler.ir.program_verify import ProgramVerifyError, verify_program
from opcel_compiler.ir.text import print_graph
from opcel_compiler.ir.verify import verify
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.lower import lower
from opcel_compiler.schedule.memory import plan_memory
from opcel_compiler.schedule.placement import place

TEXT = """
symbol b in 1..6
graph main(%x: f32[n, 4], %s: i64[2]) {
  read_dims(%s){symbols=[a, b]} from "Reshape_0"
  %y = reshape(%x){shape=[a, b]}
  %z = exp(%y)
  return %z
}
"""
FEEDS = {"x": np.arange(12, dtype=np.float32).reshape(3, 4), "s": np.array([2, 6])}


def test_text_keeps_what_is_read() -> None:
    graph = parse_graph(TEXT)
    verify(graph)
    text = print_graph(graph, origins=True)
    assert 'read_dims(%s){symbols=[a, b]} from "Reshape_0"' in text
    assert equal(graph, parse_graph(text), origins=True) is None


def test_the_interpreters_take_the_values() -> None:
    graph = parse_graph(TEXT)
    want = np.exp(FEEDS["x"].reshape(2, 6))
    np.testing.assert_array_equal(run(graph, FEEDS)["z"], want)
    np.testing.assert_array_equal(next(iter(run_program(lower(graph), FEEDS).values())), want)


def test_a_value_outside_its_range_is_an_error() -> None:
    graph = parse_graph(TEXT)
    feeds = {**FEEDS, "s": np.array([1, 12])}
    with pytest.raises(InterpretError, match=r"Reshape_0: b is 12, and must be in 1\.\.6"):
        run(graph, feeds)
    with pytest.raises(ProgramError, match=r"Reshape_0: b is 12, and must be in 1\.\.6"):
        run_program(lower(graph), feeds)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("read_dims(%s){symbols=[a]}", "does not hold 1 elements, one for each symbol"),
        ("read_dims(%s){symbols=[a, a]}", "are not distinct symbols"),
        ("read_dims(%s){symbols=[a, 2*b]}", "is not of kind symbols"),
        ("read_dims(%x){symbols=[a, b]}", "operand 0 has dtype f32"),
    ],
)
def test_what_cannot_be_read(line: str, message: str) -> None:
    with pytest.raises((InferenceError, ParseError), match=message.replace("*", r"\*")):
        parse_graph(f"graph g(%x: f32[n, 4], %s: i64[2]) {{ {line} return %x }}")


def test_dead_code_keeps_a_read_whose_symbols_are_named() -> None:
    graph = parse_graph(TEXT)
    PassManager.run(graph, Pipeline.parse("dead-code,fuse,dead-code"))
    assert [n.op for n in graph.nodes] == ["read_dims", "reshape", "exp"]
    graph.set_output(0, graph.inputs[0])
    PassManager.run(graph, Pipeline.parse("dead-code"))
    assert [n.op for n in graph.nodes] == []


def test_placement_leaves_what_is_read_before_what_names_it() -> None:
    graph = parse_graph(
        "graph g(%x: f32[n, 4], %s: i64[2]) { %u = neg(%s) %t = neg(%u) read_dims(%t){symbols=[a, b]} "
        "%y = reshape(%x){shape=[a, b]} %z = exp(%y) %w = exp(%x) return %z, %w }"
    )
    place(graph, lambda n: "it is neg" if n.op == "neg" else "it is exp" if n.op == "exp" else None)
    verify(graph)
    assert [n.op for n in graph.nodes].count("external") == 2
    np.testing.assert_array_equal(run(graph, FEEDS)["z"], np.exp(FEEDS["x"].reshape(2, 6)))


def test_dependences_go_by_symbols_too() -> None:
    view = as_networkx(parse_graph(TEXT))
    assert {(a.op, b.op) for a, b in view.edges} == {("read_dims", "reshape"), ("reshape", "exp"), ("read_dims", "exp")}


def grown() -> Graph:
    """Temporaries of three kinds: known from the inputs, after the first read, after the second."""
    return parse_graph(
        "graph g(%x: f32[n, 4], %s: i64[1], %t: i64[1]) { %a = softmax(%x){axis=1} read_dims(%s){symbols=[p]} "
        "%b = expand(%a){shape=[p, n, 4]} %c = softmax(%b){axis=2} read_dims(%t){symbols=[q]} "
        "%d = expand(%c){shape=[q, p, n, 4]} %e = softmax(%d){axis=3} %f = softmax(%e){axis=3} return %f }"
    )


def test_memory_waits_for_what_tells_its_size() -> None:
    program = lower(grown())
    verify_program(program)
    plan = plan_memory(program)
    waits = {b.name: plan.block.get(b, -1) for b in plan.offsets}
    assert (waits["a"], waits["c"], waits["e"]) == (-1, 0, 1)
    assert set(plan.blocks) == {0, 1} and "p" not in str(plan.arena)


def test_a_program_with_reads_has_a_text() -> None:
    program = lower(grown())
    text = print_program(program)
    assert "read [p] {\n    reads @s\n  }" in text
    assert equal_programs(program, parse_program(text)) is None
    other = parse_program(text.replace("read [p] {\n    reads @s", "read [p] {\n    reads @t"))
    assert "the views read are" in str(equal_programs(program, other))


@pytest.mark.parametrize(
    ("symbols", "message"), [("[p]", "p are not read just once"), ("[q, u]", "2 symbols are read of")]
)
def test_broken_reads(symbols: str, message: str) -> None:
    program = parse_program(print_program(lower(grown())).replace("read [q]", f"read {symbols}"))
    with pytest.raises(ProgramVerifyError, match=f"invariant 19: {message}"):
        verify_program(program)


def test_a_symbol_is_named_after_it_is_read() -> None:
    program = lower(grown())
    reads = list(program.reads)
    program.steps.remove(reads[0])
    program.steps.append(reads[0])
    with pytest.raises(ProgramVerifyError, match="invariant 19: p is named before it is read"):
        verify_program(program)


def test_nonzero() -> None:
    graph = parse_graph(
        "graph g(%x: f32[2, 3], %s: i64[]) { read_dims(%s){symbols=[k]} %y = nonzero(%x){count=[k]} return %y }"
    )
    x = np.array([[1, 0, 2], [0, np.nan, -0.0]], np.float32)
    assert str(graph.outputs[0].type) == "i64[2, k]"
    np.testing.assert_array_equal(run(graph, {"x": x, "s": np.array(3)})["y"], np.stack(np.nonzero(x)))
    with pytest.raises(InterpretError, match="3 elements are not zero, count is 2"):
        run(graph, {"x": x, "s": np.array(2)})


def test_what_inference_takes_for_equal_is_required() -> None:
    graph = parse_graph(
        "graph g(%x: f32[n, 4], %y: f32[m, 4], %s: i64[2]) { %a = add(%x, %y) read_dims(%s){symbols=[p, q]} "
        "%b = reshape(%a){shape=[p, q]} %c = mul(%b, %b) return %c }"
    )
    program = lower(graph)
    assert [str(r) for r in program.requirements] == ["n == m", "4*n == p*q"]
    text = print_program(program)
    assert "  require equal[n, m]\n  require equal[4*n, p*q]\n" in text
    assert equal_programs(program, parse_program(text)) is None
    assert "it requires n == m" in str(
        equal_programs(program, parse_program(text.replace("equal[n, m]", "least[n, m]")))
    )
    x, y = np.ones((3, 4), np.float32), np.ones((2, 4), np.float32)
    with pytest.raises(ProgramError, match="n == m does not hold: 3 and 2"):
        run_program(program, {"x": x, "y": y, "s": np.array([3, 4])})
    with pytest.raises(ProgramError, match=r"4\*n == p\*q does not hold: 12 and 10"):
        run_program(program, {"x": x, "y": x, "s": np.array([2, 5])})
