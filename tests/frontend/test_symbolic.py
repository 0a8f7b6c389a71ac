"""Shape arithmetic of exported networks leaves nothing behind, and sizes stay symbolic."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx_harness import check, floats, interpret, model_of, reference, same

from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.frontend.importer import Imported, import_model

BATCH: dict[str, list[str | int]] = {"x": ["batch", 4, 6]}


def node(op: str, inputs: str, outputs: str, **attrs: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), **attrs)


def ops(imported: Imported) -> list[str]:
    return [n.op for n in imported.graph.nodes if n.op != "constant"]


def test_split_of_heads_at_a_symbolic_batch() -> None:
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape zero", "n", axis=0),
        node("Unsqueeze", "n axis0", "n1"),
        node("Concat", "n1 rest", "target", axis=0),
        node("Reshape", "x target", "r"),
        node("Transpose", "r", "y", perm=[0, 2, 1, 3]),
    ]
    constants = {"zero": np.array(0), "axis0": np.array([0]), "rest": np.array([-1, 2, 3])}
    feeds = {"x": floats(5, 4, 6)}
    imported = check(model_of(nodes, feeds, 13, constants, symbolic=BATCH), feeds)
    assert ops(imported) == ["reshape", "transpose"]
    assert str(imported.graph.outputs[0].type) == "f32[batch, 2, 4, 3]"


def test_expand_through_where_and_equal() -> None:
    """The form in which exporters write `expand(-1, ...)`."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Slice", "shape zero one", "n"),
        node("Concat", "n tail", "wanted", axis=0),
        node("Shape", "wanted", "count"),
        node("ConstantOfShape", "count", "ones", value=helper.make_tensor("v", TensorProto.INT64, [1], [1])),
        node("Mul", "ones minus", "marks"),
        node("Equal", "wanted marks", "open"),
        node("Where", "open ones wanted", "target"),
        node("Expand", "row target", "y"),
    ]
    constants = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "tail": np.array([-1]),
        "minus": np.array(-1),
        "row": floats(1, 3),
    }
    feeds = {"x": floats(5, 4, 6)}
    imported = check(model_of(nodes, feeds, 13, constants, symbolic=BATCH), feeds)
    assert ops(imported) == ["expand"]
    assert str(imported.graph.outputs[0].type) == "f32[batch, 3]"


def test_sizes_through_floats_divisions_and_products() -> None:
    nodes = [
        node("Shape", "x", "shape"),
        node("Cast", "shape", "wide", to=TensorProto.FLOAT),
        node("Mul", "wide two", "doubled"),
        node("Cast", "doubled", "ints", to=TensorProto.INT64),
        node("ReduceProd", "ints", "all", keepdims=1, axes=[0]),
        node("Div", "all eight", "count"),
        node("Reshape", "x count", "y"),
    ]
    constants = {"two": np.array(2.0, np.float32), "eight": np.array([8])}
    feeds = {"x": floats(5, 4, 6)}
    imported = check(model_of(nodes, feeds, 13, constants, symbolic=BATCH), feeds)
    assert ops(imported) == ["reshape"]


def test_positions_cut_from_a_table_bound_the_length() -> None:
    """Slicing 16 positions to the length and adding them only works for lengths up to 16."""
    nodes = [
        node("Shape", "x", "shape"),
        node("Slice", "shape one two", "length"),
        node("Slice", "table zero length one_", "positions"),
        node("Add", "x positions", "y"),
    ]
    constants = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "two": np.array([2]),
        "one_": np.array([1]),
        "table": floats(1, 16),
    }
    feeds = {"x": floats(2, 7)}
    imported = check(model_of(nodes, feeds, 13, constants, symbolic={"x": ["batch", "length"]}), feeds)
    length = imported.graph.inputs[0].tensor.dims[1]
    assert [(s.name, s.hi) for s in _symbols(length)] == [("length", 16)]
    assert str(imported.graph.outputs[0].type) == "f32[batch, length]"


def _symbols(dim: object) -> list[object]:
    from opcel_compiler.ir.dims import symbols_of

    return list(symbols_of(dim))  # type: ignore[arg-type]


def test_clamped_slice_alone_leaves_the_range() -> None:
    nodes = [node("Shape", "x", "n"), node("Slice", "table zero n", "y")]
    constants = {"zero": np.array([0]), "table": floats(4)}
    for size in (3, 9):
        feeds = {"x": floats(size)}
        imported = check(model_of(nodes, feeds, 13, constants, symbolic={"x": ["n"]}), feeds)
        assert str(imported.graph.outputs[0].type) == "f32[min(4, n)]"


@pytest.mark.parametrize("step, start, end", [(1, 1, 100), (2, 0, 100), (-1, -1, -100), (1, -2, 100), (-2, 100, 0)])
def test_slices_of_a_symbolic_axis(step: int, start: int, end: int) -> None:
    nodes = [node("Slice", "x s e a t", "y")]
    constants = {"s": np.array([start]), "e": np.array([end]), "a": np.array([0]), "t": np.array([step])}
    for size in (1, 2, 5, 6):
        feeds = {"x": floats(size, 2)}
        check(model_of(nodes, feeds, 13, constants, symbolic={"x": ["n", 2]}), feeds)


@pytest.mark.parametrize("size", [0, 1, 4])
def test_shape_is_an_output(size: int) -> None:
    nodes = [node("Shape", "x", "s"), node("Size", "x", "c"), node("Cast", "s", "i", to=TensorProto.INT32)]
    feeds = {"x": floats(size, 3)}
    imported = check(model_of(nodes, feeds, 13, {}, ["s", "c", "i"], {"x": ["n", 3]}), feeds)
    assert ops(imported) == ["dims", "dims", "dims", "cast"]


def test_range_and_comparison_with_symbolic_ends() -> None:
    nodes = [
        node("Shape", "x", "s"),
        node("Squeeze", "s axis", "n"),
        node("Range", "zero n one", "r"),
        node("Less", "r three", "y"),
    ]
    constants = {"zero": np.array(0), "one": np.array(1), "three": np.array(3), "axis": np.array([0])}
    feeds = {"x": floats(5)}
    imported = check(model_of(nodes, feeds, 13, constants, symbolic={"x": ["n"]}), feeds)
    assert ops(imported) == ["range_", "less"]


def test_names_of_dimensions_become_symbols() -> None:
    shape: list[str | int] = ["batch size", "batch_size", "min", "class", "0x"]
    feeds = {"x": floats(1, 2, 1, 2, 1)}
    model = model_of([node("Neg", "x", "y")], feeds, 13, symbolic={"x": shape})
    imported = import_model(model)
    assert str(imported.graph.inputs[0].type) == "f32[batch_size, batch_size_2, d_min, d_class, d_0x]"
    assert list(imported.symbols.values()) == shape
    exported = export_model(imported.graph, names=imported)
    assert [d.dim_param for d in exported.graph.input[0].type.tensor_type.shape.dim] == shape


def test_unknown_dims_are_different_symbols() -> None:
    feeds = {"a": floats(2, 3), "b": floats(4, 3)}
    model = model_of([node("Concat", "a b", "y", axis=0)], feeds, 13, symbolic={"a": [None, 3], "b": [None, 3]})  # type: ignore[list-item]
    imported = check(model, feeds)
    assert str(imported.graph.outputs[0].type) == "f32[d0 + d1, 3]"


def test_export_reads_sizes_from_any_form_of_a_symbol() -> None:
    """The batch is carried by no axis alone, only doubled."""
    from opcel_compiler.ir.dims import symbol
    from opcel_compiler.ir.graph import Graph
    from opcel_compiler.ir.types import tensor

    n = symbol("n", lo=1)
    graph = Graph()
    x = graph.add_input("x", tensor("f32", 2 * n + 1, 3))
    total = graph.add("dims", (), {"values": (n, n // 2, 7 % n, n * n)}).result
    graph.add_output(x, "same")
    graph.add_output(total, "sizes")
    for size in (1, 3, 8):
        (_, sizes) = reference(export_model(graph), {"x": floats(2 * size + 1, 3)})
        assert sizes.tolist() == [size, size // 2, 7 % size, size * size]


def test_symbolic_auto_pad() -> None:
    nodes = [node("Conv", "x w", "c", auto_pad="SAME_UPPER", strides=[2, 2]),
             node("MaxPool", "c", "y", auto_pad="SAME_LOWER", strides=[2, 2], kernel_shape=[3, 3])]  # fmt: skip
    for size in (5, 6, 9):
        feeds = {"x": floats(1, 2, size, size + 1)}
        model = model_of(nodes, feeds, 11, {"w": floats(3, 2, 3, 3, seed=1)}, symbolic={"x": [1, 2, "h", "w_"]})
        imported = import_model(model)
        assert not imported.foreign
        same(interpret(imported, feeds), reference(model, feeds), 1e-4, 1e-5)


def test_what_a_branch_reads_of_an_outer_value_has_no_symbol_after_it() -> None:
    feeds = {"x": floats(1, 1), "s": np.array([3, 2]), "c": np.array(True)}

    def branch(name: str, op: str) -> onnx.GraphProto:
        nodes = [node("Expand", "x s", f"{name}x"), node(op, f"{name}x", f"{name}y")]
        nodes.append(node("ReduceSum", f"{name}y", name, keepdims=0))
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(name, 1, [])])

    chosen = helper.make_node("If", ["c"], ["sum"], then_branch=branch("t", "Exp"), else_branch=branch("e", "Neg"))
    nodes = [chosen, node("Expand", "x s", "after"), node("Add", "after sum", "y")]
    imported = check(model_of(nodes, feeds, 13), feeds)
    reads = [n for n in imported.graph.walk() if n.op == "read_dims"]
    assert len(reads) == 3 and len({s for n in reads for s in n.attrs["symbols"]}) == 6
