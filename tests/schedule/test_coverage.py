"""What a node costs in the coverage of a model, by hand."""

from __future__ import annotations

import pytest

from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import TensorType, tensor
from opcel_compiler.schedule.cost import NOMINAL
from opcel_compiler.schedule.coverage import Coverage, Work, native_work, node_macs, node_work
from opcel_compiler.targets import load_target

NULL = load_target("null")
BANDWIDTH = NULL.memories[0].bandwidth


def foreign(op: str, result: TensorType, *operands: TensorType) -> Node:
    graph = Graph()
    values = [graph.add_input(f"x{i}", t) for i, t in enumerate(operands)]
    attrs = {"domain": "", "op_type": op, "opset": 17, "node": b"", "captured": (), "reason": "", "opsets": ()}
    return graph.add("foreign", values, attrs, types=[result])


def single(op: str, attrs: dict[str, object], *operands: TensorType) -> Node:
    graph = Graph()
    values: list[Value | None] = [graph.add_input(f"x{i}", t) for i, t in enumerate(operands)]
    node = graph.add(op, values, attrs)
    graph.add_output(node.result)
    return node


def test_a_product_is_bound_by_memory_or_arithmetic() -> None:
    node = single("matmul", {}, tensor("f32", 64, 32), tensor("f32", 32, 48))
    work = node_work(node, NULL)
    moved = 4 * (64 * 32 + 32 * 48 + 64 * 48)
    assert work.macs == 64 * 32 * 48
    assert work.seconds == pytest.approx(max(2 * work.macs / NULL.peak("f32"), moved / BANDWIDTH))
    large = node_work(single("matmul", {}, tensor("f32", 4096, 4096), tensor("f32", 4096, 4096)), NULL)
    assert large.seconds == pytest.approx(2 * 4096**3 / NULL.peak("f32"))


def test_symbols_have_their_nominal_size() -> None:
    node = single("matmul", {}, tensor("f32", symbol("n"), 32), tensor("f32", 32, 48))
    assert node_work(node, NULL).macs == NOMINAL * 32 * 48


def test_views_cost_nothing_and_a_gather_what_it_takes() -> None:
    assert node_work(single("transpose", {"perm": (1, 0)}, tensor("f32", 64, 32)), NULL).seconds == 0
    table, indices = tensor("f32", 30000, 8), tensor("i64", 4)
    gather = node_work(single("gather", {"axis": 0}, table, indices), NULL)
    assert gather.seconds == pytest.approx((2 * 4 * 8 * 4 + 4 * 8) / BANDWIDTH)


@pytest.mark.parametrize(
    ("op", "operands", "result", "macs"),
    [
        ("LSTM", [(5, 2, 8), (1, 64, 8), (1, 64, 16)], (5, 1, 2, 16), 5 * 2 * 64 * (8 + 16)),
        ("QLinearConv", [(1, 3, 9, 9), (), (), (6, 3, 3, 3)], (1, 6, 7, 7), 6 * 7 * 7 * 3 * 3 * 3),
        ("ConvTranspose", [(1, 3, 4, 4), (3, 6, 2, 2)], (1, 6, 8, 8), 3 * 4 * 4 * 6 * 2 * 2),
        ("MatMulInteger", [(4, 8), (8, 5)], (4, 5), 4 * 8 * 5),
        ("MatMulInteger", [], (4, 5), 0),
        ("Det", [(4, 4)], (), 0),
    ],
)
def test_opaque_operators(op: str, operands: list[tuple[int, ...]], result: tuple[int, ...], macs: int) -> None:
    node = foreign(op, tensor("f32", *result), *(tensor("f32", *shape) for shape in operands))
    assert node_macs(node) == macs


def test_unknown_shapes_count_as_nothing() -> None:
    unknown = TensorType(tensor("f32").dtype, None)
    assert node_work(foreign("ConvTranspose", unknown, unknown, unknown), NULL) == Work(1, 0, 0.0)


def test_shares() -> None:
    assert Coverage().share == 1
    mixed = Coverage(Work(3, 300, 1.0), Work(1, 100, 3.0))
    assert (mixed.macs_share, mixed.seconds_share, mixed.share) == (0.75, 0.25, 0.25)
    assert Coverage(Work(1, 0, 0.0), Work(1, 5, 0.0)).share == 0


def test_regions_of_another_engine_are_not_native() -> None:
    graph = single("matmul", {}, tensor("f32", 4, 8), tensor("f32", 8, 5)).graph
    assert graph is not None
    assert native_work(graph, NULL).macs == 4 * 8 * 5
