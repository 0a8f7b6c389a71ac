"""The arena: nothing that lives at the same time overlaps, and dead memory is used again."""

from __future__ import annotations

import itertools

import pytest
from networks import N, convnet, perceptron, transformer

from opcel_compiler.ir.dims import evaluate, symbol
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.program import Program
from opcel_compiler.ir.types import tensor
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.lower import lower
from opcel_compiler.schedule.memory import ALIGNMENT, buffer_bytes, lifetimes, plan_memory

S = symbol("s", 1)
GRAPHS = {
    "perceptron": lambda: perceptron(5), "symbolic perceptron": lambda: perceptron(N), "convnet": convnet,
    "transformer": transformer,
}  # fmt: skip


def program(graph: Graph) -> Program:
    PassManager.run(graph, Pipeline.parse("fuse"))
    return lower(graph)


@pytest.mark.parametrize("name", GRAPHS)
def test_living_buffers_are_apart(name: str) -> None:
    p = program(GRAPHS[name]())
    plan, lives = plan_memory(p), lifetimes(p)
    for sizes in (dict.fromkeys(p.symbols, 3), dict.fromkeys(p.symbols, 17)):
        places = {b: (evaluate(plan.offsets[b], sizes), evaluate(buffer_bytes(b), sizes)) for b in lives}
        assert all(at % ALIGNMENT == 0 for at, _ in places.values())
        assert max((at + size for at, size in places.values()), default=0) <= evaluate(plan.arena, sizes)
        for a, b in itertools.combinations(lives, 2):
            if lives[a][0] <= lives[b][1] and lives[b][0] <= lives[a][1]:
                (at, size), (bt, other) = places[a], places[b]
                assert at + size <= bt or bt + other <= at


def test_elements_stored_as_bf16_take_two_bytes() -> None:
    p = program(perceptron(64))
    buffer = next(iter(lifetimes(p)))
    before = buffer_bytes(buffer)
    buffer.layout = buffer.layout.stored_as("bf16")
    assert buffer_bytes(buffer) * 2 == before


def test_dead_memory_is_used_again() -> None:
    p = program(convnet(2))
    plan = plan_memory(p)
    assert isinstance(plan.arena, int)
    assert plan.arena < sum(int(buffer_bytes(b)) for b in lifetimes(p))  # type: ignore[arg-type]


def test_a_slot_of_many_sizes_is_no_endless_expression() -> None:
    graph = Graph("many")
    for i in range(60):
        x = graph.add_input(f"x{i}", tensor("f32", symbol(f"n{i}", 1)))
        for _ in range(3):
            x = graph.add("softmax", [x], {"axis": 0}).result
        graph.add_output(graph.add("neg", [x]).result, f"y{i}")
    p = lower(graph)
    plan = plan_memory(p)
    assert plan.offsets.keys() == lifetimes(p).keys()
