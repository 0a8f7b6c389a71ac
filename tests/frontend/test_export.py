"""Our own operators written as ONNX, at the opsets where their form differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx_harness import floats, reference, same

from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ExportError
from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.types import TensorType, dtype_of, tensor


def graph_of(op: str, arrays: Sequence[np.ndarray | None], **attrs: Any) -> tuple[Graph, dict[str, np.ndarray]]:
    graph, feeds, operands = Graph(), {}, []
    for i, a in enumerate(arrays):
        operands.append(None if a is None else graph.add_input(f"x{i}", TensorType(dtype_of(a), a.shape)))
        if a is not None:
            feeds[f"x{i}"] = a
    graph.add_output(graph.add(op, operands, attrs).result, "y")
    return graph, feeds


def agrees(graph: Graph, feeds: dict[str, np.ndarray], opset: int | None = None) -> onnx.ModelProto:
    model = export_model(graph, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    same(reference(model, feeds), list(run(graph, feeds).values()), 1e-4, 1e-5)
    return model


X = floats(2, 3, 4)


@pytest.mark.parametrize("opset", [11, 13, 17, 20, 23])
@pytest.mark.parametrize(
    "op, arrays, attrs",
    [
        ("gelu", [X], {}),
        ("gelu", [X], {"approximate": "tanh"}),
        ("silu", [X], {}),
        ("softmax", [X], {"axis": 1}),
        ("log_softmax", [X], {"axis": 2}),
        ("layer_norm", [X], {"axis": 1, "epsilon": 1e-5}),
        ("layer_norm", [X, floats(4, seed=1), floats(4, seed=2)], {"axis": 2, "epsilon": 1e-5}),
        ("layer_norm", [X, None, floats(4, seed=2)], {"axis": 2, "epsilon": 1e-5}),
        ("rms_norm", [X, floats(4, seed=1)], {"axis": 2, "epsilon": 1e-5}),
        ("rms_norm", [X], {"axis": 1, "epsilon": 1e-5}),
        ("less_equal", [X, X[:, :1]], {}),
        ("mod", [X, floats(4, low=0.5)], {}),
        ("reduce_sum", [X], {"axes": (0, 2), "keepdims": False}),
        ("reduce_mean", [X], {"axes": (1,), "keepdims": True}),
        ("arg_max", [X], {"axis": 1, "keepdims": False}),
        ("slice", [X], {"starts": (1, 2, 3), "sizes": (1, 3, 2), "steps": (1, -1, -2)}),
        ("pad", [X], {"pads": (0, 1, 0, 2, 0, 1)}),
        ("expand", [X[:, :1]], {"shape": (2, 5, 4)}),
        ("reshape", [X], {"shape": (4, 6)}),
        ("gather", [X, np.array([[0, -1]])], {"axis": 1}),
        ("hard_sigmoid", [X], {"alpha": 0.3, "beta": 0.4}),
        ("avg_pool", [X], {"kernel": (2,), "strides": (2,), "pads": (1, 0), "dilations": (1,)}),
    ],
)
def test_operators(op: str, arrays: list[np.ndarray | None], attrs: dict[str, Any], opset: int) -> None:
    agrees(*graph_of(op, arrays, **attrs), opset)


@pytest.mark.parametrize("opset", [11, 13, 20])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads, shared, masked", [(4, 4, True), (4, 2, False), (6, 1, True)])
def test_attention(opset: int, causal: bool, heads: int, shared: int, masked: bool) -> None:
    q, k, v = floats(2, heads, 3, 8), floats(2, shared, 5, 8, seed=1), floats(2, shared, 5, 6, seed=2)
    mask = floats(3, 5, seed=3) if masked else None
    agrees(*graph_of("attention", [q, k, v, mask], scale=0.3, causal=causal), opset)


def test_native_forms_are_used_where_the_opset_has_them() -> None:
    def kinds(op: str, opset: int, arrays: list[np.ndarray | None], **attrs: Any) -> list[str]:
        return [n.op_type for n in agrees(*graph_of(op, arrays, **attrs), opset).graph.node]

    scale = floats(4)
    assert kinds("gelu", 20, [X]) == ["Gelu"]
    assert kinds("layer_norm", 17, [X, scale], axis=2, epsilon=1e-5) == ["LayerNormalization"]
    assert kinds("rms_norm", 23, [X, scale], axis=2, epsilon=1e-5) == ["RMSNormalization"]


def body(build: Callable[[Graph, list[Value]], Value]) -> Callable[[Any], list[Graph]]:
    def make(node: Any) -> list[Graph]:
        region = Graph("body", node)
        inputs = [region.add_input(v.name, v.type) for v in node.operands] or [
            region.add_input("a", tensor("f32", 2, 3, 4)),
            region.add_input("b", tensor("f32", 4)),
        ]
        region.add_output(build(region, inputs))
        return [region]

    return make


def test_fused_bodies_are_inlined() -> None:
    graph = Graph()
    a, b = graph.add_input("a", tensor("f32", 2, 3, 4)), graph.add_input("b", tensor("f32", 4))

    def relu_of_sum(region: Graph, xs: list[Value]) -> Value:
        return region.add("relu", (region.add("add", xs).result,)).result

    node = graph.add("fused", (a, b), types=[a.type], regions=body(relu_of_sum))
    graph.add_output(node.result, "y")
    model = agrees(graph, {"a": X, "b": floats(4, seed=1)})
    assert [n.op_type for n in model.graph.node] == ["Add", "Relu"]
    assert model.graph.node[-1].output[0] == "y"


def test_inputs_constants_and_repeated_values_as_outputs() -> None:
    graph = Graph()
    x = graph.add_input("x", tensor("f32", 2, 3, 4))
    y = graph.add("neg", (x,)).result
    constant = graph.constant(Constant(floats(3)))
    for value, name in ((x, "same"), (y, "first"), (y, "second"), (constant, "fixed")):
        graph.add_output(value, name)
    model = agrees(graph, {"x": X})
    assert [o.name for o in model.graph.output] == ["same", "first", "second", "fixed"]


def test_names_of_the_file_survive_whatever_they_are() -> None:
    from onnx import TensorProto, helper

    odd = ["input:0", "input/0", "ünicode 名"]
    x = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in odd]
    y = helper.make_tensor_value_info("neg", TensorProto.FLOAT, [2])
    nodes = [helper.make_node("Sum", odd, ["add"]), helper.make_node("Neg", ["add"], ["neg"])]
    model = helper.make_model(helper.make_graph(nodes, "g", x, [y]), opset_imports=[helper.make_opsetid("", 13)])
    imported = import_model(model)
    assert imported.input_names == tuple(odd) and imported.output_names == ("neg",)
    exported = export_model(imported.graph, names=imported)
    feeds = {n: floats(2, seed=i) for i, n in enumerate(odd)}
    same(reference(exported, feeds), [-sum(feeds.values())])


def test_symbolic_inputs_become_parameters() -> None:
    n = symbol("batch")
    graph = Graph()
    x = graph.add_input("x", tensor("f32", n, 6))
    graph.add_output(graph.add("reshape", (x,), {"shape": (n, 2, 3)}).result, "y")
    for size in (1, 4):
        model = agrees(graph, {"x": floats(size, 6)})
    assert [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim] == ["batch", 2, 3]


@pytest.mark.parametrize(
    "op, arrays, attrs, opset, why",
    [
        ("where", [X > 0, X, X], {}, 8, "Where needs opset 9"),
        ("round", [X], {}, 10, "Round needs opset 11"),
        ("gather_elements", [X, np.zeros((2, 3, 4), np.int64)], {"axis": 1}, 10, "GatherElements needs opset 11"),
        ("pad", [X], {"pads": (1,) * 6, "mode": "wrap"}, 18, "Pad with mode wrap needs opset 19"),
    ],
)
def test_what_an_opset_lacks(
    op: str, arrays: list[np.ndarray | None], attrs: dict[str, Any], opset: int, why: str
) -> None:
    graph, _ = graph_of(op, arrays, **attrs)
    with pytest.raises(ExportError, match=f"{why}, and the model is written at opset {opset}"):
        export_model(graph, opset=opset)


def test_sizes_that_nothing_carries() -> None:
    graph = Graph()
    graph.add_output(graph.add("dims", (), {"values": (symbol("n"),)}, origin=("their_shape",)).result)
    with pytest.raises(ExportError, match="no value carries the size n, which node 'their_shape' needs"):
        export_model(graph)
