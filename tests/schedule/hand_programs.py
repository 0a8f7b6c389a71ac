"""Programs that the tests of this folder share, with the graphs that they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opcel_compiler.ir.dims import evaluate
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.layout import PLAIN, Layout
from opcel_compiler.ir.program import Buffer, Kernel, Program, whole
from opcel_compiler.ir.types import TensorType, tensor
from opcel_compiler.schedule.domain import set_domains

Build = Callable[..., Value]


def body_of(types: Sequence[TensorType], build: Build) -> Graph:
    """A body with an input per type; `build(graph, *inputs)` gives its output."""
    body = Graph("body")
    inputs = [body.add_input(f"a{i}", t) for i, t in enumerate(types)]
    body.add_output(build(body, *inputs))
    return body


def anchor_of(body: Graph) -> Node | None:
    return next((n for n in body.nodes if "elementwise" not in n.definition.traits and n.op != "constant"), None)


def kernel(family: str, inputs: Sequence[Buffer], output: Buffer, build: Build, origin: str = "") -> Kernel:
    body = body_of([b.type for b in inputs], build)
    views = [whole(b) for b in inputs]
    return Kernel(family, body, views, [whole(output)], anchor_of(body), origin=(origin,) if origin else ())


def single(build: Build, *types: TensorType) -> tuple[Program, Graph]:
    """A Program of one kernel with row-major inputs x0, x1, … and output y, and its body."""
    inputs = [Buffer(f"x{i}", t, "input") for i, t in enumerate(types)]
    body = body_of(types, build)
    out = Buffer("y", body.outputs[0].tensor, "output")
    step = Kernel("k", body, [whole(b) for b in inputs], [whole(out)], anchor_of(body), origin=("Node_0",))
    program = Program("single", inputs, [out], [step])
    set_domains(program)
    return program, body


def feeds_for(program: Program, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    out = {}
    for b in program.inputs:
        shape = tuple(evaluate(d, sizes) for d in b.type.dims)
        if b.type.dtype.is_float:
            out[b.name] = rng.standard_normal(shape).astype(b.type.dtype.numpy)
        else:
            out[b.name] = rng.integers(0, 3, shape).astype(b.type.dtype.numpy)
    return out


def weight(name: str, array: np.ndarray, layout: Layout = PLAIN) -> Buffer:
    data = Constant(array)
    return Buffer(name, data.type, "weight", layout, data=data)


def residual(width: int = 8) -> Program:
    """relayout, conv with halo and bias, conv with residual and relu, relayout: 10 channels in blocks of `width`."""
    rng = np.random.default_rng(1)
    image = tensor("f32", 2, 10, 7, 6)
    halo = ((0, 0), (0, 0), (1, 1), (1, 1))
    padded, blocked = Layout(block_axis=1, block=width, halo=halo), Layout(block_axis=1, block=width)
    x, y = Buffer("x", image, "input"), Buffer("y", image, "output")
    a, b, c = (Buffer(n, image, layout=at) for n, at in (("a", padded), ("b", padded), ("c", blocked)))
    w1, w2 = (weight(n, rng.standard_normal((10, 10, 3, 3)).astype(np.float32)) for n in ("w1", "w2"))
    bias = weight("bias", rng.standard_normal(10).astype(np.float32), Layout(block_axis=0, block=width))
    attrs = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 1}

    def copy(g: Graph, v: Value) -> Value:
        return v

    def first(g: Graph, v: Value, w: Value, bias: Value) -> Value:
        return g.add("relu", [g.add("conv", [v, w, bias], attrs).result]).result

    def second(g: Graph, v: Value, w: Value, r: Value) -> Value:
        return g.add("relu", [g.add("add", [g.add("conv", [v, w], attrs).result, r]).result]).result

    program = Program("residual", [x], [y], [
        kernel("relayout", [x], a, copy),
        kernel("conv.blocked", [a, w1, bias], b, first, "Conv_0"),
        kernel("conv.blocked", [b, w2, a], c, second, "Conv_1"),
        kernel("relayout", [c], y, copy),
    ])  # fmt: skip
    set_domains(program)
    return program
