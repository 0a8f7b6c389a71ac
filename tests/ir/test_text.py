"""The text form: round trips, and errors with their place."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opcel_compiler.ir.compare import equal
from opcel_compiler.ir.dims import floordiv, symbol
from opcel_compiler.ir.encodings import Constant, Grouped, Sparse
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.text import ParseError, context, parse_graph, print_graph
from opcel_compiler.ir.types import (
    BF16,
    BOOL,
    DTYPES,
    F32,
    I64,
    STRING,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnknownType,
    tensor,
)
from opcel_compiler.ir.verify import verify


def round_trip(graph: Graph) -> str:
    store: dict[str, Constant] = {}
    text = print_graph(graph, constants=store, origins=True)
    again = parse_graph(text, store)
    assert equal(graph, again, names=True, origins=True) is None, text
    assert print_graph(again, origins=True) == text
    return text


FULL = """\
symbol n in 1..64
symbol in in 2..
graph "a graph: of all" (%x: f32[n, 3, 8, 8], %m: bool[in, s], %seq: seq<optional<f32[*]>>, %map: map<i64, seq<?>>) {
  %k = f32[4, 3, 3, 3] 0.5
  %b = f32[4] [1.0, -0.0, nan, -inf]
  %y = conv(%x, %k, %b){strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1]} : f32[n, 4, 6, 6] from "C", "a \\"b\\""
  %z, %u = fused(%y) : f32[n, 4, 6, 6], f32[n, 4, 6, 6]
    region body(%a: f32[n, 4, 6, 6]) {
      %c = relu(%a) : f32[n, 4, 6, 6]
      return %c, %a
    }
  %d = dims{values=[n, 2*n + -1, ((s) // (in)), max(n, s)]} : i64[4]
  %r = reshape(%z){shape=[n, 144]} : f32[n, 144]
  foreign(%r, _, %seq){domain="com.x", op_type="Print", opset=1, node=bytes"aGVsbG8=", to=f32, t=f32[n], w=i8[2] [1, 2]}
  %q, %p = foreign{domain="", op_type="If", opset=22, node=bytes"", a=1.5, on=true, none=[]} : ?, f32[*]
    region then() {
      %e = neg(%r) : f32[n, 144]
      return %e
    }
    region else() {
      return
    }
  foreign{domain="", op_type="T", opset=1, node=bytes"", names=["a", "b"], f=[1.0, inf], i=[1, n], types=(f32[], ?)}
  return %z as "scores:0", %r, %q
}
"""


def test_text_of_everything_round_trips() -> None:
    graph = parse_graph(FULL)
    assert round_trip(graph) == FULL.replace('all" (', 'all"(')
    assert graph.name == "a graph: of all"
    verify(graph)


def test_types_and_defaults_may_be_left_out() -> None:
    short = parse_graph("graph f(%x: f32[n, 4]) { %y = gelu(%x) ; approximate is none\n return %y }")
    full = parse_graph('graph g(%a: f32[n,4]) { %b = gelu(%a){approximate="none"} : f32[n, 4] return %b }')
    assert equal(short, full) is None
    assert "approximate" not in print_graph(full)


@pytest.mark.parametrize("name", list(DTYPES))
def test_constants_of_every_dtype(name: str) -> None:
    dtype = DTYPES[name]
    if dtype is STRING:
        data = np.array(["a", 'q"uote', "é", b"\x00\xff"], object)
    elif dtype.kind == "c":
        data = np.array([1 + 2j, complex(np.nan, -0.0), -1j, 3]).astype(dtype.numpy)
    elif dtype is BOOL:
        data = np.array([True, False, True, True])
    else:
        low = 0 if dtype.kind == "u" or name == "f8e8m0" else -2
        data = np.array([1, low, 1, 1 if dtype.kind != "f" else 0.5]).astype(dtype.numpy)
    graph = Graph()
    for shape in ((4,), (2, 2), (1, 4, 1)):
        graph.add_output(graph.constant(Constant(data.reshape(shape), dtype)))
    graph.add_output(graph.constant(Constant(data[:1].reshape(()), dtype)))
    graph.add_output(graph.constant(Constant(data[:0], dtype)))
    round_trip(graph)
    verify(graph)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=8))
def test_floats_keep_their_bits(bits: list[int]) -> None:
    data = np.array(bits, np.uint32).view(np.float32)
    for array in (data, data.view(ml_dtypes.bfloat16), data.view(np.float16)):
        graph = Graph()
        graph.add_output(graph.constant(Constant(array)))
        again = parse_graph(print_graph(graph)).outputs[0].constant
        assert again is not None and again.array.tobytes() == array.tobytes()


def test_large_constants_print_as_digest() -> None:
    graph = Graph()
    data = Constant(np.arange(100, dtype=np.float32))
    graph.add_output(graph.constant(data))
    store: dict[str, Constant] = {}
    text = print_graph(graph, constants=store)
    assert f"%c = f32[100] #{data.digest}\n" in text
    assert store == {data.digest: data}
    assert parse_graph(text, store).outputs[0].constant is data
    with pytest.raises(ParseError, match=f"line 2, column 17: the data of constant #{data.digest} is not given"):
        parse_graph(text)
    with pytest.raises(ParseError, match="is f32"):
        parse_graph(text.replace("100", "50"), store)


def test_encodings_round_trip() -> None:
    graph = Graph()
    sparse = np.array([[1, 0, 0, 2], [0, 3, 4, 0]], np.float32)
    graph.add_output(graph.constant(Constant(sparse, encoding=Sparse(2, 4, 1))))
    graph.add_output(graph.constant(Constant(sparse, encoding=Grouped(DTYPES["i4"], 2, 0))))
    text = round_trip(graph)
    assert "f32[2, 4] sparse<2:4, axis=1, granularity=1> [[1.0, 0.0" in text
    assert "f32[2, 4] grouped<i4, group=2, axis=0> [[1.0" in text


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "expected 'graph'"),
        ("graph g(%x: f32[2]) {\n  %y = nope(%x)\n  return %y }", 2, 8, "there is no operator 'nope'"),
        ("graph g(%x: f32[2]) {\n  %y = relu(%z)\n  return %y }", 2, 13, "%z is not defined before its use"),
        ("graph g(%x: f32[2]) {\n  %x = relu(%x)\n  return %x }", 2, 3, "%x is defined twice"),
        ("graph g(%x: f33[2]) { return %x }", 1, 13, "'f33' is no element type"),
        ("graph g(%x: f32[2, n n]) { return %x }", 1, 20, "'n n' is not a dimension expression"),
        ("graph g(%x: f32[-2]) { return %x }", 1, 16, "-2 in shape"),
        ("graph g(%x: f32[2]) {\n  %y = softmax(%x)\n return %y }", 2, 8, "softmax needs the attribute 'axis'"),
        ("graph g(%x: f32[2]) {\n  %y = relu(%x){a=1}\n return %y }", 2, 8, "relu has no attribute 'a'"),
        ("graph g(%x: f32[2], %z: f32[3]) {\n  %y = add(%x, %z)\n return %y }", 2, 8, "sizes 2 and 3 do not broadcast"),
        ("graph g(%x: f32[2]) {\n  %y = relu(%x) : f32[2], f32[2]\n return %y }", 2, 8, "2 types for 1 results"),
        ("graph g(%x: f32[2]) {\n  %y, %z = relu(%x)\n return %y }", 2, 12, "relu has 1 results, not 2"),
        ("graph g() {\n  %c = f32[2] [1, 2, 3]\n return %c }", 2, 15, "3 elements for f32[2], which has 2"),
        ("graph g() {\n  %c = i8[1] [300]\n return %c }", 2, 14, "not elements of i8"),
        ("graph g() {\n  %c = i8[1] [1.5]\n return %c }", 2, 15, "1.5 is not an integer"),
        ("graph g() {\n  %c = f32[n] 1\n return %c }", 2, 15, "a constant's shape has integers only"),
        ("graph g() {\n  %c = f32[4] sparse<4:2, axis=0> 1\n return %c }", 2, 15, "not an n:m sparsity"),
        ("symbol n in 4..2\ngraph g() { return }", 1, 8, "symbol n: empty range"),
        ("graph g() { return } x", 1, 22, "expected the end of the text"),
        ('graph g() {\n %y = foreign{node=bytes"!"} : ?\n return }', 2, 20, "not valid base64"),
        ("graph g(%x: f32[2]) { %y = fused(%x) return %y }", 1, 28, "the types of a fused body are given"),
        ("graph g(%x: f32[2]) { return %x", 1, 32, "expected ','"),
    ],
)
def test_errors_name_line_and_column(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(ParseError) as e:
        parse_graph(text)
    assert str(e.value).startswith(f"line {line}, column {column}: ")
    assert message in str(e.value)


def test_context_marks_the_node() -> None:
    graph = parse_graph("graph g(%x: f32[2]) { %a = relu(%x) %b = neg(%a) %c = exp(%b) return %c }")
    node = list(graph.nodes)[1]
    assert context(node, 1) == ("  %a = relu(%x) : f32[2]\n> %b = neg(%a) : f32[2]\n  %c = exp(%b) : f32[2]")


# -- random graphs ---------------------------------------------------------------------------------------------------

_N = symbol("n", 1, 64)
_SIZES = st.sampled_from([1, 2, 5, _N, symbol("s"), _N * 2 + 1, floordiv(_N, 3)])
_TENSORS = st.builds(
    TensorType,
    st.sampled_from([F32, BF16, I64]),
    st.one_of(st.none(), st.lists(_SIZES, max_size=3).map(tuple)),
)
_TYPES: st.SearchStrategy[Type] = st.recursive(
    st.one_of(_TENSORS, st.just(UnknownType())),
    lambda inner: st.one_of(
        st.builds(SequenceType, inner), st.builds(OptionalType, inner), st.builds(MapType, st.just(I64), inner)
    ),
    max_leaves=3,
)
_VALUES = st.one_of(
    st.integers(), st.floats(), st.booleans(), st.text(max_size=5), st.binary(max_size=5), _TYPES,
    st.lists(st.integers() | st.just(_N), max_size=3).map(tuple), st.lists(st.floats(), max_size=3).map(tuple),
    st.lists(st.text(max_size=4), max_size=3).map(tuple), st.lists(_TYPES, max_size=3).map(tuple),
)  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    graph = Graph(draw(st.text(max_size=6)))
    values: list[Value] = [graph.add_input("x", tensor(F32, _N, 4))]
    values += [graph.add_input(draw(st.text(max_size=4)), t) for t in draw(st.lists(_TYPES, max_size=2))]
    for _ in range(draw(st.integers(0, 6))):
        kind = draw(st.sampled_from(["unary", "binary", "foreign", "constant", "fused"]))
        floats = [v for v in values if v.type == tensor(F32, _N, 4)]
        origin = draw(st.lists(st.text(max_size=4), max_size=2))
        if kind == "unary":
            values.append(graph.add(draw(st.sampled_from(["relu", "exp"])), [draw(st.sampled_from(floats))]).result)
        elif kind == "binary":
            pair = [draw(st.sampled_from(floats)), draw(st.sampled_from(floats))]
            values.append(graph.add("add", pair, origin=origin).result)
        elif kind == "constant":
            data = np.array(draw(st.lists(st.floats(width=32), max_size=20)), np.float32)
            values.append(graph.constant(Constant(data), origin=origin))
        elif kind == "fused":
            x = draw(st.sampled_from(values))
            if isinstance(x.type, UnknownType):
                continue

            def body(node: object, x: Value = x) -> list[Graph]:
                region = Graph("body", node)  # type: ignore[arg-type]
                region.add_output(region.add_input("a", x.type))
                return [region]

            values.append(graph.add("fused", [x], types=[x.type], regions=body).result)
        else:
            operands = draw(st.lists(st.one_of(st.none(), st.sampled_from(values)), max_size=3))
            names = draw(st.lists(st.sampled_from(["a", "b", "axis", "value"]), unique=True, max_size=3))
            attrs = {"domain": "d", "op_type": "T", "opset": 1, "node": b"\x00"}
            node = graph.add(
                "foreign", operands, {**attrs, **{n: draw(_VALUES) for n in names}},
                types=draw(st.lists(_TYPES, max_size=3)), origin=origin,
            )  # fmt: skip
            values += node.results
    for i, v in enumerate(draw(st.lists(st.sampled_from(values), max_size=3))):
        graph.add_output(v, f"{i}{draw(st.text(max_size=4))}")
    return graph


@given(graphs())
def test_random_graphs_are_valid_and_round_trip(graph: Graph) -> None:
    verify(graph)
    round_trip(graph)
