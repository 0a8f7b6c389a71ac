"""The interpreter: binding of symbols, lifetimes, regions, refusals."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.interpret import InterpretError, evaluate_node, run
from opcel_compiler.ir.text import parse_graph

X = np.arange(6, dtype=np.float32).reshape(2, 3) - 2


def test_runs_by_definition_with_symbols_bound() -> None:
    graph = parse_graph("""
        graph g(%x: f32[n, 3], %s: f32[2*n + 1]) {
          %one = f32[] 1
          %a = add(%x, %one)
          %f = fused(%a, %x) : f32[n, 3]
            region body(%p: f32[n, 3], %q: f32[n, 3]) {
              %r = relu(%p)
              %t = mul(%r, %q)
              return %t
            }
          %d = dims{values=[n, 3*n]}
          %e = reshape(%f){shape=[3*n]}
          return %f as "out", %d, %e, %x
        }""")
    out = run(graph, {"x": X, "s": np.zeros(5, np.float32)})
    assert list(out) == ["out", "d", "e", "x"]
    np.testing.assert_array_equal(out["out"], np.maximum(X + 1, 0) * X)
    np.testing.assert_array_equal(out["d"], [2, 6])
    assert out["e"].shape == (6,) and out["x"] is X


@pytest.mark.parametrize(
    ("inputs", "feeds", "message"),
    [
        ("%x: f32[n, 3]", {}, "input 'x' is not fed"),
        ("%x: f32[n, 3]", {"x": X, "z": X}, "the graph has no input 'z'; it has x"),
        ("%x: f32[n, 3]", {"x": X.astype("d")}, "input 'x' has dtype float64, not that of f32[n, 3]"),
        ("%x: f32[n, 3]", {"x": X[0]}, "not of the rank of f32[n, 3]"),
        ("%x: f32[n, 3]", {"x": [1.0]}, "is a list, not an array"),
        ("%x: f32[n, 4]", {"x": X}, "axis 1 of f32[n, 4] is 4"),
        ("%x: f32[n, n]", {"x": X}, "axis 1 of f32[n, n] is 2 with n = 2"),
        ("%x: f32[n, 2*n]", {"x": X}, "axis 1 of f32[n, 2*n] is 4 with n = 2"),
        ("%x: f32[n, 2*m]", {"x": X}, "do not determine the symbols of axis 1"),
        ("%x: f32[m*n, n*m]", {"x": X}, "do not determine the symbols of axis 0"),
        ("%x: f32[k, 3]", {"x": X}, "makes k = 2, which is not in 4..9"),
    ],
)
def test_feeds_that_do_not_fit(inputs: str, feeds: dict[str, np.ndarray], message: str) -> None:
    graph = parse_graph(f"symbol k in 4..9 graph g({inputs}) {{ return %x }}")
    with pytest.raises(InterpretError) as e:
        run(graph, feeds)
    assert message in str(e.value)


def test_order_of_inputs_does_not_matter_for_symbols() -> None:
    graph = parse_graph("graph g(%a: f32[n*m], %b: f32[n], %c: f32[m]) { return %a }")
    arrays = {"a": np.zeros(6, np.float32), "b": np.zeros(2, np.float32), "c": np.zeros(3, np.float32)}
    assert run(graph, arrays)["a"].shape == (6,)
    with pytest.raises(InterpretError, match=r"axis 0 of f32\[m\*n\] is 6 with"):
        run(graph, {**arrays, "a": np.zeros(7, np.float32)})


def test_results_are_checked_against_types() -> None:
    graph = parse_graph("graph g(%x: f32[n], %y: f32[m]) { %z = add(%x, %y) : f32[n] return %z }")
    with pytest.raises(
        InterpretError, match=r"%z of\n.*%z = add\(%x, %y\).*\n has shape \(3,\); axis 0 of f32\[n\] is 1"
    ):
        run(graph, {"x": np.zeros(1, np.float32), "y": np.zeros(3, np.float32)})


def test_a_mistake_in_the_data_shows_the_node() -> None:
    graph = parse_graph('graph g(%x: f32[3], %i: i64[1]) { %z = gather(%x, %i){axis=0} from "Gather_7" return %z }')
    with pytest.raises(InterpretError, match="out of bounds") as e:
        run(graph, {"x": X[0], "i": np.array([9])})
    assert 'from "Gather_7"' in str(e.value)


FOREIGN = """
    graph g(%x: f32[n, 3]) {
      %y = foreign(%x){domain="d", op_type="NonZero", opset=1, node=bytes""} : i64[2, k]
      %z = transpose(%y){perm=[1, 0]}
      return %z
    }"""


def test_foreign_needs_a_callback_and_binds_its_sizes() -> None:
    graph = parse_graph(FOREIGN)
    with pytest.raises(InterpretError, match="nothing to run"):
        run(graph, {"x": X})
    seen: list[Node] = []

    def non_zero(node: Node, operands: object) -> list[np.ndarray]:
        seen.append(node)
        return [np.array(np.nonzero(operands[0]))]  # type: ignore[index]

    assert run(graph, {"x": X}, foreign=non_zero)["z"].shape == (5, 2)
    assert [n.attrs["op_type"] for n in seen] == ["NonZero"]


def test_values_die_after_their_last_use() -> None:
    graph = parse_graph("""
        graph g(%x: f32[2, 3]) {
          %a = exp(%x)
          %b = add(%a, %a)
          %c = neg(%b)
          %d = neg(%c)
          return %b, %d
        }""")
    alive: dict[str, weakref.ref[np.ndarray]] = {}
    history = []

    def observe(node: Node, results: object) -> None:
        gc.collect()
        history.append({name for name, ref in alive.items() if ref() is not None})
        alive[node.result.name] = weakref.ref(results[0])  # type: ignore[index]

    run(graph, {"x": X}, observe=observe)
    assert history == [set(), {"a"}, {"b"}, {"b", "c"}]


def test_observe_sees_regions() -> None:
    graph = parse_graph("""
        graph g(%x: f32[2, 3]) {
          %f = fused(%x) : f32[2, 3]
            region r(%p: f32[2, 3]) {
              %q = neg(%p)
              return %q
            }
          return %f
        }""")
    seen = []
    run(graph, {"x": X}, observe=lambda node, results: seen.append(node.op))
    assert seen == ["neg", "fused"]


def test_evaluate_node_wants_its_symbols() -> None:
    graph = parse_graph("graph g() { %d = dims{values=[n + 1]} return %d }")
    node = next(graph.nodes)
    np.testing.assert_array_equal(evaluate_node(node, [], {"n": 4})[0], [5])
    with pytest.raises(InterpretError, match="the symbol n has no value"):
        evaluate_node(node, [])
