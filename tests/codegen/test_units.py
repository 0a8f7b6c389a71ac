"""A kernel reads no argument that its caller does not pass."""

from __future__ import annotations

import re

import pytest

from opcel_compiler.codegen.cpu.build import generate
from opcel_compiler.compilation import prepare

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
