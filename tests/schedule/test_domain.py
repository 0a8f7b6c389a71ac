"""Iteration domains and access maps that bodies give."""

from __future__ import annotations

import re

import pytest
from hand_programs import kernel, single
from kernel_cases import CASES, gemm, op

from opcel_compiler.ir.access import TileBytes, clip, interval, same_axes
from opcel_compiler.ir.dims import Dim, symbol
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Index, Program
from opcel_compiler.ir.program_text import print_program
from opcel_compiler.ir.types import tensor
from opcel_compiler.schedule.domain import domain, set_domains

N = symbol("n", 1)

DOMAINS = {
    "elementwise": ("d0=n, d1=4, d2=5", "(d0, 0, d2), (d1, 0), (d0, d1, d2)"),
    "gemm": ("d0=n, d1=7, reduce k=9", "(d0, k), (k, d1), (d1), (d0, d1)"),
    "matmul-batched": ("d0=n, d1=4, d2=3, d3=2, reduce k=5", "(d0, 0, d2, k), (d1, k, d3), (d0, d1, d2, d3)"),
    "matmul-vector": ("d0=n, reduce k=6", "(d0, k), (k), (d0)"),
    "matmul-rows": ("d0=n, reduce k=5", "(d0, k), (k, *), (d0, *)"),
    "conv": (
        "d0=n, d1=4, d2=3, d3=9, reduce ic=5, reduce k0=3, reduce k1=2",
        "(d0, ic, 2*d2 + k0 + -1, d3 + 2*k1 + -2), (d1, ic, k0, k1), (d1), (d0, d1, d2, d3)",
    ),
    "conv-1d": ("d0=n, d1=2, d2=9, reduce ic=3, reduce k0=3", "(d0, ic, d2 + 2*k0 + -2), (d1, ic, k0), (d0, d1, d2)"),
    "conv-grouped": (
        "d0=n, d2=5, d3=5, reduce k0=3, reduce k1=3",
        "(d0, *, d2 + k0 + -1, d3 + k1 + -1), (*, *, k0, k1), (d0, *, d2, d3)",
    ),
    "conv-depthwise": (
        "d0=n, d1=6, d2=5, d3=3, reduce k0=3, reduce k1=3",
        "(d0, d1, d2 + k0 + -1, 2*d3 + k1 + -1), (d1, 0, k0, k1), (d0, d1, d2, d3)",
    ),
    "conv-transpose": ("d0=n", "(d0, *, *, *), (*, *, *, *), (d0, *, *, *)"),
    "max-pool": (
        "d0=n, d1=3, d2=4, d3=6, reduce k0=3, reduce k1=2",
        "(d0, d1, 2*d2 + k0 + -1, d3 + k1), (d0, d1, d2, d3)",
    ),
    "sum": ("d0=3, reduce r0=n, reduce r2=7", "(r0, d0, r2), (d0)"),
    "mean": ("d0=n, d2=3, reduce r1=5", "(d0, r1, d2), (d0, 0, d2)"),
    "arg-max": ("d0=n", "(d0, *), (d0)"),
    "centred": ("d0=n, d1=5, reduce r1=5", "(d0, *), (d0, d1)"),
    "softmax": ("d0=n, d2=3", "(d0, *, d2), (d0, *, d2)"),
    "layer-norm": ("d0=n", "(d0, *), (*), (*), (d0, *)"),
    "attention": (
        "d0=n, d1=4, d2=5, reduce t=7",
        "(d0, d1, d2, *), (d0, *, t, *), (d0, *, t, *), (d0, d1, d2, *)",
    ),
    "attention-mask": (
        "d0=n, d1=2, d2=5, reduce t=7",
        "(d0, d1, d2, *), (d0, d1, t, *), (d0, d1, t, *), (d2, t), (d0, d1, d2, *)",
    ),
    "rearranged": ("d0=n, d1=4, d2=3, d3=2", "(d0, 3*d3 + 1, -2*d2 + 4), (d0, d1, d2, d3)"),
    "two-reads": ("d0=n, d1=n", "(*, *), (d0, d1)"),
    "concat": ("d0=n", "(d0, *), (d0, *), (d0, *)"),
    "pad": ("d0=n", "(d0, *), (d0, *)"),
    "gather": ("d0=n, d1=2, d2=3", "(d0, *), (d1, d2), (d0, d1, d2)"),
    "gather-elements": ("d0=n, d1=3", "(d0, *), (d0, d1), (d0, d1)"),
    "gather-nd": ("", "(*, *), (*, *), (*)"),
}


@pytest.mark.parametrize("case", DOMAINS)
def test_domain(case: str) -> None:
    program, _ = single(CASES[case][0], *CASES[case][1])
    text = print_program(program)
    axes, maps = re.search(r"axes \((.*)\)", text), re.search(r"maps (.*)", text)
    assert (axes[1] if axes else "", maps[1] if maps else "") == DOMAINS[case]


def test_slices_move_the_index() -> None:
    def build(g: Graph, x: Value) -> Value:
        y = g.add("slice", [x], {"starts": (5, N), "sizes": (3, 4), "steps": (-2, 1)}).result
        return g.add("relu", [y]).result

    program, _ = single(build, tensor("f32", 6, 4 + 2 * N))
    assert "maps (-2*d0 + 5, *), (d0, d1)" in print_program(program)


def test_a_second_output_keeps_its_axes_whole() -> None:
    """A prologue's value that is also an output cannot be tiled along the anchor's reduce axis."""
    x, w, y = (Buffer(n, tensor("f32", 4, 4), k) for n, k in (("x", "input"), ("w", "input"), ("y", "output")))
    step = kernel("matmul", [x, w], y, lambda g, a, b: g.add("matmul", [g.add("exp", [a]).result, b]).result)
    axes, _ = domain(step)
    assert [a.name for a in axes] == ["d0", "d1", "k"]
    step.body.add_output(next(n for n in step.body.nodes if n.op == "exp").result)
    axes, maps = domain(step)
    assert [a.name for a in axes] == ["d0", "d1"]
    assert maps[3] == (Index(((0, 1),)), Index(whole=True))


def test_only_the_anchor_opens_reduce_axes() -> None:
    def twice(g: Graph, a: Value, b: Value, c: Value) -> Value:
        return g.add("matmul", [g.add("matmul", [a, b]).result, c]).result

    program, body = single(twice, *(tensor("f32", 4, 4) for _ in range(3)))
    (step,) = program.kernels
    assert step.anchor is next(body.nodes)
    assert [(a.name, a.kind) for a in step.axes] == [("d0", "parallel"), ("d1", "parallel"), ("k", "reduce")]
    step.anchor = None
    assert [a.name for a in domain(step)[0]] == ["d0", "d1"]


def test_set_domains_drops_tiles() -> None:
    program, _ = single(gemm, *CASES["gemm"][1])
    (step,) = program.kernels
    step.tiles, step.axes = {"sram": (1,)}, ()
    set_domains(program)
    assert step.tiles == {} and len(step.axes) == 3


@pytest.mark.parametrize(
    ("old", "new", "pairs"),
    [
        ((2, 3, 4), (2, 12), [(0, 0)]),
        ((2, 12), (2, 3, 4), [(0, 0)]),
        ((2, 3, 4), (6, 4), [(2, 1)]),
        ((4, 1, 5), (1, 4, 5, 1), [(0, 1), (2, 2)]),
        ((2, 3), (3, 2), []),
        ((N, 6), (N, 2, 3), [(0, 0)]),
        ((N, 2, 3, 5), (N, 6, 5), [(0, 0), (3, 2)]),
        ((2 * N, 5), (N, 2, 5), [(1, 2)]),
        ((N, 4), (4 * N,), []),
        ((1,), (1, 1), [(0, 0)]),
        ((), (1,), []),
    ],
)
def test_axes_that_a_reshape_keeps(old: tuple[Dim, ...], new: tuple[Dim, ...], pairs: list[tuple[int, int]]) -> None:
    assert same_axes(old, new) == pairs


def test_intervals() -> None:
    tile = [(2, 5), (0, 3), (4, 4)]
    assert interval(Index(((0, 2), (1, 1)), -3), 100, tile) == (1, 8)
    assert interval(Index(((0, -1),), 9), 100, tile) == (5, 8)
    assert interval(Index(whole=True), 7, tile) == (0, 7)
    assert interval(Index(((2, 1),)), 7, tile) == (0, 0)
    assert clip((-2, 3), 10) == (0, 3) and clip((8, 12), 10) == (8, 10) and clip((12, 14), 10) == (10, 10)


def test_footprint_counts_what_memory_holds() -> None:
    """Halo rows of a conv, whole blocks of a blocked axis, nothing twice for a broadcast, a 32-bit accumulator."""
    program, _ = single(CASES["conv"][0], *CASES["conv"][1])
    (step,) = program.kernels
    measure = TileBytes(step, {"n": 2})
    tile = (1, 2, 2, 3, 5, 3, 2)
    assert [measure.view(i, tile) for i in range(4)] == [4 * 5 * 5 * 5, 4 * 2 * 5 * 6, 4 * 2, 4 * 2 * 2 * 3]
    assert measure.footprint(tile) == 4 * (125 + 60 + 2 + 12)
    assert measure.footprint(tile, 2) == 4 * (2 * (125 + 60 + 2) + 12)

    x = Buffer("x", tensor("f16", 1, 10, 4, 4), "input", Layout(block_axis=1, block=8))
    b = Buffer("b", tensor("f16", 10, 1, 1), "input")
    y = Buffer("y", tensor("f16", 1, 10, 4, 4), "output", Layout(block_axis=1, block=8))
    step = kernel("elementwise", [x, b], y, op("add"))
    step.inputs[1] = step.inputs[1].expand((10, 4, 4))
    step.body.inputs[1].type = tensor("f16", 10, 4, 4)
    set_domains(Program("p", [x, b], [y], [step]))
    measure = TileBytes(step, {})
    assert [measure.view(i, (3, 2, 2)) for i in range(3)] == [2 * 8 * 4, 2 * 3, 2 * 8 * 4]
    assert [measure.view(i, (9, 2, 2)) for i in range(3)] == [2 * 16 * 4, 2 * 9, 2 * 16 * 4]

    program, _ = single(CASES["gemm-f16"][0], *CASES["gemm-f16"][1])
    measure = TileBytes(next(program.kernels), {"n": 4})
    whole = 2 * (4 * 9 + 9 * 7 + 7)
    assert measure.footprint((4, 7, 9)) == whole + 2 * 28
    assert measure.footprint((4, 7, 3)) == 2 * (4 * 3 + 3 * 7 + 7) + 4 * 28
