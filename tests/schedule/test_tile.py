"""Tiles fit the memories they are for, move little, and leave the results alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hand_programs import feeds_for, residual, single
from kernel_cases import CASES, gemm, op
from networks import NETWORKS

from opcel_compiler.ir.access import TileBytes
from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.program import Program
from opcel_compiler.ir.program_interpret import ProgramError, run_program
from opcel_compiler.ir.program_text import equal_programs, parse_program, print_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.ir.types import tensor
from opcel_compiler.passes.tile import Tile
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.rewrite.rule import Numerics
from opcel_compiler.schedule.cost import kernel_cost, nominal_sizes, traffic
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import Target, load_target

NULL = load_target("null")


def small(*sizes: int) -> Target:
    """The null target with on-chip memories of these sizes."""
    memories = [replace(m, size=s) for m, s in zip(NULL.memories[1:], sizes, strict=False)]
    return replace(NULL, memories=(NULL.memories[0], *memories))


def tiled(program: Program, target: Target = NULL, **options: bool) -> PassContext:
    ctx = PassContext(target=target)
    Tile(**options).run(program, ctx)
    return ctx


def measured(program: Program) -> TileBytes:
    (step,) = program.kernels
    return TileBytes(step, nominal_sizes(step))


@pytest.mark.parametrize("case", CASES)
def test_tiles_fit_nest_and_run(case: str) -> None:
    program, body = single(CASES[case][0], *CASES[case][1])
    target = small(600, 200)
    ctx = tiled(program, target)
    verify_program(program)
    (step,) = program.kernels
    measure = measured(program)
    for level, tile in step.tiles.items():
        assert measure.footprint(tile) <= target.memory(level).size
    if len(step.tiles) < 2:
        assert list(ctx.report.refusals()) or not list(body.nodes)
    feeds = feeds_for(program, n=4)
    (got,) = run_program(program, feeds, target).values()
    (want,) = run(body, dict(zip((v.name for v in body.inputs), feeds.values(), strict=True))).values()
    tolerance = 2e-2 if got.dtype == np.float16 else 1e-5
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance)


def test_the_search_finds_nearly_the_least_traffic() -> None:
    program, _ = single(gemm, tensor("f32", 64, 48), tensor("f32", 48, 80), tensor("f32", 80))
    tiled(program, small(8192), double_buffer=False)
    measure = measured(program)
    (step,) = program.kernels
    chosen = tuple(int(str(t)) for t in step.tiles["sram"])
    options = [[1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80] for _ in range(3)]
    best = min(
        traffic(measure, t, measure.extents)
        for t in product(*options)
        if all(a <= b for a, b in zip(t, measure.extents, strict=True)) and measure.footprint(t) <= 8192
    )
    assert traffic(measure, chosen, measure.extents) <= 1.05 * best
    assert kernel_cost(step, NULL).seconds < 0.2 * _cost_of(step, (1, 1, 1))


def _cost_of(step: object, tile: tuple[int, ...]) -> float:
    return kernel_cost(replace(step, tiles={"sram": tile}), NULL).seconds  # type: ignore[type-var]


def test_double_buffering_keeps_room_for_the_next_inputs() -> None:
    program, _ = single(gemm, tensor("f32", 512, 512), tensor("f32", 512, 512), tensor("f32", 512))
    tiled(program)
    (step,) = program.kernels
    double = step.tiles
    assert measured(program).footprint(double["sram"], 2) <= 64 << 10  # type: ignore[arg-type]
    tiled(program, double_buffer=False)
    assert 64 << 10 >= measured(program).footprint(step.tiles["sram"]) > 50 << 10  # type: ignore[arg-type]
    assert step.tiles != double


def test_without_room_for_two_buffers_there_is_one() -> None:
    program, _ = single(op("softmax", axis=1), tensor("f32", 4, 100))
    ctx = tiled(program, small(1000))
    (step,) = program.kernels
    assert step.tiles == {"sram": (1,)} and not list(ctx.report.refusals())


def test_what_fits_whole_is_one_tile() -> None:
    program, _ = single(gemm, tensor("f32", 8, 8), tensor("f32", 8, 8), tensor("f32", 8))
    tiled(program)
    (step,) = program.kernels
    assert step.tiles == {"sram": (8, 8, 8), "local": (8, 8, 8)}


def test_only_anchors_that_accumulate_have_their_reduce_axes_cut() -> None:
    attrs = {"kernel": (9, 9), "strides": (1, 1), "pads": (0,) * 4, "dilations": (1, 1)}
    program, _ = single(op("max_pool", **attrs), tensor("f32", 1, 4, 20, 20))
    ctx = tiled(program, small(1200, 300))
    (step,) = program.kernels
    assert [a.name for a in step.axes][-2:] == ["k0", "k1"] and step.tiles["sram"][-2:] == (9, 9)
    (refusal,) = ctx.report.refusals()
    assert refusal.reason == (
        "its smallest tile needs 328 bytes of local, which holds 300 (d1=4, d2=12, d3=12, k0=9, k1=9)"
    )
    assert list(step.tiles) == ["sram"]
    program, _ = single(op("reduce_max", axes=(1,), keepdims=False), tensor("f32", 4, 1000))
    tiled(program, small(1200))
    assert next(program.kernels).tiles["sram"][1] < 1000  # type: ignore[operator]


def test_no_sum_is_cut_where_reassociation_is_forbidden() -> None:
    for name, free in (("reduce_sum", False), ("reduce_max", True)):
        build = op(name, axes=(1,), keepdims=False)
        program, _ = single(build, tensor("f32", 4, 1000))
        ctx = PassContext(target=small(5000), forbidden=frozenset({Numerics.REASSOCIATES}))
        Tile().run(program, ctx)
        (step,) = program.kernels
        assert (step.tiles["sram"][1] == 1000) is not free


def test_bisection_stops_it() -> None:
    program = residual()
    ctx = PassContext(target=NULL, limit=1)
    Tile().run(program, ctx)
    assert [bool(k.tiles) for k in program.kernels] == [True, True, False, True]  # a copy has no node to count


def test_a_row_that_cannot_be_cut_is_reported() -> None:
    program, _ = single(op("softmax", axis=1), tensor("f32", 4, 1000))
    ctx = tiled(program, small(4096))
    (step,) = program.kernels
    (refusal,) = ctx.report.refusals()
    assert step.tiles == {}
    assert refusal.reason == "its smallest tile needs 8000 bytes of sram, which holds 4096 (d0=4)"


def test_symbols_count_at_their_nominal_size_and_the_interpreter_refuses_more() -> None:
    n = symbol("n", 1)
    program, _ = single(op("softmax", axis=0), tensor("f32", n, 4))
    target = small(1024)
    tiled(program, target)
    (step,) = program.kernels
    assert step.tiles == {"sram": (1,)}
    run_program(program, feeds_for(program, n=128), target)
    with pytest.raises(ProgramError, match="needs 1032 bytes of sram, which holds 1024"):
        run_program(program, feeds_for(program, n=129), target)


def test_equal_kernels_get_equal_tiles_and_runs_are_equal() -> None:
    a, b = residual(), residual()
    tiled(a, small(4096, 1024))
    tiled(b, small(4096, 1024))
    assert equal_programs(a, b) is None
    _, first, second, _ = a.kernels
    assert first.tiles and second.tiles and first.tiles != second.tiles


def test_without_a_target_nothing_happens() -> None:
    program = residual()
    Tile().run(program, PassContext())
    assert all(not k.tiles for k in program.kernels)


# -- from a graph to a tiled program ----------------------------------------------------------------------------------


def built(make: Callable[[], Graph], target: Target, pipeline: str) -> tuple[Program, PassContext]:
    graph, ctx, passes = make(), PassContext(target=target), Pipeline.parse(pipeline)
    PassManager.run(graph, passes.at("graph"), ctx)
    program = lower(graph)
    verify_program(program)
    PassManager.run(program, passes.at("program"), ctx)
    verify_program(program)
    return program, ctx


def check(program: Program, make: Callable[[], Graph], target: Target, batch: int = 3) -> None:
    feeds = feeds_for(program, n=batch)
    got, want = run_program(program, feeds, target), run(make(), feeds)
    assert list(got) == list(want)
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sizes", [(64 << 10, 4 << 10), (6 << 10, 1 << 10)])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("fused", [False, True])
def test_networks_on_the_null_target(name: str, sizes: tuple[int, int], fused: bool) -> None:
    target = small(*sizes)
    program, ctx = built(NETWORKS[name], target, "fuse,tile" if fused else "tile")
    assert not list(ctx.report.refusals()) or sizes[0] < 64 << 10
    assert any(k.tiles for k in program.kernels)
    check(program, NETWORKS[name], target)
    store: dict[str, object] = {}
    text = print_program(program, constants=store)  # type: ignore[arg-type]
    assert equal_programs(program, parse_program(text, store)) is None  # type: ignore[arg-type]


def test_small_memories_give_many_tiles() -> None:
    program, _ = built(NETWORKS["convnet"], small(6 << 10, 1 << 10), "fuse,tile")
    counts = []
    for k in program.kernels:
        measure = TileBytes(k, nominal_sizes(k))
        counts.append(1)
        for t, n in zip(next(iter(k.tiles.values()), ()), measure.extents, strict=False):
            counts[-1] *= -(-n // int(str(t)))
    assert sum(c > 8 for c in counts) >= 6


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("chip", ["x86-64", "x86-64-avx2", "x86-64-avx512"])
def test_programs_for_cpus_run_in_the_interpreter(name: str, chip: str) -> None:
    """Blocked layouts, halos, relayouts and packings of the CPU pipeline hold the same values."""
    target = load_target(chip)
    program, _ = built(NETWORKS[name], target, target.pipeline)
    check(program, NETWORKS[name], target)
