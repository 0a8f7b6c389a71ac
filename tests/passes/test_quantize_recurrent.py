"""quantize: recurrent layers become a product of codes for x, and steps with s8 weights; which do not, and why."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.quantization import recurrent_layers
from opcel_compiler.ir.types import I8
from opcel_compiler.quantization.layers import candidates, macs
from opcel_compiler.quantization.metrics import kl
from opcel_compiler.quantization.plan import make_plan, observed_values
from opcel_compiler.quantization.probe import measure
from opcel_compiler.quantization.sensitivity import Replay, Sensitivity, sensitivities
from opcel_compiler.quantization.trial import Trial
from opcel_compiler.targets import load_target

from .test_quantize import error, feeds_of, graph_of, ops, quantized, ranges_of

T, B, SIZE, N = 5, 3, 6, 8
GATES = {"lstm": 4, "gru": 3, "rnn": 1}


def layer(op: str, d: int = 1, bias: bool = True, states: bool = True, attrs: str = "", behind: str = "") -> Graph:
    """%x through a layer; its states are computed."""
    rows = GATES[op] * N
    initial = ["%h", "%h"] if op == "lstm" else ["%h"]
    operands = ", ".join(
        ["%x", "%r", "%w", "%b" if bias else "_", *(initial if states else []), *filter(None, [behind])]
    )
    given = ["reset_after=true"] if op == "gru" and "reset_after" not in attrs else []
    given += ['direction="bidirectional"'] if d == 2 else []
    listed = ", ".join([*given, *filter(None, [attrs])])
    lines = f"""%n = i32[{B}] {list(range(1, B + 1))}
%h = tanh(%h0)
%y{", %c" if op == "lstm" else ""} = {op}({operands}){{{listed}}}
return %y"""
    shapes = {"r": (d, rows, N), "w": (d, rows, SIZE), "b": (d, 2 * rows), "h0": (d, B, N)}
    return graph_of(lines.replace("{}", ""), f"f32[{T}, {B}, {SIZE}]", **shapes)


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("op", GATES)
def test_a_layer_of_floats_becomes_one_of_bytes(op: str, d: int, scheme: str) -> None:
    graph = layer(op, d)
    kept = dict(next(n for n in graph.nodes if n.op == op).attrs)
    assert 0 < error(graph, dynamic=frozenset({"y"} if scheme == "dynamic" else ())) < 0.02
    (steps,) = [n for n in graph.nodes if n.op == op]
    assert steps.operand(1).tensor.dtype == I8 and steps.optional(2) is None and steps.attrs == kept
    assert steps.results[0].name == "y"
    assert ops(graph)[-4:] == ["dequantize", "matmul", "add", op]


def test_what_is_measured_is_what_the_pass_makes() -> None:
    """The signal to noise of a layer, and what it does to the outputs, are those of the quantized graph."""
    for op in GATES:
        graph = layer(op)
        feeds = feeds_of(graph)
        plan = make_plan(graph, ranges_of(graph, feeds))
        assert recurrent_layers(graph, plan) == ["y"]
        found, (want,) = measure(graph, plan, [feeds])
        alone = dict(sensitivities(graph, plan, [feeds], Sensitivity(None, ""), lambda done, of: None))
        trial = Trial(graph, plan, [feeds]).noise(plan)
        quantized(graph, plan)
        got = run(graph, feeds)["y"]
        noise = np.square(got - want["y"]).sum() / np.square(want["y"]).sum()
        assert found["y"].sqnr == pytest.approx(-10 * np.log10(noise), abs=0.01)
        assert trial == pytest.approx(noise, rel=1e-3)
        assert alone["y"] == pytest.approx(kl([want], [{"y": got}]), rel=1e-2)


def test_a_changed_layer_is_followed_through_all_its_results() -> None:
    graph = graph_of(
        "%y, %c = lstm(%x, %r, %w)\n%z = neg(%c)\nreturn %y, %z", "f32[2, 1, 3]", r=(1, 20, 5), w=(1, 20, 3)
    )
    replay, node = Replay(graph, feeds_of(graph)), next(n for n in graph.nodes if n.op == "lstm")
    found = replay.again(node, [np.zeros(v.tensor.static_shape, np.float32) + i for i, v in enumerate(node.results)])
    assert not found["y"].any() and (found["z"] == -1).all()


def test_without_a_bias_or_states_none_are_made() -> None:
    graph = layer("gru", bias=False, states=False)
    assert 0 < error(graph) < 0.02
    (steps,) = [n for n in graph.nodes if n.op == "gru"]
    assert [v is None for v in steps.operands] == [False, False, True, True, True, True, False]
    assert "add" not in ops(graph)


def test_on_a_target_a_few_units_are_no_faster_in_bytes() -> None:
    for op, size, faster in (("lstm", 31, False), ("lstm", 32, True), ("rnn", 32, True)):
        rows = GATES[op] * size
        graph = graph_of(f"%y = {op}(%x, %r, %w)\nreturn %y".replace("%y =", "%y, %c =" if op == "lstm" else "%y ="),
                         "f32[2, 1, 3]", r=(1, rows, size), w=(1, rows, 3))  # fmt: skip
        (candidate,) = candidates(graph, load_target("x86-64-avx512-vnni-bf16"))
        assert ("hidden units" in candidate.reason) != faster


def test_the_operand_is_observed_and_the_state_is_not() -> None:
    assert observed_values(layer("lstm")) == {"x": -1}


@pytest.mark.parametrize(
    ("op", "attrs", "behind", "why"),
    [
        ("gru", "reset_after=false", "", "its reset gate stands before the product"),
        ("lstm", "clip=3.0", "", "its gates are clipped"),
        ("lstm", "input_forget=true", "", "its input and forget gates are coupled"),
        ("rnn", 'activations=["softsign"], alphas=[0.0], betas=[0.0]', "", "it has activations of its own"),
        ("rnn", "", "%n", "its sequences have lengths of their own"),
    ],
)
def test_what_the_kernel_does_not_take_stays_float(op: str, attrs: str, behind: str, why: str) -> None:
    graph = layer(op, attrs=attrs, behind=behind)
    (candidate,) = candidates(graph)
    assert why in candidate.reason and macs(candidate.node) > 0
    plan = make_plan(graph, {"x": (-1.0, 1.0)})
    assert plan.kept["y"] == candidate.reason and not recurrent_layers(graph, plan)
    before = ops(graph)
    quantized(graph, plan)
    assert ops(graph) == before
