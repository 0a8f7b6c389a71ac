"""A kernel reads no argument that its caller does not pass."""

from __future__ import annotations

import re

import pytest

from opcel_compiler.codegen.cpu.build import generate
from opcel_compiler.compilation import prepare
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target

from ..e2e.builder import Net


@pytest.mark.parametrize("steps", [1, 3])
def test_arguments_of_a_recurrent_layer(steps: int) -> None:
    """The number of the step is one where there are several."""
    net = Net("steps")
    x = net.input("x", steps, 2, 8)
    net.output("y", net("LSTM", x, net.weight(1, 64, 8), net.weight(1, 64, 16), hidden_size=16))
    work = prepare(net.model(), "x86-64-avx512")
    assert work.program is not None
    for units in generate(work.program, work.target):
        for unit in units:
            read = [int(i) for i in re.findall(r"\bd\[(\d+)\]", unit.source)]
            assert max(read, default=-1) < len(unit.integers) + (unit.calls != 1)


@pytest.mark.parametrize("precision", ["f32", "int8", "int4"])
def test_a_recurrent_layer_of_floats_stays_one(precision: str) -> None:
    net = Net("floats")
    x = net.input("x", 3, 2, 8)
    net.output("y", net("LSTM", x, net.weight(1, 64, 8), net.weight(1, 64, 16), hidden_size=16))
    graph, ctx = import_model(net.model()).graph, PassContext(target=load_target("x86-64-avx512"), precision=precision)
    PassManager.run(graph, Pipeline.parse("fuse"), ctx)
    program = lower(graph)
    PassManager.run(program, Pipeline.parse("choose-kernels"), ctx)
    assert [k.params["precision"] for k in program.kernels if k.family == "lstm"] == ["f32"]
