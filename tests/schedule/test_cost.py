"""The roofline model, by hand."""

from __future__ import annotations

import pytest
from hand_programs import residual, single
from kernel_cases import CASES, gemm, op

from opcel_compiler.ir.access import TileBytes
from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.types import tensor
from opcel_compiler.schedule.cost import (
    NOMINAL,
    gathered_bytes,
    kernel_cost,
    kernel_flops,
    nominal_sizes,
    program_cost,
    traffic,
)
from opcel_compiler.targets import load_target

NULL = load_target("null")
GEMM = (tensor("f32", 64, 32), tensor("f32", 32, 48), tensor("f32", 48))


def test_a_kernel_without_tiles_moves_each_operand_once() -> None:
    program, _ = single(gemm, *GEMM)
    cost = kernel_cost(next(program.kernels), NULL)
    moved = 4 * (64 * 32 + 32 * 48 + 48 + 64 * 48)
    flops = 2 * 64 * 32 * 48 + 2 * 64 * 48
    assert (cost.flops, dict(cost.bytes)) == (flops, {"dram": moved, "sram": moved})
    assert cost.bound_by == "dram"
    assert cost.seconds == pytest.approx(moved / 8e9)
    assert flops / 128e9 < cost.seconds


def test_tiles_add_traffic_per_level() -> None:
    program, _ = single(gemm, *GEMM)
    step = next(program.kernels)
    step.tiles = {"sram": (16, 48, 8), "local": (16, 12, 8)}
    cost = kernel_cost(step, NULL)
    # dram: a once; b again for each of 4 row tiles, as does the bias, which stays over k; the result once.
    assert cost.bytes["dram"] == 4 * (64 * 32 + 4 * (32 * 48) + 48 + 64 * 48)
    # sram, for each of the 4 x 4 tiles above: a stays over the columns; b, bias and accumulator once per tile.
    assert cost.bytes["sram"] == 4 * 16 * (16 * 8 + 8 * 48 + 48 + 16 * 48)
    assert cost.seconds == pytest.approx(max(cost.bytes["dram"] / 8e9, cost.bytes["sram"] / 32e9))
    step.tiles = {"sram": (64, 48, 32), "local": (2, 2, 2)}
    cost = kernel_cost(step, NULL)
    assert (cost.bound_by, cost.seconds) == ("sram", pytest.approx(cost.bytes["sram"] / 32e9))


def test_a_table_is_read_where_it_is_gathered_from() -> None:
    table, indices = tensor("f32", 1000, 16), tensor("i64", 2, 3)
    program, _ = single(op("gather", axis=0), table, indices)
    assert kernel_cost(next(program.kernels), NULL).bytes["dram"] == 8 * 6 + 2 * (4 * 6 * 16)
    small = tensor("f32", 2, 16)
    program, _ = single(op("gather", axis=0), small, indices)
    assert kernel_cost(next(program.kernels), NULL).bytes["dram"] == 8 * 6 + 4 * 2 * 16 + 4 * 6 * 16

    def used_otherwise(g: Graph, x: Value, i: Value) -> Value:
        row = g.add("gather", [x, i], {"axis": 0}).result
        total = g.add("reduce_sum", [x], {"axes": (0, 1), "keepdims": False}).result
        return g.add("add", [row, total], {}).result

    program, _ = single(used_otherwise, table, indices)
    assert gathered_bytes(next(program.kernels)) == {}


def test_traffic_counts_reloads() -> None:
    program, _ = single(gemm, *GEMM)
    measure = TileBytes(next(program.kernels), {})
    outer = (64, 48, 32)
    base = 4 * (64 * 32 + 32 * 48 + 48 + 64 * 48)
    assert traffic(measure, outer, outer) == base
    # Columns in 3 parts: a is read once for each when k is cut too, once in all when it is not.
    assert traffic(measure, (64, 16, 32), outer) == base
    assert traffic(measure, (64, 16, 8), outer) == base + 4 * 2 * 64 * 32
    # The halo of a convolution is read twice: here, with a dilation of 2, all of x.
    program, _ = single(CASES["conv-1d"][0], tensor("f32", 1, 3, 8), tensor("f32", 2, 3, 3))
    measure = TileBytes(next(program.kernels), {})
    assert measure.extents == (2, 8, 3, 3)
    whole = 4 * (3 * 8 + 2 * 3 * 3 + 2 * 8)
    assert traffic(measure, (2, 8, 3, 3), measure.extents) == whole
    assert traffic(measure, (2, 4, 3, 3), measure.extents) == whole + 4 * 3 * 8


def test_flops_are_the_definitions() -> None:
    program, _ = single(op("softmax", axis=1), tensor("f32", symbol("n", 1, 9), 5))
    step = next(program.kernels)
    assert kernel_flops(step, {"n": 3}) == 4 * 15


def test_nominal_sizes() -> None:
    a, b, c = symbol("a"), symbol("b", 1, 9), symbol("c", 1000)
    program, _ = single(op("relu"), tensor("f32", a, b, 2 * c + 1))
    assert nominal_sizes(next(program.kernels)) == {"a": NOMINAL, "b": 9, "c": 1000}


def test_program_cost_is_the_sum() -> None:
    program = residual()
    costs = [kernel_cost(k, NULL) for k in program.kernels]
    total = program_cost(program, NULL)
    assert total.flops == sum(c.flops for c in costs)
    assert total.seconds == pytest.approx(sum(c.seconds for c in costs))
    assert total.bytes["dram"] == sum(c.bytes["dram"] for c in costs)
    assert total.bound_by in {c.bound_by for c in costs}


def test_a_domain_is_found_when_it_is_missing() -> None:
    program, _ = single(gemm, *GEMM)
    step = next(program.kernels)
    want = kernel_cost(step, NULL)
    step.axes, step.maps = (), ()
    assert kernel_cost(step, NULL) == want
    assert step.maps == ()


def test_the_rate_of_the_dtype_counts() -> None:
    for dtype, rate in (("i8", 512e9), ("f32", 128e9), ("f64", 512e9)):
        program, _ = single(op("matmul"), tensor(dtype, 2048, 2048), tensor(dtype, 2048, 2048))
        cost = kernel_cost(next(program.kernels), NULL)
        assert cost.bound_by == "compute"
        assert cost.seconds == pytest.approx(2 * 2048**3 / rate)
