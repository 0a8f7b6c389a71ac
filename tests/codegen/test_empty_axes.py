"""Reductions over axes of extent 0, known or not, and means of more elements than their type counts to."""

from __future__ import annotations

import numpy as np
import pytest

import opcel_compiler as oc
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.types import DTYPES, TensorType

REDUCTIONS = ("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")
TYPES = ("f32", "f16", "bf16", "i8", "u8", "i32", "i64", "bool")
OF_BOOLEANS = ("reduce_max", "reduce_min")


def assert_compiled(graph: Graph, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    want = run(graph, feeds)
    with oc.compile(export_model(graph), fallback="error", proof=False) as compiled:
        got = compiled.run(feeds)
    for name, array in want.items():
        assert got[name].shape == array.shape and got[name].dtype == array.dtype
        same = np.array_equal(got[name].astype(np.float64), array.astype(np.float64), equal_nan=True)
        assert same, f"{name}: {got[name]} is not {array}"
    return want


@pytest.mark.parametrize("known", [True, False])
def test_empty_axes(known: bool) -> None:
    graph, feeds = Graph("empty"), {}
    n = 0 if known else symbol("n", 0, 64)
    for name in TYPES:
        dtype = DTYPES[name]
        x = graph.add_input(f"x_{name}", TensorType(dtype, (3, n, 2)))
        feeds[x.name] = np.zeros((3, 0, 2), dtype.numpy)
        flipped = x if name == "bool" else graph.add("mul", [x, x]).result
        for op in REDUCTIONS if name != "bool" else OF_BOOLEANS:
            for axes in ((1,), (0, 1, 2)):
                y = graph.add(op, [flipped], {"axes": axes, "keepdims": False}).result
                if name != "bool":
                    y = graph.add("add", [y, y]).result
                graph.add_output(y, f"{op}_{name}_{'_'.join(map(str, axes))}")
        if name != "bool":
            for last in (False, True):
                y = graph.add("arg_max", [x], {"axis": 1, "keepdims": False, "last": last}).result
                graph.add_output(y, f"arg_max_{name}_{last}")
            line = graph.add_input(f"line_{name}", TensorType(dtype, (n,)))
            feeds[line.name] = np.zeros(0, dtype.numpy)
            y = graph.add("arg_min", [line], {"axis": 0, "keepdims": False, "last": False}).result
            graph.add_output(y, f"arg_min_{name}")
    assert_compiled(graph, feeds)


def test_means_of_many_small_integers() -> None:
    graph, feeds = Graph("many"), {}
    for name in ("i8", "u8"):
        x = graph.add_input(f"x_{name}", TensorType(DTYPES[name], (256, 300)))
        feeds[x.name] = np.zeros((256, 300), DTYPES[name].numpy)
        feeds[x.name][5, :] = 3
        for axis in (0, 1):
            y = graph.add("reduce_mean", [x], {"axes": (axis,), "keepdims": False}).result
            graph.add_output(y, f"{name}_{axis}")
    assert_compiled(graph, feeds)


def test_products_and_places_of_narrow_floats() -> None:
    graph, rng, feeds = Graph("narrow"), np.random.default_rng(0), {}
    for name in ("f16", "bf16"):
        dtype = DTYPES[name]
        x = graph.add_input(f"x_{name}", TensorType(dtype, (5, 17)))
        feeds[x.name] = rng.integers(-9, 9, (5, 17)).astype(np.float32).astype(dtype.numpy)
        for op in ("arg_max", "arg_min"):
            y = graph.add(op, [x], {"axis": 1, "keepdims": False, "last": op == "arg_min"}).result
            graph.add_output(y, f"{op}_{name}")
        v = graph.add_input(f"v_{name}", TensorType(dtype, (2, 17, 3)))
        feeds[v.name] = rng.integers(0, 2, (2, 17, 3)).astype(np.float32).astype(dtype.numpy)
        graph.add_output(graph.add("matmul", [x, v]).result, f"matmul_{name}")
    assert_compiled(graph, feeds)


def test_places_of_nan() -> None:
    graph, feeds = Graph("nan"), {}
    nan = np.nan
    for name in ("f32", "f16"):
        x = graph.add_input(f"x_{name}", TensorType(DTYPES[name], (3, 5)))
        rows = [[1, nan, 3, nan, 2], [nan, 1, 2, 3, 4], [1, 2, 3, 4, nan]]
        feeds[x.name] = np.array(rows, DTYPES[name].numpy)
        for op in ("arg_max", "arg_min"):
            for last in (False, True):
                y = graph.add(op, [x], {"axis": 1, "keepdims": False, "last": last}).result
                graph.add_output(y, f"{op}_{name}_{last}")
    assert assert_compiled(graph, feeds)["arg_max_f32_True"].tolist() == [3, 0, 4]
