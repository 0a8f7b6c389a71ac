"""Lowering: what becomes a view, what a copy, and what has no memory."""

from __future__ import annotations

import pytest

from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.program import Kernel
from opcel_compiler.schedule.lower import LoweringError, lower


def families(body: str, inputs: str = "%x: f32[2, 3, 4]", outputs: str = "%y") -> list[str]:
    lines = "\n".join(body.split("|"))
    program = lower(parse_graph(f"graph main({inputs}) {{\n{lines}\nreturn {outputs}\n}}"))
    return [s.family for s in program.steps if isinstance(s, Kernel)]


def test_rearrangements_are_views() -> None:
    cut = "slice(%t){starts=[1, 0, 0], sizes=[2, 2, 3], steps=[1, 1, 1]}"
    body = f"%t = transpose(%x){{perm=[2, 0, 1]}}|%s = {cut}|%y = exp(%s)"
    assert families(body) == ["elementwise"]


def test_a_reshape_that_strides_cannot_say_is_copied() -> None:
    assert families("%t = transpose(%x){perm=[2, 0, 1]}|%r = reshape(%t){shape=[24]}|%y = exp(%r)") == [
        "copy", "elementwise",
    ]  # fmt: skip


def test_splitting_heads_needs_no_copy() -> None:
    body = (
        "%w = f32[4, 8] 0.5|%m = matmul(%x, %w)|%r = reshape(%m){shape=[2, 3, 2, 4]}"
        "|%q = transpose(%r){perm=[0, 2, 1, 3]}|%a = attention(%q, %q, %q){scale=0.5, causal=false}"
        "|%t = transpose(%a){perm=[0, 2, 1, 3]}"
        "|%f = reshape(%t){shape=[2, 3, 8]}|%v = f32[8, 5] 0.25|%y = matmul(%f, %v)"
    )
    assert families(body) == ["matmul", "attention", "matmul"]


def test_one_buffer_for_a_value_that_is_output_twice() -> None:
    program = lower(parse_graph("graph main(%x: f32[3]) {\n%y = exp(%x)\nreturn %y, %y, %x\n}"))
    assert [s.family for s in program.steps if isinstance(s, Kernel)] == ["elementwise", "copy", "copy"]
    assert len(set(program.outputs)) == 3


def test_a_concat_is_copies_into_one_buffer() -> None:
    assert families("%y = concat(%x, %x){axis=1}") == ["copy", "copy"]


@pytest.mark.parametrize("type", ["string[2]", "seq<f32[2]>", "optional<f32[2]>", "f32[*]"])
def test_what_has_no_memory_is_refused_by_name(type: str) -> None:
    graph = parse_graph(f"graph main(%names: {type}, %x: f32[1]) {{\nreturn %x\n}}")
    with pytest.raises(LoweringError, match=r"input names: %names"):
        lower(graph)


def test_an_empty_graph() -> None:
    graph = Graph()
    assert lower(graph).steps == []
