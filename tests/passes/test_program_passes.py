"""relayout and choose-kernels on Programs: layouts that meet cancel, every Program still computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.program import Kernel, Program
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target

TARGETS = ("x86-64", "x86-64-avx2", "x86-64-avx512")


def lowered(text: str, target: str = "x86-64-avx512") -> Program:
    """The Program of a graph after both passes, verified, and equal to the graph when interpreted."""
    graph = parse_graph(text)
    program = _program(graph, target)
    rng = np.random.default_rng(0)
    feeds = {v.name: rng.standard_normal(v.tensor.static_shape).astype(np.float32) for v in graph.inputs}
    wanted, got = run(parse_graph(text), feeds), run_program(program, feeds)
    for a, b in zip(wanted.values(), got.values(), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
    return program


def _program(graph: Graph, target: str) -> Program:
    ctx = PassContext(target=load_target(target))
    PassManager.run(graph, Pipeline.parse("fuse"), ctx)
    program = lower(graph)
    PassManager.run(program, Pipeline.parse("relayout,choose-kernels,pad-rows"), ctx)
    verify_program(program)
    return program


def families(program: Program) -> list[str]:
    return [s.family for s in program.steps if isinstance(s, Kernel)]


def conv(y: str, x: str, w: str, pad: int = 0) -> str:
    return f"%{y} = conv(%{x}, %{w}){{strides=[1, 1], pads=[{pad}, {pad}, {pad}, {pad}], dilations=[1, 1], groups=1}}"


W1, W3 = "%w = f32[32, 32, 1, 1] 0.1", "%v = f32[32, 32, 3, 3] 0.1"


@pytest.mark.parametrize("target", TARGETS)
def test_conversions_between_convolutions_cancel(target: str) -> None:
    body = f"{W1}\n{W3}\n{conv('a', 'x', 'w')}\n{conv('b', 'a', 'v', 1)}\n{conv('y', 'b', 'w')}"
    program = lowered(f"graph main(%x: f32[1, 32, 6, 7]) {{\n{body}\nreturn %y\n}}", target)
    assert families(program) == ["relayout", "conv.blocked", "conv.blocked", "conv.blocked", "relayout"]


def test_the_halo_is_the_readers() -> None:
    body = f"{W1}\n{W3}\n{conv('a', 'x', 'w')}\n{conv('b', 'a', 'v', 1)}\n{conv('c', 'a', 'w')}\n%y = add(%b, %c)"
    program = lowered(f"graph main(%x: f32[1, 32, 6, 7]) {{\n{body}\nreturn %y\n}}")
    first = next(s for s in program.steps if isinstance(s, Kernel) and s.family == "conv.blocked")
    assert first.outputs[0].buffer.layout.halo == ((0, 0), (0, 0), (1, 1), (1, 1))
    assert families(program).count("relayout") == 2


def test_elementwise_work_between_takes_over_the_layout() -> None:
    body = f"{W1}\n{conv('a', 'x', 'w')}\n%m = max_pool(%a){{kernel=[2, 2], strides=[2, 2], pads=[0, 0, 0, 0], dilations=[1, 1]}}\n%e = exp(%m)\n%t = add(%e, %m)\n{conv('y', 't', 'w')}"  # noqa: E501
    program = lowered(f"graph main(%x: f32[1, 32, 6, 8]) {{\n{body}\nreturn %y\n}}")
    assert families(program) == [
        "relayout", "conv.blocked", "pool.blocked", "elementwise", "conv.blocked", "relayout",
    ]  # fmt: skip


def test_a_reader_of_another_layout_gets_a_conversion() -> None:
    body = f"{W1}\n{conv('a', 'x', 'w')}\n%y = transpose(%a){{perm=[0, 2, 3, 1]}}\n%z = exp(%y)"
    program = lowered(f"graph main(%x: f32[1, 32, 3, 4]) {{\n{body}\nreturn %z\n}}")
    assert families(program)[:3] == ["relayout", "conv.blocked", "relayout"]


def test_no_vector_unit_no_blocks() -> None:
    graph = parse_graph(f"graph main(%x: f32[1, 32, 3, 4]) {{\n{W1}\n{conv('y', 'x', 'w')}\nreturn %y\n}}")
    program = lower(graph)
    PassManager.run(program, Pipeline.parse("relayout,choose-kernels"), PassContext(target=load_target("null")))
    assert families(program) == ["conv"]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("rows", [5, 7, 13, 29, 128])
def test_register_tiles_cut_every_row_count(target: str, rows: int) -> None:
    program = lowered(
        f"graph main(%x: f32[{rows}, 8]) {{\n%w = f32[8, 70] 0.5\n%y = matmul(%x, %w)\nreturn %y\n}}", target
    )
    (gemm,) = [s for s in program.steps if isinstance(s, Kernel) and s.family == "gemm"]
    heights, per_task = gemm.params["rows"], gemm.params["rows_per_task"]
    reachable = {0}
    for _ in range(rows):
        reachable |= {r + h for r in reachable for h in heights if r + h <= rows}
    assert {min(per_task, rows), rows % per_task} - {0} <= reachable


WIDE = "%w = f32[8, 1024] 0.5\n%v = f32[1024, 8] 0.25\n%a = matmul(%x, %w)"


def halo(program: Program) -> tuple[tuple[int, int], ...]:
    return program.steps[0].outputs[0].buffer.layout.halo


def test_rows_a_page_apart_are_spread() -> None:
    body = f"{WIDE}\n%y = matmul(%a, %v)"
    assert halo(lowered(f"graph main(%x: f32[2, 20, 8]) {{\n{body}\nreturn %y\n}}")) == ((0, 0), (0, 0), (0, 16))
    assert not halo(lowered(f"graph main(%x: f32[2, 3, 8]) {{\n{body}\nreturn %y\n}}"))
    assert not halo(lowered(f"graph main(%x: f32[2, 20, 8]) {{\n{body}\nreturn %y\n}}", "x86-64-avx2"))


def test_rows_are_spread_only_where_every_kernel_steps_over_the_pad() -> None:
    heads = "%h = reshape(%a){shape=[20, 16, 64]}\n%q = transpose(%h){perm=[1, 0, 2]}"
    split = f"{heads}\n%s = attention(%q, %q, %q){{scale=0.125}}"
    split = split.replace("[20, 16, 64]", "[1, 20, 16, 64]").replace("[1, 0, 2]", "[0, 2, 1, 3]")
    body = f"{WIDE}\n{split}\n%y = matmul(%a, %v)"
    program = lowered(f"graph main(%x: f32[20, 8]) {{\n{body}\nreturn %y, %s\n}}")
    assert halo(program) == ((0, 0), (0, 16)) and "attention" in families(program)
    body = f"{WIDE}\n%y = matmul(%a, %v)\n%s = reduce_sum(%a){{axes=[0], keepdims=false}}"
    assert not halo(lowered(f"graph main(%x: f32[20, 8]) {{\n{body}\nreturn %y, %s\n}}"))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("rows", "columns"), [("1", 40), ("1", 5000), ("2, 2", 5000)])
def test_products_of_few_rows_have_panels_for_all_threads(target: str, rows: str, columns: int) -> None:
    text = f"graph main(%x: f32[{rows}, 8]) {{\n%w = f32[8, {columns}] 0.5\n%y = matmul(%x, %w)\nreturn %y\n}}"
    program = lowered(text, target)
    (kernel,) = program.kernels
    assert kernel.family == "vector" and kernel.params["rows"] in (1, 4)
    vector = load_target(target).vector
    assert vector is not None
    panel, per_task = kernel.params["panel"], kernel.params["panels_per_task"]
    assert panel == vector.width_f32 or columns // panel >= 16
    assert kernel.params["rows"] * panel // vector.width_f32 <= vector.registers // 2
    assert 16 <= columns / panel / per_task <= 32 or panel == vector.width_f32


def test_equal_weights_are_packed_once_and_others_apart() -> None:
    body = "%w = f32[8, 40] 0.5\n%v = f32[8, 40] 0.25\n%a = matmul(%x, %w)\n%b = matmul(%z, %w)\n%c = matmul(%z, %v)"
    program = lowered(f"graph main(%x: f32[6, 8], %z: f32[5, 8]) {{\n{body}\nreturn %a, %b, %c\n}}")
    packed = [b for b in program.buffers if b.kind == "weight"]
    assert len(packed) == 2


def test_what_no_fast_family_takes_keeps_its_epilogue_in_a_kernel_of_its_own() -> None:
    attrs = "strides=[1, 1, 1], pads=[0, 0, 0, 0, 0, 0], dilations=[1, 1, 1], groups=1"
    body = f"%w = f32[4, 2, 3, 3, 3] 0.5\n%a = conv(%x, %w){{{attrs}}}\n%y = relu(%a)"
    program = lowered(f"graph main(%x: f32[1, 2, 9, 9, 9]) {{\n{body}\nreturn %y\n}}")
    assert families(program) == ["conv.reference", "elementwise"]
