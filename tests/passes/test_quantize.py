"""quantize: layers of a plan read codes, values are quantized once, and what a plan does not name stays as it is."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from opcel_compiler.ir.codes import rounded, weight_codes, weight_scales
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.quantization import Plan
from opcel_compiler.ir.thresholds import grid_of
from opcel_compiler.ir.verify import verify
from opcel_compiler.quantization.plan import make_plan, observed_values
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline

WINDOW = "{strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]}"
POOL = "{kernel=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1]}"


def graph_of(lines: str, x: str, **weights: tuple[int, ...]) -> Graph:
    """A graph of the lines, with random weights of these shapes."""
    random = np.random.default_rng(1)
    data = {n: Constant(random.standard_normal(s).astype(np.float32)) for n, s in weights.items()}
    head = "".join(f"%{n} = {c.type} #{c.digest}\n" for n, c in data.items())
    return parse_graph(f"graph main(%x: {x}) {{\n{head}{lines}\n}}", {c.digest: c for c in data.values()})


def feeds_of(graph: Graph) -> dict[str, np.ndarray]:
    random = np.random.default_rng(2)
    return {v.name: random.standard_normal(v.tensor.static_shape).astype(np.float32) for v in graph.inputs}


def ranges_of(graph: Graph, feeds: Mapping[str, np.ndarray]) -> dict[str, tuple[float, float]]:
    seen = {n: (float(a.min()), float(a.max())) for n, a in feeds.items()}

    def observe(node, results) -> None:
        seen.update((v.name, (float(a.min()), float(a.max()))) for v, a in zip(node.results, results, strict=True))

    run(graph, feeds, observe=observe)
    return seen


def quantized(graph: Graph, plan: Plan) -> PassContext:
    ctx = PassManager.run(graph, Pipeline.parse("quantize"), PassContext(quantization=plan))
    verify(graph)
    return ctx


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes if n.op != "constant"]


def error(graph: Graph, **options) -> float:
    """The relative L2 error of the graph's first output, quantized with its own ranges."""
    feeds = feeds_of(graph)
    want = next(iter(run(graph, feeds).values()))
    quantized(graph, make_plan(graph, ranges_of(graph, feeds), **options))
    got = next(iter(run(graph, feeds).values()))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


CHAIN = f"""%b = f32[8] 0.5
%a = conv(%x, %w, %b){WINDOW}
%r = relu(%a)
%y = conv(%r, %v){WINDOW}
return %y"""


def chain() -> Graph:
    return graph_of(CHAIN, "f32[1, 4, 6, 6]", w=(8, 4, 3, 3), v=(4, 8, 3, 3))


def test_without_a_plan_nothing_changes() -> None:
    graph = chain()
    PassManager.run(graph, Pipeline.parse("quantize"))
    assert ops(graph) == ["conv", "relu", "conv"]


def test_a_chain_of_layers_reads_codes_between_them() -> None:
    graph = chain()
    assert 0 < error(graph) < 0.02
    assert ops(graph) == [
        "quantize", "dequantize", "dequantize", "conv", "relu", "quantize", "dequantize", "dequantize", "conv",
    ]  # fmt: skip
    weights = [v.constant for n in graph.nodes if n.op == "dequantize" and (v := n.operand(0)).constant is not None]
    assert [c.array.dtype for c in weights] == [np.int8, np.int8]


@pytest.mark.parametrize(
    ("line", "shape", "scale"),
    [
        (f"conv(%x, %w){WINDOW}", (6, 4, 3, 3), (6, 1, 1, 1)),
        (f"conv(%x, %w){WINDOW[:-1]}, groups=4}}", (8, 1, 3, 3), (8, 1, 1, 1)),
        (f"conv_transpose(%x, %w){WINDOW[:-1]}, output_padding=[0, 0]}}", (4, 5, 3, 3), (1, 5, 1, 1)),
        (f"conv_transpose(%x, %w){WINDOW[:-1]}, output_padding=[0, 0], groups=2}}", (4, 5, 3, 3), (1, 5, 1, 1)),
        ("matmul(%x, %w)", (6, 5), (5,)),
    ],
)
def test_each_kind_of_layer_has_a_scale_for_each_output_channel(line: str, shape, scale) -> None:
    graph = graph_of(f"%y = {line}\nreturn %y", "f32[1, 4, 6, 6]", w=shape)
    assert 0 < error(graph) < 0.02
    (layer,) = [n for n in graph.nodes if n.op in line]
    assert layer.operand(1).producer.operand(1).constant.array.shape == scale


def test_a_value_of_several_layers_is_quantized_once() -> None:
    lines = "%a = matmul(%x, %w)\n%b = matmul(%x, %v)\nreturn %a, %b"
    graph = graph_of(lines, "f32[3, 4]", w=(4, 5), v=(4, 6))
    error(graph)
    assert ops(graph).count("quantize") == 1
    assert ops(graph).count("dequantize") == 4


RESIDUAL = f"""%a = conv(%x, %w){WINDOW}
%p = relu(%a)
%b = conv(%p, %v){WINDOW}
%s = add(%b, %p)
%r = relu(%s)
%y = conv(%r, %u){WINDOW}
return %y"""


def test_a_shortcut_is_read_as_codes_and_the_other_operand_stays_in_its_kernel() -> None:
    graph = graph_of(RESIDUAL, "f32[1, 4, 6, 6]", w=(4, 4, 3, 3), v=(4, 4, 3, 3), u=(4, 4, 3, 3))
    assert error(graph) < 0.02
    (add,) = [n for n in graph.nodes if n.op == "add"]
    assert [add.operand(i).producer.op for i in range(2)] == ["conv", "dequantize"]
    assert ops(graph).count("quantize") == 3


def test_of_two_convolutions_that_are_added_the_first_becomes_codes() -> None:
    lines = (
        f"%a = conv(%x, %w){WINDOW}\n%b = conv(%x, %v){WINDOW}\n%s = add(%b, %a)\n%y = conv(%s, %u){WINDOW}\nreturn %y"
    )
    graph = graph_of(lines, "f32[1, 4, 6, 6]", w=(4, 4, 3, 3), v=(4, 4, 3, 3), u=(4, 4, 3, 3))
    assert error(graph) < 0.02
    (add,) = [n for n in graph.nodes if n.op == "add"]
    assert [add.operand(i).producer.op for i in range(2)] == ["conv", "dequantize"]


def test_pools_and_concats_work_on_codes() -> None:
    lines = f"""%a = conv(%x, %w){WINDOW}
%p = max_pool(%a){POOL}
%b = conv(%p, %v){WINDOW}
%d = conv(%p, %v){WINDOW}
%c = concat(%b, %d, %p){{axis=1}}
%y = conv(%c, %u){WINDOW}
return %y"""
    graph = graph_of(lines, "f32[1, 4, 6, 6]", w=(4, 4, 3, 3), v=(4, 4, 3, 3), u=(2, 12, 3, 3))
    assert error(graph) < 0.02
    by_op = {n.op: n.result.type.dtype.name for n in graph.nodes if n.op in ("max_pool", "concat")}
    assert by_op == {"max_pool": "u8", "concat": "u8"}


def test_rows_of_their_own_scale_survive_what_one_scale_does_not() -> None:
    lines = (
        "%s = f32[8, 1] [1.0, 0.001, 1000.0, 1.0, 1.0, 1.0, 1.0, 0.0]\n%m = mul(%x, %s)\n%y = matmul(%m, %w)\nreturn %y"
    )
    worst = {}
    for dynamic in (frozenset(), frozenset({"y"})):
        graph = graph_of(lines, "f32[8, 64]", w=(64, 16))
        feeds = feeds_of(graph)
        want = run(graph, feeds)["y"]
        quantized(graph, make_plan(graph, ranges_of(graph, feeds), dynamic=dynamic))
        got = run(graph, feeds)["y"]
        assert not got[7].any()
        worst[bool(dynamic)] = max(np.linalg.norm(got[:7] - want[:7], axis=1) / np.linalg.norm(want[:7], axis=1))
    assert worst[True] < 0.02 < 0.9 < worst[False]


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("%t = transpose(%x){perm=[1, 0]}\n%y = matmul(%x, %t)\nreturn %y", "both operands are activations"),
        ("%y = matmul(%w, %x)\nreturn %y", "its weights are the first operand"),
        ("%y = matmul(%x, %w){exact=true}\nreturn %y", "its sums are of integers already"),
        ("%c = cast(%w){dtype=f16}\n%d = cast(%c){dtype=f32}\n%y = matmul(%x, %d)\nreturn %y", "both operands"),
    ],
)
def test_what_cannot_be_quantized_says_why(lines: str, why: str) -> None:
    graph = graph_of(lines, "f32[5, 5]", w=(5, 5))
    plan = make_plan(graph, {"x": (-1.0, 1.0)})
    assert why in plan.kept["y"]
    quantized(graph, plan)
    assert "quantize" not in ops(graph)


def test_a_layer_that_is_kept_or_not_observed_stays_float_with_its_reason() -> None:
    graph = chain()
    assert observed_values(graph) == {"x": -3, "r": -3}
    plan = make_plan(graph, {"x": (-1.0, 1.0)}, kept={"a": "it is asked for"})
    assert plan.kept == {"a": "it is asked for", "y": "no statistics of r, which it reads"}
    assert not plan.grids


def test_a_correction_is_added_to_each_output_channel() -> None:
    for lines, x, shape in (
        (f"%y = conv(%x, %w){WINDOW}\nreturn %y", "f32[1, 4, 6, 6]", (5, 4, 3, 3)),
        (f"%b = f32[5] 1.0\n%y = conv(%x, %w, %b){WINDOW}\nreturn %y", "f32[1, 4, 6, 6]", (5, 4, 3, 3)),
        ("%y = matmul(%x, %w)\nreturn %y", "f32[3, 4]", (4, 5)),
    ):
        results = []
        for correction in ({}, {"y": np.arange(5, dtype=np.float32)}):
            graph = graph_of(lines, x, w=shape)
            feeds = feeds_of(graph)
            plan = make_plan(graph, ranges_of(graph, feeds))
            plan.corrections = correction
            quantized(graph, plan)
            results.append(run(graph, feeds)["y"])
        axis = 1 if results[0].ndim == 4 else -1
        added = np.moveaxis(results[1] - results[0], axis, -1)
        np.testing.assert_allclose(added, np.broadcast_to(np.arange(5), added.shape), atol=1e-5)


def test_scales_of_weights_clip_where_that_loses_less() -> None:
    random = np.random.default_rng(3)
    w = random.standard_normal((4, 100000)).astype(np.float32)
    w[1, 7], w[3] = 8.0, 0.0
    scales = weight_scales(w, (1,))
    plain = weight_scales(w, (1,), clip=False)
    assert scales[1] < plain[1] and scales[3] == 1
    loss = [np.square(weight_codes(w, s) * s - w).sum(axis=1) for s in (scales, plain)]
    assert (loss[0] <= loss[1]).all() and loss[0][1] < 0.8 * loss[1][1]


def test_codes_of_a_grid_keep_zero_and_cut_what_is_beyond() -> None:
    grid = grid_of(-1.0, 3.0)
    x = np.float32([-5, -1, 0, 1.01, 3, 9])
    got = rounded(x, grid)
    assert got[2] == 0 and got[0] == got[1] and got[4] == got[5]
    np.testing.assert_allclose(got[1:5], x[1:5], atol=grid.scale)
