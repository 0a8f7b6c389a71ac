"""Random graphs through every stage: none may change what a graph means."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.random_graphs.__main__ import compiled, interpreted
from benchmarks.random_graphs.check import TARGETS, WrongResult, check, compare_outputs, well_conditioned
from benchmarks.random_graphs.compiled import failures
from benchmarks.random_graphs.generate import sample
from benchmarks.random_graphs.shrink import shrink
from benchmarks.random_graphs.values import Sample
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.opdef import all_ops
from opcel_compiler.ir.parse import parse_graph

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


FOUND = (
    # The second operand of the product, which is packed, is read after it too.
    "graph a(%x: f32[2, 9, 1], %w: f32[1, 23]) {\n  %p = matmul(%x, %w)\n  %y = add(%w, %p)\n  return %y\n}\n",
    # A weight of one element is a part of the kernel, no buffer.
    "graph b(%x: u8[1, 16, 1], %z: u8[], %s: f32[]) {\n  %d = dequantize(%x, %s, %z){dtype=f32}\n  %w = i8[1, 1] 24\n"
    "  %t = f32[] 0.5\n  %v = dequantize(%w, %t){dtype=f32}\n  %y = matmul(%d, %v)\n  return %y\n}\n",
    # Bytes around an image have a value that is written as the float it is.
    "graph c(%x: u8[1, 32, 4, 1]) {\n  %z = u8[] 128\n  %s = f32[] 0.5\n  %d = dequantize(%x, %s, %z){dtype=f32}\n"
    "  %w = i8[16, 32, 3, 3] 3\n  %v = dequantize(%w, %s){dtype=f32}\n"
    "  %y = conv(%d, %v){strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1], groups=1}\n  return %y\n}\n",
)


def test_graphs_that_went_wrong() -> None:
    made = []
    for text in FOUND:
        s = Sample(parse_graph(text), np.random.default_rng(0))
        s.arrays = {v: s.data(v.tensor.static_shape, v.tensor.dtype) for v in s.graph.inputs}
        for target in TARGETS:
            check(s, target)
        made.append(s)
    assert failures(made, "host") == (len(FOUND), [])


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
