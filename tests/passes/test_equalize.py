"""equalize: what divides a value and what reads it are changed so that the graph computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.quantization import Plan
from opcel_compiler.ir.verify import verify
from opcel_compiler.quantization.divide import divisions
from opcel_compiler.quantization.layers import candidates
from opcel_compiler.quantization.observe import interpreted
from opcel_compiler.quantization.plan import observed_values
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline

WINDOW = "{strides=[1, 1], pads=[1, 1, 1, 1], dilations=[1, 1]}"
IMAGE, ROWS = "f32[1, 4, 6, 6]", "f32[3, 8]"


def graph_of(lines: str, x: str, **weights: tuple[int, ...]) -> Graph:
    random = np.random.default_rng(1)
    data = {n: Constant(random.standard_normal(s).astype(np.float32)) for n, s in weights.items()}
    head = "".join(f"%{n} = {c.type} #{c.digest}\n" for n, c in data.items())
    return parse_graph(f"graph main(%x: {x}) {{\n{head}{lines}\n}}", {c.digest: c for c in data.values()})


def feeds_of(graph: Graph, seed: int = 2) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {v.name: random.standard_normal(v.tensor.static_shape).astype(np.float32) for v in graph.inputs}


def divided(graph: Graph, name: str, channels: int) -> tuple[int, list[str]]:
    """The changes and the operators after dividing `name`; what the graph computes must stay."""
    feeds = feeds_of(graph)
    want = run(graph, feeds)
    s = np.float32(2) ** np.linspace(-6, 6, channels, dtype=np.float32)
    ctx = PassManager.run(graph, Pipeline.parse("equalize"), PassContext(quantization=Plan(divided={name: s})))
    verify(graph)
    for key, got in run(graph, feeds).items():
        np.testing.assert_allclose(got, want[key], rtol=1e-4, atol=1e-4)
    return ctx.report.total, [n.op for n in graph.nodes if n.op != "constant"]


@pytest.mark.parametrize(
    ("lines", "x", "shapes"),
    [
        (f"%a = conv(%x, %w, %b){WINDOW}\n%v = relu(%a)\n%y = conv(%v, %u){WINDOW}\nreturn %y",
         IMAGE, {"w": (8, 4, 3, 3), "b": (8,), "u": (2, 8, 3, 3)}),
        (f"%c = f32[] 0.5\n%a = conv(%x, %w){WINDOW}\n%r = relu(%a)\n%v = min(%r, %c)\n"
         f"%y = conv(%v, %u){WINDOW[:-1]}, groups=2}}\nreturn %y", IMAGE, {"w": (8, 4, 3, 3), "u": (6, 4, 3, 3)}),
        (f"%v = conv_transpose(%x, %w){WINDOW[:-1]}, groups=2, output_padding=[0, 0]}}\n"
         f"%p = max_pool(%v){{kernel=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1]}}\n"
         f"%y = conv_transpose(%p, %u){WINDOW[:-1]}, output_padding=[0, 0]}}\nreturn %y",
         IMAGE, {"w": (4, 4, 3, 3), "u": (8, 2, 3, 3)}),
        ("%v = layer_norm(%x, %s, %b){axis=1, epsilon=1e-5}\n%y = matmul(%v, %w)\n%z = matmul(%v, %u)\nreturn %y, %z",
         ROWS, {"s": (8,), "b": (8,), "w": (8, 5), "u": (8, 6)}),
        ("%m = matmul(%x, %w)\n%a = add(%m, %b)\n%v = relu(%a)\n%y = matmul(%v, %u)\nreturn %y",
         ROWS, {"w": (8, 8), "b": (8,), "u": (8, 6)}),
    ],
)  # fmt: skip
def test_a_division_goes_into_what_makes_the_value(lines: str, x: str, shapes) -> None:
    graph = graph_of(lines, x, **shapes)
    before = [n.op for n in graph.nodes if n.op != "constant"]
    assert divided(graph, "v", 8) == (1, before)


@pytest.mark.parametrize(
    ("lines", "added"),
    [
        ("%v = gelu(%x)\n%y = matmul(%v, %w)\nreturn %y", 1),
        ("%v = layer_norm(%x, %s, %s){axis=1, epsilon=1e-5}\n%m = matmul(%v, %w)\n%y = add(%m, %v)\nreturn %y", 1),
        ("%v = relu(%x)\n%y = add(%v, %x)\nreturn %y", 0),
    ],
)
def test_else_it_is_a_product_for_the_layers_alone(lines: str, added: int) -> None:
    graph = graph_of(lines, ROWS, w=(8, 8), s=(8,))
    before = [n.op for n in graph.nodes if n.op != "constant"]
    changes, after = divided(graph, "v", 8)
    assert changes == added and len(after) == len(before) + added


def test_an_image_with_other_readers_is_left_alone() -> None:
    lines = f"%v = conv(%x, %w){WINDOW}\n%a = conv(%v, %u){WINDOW}\n%y = add(%a, %v)\nreturn %y"
    graph = graph_of(lines, IMAGE, w=(4, 4, 3, 3), u=(4, 4, 3, 3))
    assert divided(graph, "v", 4)[0] == 0


def test_an_image_joined_from_parts_is_left_alone() -> None:
    """They are written as codes of one grid; a product would read them all again."""
    lines = f"%a = conv(%x, %w){WINDOW}\n%v = concat(%a, %x){{axis=1}}\n%y = conv(%v, %u){WINDOW}\nreturn %y"
    graph = graph_of(lines, IMAGE, w=(4, 4, 3, 3), u=(2, 8, 3, 3))
    assert divided(graph, "v", 8)[0] == 0


def test_what_attention_makes_is_left_alone() -> None:
    """Its kernel writes codes; a product would read them all again."""
    heads = "%q = reshape(%x){shape=[1, 3, 2, 4]}\n%h = transpose(%q){perm=[0, 2, 1, 3]}\n"
    back = "%t = transpose(%a){perm=[0, 2, 1, 3]}\n%v = reshape(%t){shape=[3, 8]}\n"
    lines = f"{heads}%a = attention(%h, %h, %h){{scale=0.5}}\n{back}%y = matmul(%v, %u)\nreturn %y"
    assert divided(graph_of(lines, ROWS, u=(8, 2)), "v", 8)[0] == 0


def found(graph: Graph, samples: int) -> dict[str, np.ndarray]:
    feeds = [feeds_of(graph, seed) for seed in range(4)]
    seen = interpreted(graph, feeds, observed_values(graph))
    return divisions(graph, candidates(graph), seen, feeds[:samples])


@pytest.mark.parametrize("samples", [0, 4])
def test_channels_far_apart_are_divided_so_that_they_meet(samples: int) -> None:
    lines = f"%a = conv(%x, %w){WINDOW}\n%v = relu(%a)\n%y = conv(%v, %u){WINDOW}\nreturn %y"
    graph = graph_of(lines, IMAGE, w=(8, 4, 3, 3), u=(2, 8, 3, 3))
    assert found(graph, samples) == {}
    factors = 2.0 ** np.linspace(-6, 6, 8)
    made, read = (next(n for n in graph.nodes if n.op != "constant" and n.result.name == name) for name in "ay")
    for node, shape in ((made, (-1, 1, 1, 1)), (read, (1, -1, 1, 1))):
        w = node.operand(1).constant.array * (factors if node is made else 1 / factors).reshape(shape)
        node.set_operand(1, graph.constant(Constant(w.astype(np.float32)), before=made))
    (s,) = found(graph, samples).values()
    ratio = s / factors
    assert ratio.max() < 4 * ratio.min() and s.max() > 200 * s.min()
