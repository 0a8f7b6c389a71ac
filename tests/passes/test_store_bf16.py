"""store-bf16: which images lie in memory as bf16, and what the kernels around them then read."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.program import Program
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target

W1, W3 = "%w = f32[32, 32, 1, 1] 0.1", "%v = f32[32, 32, 3, 3] 0.1"


def conv(y: str, x: str, w: str, pad: int = 0, dilation: int = 1) -> str:
    attrs = f"strides=[1, 1], pads=[{pad}, {pad}, {pad}, {pad}], dilations=[{dilation}, {dilation}], groups=1"
    return f"%{y} = conv(%{x}, %{w}){{{attrs}}}"


def lowered(text: str, precision: str = "bf16") -> Program:
    """The Program of a graph, verified; interpreted, it is the graph with some roundings to bf16."""
    graph, ctx = parse_graph(text), PassContext(target=load_target("x86-64-avx512-vnni-bf16"), precision=precision)
    PassManager.run(graph, Pipeline.parse("fuse"), ctx)
    program = lower(graph)
    PassManager.run(program, Pipeline.parse("relayout,store-bf16,choose-kernels"), ctx)
    verify_program(program)
    feeds = {
        v.name: np.random.default_rng(0).uniform(0.5, 1, v.tensor.static_shape).astype(np.float32)
        for v in graph.inputs
    }  # fmt: skip
    for a, b in zip(run(parse_graph(text), feeds).values(), run_program(program, feeds).values(), strict=True):
        np.testing.assert_allclose(b, a, rtol=0.02)
    return program


def kernels(program: Program) -> list[tuple[str, str, str, str]]:
    """(family, precision, storage of the first input, storage of the output)"""
    return [
        (k.family, k.params.get("precision", ""), k.inputs[0].buffer.layout.storage, k.outputs[0].buffer.layout.storage)
        for k in program.kernels
    ]


def test_images_between_convolutions() -> None:
    body = f"{W1}\n{W3}\n{conv('a', 'x', 'w')}\n%r = relu(%a)\n{conv('b', 'r', 'v', 1)}\n%s = add(%b, %r)"
    text = f"graph main(%x: f32[1, 32, 6, 7]) {{\n{body}\n{conv('y', 's', 'w')}\nreturn %y\n}}"
    assert kernels(lowered(text)) == [
        ("relayout", "", "", "bf16"),
        ("conv.blocked", "bf16", "bf16", "bf16"),
        ("conv.blocked", "bf16", "bf16", "bf16"),
        ("conv.blocked", "bf16", "bf16", ""),
        ("relayout", "", "", ""),
    ]
    assert {k[1:] for k in kernels(lowered(text, "f32"))} == {("", "", "")}


def test_pools_and_means() -> None:
    pool = "%p = max_pool(%a){kernel=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1]}"
    mean = "%y = reduce_mean(%b){axes=[2, 3], keepdims=true}"
    body = f"{W1}\n{conv('a', 'x', 'w')}\n{pool}\n{conv('b', 'p', 'w')}\n{mean}"
    got = kernels(lowered(f"graph main(%x: f32[1, 32, 6, 8]) {{\n{body}\nreturn %y\n}}"))
    assert [k[2:] for k in got if k[0] == "pool.blocked"] == [("bf16", "bf16"), ("bf16", "")]


@pytest.mark.parametrize(("size", "pad"), [(3, 1), (3, 0), (2, 0), (1, 0)])
def test_planes_of_a_first_layer(size: int, pad: int) -> None:
    """They are rounded with their halo; an odd kernel has one more pixel at the right, for its last pair."""
    weight = f"%w = f32[32, 3, {size}, {size}] 0.1"
    program = lowered(f"graph main(%x: f32[1, 3, 8, 8]) {{\n{weight}\n{conv('y', 'x', 'w', pad)}\nreturn %y\n}}")
    assert [k[0] for k in kernels(program)] == ["relayout", "conv.blocked", "relayout"]
    planes = next(program.kernels).outputs[0].buffer.layout
    assert planes.storage == "bf16"
    assert (planes.halo[-1] if planes.halo else (0, 0)) == (pad, pad + size % 2)


def test_dilated_planes_stay_f32() -> None:
    weight = "%w = f32[32, 3, 3, 3] 0.1"
    text = f"graph main(%x: f32[1, 3, 8, 8]) {{\n{weight}\n{conv('y', 'x', 'w', 1, 2)}\nreturn %y\n}}"
    assert {k[1:] for k in kernels(lowered(text))} == {("", "", "")}
