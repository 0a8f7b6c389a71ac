"""Branches and loops in Programs: what lowering makes of regions, where memory lies, and that texts read back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from opcel_compiler.ir.dims import Dim, symbol
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.opdef import InferenceError
from opcel_compiler.ir.ops.control import if_types, loop_types
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.program import Control, Kernel, Program, blocks, loops
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.program_text import equal_programs, parse_program, print_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.ir.verify import verify
from opcel_compiler.schedule.lower import lower
from opcel_compiler.schedule.memory import buffer_bytes, lifetimes, plan_memory

SUMS = """symbol i in 0..4
graph main(%x: f32[5, 3], %c: bool[1], %w: f32[3]) {
  %z = f32[3] 0.0
  %s, %rows = loop(%z){iteration=[i], trip=[5]} : f32[3], f32[5, 3]
    region body(%a: f32[3]) {
      %r = slice(%x){starts=[i, 0], sizes=[1, 3], steps=[1, 1]}
      %q = reshape(%r){shape=[3]}
      %b = add(%a, %q)
      %d = mul(%b, %w)
      return %b, %d
    }
  %y = if_(%c) : f32[3]
    region then() {
      %y1 = mul(%s, %w)
      return %y1
    }
    region otherwise() {
      %y2 = neg(%s)
      return %y2
    }
  return %y, %rows
}
"""
WHILE = """graph main(%x: f32[3], %go: bool[]) {
  %a, %b, %more = loop(%x, %x, %go){iteration=[i], conditional=true} : f32[3], f32[3], bool[]
    region body(%p: f32[3], %q: f32[3], %on: bool[]) {
      %n = dims{values=[i], scalar=true}
      %f = cast(%n){dtype=f32}
      %s = add(%p, %f)
      %m = reduce_max(%s){axes=[0], keepdims=false}
      %limit = f32[] 9.0
      %next = less(%m, %limit)
      return %q, %s, %next
    }
  return %a, %b
}
"""
X = np.arange(15, dtype=np.float32).reshape(5, 3)
W = np.float32([1, 2, -1])


def checked(text: str, feeds: dict[str, np.ndarray]) -> Program:
    graph = parse_graph(text)
    verify(graph)
    want = run(graph, feeds)
    program = lower(graph)
    verify_program(program)
    stored: dict = {}
    again = parse_program(print_program(program, constants=stored), stored)
    assert equal_programs(program, again) is None
    for p in (program, again):
        for got, expected in zip(run_program(p, feeds).values(), want.values(), strict=True):
            np.testing.assert_allclose(got, expected)
    return program


@pytest.mark.parametrize("holds", [True, False])
def test_rows_and_branches_need_no_copies(holds: bool) -> None:
    program = checked(SUMS, {"x": X, "c": np.array([holds]), "w": W})
    kinds = [s.kind if isinstance(s, Control) else s.family for s in program.steps]
    loop = ["copy", "loop", "elementwise", "elementwise", "end"]
    assert kinds == [*loop, "if", "elementwise", "else", "elementwise", "end"]
    first = program.steps[2]
    assert isinstance(first, Kernel) and first.inputs[1].offset == 3 * symbol("i", 0, 4)
    assert first.inputs[0] == first.outputs[0]  # the sum is carried in one place


@pytest.mark.parametrize("go", [True, False])
def test_values_that_change_places(go: bool) -> None:
    program = checked(WHILE, {"x": X[0], "go": np.array(go)})
    (mark,) = [s for s in program.steps if isinstance(s, Control) and s.kind == "loop"]
    assert mark.trip is None and len(mark.inputs) == 1


def test_a_value_handed_over_to_another_in_both_directions() -> None:
    swap = """graph main(%x: f32[3], %y: f32[3]) {
  %a, %b = loop(%x, %y){iteration=[i], trip=[3]} : f32[3], f32[3]
    region body(%p: f32[3], %q: f32[3]) {
      return %q, %p
    }
  return %a, %b
}
"""
    checked(swap, {"x": X[0], "y": X[1]})


def test_memory_that_a_loop_uses_is_not_shared_within_it() -> None:
    graph = Graph()
    x = graph.add_input("x", parse_graph("graph m(%x: f32[64]) {\n return %x\n}").inputs[0].type)
    before = graph.add("exp", [x]).result

    def body(node: Node) -> list[Graph]:
        region = Graph("body", node)
        carried = region.add_input("c", x.type)
        a = region.add("reduce_sum", [carried], {"axes": (0,), "keepdims": True}).result
        b = region.add("reduce_sum", [before], {"axes": (0,), "keepdims": True}).result
        wide = region.add(
            "softmax", [region.add("mul", [carried, region.add("add", [a, b]).result]).result], {"axis": 0}
        )
        last = region.add("softmax", [wide.result], {"axis": 0}).result
        for v in (wide.result, last):
            region.add_output(v)
        return [region]

    attrs: dict[str, tuple[Dim, ...]] = {"iteration": (symbol("i"),), "trip": (4,)}
    node = graph.add("loop", [x], attrs, types=loop_types, regions=body)
    results: tuple[Value, ...] = node.results
    graph.add_output(graph.add("add", [results[0], results[1]]).result)
    program = lower(graph)
    verify_program(program)
    lives, plan = lifetimes(program), plan_memory(program)
    ((begin, end),) = loops(program.steps)
    names = {b.name: b for b in lives}
    for name in ("exp", "loop.1"):
        assert lives[names[name]][0] <= begin and lives[names[name]][1] >= end
    for a, b in itertools.combinations(lives, 2):
        if lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]:
            at, other = int(plan.offsets[a]), int(plan.offsets[b])  # type: ignore[arg-type]
            assert at + int(buffer_bytes(a)) <= other or other + int(buffer_bytes(b)) <= at  # type: ignore[arg-type]


def test_blocks_name_the_marks_around_each_step() -> None:
    steps = lower(parse_graph(SUMS)).steps
    assert blocks(steps) == [(), (), (1,), (1,), (), (), (5,), (), (7,), ()]


def test_branches_of_different_types_are_refused() -> None:
    graph = Graph()
    c = graph.add_input("c", parse_graph("graph m(%x: bool[]) {\n return %x\n}").inputs[0].type)
    x = graph.add_input("x", parse_graph("graph m(%x: f32[4]) {\n return %x\n}").inputs[0].type)

    def regions(node: Node) -> list[Graph]:
        first, second = Graph("then", node), Graph("otherwise", node)
        first.add_output(x)
        second.add_output(second.add("reduce_sum", [x], {"axes": (0,), "keepdims": True}).result)
        return [first, second]

    with pytest.raises(InferenceError, match=r"one branch gives f32\[4\], the other f32\[1\]"):
        graph.add("if_", [c], types=if_types, regions=regions)
    assert not list(graph.nodes) and not x.uses
