"""What has no lowering is kept whole: its types, its graphs and what they capture; functions are inlined."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_harness import check, floats, model_of, one_node, reference, same

from opcel_compiler.frontend.exporter import export_region
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ExportError
from opcel_compiler.frontend.lowering import REGISTRY
from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.types import tensor


def node(op: str, inputs: str, outputs: str, **attrs: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attrs)


def info(name: str, code: int = TensorProto.FLOAT, shape: tuple[int, ...] | None = (2, 3)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, code, shape)


def test_types_come_from_the_operator() -> None:
    feeds = {"x": np.array([["a b", "c"]], object)}
    imported = check(one_node("RegexFullMatch", feeds, 20, pattern="[a-z]"), feeds, foreign=["RegexFullMatch"])
    (kept,) = imported.foreign
    assert [str(v.type) for v in kept.results] == ["bool[1, 2]"]
    assert kept.attrs["reason"] == "RegexFullMatch has no lowering"
    assert kept.origin == ("the_node",)


def test_symbols_pass_through_the_inference_of_opaque_nodes() -> None:
    feeds = {"x": np.array([["a"], ["b c"], [""]], object)}
    nodes = [node("Concat", "x x", "c", axis=0), node("RegexFullMatch", "c", "y", pattern="[a-z]")]
    imported = check(model_of(nodes, feeds, 20, symbolic={"x": ["n", 1]}), feeds, foreign=["RegexFullMatch"])
    assert str(imported.graph.outputs[0].type) == "bool[2*n, 1]"


def test_sizes_that_depend_on_data_are_fresh_symbols() -> None:
    feeds = {"x": np.array(["a b", "c d e"], object)}
    nodes = [node("StringSplit", "x", "parts count", delimiter=" "), node("Transpose", "parts", "y")]
    imported = check(model_of(nodes, feeds, 20), feeds, foreign=["StringSplit"])
    assert str(imported.graph.outputs[0].type) == "string[d0, 2]"


def test_branches_with_captured_values() -> None:
    then = helper.make_graph([node("Add", "a w", "t")], "then", [], [info("t")])
    inner = [node("Mul", "a b", "m"), node("ReduceMax", "m", "e", keepdims=0)]
    other = helper.make_graph(inner, "else", [], [info("e", shape=())])  # another rank, so there is no type for both
    nodes = [
        node("Neg", "x", "a"),
        node("Abs", "x", "b"),
        helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other),
    ]
    for c in (True, False):
        feeds = {"x": floats(2, 3), "c": np.array(c)}
        imported = check(model_of(nodes, feeds, 13, {"w": floats(2, 3, seed=1)}), feeds, foreign=["If"])
        (kept,) = imported.foreign
        assert kept.attrs["captured"] == ("a", "b", "w")
        assert len(kept.operands) == 4
        assert str(kept.results[0].type) == "f32[*]"


def test_loop_whose_inner_names_hide_outer_ones() -> None:
    inner = [node("Add", "a step", "b"), node("Identity", "go", "go_on"), node("Identity", "b", "seen")]
    body = helper.make_graph(
        inner,
        "body",
        [info("i", TensorProto.INT64, ()), info("go", TensorProto.BOOL, ()), info("a")],
        [info("go_on", TensorProto.BOOL, ()), info("b"), info("seen")],
    )
    nodes = [node("Neg", "x", "step"), helper.make_node("Loop", ["count", "", "x"], ["last", "y"], body=body)]
    feeds = {"x": floats(2, 3)}
    model = model_of(nodes, feeds, 13, {"count": np.array(4)}, ["last", "y"])
    check(model, feeds)


def test_nested_captures() -> None:
    deep = helper.make_graph([node("Add", "x outer", "d")], "deep", [], [info("d")])
    flat = helper.make_graph([node("Neg", "outer", "f")], "flat", [], [info("f")])
    middle = helper.make_graph(
        [helper.make_node("If", ["c"], ["m"], then_branch=deep, else_branch=flat)], "middle", [], [info("m")]
    )
    nodes = [node("Abs", "x", "outer"), helper.make_node("If", ["c"], ["y"], then_branch=middle, else_branch=flat)]
    feeds = {"x": floats(2, 3), "c": np.array(True)}
    check(model_of(nodes, feeds, 13), feeds)


def test_unknown_domain_takes_its_declared_types() -> None:
    nodes = [helper.make_node("Own", ["x"], ["a"], domain="own.domain"), node("Neg", "a", "y")]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")], value_info=[info("a")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("own.domain", 2)])
    imported = import_model(model)
    (kept,) = imported.foreign
    assert (kept.attrs["domain"], kept.attrs["opset"], str(kept.results[0].type)) == ("own.domain", 2, "f32[2, 3]")
    assert [n.op for n in imported.graph.nodes] == ["foreign", "neg"]


def test_without_any_type_the_rest_is_opaque_too() -> None:
    nodes = [helper.make_node("Own", ["x"], ["a"], domain="own.domain"), node("Neg", "a", "y")]
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y", shape=None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13), helper.make_opsetid("own.domain", 2)])
    assert [n.attrs["op_type"] for n in import_model(model).foreign] == ["Own", "Neg"]


# -- functions -------------------------------------------------------------------------------------------------------


def function_model(nodes: list[onnx.NodeProto], functions: list[onnx.FunctionProto]) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [info("x")], [info("y")])
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9)


def scaled(opset: int = 13) -> onnx.FunctionProto:
    alpha = helper.make_node("Constant", [], ["k"])
    alpha.attribute.append(
        onnx.AttributeProto(name="value_float", type=onnx.AttributeProto.FLOAT, ref_attr_name="alpha")
    )
    nodes = [alpha, node("Mul", "a k", "m"), node("Softmax", "m", "b")]
    f = helper.make_function("own", "Scaled", ["a"], ["b"], nodes, [helper.make_opsetid("", opset)])
    f.attribute_proto.append(helper.make_attribute("alpha", 2.0))
    return f


@pytest.mark.parametrize("attrs", [{}, {"alpha": 0.5}])
def test_functions_are_inlined(attrs: dict[str, float]) -> None:
    call = helper.make_node("Scaled", ["x"], ["y"], domain="own", name="call", **attrs)
    imported = check(function_model([call], [scaled()]), {"x": floats(2, 3)})
    origins = {n.op: n.origin for n in imported.graph.nodes}
    assert origins["softmax"] == ("call/Softmax_0",) and origins["mul"] == ("call/Mul_0",)


def test_functions_call_functions_and_leave_operands_out() -> None:
    inner = helper.make_function(
        "own", "Clipped", ["a", "lo", "hi"], ["b"], [node("Clip", "a lo hi", "b")], [helper.make_opsetid("", 13)]
    )
    call = helper.make_node("Clipped", ["a", "", "hi"], ["b"], domain="own")
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("own", 1)]
    outer = helper.make_function("own", "Outer", ["a", "hi"], ["b"], [call], imports)
    nodes = [node("ReduceMax", "x", "m", keepdims=0), helper.make_node("Outer", ["x", "m"], ["y"], domain="own")]
    imported = check(function_model(nodes, [inner, outer]), {"x": floats(2, 3)})
    assert [n.op for n in imported.graph.nodes] == ["reduce_max", "min"]


def test_functions_called_from_branches() -> None:
    branch = helper.make_graph([helper.make_node("Scaled", ["x"], ["t"], domain="own")], "then", [], [info("t")])
    nodes = [
        node("ReduceMax", "x", "m", keepdims=0),
        node("Cast", "m", "c", to=TensorProto.BOOL),
        helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch),
    ]
    check(function_model(nodes, [scaled()]), {"x": floats(2, 3)})


# -- regions ---------------------------------------------------------------------------------------------------------


def test_region_of_some_nodes() -> None:
    x = floats(2, 3)
    graph = Graph()
    value = graph.add_input("x", tensor("f32", 2, 3))
    a = graph.add("neg", (value,)).result
    from opcel_compiler.ir.encodings import Constant

    b = graph.add("mul", (a, graph.constant(Constant(np.array(2.0, np.float32))))).result
    c = graph.add("exp", (b,)).result
    assert b.producer is not None and c.producer is not None
    region = export_region([b.producer, c.producer], [a], [c, b, a])
    onnx.checker.check_model(region.model, full_check=True)
    got = reference(region.model, {region.inputs[0]: -x})
    same(got, [np.exp(-2 * x), -2 * x, -x])
    assert len(set(region.outputs)) == 3 and region.symbols == ()


def test_region_asks_for_sizes_that_no_operand_carries() -> None:
    graph = Graph()
    n = symbol("n")
    graph.add_input("x", tensor("f32", n))
    a = graph.add_input("a", tensor("f32", 1, 3))
    y = graph.add("expand", (a,), {"shape": (n * 2, 3)}).result
    assert y.producer is not None
    region = export_region([y.producer], [a], [y])
    ((name, feed),) = region.symbols
    assert name == "n"
    (got,) = reference(region.model, {region.inputs[0]: floats(1, 3), feed: np.array([4])})
    assert got.shape == (8, 3)


def test_region_without_an_operand_is_refused() -> None:
    graph = Graph()
    value = graph.add_input("x", tensor("f32", 2, 3))
    y = graph.add("neg", (value,), origin=("their_node",)).result
    assert y.producer is not None
    with pytest.raises(ExportError, match="%x, used by node 'their_node', is neither given nor computed"):
        export_region([y.producer], [], [y])


@pytest.mark.parametrize(("p", "reason"), [(2, None), (1, "its attribute 'p' is not known to the lowering")])
def test_an_attribute_that_a_lowering_does_not_look_at_keeps_the_node_whole(
    monkeypatch: pytest.MonkeyPatch, p: int, reason: str | None
) -> None:
    """Unless it has the standard's default, which changes nothing."""
    monkeypatch.setitem(REGISTRY, ("", "LpNormalization"), (lambda c: c.emit("relu", c.x()), 7, 99))
    imported = import_model(one_node("LpNormalization", {"x": floats(2, 3)}, 17, p=p))
    assert [n.attrs["reason"] for n in imported.foreign] == ([reason] if reason else [])
