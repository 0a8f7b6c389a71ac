"""Random graphs through every stage: none may change what a graph means."""

from __future__ import annotations

import pytest

from benchmarks.random_graphs.__main__ import compiled, interpreted
from benchmarks.random_graphs.check import WrongResult, compare_outputs, well_conditioned
from benchmarks.random_graphs.generate import sample
from benchmarks.random_graphs.shrink import shrink
from benchmarks.random_graphs.values import Sample
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.opdef import all_ops

pytestmark = pytest.mark.filterwarnings("ignore")


def reasons(found) -> list[str]:
    return [
        f"seed {seed}: {type(error).__name__}: {error}"
        for seed, s, error, _ in found
        if not (isinstance(error, WrongResult) and not well_conditioned(s))
    ]


@pytest.mark.parametrize("first", [0, 100])
def test_stages_before_code(first: int) -> None:
    assert not reasons(interpreted(range(first, first + 100)))


def test_generated_code() -> None:
    assert not reasons(compiled(range(60), "host", 60))


def test_graphs_are_varied() -> None:
    seen = {node.op for seed in range(300) for node in sample(seed).graph.nodes}
    wanted = {name for name, d in all_ops().items() if "elementwise" in d.traits and d.evaluate is not None}
    assert len(wanted & seen) > 0.9 * len(wanted)
    assert {"matmul", "conv", "softmax", "layer_norm", "attention", "lstm", "slice", "concat", "reduce_sum"} <= seen


def test_a_wrong_result_is_found_and_made_small() -> None:
    s = next(s for s in map(sample, range(50)) if any(n.op == "neg" for n in s.graph.nodes) and len(s.graph) > 6)

    def fails(c: Sample) -> bool:
        return any(n.op == "neg" for n in c.graph.nodes)

    small = shrink(s, fails)
    assert [n.op for n in small.graph.nodes if n.op != "constant"] == ["neg"]
    want = run(small.graph, small.feeds)
    with pytest.raises(WrongResult):
        compare_outputs("changed", want, {k: v + 1 for k, v in want.items()})
