"""One broken graph for each numbered invariant of `verify`."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MappingProxyType

import numpy as np
import pytest

from opcel_compiler.ir import verify as module
from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.encodings import Constant, Grouped, Sparse
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.text import parse_graph
from opcel_compiler.ir.types import DTYPES, F32, I32, UnknownType, tensor
from opcel_compiler.ir.verify import VerifyError, verify

TEXT = """
graph main(%x: f32[n, 4], %y: f32[n, 4]) {
  %a = relu(%x) from "Relu_0"
  %b = add(%a, %y)
  %c = softmax(%b){axis=1}
  %f = fused(%c) : f32[n, 4]
    region body(%p: f32[n, 4]) {
      %q = exp(%p)
      return %q
    }
  return %f, %b
}
"""

BROKEN: list[tuple[int, str, Callable[[Graph, dict[str, Node]], object]]] = []


def breaks(invariant: int, message: str) -> Callable[[Callable[[Graph, dict[str, Node]], object]], None]:
    return lambda change: BROKEN.append((invariant, message, change))


def constant(c: Constant) -> Callable[[Graph, dict[str, Node]], object]:
    return lambda g, _: g.constant(c)


@breaks(1, "is not linked to the node before it")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["b"]._prev = None


@breaks(1, "counts 3 nodes, 4 are linked")
def _(g: Graph, n: dict[str, Node]) -> None:
    g._size -= 1


@breaks(1, "runs in a circle at %b = add")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["c"]._next = n["b"]


@breaks(1, "and to its graph")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["b"].graph = None


@breaks(2, "%x does not know its graph, producer and index")
def _(g: Graph, n: dict[str, Node]) -> None:
    g.inputs[0].index = 1


@breaks(2, "%b does not know")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["b"].result.producer = n["a"]


@breaks(3, "two values are named %a")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["q"].result.name = "a"


@breaks(3, "'a b' is not a printable name")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["a"].result.name = "a b"


@breaks(4, "operand 0, %c, is not made before the node")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["b"].set_operand(0, n["c"].result)


@breaks(4, "operand 0, %q, is not made before the node")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["c"].set_operand(0, n["q"].result)


@breaks(4, "output 0, %q, is not made in the graph")
def _(g: Graph, n: dict[str, Node]) -> None:
    g.set_output(0, n["q"].result)


@breaks(4, "operand 0, %x, is not made before the node")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["a"].set_operand(0, parse_graph(TEXT).inputs[0])


@breaks(5, "%x lists 0 uses, 1 refer to it")
def _(g: Graph, n: dict[str, Node]) -> None:
    g.inputs[0]._uses.clear()


@breaks(5, "%a lists 2 uses, 1 refer to it")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["a"].result._uses[(n["c"], 0)] = None


@breaks(6, "there is no operator 'nope'")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["a"].op = "nope"


@breaks(6, "add needs its operand 'b'")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["b"].set_operand(1, None)


@breaks(6, "relu makes 1 results, not 0")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["b"].set_operand(0, n["b"].operand(1))
    n["a"].results = ()


@breaks(7, "attribute axis is missing")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["c"]._attrs = MappingProxyType({})


@breaks(7, "attribute axis=1.5 is not of kind int")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["c"]._attrs = MappingProxyType({"axis": 1.5})


@breaks(7, "softmax has no attribute 'size'")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["c"]._attrs = MappingProxyType({"axis": 1, "size": 2})


@breaks(8, "%a is f32[n, 5], inference gives f32[n, 4]")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["a"].result.type = tensor(F32, symbol("n"), 5)


@breaks(8, "the operands' dtypes differ")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["a"].result.type = tensor(I32, symbol("n"), 4)
    g.inputs[0].type = n["a"].result.type


@breaks(8, "axis 7 is not in 0..1")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["c"].set_attrs(axis=7)


@breaks(9, "n is in 0..None and in 1..8")
def _(g: Graph, n: dict[str, Node]) -> None:
    g.add("dims", (), {"values": (symbol("n", 1, 8),)})


BROKEN.append((10, "constant of i32 holds NumPy float32", constant(Constant(np.zeros(2, np.float32), I32))))
BROKEN.append((10, "names no axis", constant(Constant(np.zeros(4, np.float32), encoding=Sparse(2, 4, 1)))))
BROKEN.append((10, "is no multiple of 4", constant(Constant(np.zeros(6, np.float32), encoding=Sparse(2, 4, 0)))))
BROKEN.append((10, "some 4 neighbours hold 3", constant(Constant(np.array([1, 1, 0, 1.0]), encoding=Sparse(2, 4, 0)))))
BROKEN.append((10, "no multiple of the group", constant(Constant(np.zeros(5), encoding=Grouped(DTYPES["i4"], 2, 0)))))


@breaks(11, "relu has a region")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["a"].regions = (Graph("r", n["a"]),)


@breaks(11, "does not know its node")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["f"].regions[0].parent = n["a"]


@breaks(11, "fused has 0 regions")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["f"].regions = ()


@breaks(11, "external has 0 regions")
def _(g: Graph, n: dict[str, Node]) -> None:
    g.add("external", [], {"reason": "none"}, types=[])


@breaks(11, "the body takes other types")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["f"].regions[0].inputs[0].type = tensor(F32, 1, 4)


@breaks(11, "the body returns other types")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["f"].regions[0].add_output(n["q"].result, "second")


@breaks(11, "the body uses %y from outside")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["q"].set_operand(0, g.inputs[1])


@breaks(12, "2 outputs have 1 names")
def _(g: Graph, n: dict[str, Node]) -> None:
    g.output_names.pop()


@breaks(12, "are not distinct")
def _(g: Graph, n: dict[str, Node]) -> None:
    g.output_names[1] = g.output_names[0]


@breaks(13, "%a is of unknown type, relu is not opaque")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["a"].result.type = UnknownType()


@breaks(14, "reshape names s, which is not made before")
def _(g: Graph, n: dict[str, Node]) -> None:
    late = g.add("reshape", [n["a"].result], {"shape": (symbol("s"), 4)})
    g.add("read_dims", [g.constant(Constant(np.array([3])), before=late)], {"symbols": (symbol("s"),)})


@breaks(14, "s is made a second time")
def _(g: Graph, n: dict[str, Node]) -> None:
    size = g.constant(Constant(np.array([3])))
    for _ in range(2):
        g.add("read_dims", [size], {"symbols": (symbol("s"),)})


@breaks(14, "fused names s, which is not made before")
def _(g: Graph, n: dict[str, Node]) -> None:
    n["q"].result.type = n["f"].result.type = tensor(F32, symbol("s"), 4)
    g.add("read_dims", [g.constant(Constant(np.array([3])))], {"symbols": (symbol("s"),)})


@pytest.mark.parametrize(("invariant", "message", "change"), BROKEN, ids=[f"{i}-{m[:40]}" for i, m, _ in BROKEN])
def test_broken_graph(invariant: int, message: str, change: Callable[[Graph, dict[str, Node]], object]) -> None:
    graph = parse_graph(TEXT)
    verify(graph)
    nodes = {n.results[0].name: n for n in graph.walk()}
    change(graph, nodes)
    with pytest.raises(VerifyError, match=re.escape(message)) as e:
        verify(graph)
    assert e.value.invariant == invariant
    assert f"invariant {invariant}:" in str(e.value)


def test_every_number_has_a_test() -> None:
    numbers = {int(n) for n in re.findall(r"^ *(\d+)\. ", module.__doc__ or "", re.MULTILINE)}
    assert numbers == set(range(1, len(numbers) + 1)) == {i for i, _, _ in BROKEN}


def test_errors_show_the_node_and_its_origin() -> None:
    graph = parse_graph(TEXT)
    next(graph.nodes).result.type = tensor(F32, 9)
    with pytest.raises(VerifyError) as e:
        verify(graph)
    assert '\n> %a = relu(%x) : f32[9] from "Relu_0"\n  %b = add(%a, %y)' in str(e.value)
    assert "(from Relu_0)" in str(e.value)


def test_types_that_may_be_equal_are_accepted() -> None:
    verify(
        parse_graph(
            "graph g(%x: f32[n, 4], %u: f32[*]) { %a = relu(%x) : f32[7, m] %b = exp(%u) : f32[2] return %a, %b }"
        )
    )
