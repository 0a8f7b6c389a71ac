"""Changing graphs, comparing them, and the analyses on them."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.analysis import (
    as_networkx,
    captured,
    dominators,
    flops,
    graph_symbols,
    post_dominators,
    reachable,
)
from opcel_compiler.ir.compare import equal
from opcel_compiler.ir.dims import Symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.opdef import InferenceError
from opcel_compiler.ir.text import parse_graph
from opcel_compiler.ir.types import F32, tensor
from opcel_compiler.ir.verify import verify

TEXT = """
graph main(%x: f32[n, 4]) {
  %a = relu(%x) from "A"
  %b = exp(%a) from "B"
  %c = neg(%a) from "C"
  %d = add(%b, %c)
  return %d, %a
}
"""


def nodes_of(graph: Graph) -> dict[str, Node]:
    return {n.results[0].name: n for n in graph.walk()}


def test_replace_moves_uses_and_merges_origins() -> None:
    graph = parse_graph(TEXT)
    n = nodes_of(graph)
    graph.replace(n["c"], [n["b"].result])
    verify(graph)
    assert n["b"].origin == ("B", "C") and n["c"].graph is None
    assert n["d"].operands == (n["b"].result, n["b"].result)
    graph.replace(n["a"], [graph.inputs[0]])
    verify(graph)
    assert graph.outputs[1] is graph.inputs[0] and graph.output_names == ["d", "a"]


def test_refusals() -> None:
    graph = parse_graph(TEXT)
    n = nodes_of(graph)
    with pytest.raises(ValueError, match="still has uses"):
        graph.erase(n["a"])
    with pytest.raises(ValueError, match="cannot replace"):
        n["a"].result.replace_with(graph.constant(Constant(np.zeros((1, 4)))))
    with pytest.raises(InferenceError, match="do not broadcast") as e:
        graph.add("add", [graph.inputs[0], graph.constant(Constant(np.zeros(3, np.float32)))])
    assert isinstance(e.value, OpcelError)
    with pytest.raises(TypeError, match="not a DType"):
        tensor(np.float32, 1)  # type: ignore[arg-type]
    verify(graph)


def test_insert_move_and_rename() -> None:
    graph = parse_graph(TEXT)
    n = nodes_of(graph)
    first = graph.add("neg", [graph.inputs[0]], before=n["a"], names=["a"])
    assert first.result.name == "a.1" and next(graph.nodes) is first
    graph.move(n["c"], n["b"])
    graph.move(first, None)
    verify(graph)
    assert [m.results[0].name for m in graph.nodes] == ["a", "c", "b", "d", "a.1"]
    assert graph.unique_name("x:0") == "x_0" and graph.unique_name("x:0") == "x_0.1"


def test_erasing_a_region_frees_what_it_uses() -> None:
    graph = parse_graph("""
        graph g(%x: f32[2]) {
          %a = neg(%x)
          %f = foreign{domain="", op_type="If", opset=1, node=bytes""} : f32[2]
            region then() {
              %b = exp(%a)
              return %b
            }
          return %x
        }""")
    n = nodes_of(graph)
    assert list(captured(n["f"])) == [n["a"].result]
    assert list(as_networkx(graph).edges) == [(n["a"], n["f"])]
    with pytest.raises(ValueError, match="still has uses"):
        graph.erase(n["a"])
    graph.erase(n["f"])
    graph.erase(n["a"])
    verify(graph)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("f32[n, 4]", "f32[m, 4]", "input 0 is %x: f32[n, 4], not %x: f32[m, 4]"),
        ("(%x: f32[n, 4])", "(%x: f32[n, 4], %y: f32[2])", "1 inputs, not 2"),
        ("neg", "abs", "node 2: neg, not abs"),
        ("add(%b, %c)", "add(%c, %b)", "node 3: operand 0 differs"),
        ("%d = add", "%e = relu(%c) %d = add", "node 3: add, not relu"),
        ("return %d, %a", "return %d", "2 outputs, not 1"),
        ("return %d, %a", "return %d, %b", "output 1 is %a, not the counterpart of %b"),
        ("return", "%e = abs(%d) return", "4 nodes, not 5; only the second has"),
        ("exp(%a)", "exp(%a) : f32[n, m]", "the result types differ"),
    ],
)
def test_equal_names_the_first_difference(old: str, new: str, message: str) -> None:
    found = equal(parse_graph(TEXT), parse_graph(TEXT.replace(old, new)))
    assert found is not None and message in found


def test_equal_up_to_names() -> None:
    renamed = TEXT.replace("%a", "%t").replace('"A"', '"Z"')
    assert equal(parse_graph(TEXT), parse_graph(renamed)) is None
    assert "named ['d', 'a'], not ['d', 't']" in str(equal(parse_graph(TEXT), parse_graph(renamed), names=True))
    assert "origin ('A',), not ('Z',)" in str(equal(parse_graph(TEXT), parse_graph(renamed), origins=True))


def test_equal_looks_at_data_attributes_and_regions() -> None:
    text = """
        graph g(%x: f32[2]) {
          %c = f32[2] [0.0, 1.0]
          %f = fused(%x) : f32[2]
            region r(%p: f32[2]) {
              %q = leaky_relu(%p){alpha=0.1}
              return %q
            }
          return %f
        }"""
    for old, new, message in [
        ("[0.0", "[-0.0", "node 0: attribute value differs"),
        ("0.1", "0.2", "node 1, region 0: node 0: attribute alpha differs"),
        ("return %q", "return %p", "node 1, region 0: output 0"),
    ]:
        assert str(equal(parse_graph(text), parse_graph(text.replace(old, new)))).startswith(message)


def test_dependences_and_dominators() -> None:
    graph = parse_graph(TEXT)
    n = nodes_of(graph)
    view = as_networkx(graph)
    assert list(view) == [n["a"], n["b"], n["c"], n["d"]]
    assert reachable(view, [n["b"]]) == {n["b"], n["d"]}
    assert reachable(view.reverse(copy=False), [n["c"]]) == {n["c"], n["a"]}
    assert dominators(graph) == {n["a"]: None, n["b"]: n["a"], n["c"]: n["a"], n["d"]: n["a"]}
    assert post_dominators(graph) == {n["d"]: None, n["b"]: n["d"], n["c"]: n["d"], n["a"]: None}


def test_flops_count_regions() -> None:
    graph = parse_graph("""
        graph g(%x: f32[n, 4]) {
          %f = external(%x){reason="none"} : f32[n, 4]
            region r(%p: f32[n, 4]) {
              %q = exp(%p)
              %r = neg(%q)
              return %r
            }
          return %f
        }""")
    verify(graph)
    assert str(flops(next(graph.nodes))) == "8*n"
    x = np.ones((2, 4), np.float32)
    np.testing.assert_array_equal(run(graph, {"x": x})["f"], -np.exp(x))


def test_symbols_of_a_graph() -> None:
    graph = parse_graph("""
        symbol s in 1..9
        graph g(%x: seq<f32[n]>) {
          %d = dims{values=[s*k]}
          return %d
        }""")
    assert graph_symbols(graph) == {"n": Symbol("n"), "k": Symbol("k"), "s": Symbol("s", 1, 9)}


def test_constants_compare_by_bits() -> None:
    nan = np.array([np.nan, 0.0], np.float32)
    assert Constant(nan) == Constant(nan.copy())
    assert Constant(np.zeros(1, np.float32)) != Constant(-np.zeros(1, np.float32))
    assert Constant(np.zeros(2, np.float32)) != Constant(np.zeros((2, 1), np.float32))
    assert Constant(nan).type == tensor(F32, 2)
    with pytest.raises(ValueError, match="read-only"):
        Constant(nan).array[0] = 1
