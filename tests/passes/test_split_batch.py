"""split-batch: which kernels become a loop over samples, what shrinks with it, and that results stay the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.program import Control, Kernel, Program, blocks
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target
from opcel_compiler.targets.schema import Target

WEIGHTS = "%w = f32[32, 32, 1, 1] 0.1\n%v = f32[32, 32, 3, 3] 0.1"


def slow_memory(cache: int) -> Target:
    """A CPU whose last-level cache has `cache` bytes, before a memory of 1 MB/s."""
    target = load_target("x86-64-avx512")
    memory, last, *inner = target.memories
    return replace(target, memories=(replace(memory, bandwidth=1e6), replace(last, size=cache), *inner))


def split(text: str, cache: int = 128 << 10) -> Program:
    graph, ctx = parse_graph(text), PassContext(target=slow_memory(cache))
    PassManager.run(graph, Pipeline.parse("fuse"), ctx)
    program = lower(graph)
    PassManager.run(program, Pipeline.parse("relayout,split-batch,choose-kernels,pad-rows"), ctx)
    verify_program(program)
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.standard_normal(v.tensor.static_shape).astype(np.float32) for v in graph.inputs}
    for a, b in zip(run(parse_graph(text), feeds).values(), run_program(program, feeds).values(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
    return program


def conv(y: str, x: str, w: str, pad: int = 0) -> str:
    return f"%{y} = conv(%{x}, %{w}){{strides=[1, 1], pads=[{pad}, {pad}, {pad}, {pad}], dilations=[1, 1], groups=1}}"


def marks(program: Program) -> list[tuple[int, str]]:
    return [(i, s.kind) for i, s in enumerate(program.steps) if isinstance(s, Control)]


def images(*nodes: str, samples: int = 32) -> str:
    return f"graph main(%x: f32[{samples}, 32, 8, 8]) {{\n{WEIGHTS}\n" + "\n".join(nodes) + "\nreturn %y\n}"


CHAIN = (conv("a", "x", "w"), "%r = relu(%a)", conv("b", "r", "v", 1), conv("c", "b", "w"), "%y = add(%c, %r)")


def test_images_that_leave_the_cache() -> None:
    """The loop takes one sample a turn; what passes between its kernels has room for one."""
    program = split(images(*CHAIN))
    first, last = (i for i, _ in marks(program))
    assert (first, last) == (0, len(program.steps) - 1)
    loop = program.steps[first]
    assert isinstance(loop, Control) and loop.trip == 32
    assert {b.type.dims[0] for b in program.buffers if b.kind == "temp"} == {1}
    assert {b.type.dims[0] for b in (*program.inputs, *program.outputs)} == {32}


@pytest.mark.parametrize(("cache", "samples"), [(64 << 20, 32), (128 << 10, 1)])
def test_nothing_to_save(cache: int, samples: int) -> None:
    assert marks(split(images(*CHAIN, samples=samples), cache)) == []


def test_turns_of_several_samples() -> None:
    """A cache with room for two samples is used by two, as weights are then read half as often."""
    program = split(images(*CHAIN), 240 << 10)
    assert [s.trip for s in program.steps if isinstance(s, Control) and s.kind == "loop"] == [16]


def test_samples_that_meet() -> None:
    """A kernel that joins samples lies in no loop; what comes before it does."""
    program = split(
        images(*CHAIN[:3], conv("b2", "b", "w"), "%m = reduce_mean(%b){axes=[0], keepdims=true}", "%y = add(%b2, %m)")
    )
    inside = {
        s.anchor.op: bool(outer)
        for s, outer in zip(program.steps, blocks(program.steps), strict=True)
        if isinstance(s, Kernel) and s.anchor is not None
    }
    assert inside == {"conv": True, "reduce_mean": False}


def test_one_kernel_alone_saves_nothing() -> None:
    assert marks(split(images("%y = relu(%x)"))) == []


def test_weights_of_each_sample() -> None:
    """A kernel with a constant for each sample is no part of a loop: constants are packed whole."""
    nodes = "%b = f32[32, 32, 8, 8] 0.5", "%s = add(%x, %b)", conv("a", "s", "w"), conv("y", "a", "v", 1)
    program = split(images(*nodes))
    loop = [i for i, _ in marks(program)]
    assert all(
        v.buffer.kind != "weight" or v.offset == 0 for step in program.steps[loop[0] : loop[1]] for v in step.views
    )


def test_axes_of_one_size() -> None:
    """What reads another axis of a result as its samples needs all of them."""
    text = "graph main(%x: f32[48, 48, 64]) {\n%a = exp(%x)\n%b = softmax(%a){axis=0}\n%y = abs(%b)\nreturn %y\n}"
    assert marks(split(text))
