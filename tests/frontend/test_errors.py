"""What a user reads when a model cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_harness import floats, model_of, one_node

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import MAX_OPSET, ModelError

X = {"x": floats(2, 3)}


def node(op: str, inputs: str, outputs: str, name: str = "", domain: str = "", **attrs: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, domain=domain, **attrs)


def graph_of(
    *nodes: onnx.NodeProto, opset: int = 13, output: str = "y", domains: tuple[str, ...] = ()
) -> onnx.ModelProto:
    """An unchecked model with the input x: f32[2, 3]."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(helper.make_graph(list(nodes), "g", [x], [y]), opset_imports=imports, ir_version=8)


def refused(model: Any, *parts: str) -> None:
    with pytest.raises(ModelError) as e:
        import_model(model)
    for part in parts:
        assert part in str(e.value)


def test_file_that_is_missing_empty_or_a_folder(tmp_path: Path) -> None:
    refused(tmp_path / "no.onnx", "no.onnx does not exist")
    (tmp_path / "empty.onnx").write_bytes(b"")
    refused(tmp_path / "empty.onnx", "empty.onnx is empty")
    refused(tmp_path, "is a folder")


@pytest.mark.parametrize(
    "content", [b"hello world, this is text", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04" + b"a" * 50]
)
def test_file_that_is_not_onnx(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    refused(path, "m.onnx is no ONNX model")


def test_git_lfs_pointer(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    refused(path, "git lfs pull")


@pytest.mark.parametrize("cut", [1, 7, 4000, 7900])
def test_truncated_file(tmp_path: Path, cut: int) -> None:
    data = model_of([node("Add", "x w", "y")], X, 13, {"w": floats(1000, 1, 3)}).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(data[:-cut])
    refused(path, "is truncated")


def test_opsets() -> None:
    refused(graph_of(node("Neg", "x", "y"), opset=MAX_OPSET + 1), f"opset {MAX_OPSET + 1}", f"up to {MAX_OPSET}")
    refused(graph_of(node("Neg", "x", "y"), opset=0), f"opsets 1 to {MAX_OPSET} are supported")
    model = graph_of(node("Neg", "x", "y"))
    del model.opset_import[:]
    refused(model, "imports no opset of domain 'ai.onnx'")
    refused(
        graph_of(node("Own", "x", "y", "n", domain="my.domain")), "'n' (Own)", "imports no opset of domain 'my.domain'"
    )


def test_operator_that_does_not_exist() -> None:
    refused(graph_of(node("Frobnicate", "x", "y", "n")), "node 'n'", "no operator 'Frobnicate' in ONNX opset 13")
    refused(graph_of(node("Gelu", "x", "y", "n")), "'n' (Gelu)", "opset 13 has no operator")
    refused(graph_of(node("", "x", "y", "n")), "'n' names no operator")


def test_graphs_that_hang_together_badly() -> None:
    refused(graph_of(node("Add", "x nowhere", "y", "n")), "'nowhere'", "node 'n' (Add)", "made by no node")
    refused(graph_of(node("Neg", "x", "a"), output="b"), "'b'", "the graph's outputs")
    refused(graph_of(node("Neg", "x", "y"), node("Abs", "x", "y", "second")), "'y' is defined twice", "'second'")
    refused(graph_of(node("Neg", "x", "x", "n")), "'x' is defined twice", "'n'")
    loop = [node("Add", "x b", "a", "first"), node("Neg", "a", "b", "second"), node("Abs", "a", "y")]
    refused(graph_of(*loop), "cycle", "'first'", "'b'")
    refused(graph_of(node("Add", "x y", "y", "n")), "cycle", "'n'")


def test_nodes_in_any_order_are_sorted() -> None:
    imported = import_model(graph_of(node("Neg", "a", "y"), node("Abs", "x", "a")))
    assert [n.op for n in imported.graph.nodes] == ["abs", "neg"]


def test_long_chains_need_no_recursion() -> None:
    nodes = [node("Neg", f"t{i}" if i else "x", f"t{i + 1}") for i in range(3000)]
    imported = import_model(graph_of(*reversed(nodes), output="t3000"))
    assert len(imported.graph) == 3000


def test_initializers() -> None:
    model = graph_of(node("Add", "x w", "y"))
    w = numpy_helper.from_array(floats(2, 3), "w")
    model.graph.initializer.extend([w, w])
    refused(model, "initializer 'w' is defined twice")
    for change, part in [
        (lambda t: t.dims.append(9), "needs 216 bytes for f32[2, 3, 9], and 24 are there"),
        (lambda t: t.dims.append(-1), "impossible shape"),
        (lambda t: t.dims.extend([1 << 31] * 3), "impossible shape"),
        (lambda t: setattr(t, "data_type", 99), "element type 99"),
        (lambda t: t.ClearField("raw_data"), "needs 6 numbers"),
    ]:
        broken = graph_of(node("Add", "x w", "y"))
        broken.graph.initializer.append(w)
        change(broken.graph.initializer[0])
        refused(broken, "initializer 'w'", part)


WRONG: list[tuple[str, Callable[[], onnx.ModelProto], tuple[str, ...]]] = [
    ("attribute of another type", lambda: graph_of(node("Concat", "x x", "y", "n", axis=1.5)), ("'axis' is FLOAT",)),
    ("attribute that is missing", lambda: graph_of(node("Concat", "x x", "y", "n")), ("lacks its attribute 'axis'",)),
    ("axis out of range", lambda: graph_of(node("Softmax", "x", "y", "n", axis=2)), ("axis 2 is out of range",)),
    ("operand that is missing", lambda: graph_of(node("Add", "x", "y", "n")), ("has no input 1",)),
    ("operands of two types", lambda: _typed("Add", np.int64), ("must be of one type", "float", "int64")),
    ("type that is not taken", lambda: graph_of(node("Not", "x", "y", "n")), ("does not take tensor(float)",)),
    ("sizes that differ", lambda: graph_of(node("MatMul", "x x", "y", "n")), ("ncompatible dimensions",)),
    ("too many outputs", lambda: graph_of(node("Neg", "x", "y z", "n"), output="z"), ("too many outputs: 'z'",)),
    ("transpose", lambda: graph_of(node("Transpose", "x", "y", "n", perm=[0, 0])), ("no permutation of 2 axes",)),
    ("auto_pad", lambda: _conv(auto_pad="SAME"), ("auto_pad 'SAME' is unknown",)),
    ("strides", lambda: _conv(strides=[1]), ("strides [1] needs 2 positive entries",)),
    ("kernel", lambda: _conv(kernel_shape=[2, 2]), ("is not the weights' [3, 3]",)),
    ("reshape", lambda: _shaped("Reshape", [4, -1]), ("cannot take the shape [4, -1]",)),
    ("two open sizes", lambda: _shaped("Reshape", [-1, -1]), ("is no target shape",)),
    ("negative size", lambda: _made([-2]), ("negative size",)),
    ("squeeze", lambda: _shaped("Squeeze", [1]), ("axis 1 of %x has size 3, not 1",)),
    ("pads", lambda: _shaped("Pad", [1, 1]), ("2 pads for rank 2",)),
    ("repeats", lambda: _shaped("Tile", [1]), ("1 repeats for rank 2",)),
]


def _typed(op: str, dtype: type) -> onnx.ModelProto:
    model = graph_of(node(op, "x w", "y", "n"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((2, 3), dtype), "w"))
    return model


def _shaped(op: str, values: list[int]) -> onnx.ModelProto:
    model = graph_of(node(op, "x s", "y", "n"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(values), "s"))
    return model


def _made(values: list[int]) -> onnx.ModelProto:
    model = graph_of(node("ConstantOfShape", "s", "y", "n"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(values), "s"))
    return model


def _conv(**attrs: Any) -> onnx.ModelProto:
    feeds = {"x": floats(1, 2, 5, 5)}
    model = one_node("Conv", feeds, 13, constants={"w": floats(2, 2, 3, 3)})
    model.graph.node[0].name = "n"
    model.graph.node[0].attribute.extend(helper.make_attribute(k, v) for k, v in attrs.items())
    return model


@pytest.mark.parametrize("what, build, parts", WRONG, ids=[w for w, _, _ in WRONG])
def test_node_used_wrongly(what: str, build: Callable[[], onnx.ModelProto], parts: tuple[str, ...]) -> None:
    refused(build(), "'n'", *parts)


def test_huge_constant_of_shape_takes_no_memory() -> None:
    imported = import_model(_made([1 << 20, 1 << 10, 1 << 4]))
    assert [n.op for n in imported.graph.nodes] == ["constant", "expand"]
    refused(_made([1 << 20, 1 << 20, 1 << 20]), "'n'", "has 1.2e+18 elements", "at most 1024 GiB")


def test_functions_that_call_themselves() -> None:
    f = helper.make_function(
        "own", "F", ["a"], ["b"], [node("F", "a", "b", domain="own")], [helper.make_opsetid("own", 1)]
    )
    model = graph_of(node("F", "x", "y", domain="own"), domains=("own",))
    model.functions.append(f)
    refused(model, "recursive", "F")


def test_deeply_nested_graphs() -> None:
    """Deeper than ONNX files can nest, as built in memory."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([node("Neg", "x", "y")], "g", [], [y])
    for _ in range(32):
        graph = helper.make_graph([node("If", "c", "y", then_branch=graph, else_branch=graph)], "g", [], [y])
        graph.node[0].attribute.pop()
    model = graph_of(*graph.node)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    refused(model, "nested more than")


def test_input_without_a_type() -> None:
    model = graph_of(node("Neg", "x", "y"))
    model.graph.input[0].ClearField("type")
    refused(model, "input 'x' has no type")


def test_names_that_are_not_text() -> None:
    data = graph_of(node("Neg", "x", "y", "a_name")).SerializeToString()
    refused(data.replace(b"a_name", b"a_nam\xff"), "which is not UTF-8")


def test_cycle_through_a_captured_value() -> None:
    branch = helper.make_graph(
        [node("Neg", "y", "t")], "g", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, [2, 3])]
    )
    nodes = [node("Cast", "x", "c", to=9), node("If", "c", "y", "n", then_branch=branch, else_branch=branch)]
    refused(graph_of(*nodes), "cycle", "'n'")


def test_damaged_files_give_one_error() -> None:
    """A thousand mutations: each imports or is a ModelError."""
    feeds = {"x": floats(1, 2, 5, 5)}
    nodes = [
        node("Conv", "x w", "c", auto_pad="SAME_UPPER"),
        node("Slice", "c s e", "d"),
        node("Reshape", "d r", "f"),
        node("TopK", "f k", "t i"),
        node("Softmax", "t", "y", axis=1),
    ]
    constants = {
        "w": floats(2, 2, 3, 3),
        "s": np.array([0]),
        "e": np.array([1]),
        "r": np.array([0, -1]),
        "k": np.array([3]),
    }
    data = model_of(nodes, feeds, 13, constants, symbolic={"x": ["n", 2, "h", 5]}).SerializeToString()
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(1000):
        changed = bytearray(data)
        at = int(rng.integers(len(changed)))
        if rng.random() < 0.3:
            del changed[at : at + int(rng.integers(1, 5))]
        else:
            changed[at] = int(rng.integers(256))
        try:
            import_model(bytes(changed))
        except ModelError:
            errors += 1
    assert 100 < errors < 1000
