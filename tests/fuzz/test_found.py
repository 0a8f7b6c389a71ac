"""Inputs that fuzzing found, each refused with the error that it deserves."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from resource import RUSAGE_SELF, getrusage

import numpy as np
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.program import Buffer, View
from opcel_compiler.ir.program_text import parse_program
from opcel_compiler.ir.program_verify import ProgramVerifyError, _elements, _span, verify_program
from opcel_compiler.ir.scan import ParseError
from opcel_compiler.ir.text import print_graph
from opcel_compiler.ir.types import F32, TensorType

PROGRAM = """program g(@x) -> (@y) {
  input @x: f32[2]
  output @y: f32[2]
  kernel own {
    reads @x
    writes @y
    anchor ANCHOR
    body(%x: f32[2]) {
      %y = neg(%x) : f32[2]
      return %y
    }
  }
}
"""


def constant(text: str) -> str:
    return f"graph g() {{\n  %c = {text}\n  return %c\n}}\n"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (constant("f32[2] " + "[" * 2000), "line 2.*nested too deeply"),
        (constant("f32[8, 99999999999999999999] 0.5"), "line 2.*larger than the 256 MiB"),
        (constant("f32[99999, 99999] 0.5"), "line 2.*larger than the 256 MiB"),
        (constant("i64[1] " + "1" * 5000), "line 2.*no number"),
        ("graph g(%x: f32[2]) {\n  %y = cumulate(%x){axis=0x1}\n  return %y\n}\n", "line 2.*0x1 is no number"),
        ("graph g(%x: f32[2]) {\n  %y = concat(%x){axis=[0x1]}\n  return %y\n}\n", "line 2"),
        (PROGRAM.replace("ANCHOR", "-1"), "has no node -1"),
        (PROGRAM.replace("ANCHOR", "1"), "has no node 1"),
    ],
    ids=range(8),
)  # fmt: skip
def test_texts(source: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_program(source) if source.startswith("program") else parse_graph(source)


def test_a_stride_past_64_bits_of_an_axis_without_elements() -> None:
    source = PROGRAM.replace("    anchor ANCHOR\n", "").replace("reads @x", f"reads @x[0]:[{1 << 70}]:[0]")
    with pytest.raises(ProgramVerifyError, match=r"invariant 7: .*apart"):
        verify_program(parse_program(source))


def test_a_long_view_is_verified_without_its_elements() -> None:
    source = PROGRAM.replace("    anchor ANCHOR\n", "").replace("output @y: f32[2]", "output @y: f32[200000000]")
    tracemalloc.start()
    with pytest.raises(ProgramVerifyError, match="invariant 9"):
        verify_program(parse_program(source))
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()


def test_the_span_of_a_view_is_that_of_its_elements() -> None:
    rng = random.Random(1)
    for _ in range(500):
        layout = Layout(block=rng.choice((1, 1, 4, 8)), block_axis=rng.randrange(2))
        buffer = Buffer("x", TensorType(F32, (64, 64)), "temp", layout)
        shape, strides = ((rng.randrange(low, high), rng.randrange(low, high)) for low, high in ((1, 20), (-30, 30)))
        view = View(buffer, shape, strides, rng.randrange(50))
        elements = _elements(view)
        assert _span(view) == (elements.min(), elements.max())


def test_no_elements_in_many_rows() -> None:
    graph = parse_graph(constant("bool[111111111111111119, 0] [[true]]"))
    text = print_graph(graph)
    assert "bool[111111111111111119, 0] []" in text
    assert print_graph(parse_graph(text)) == text


def test_a_view_of_fewer_elements_than_none() -> None:
    source = PROGRAM.replace("    anchor ANCHOR\n", "").replace("reads @x", "reads @x[-2]:[1]:[0]")
    with pytest.raises(ProgramVerifyError, match=r"invariant 6: .*shape"):
        verify_program(parse_program(source))


def test_one_element_stands_for_all_bit_by_bit() -> None:
    array = parse_graph(constant("f32[3, 2] 0x7fa00001")).nodes.__iter__().__next__().attrs["value"].array
    assert array.shape == (3, 2)
    assert (array.view(np.uint32) == 0x7FA00001).all()


def model(op: str, shape: list[int]) -> ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "g", [x], [y])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


def test_a_version_that_no_domain_has() -> None:
    for domain, version in (("own", 0), ("own", 1 << 40), ("", -3)):
        found = model("Sign", [2])
        found.opset_import.add(domain=domain, version=version)
        if not domain:
            del found.opset_import[0]
        with pytest.raises(ModelError, match=f"version {version}|opset {version}"):
            import_model(found.SerializeToString())
    found = model("Sign", [2])
    found.ir_version = 1 << 40
    with pytest.raises(ModelError, match="IR version"):
        import_model(found.SerializeToString())


def test_sizes_past_64_bits_end_at_their_node() -> None:
    """Also where a later node, or a dimension of 0, hides them."""
    big = (1 << 62) + 1
    for shape in ([big, 8], [0, 8]):
        found = model("Tile", shape)
        found.graph.node[0].input.append("r")
        found.graph.initializer.append(helper.make_tensor("r", TensorProto.INT64, [2], [1, 1 << 62]))
        with pytest.raises(ModelError, match="elements, and a tensor may take"):
            import_model(found.SerializeToString())


def test_doubling_a_shape_many_times_takes_no_memory() -> None:
    """What ONNX's own inference would write out, for the type of the operator without a lowering."""
    found = model("Shape", [2])
    for i in range(24):
        found.graph.node.add(op_type="Concat", input=[f"y{i - 1}" if i else "y"] * 2, output=[f"y{i}"]).attribute.add(
            name="axis", type=AttributeProto.INT, i=0
        )
    found.graph.node.add(op_type="Own", domain="own", input=["y23"], output=["z"])
    found.opset_import.add(domain="own", version=1)
    found.graph.output[0].CopyFrom(helper.make_empty_tensor_value_info("z"))
    before = getrusage(RUSAGE_SELF).ru_maxrss
    (node,) = import_model(found.SerializeToString()).foreign
    assert node.attrs["op_type"] == "Own"
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 1 << 18


def test_a_tensor_that_is_too_large_ends_a_lowering_that_made_other_nodes() -> None:
    """The lowering is undone before the error is given."""
    with pytest.raises(ModelError, match="elements, and a tensor may take"):
        import_model(model("Gelu", [5, 33, (1 << 63) - 1]).SerializeToString())


@pytest.mark.parametrize("before", [[], ["Dropout"]])
def test_attributes_that_the_inference_of_onnx_does_not_survive(before: list[str]) -> None:
    """In a process of its own a broken check would show as a signal. The inference runs for the node itself, and for
    another one, of which nothing is known without that of the whole model."""
    found = model("GatherND", [2, 3, 4])
    found.graph.node[0].input.append("s")
    found.graph.node[0].attribute.add(name="batch_dims", type=AttributeProto.INT, i=-128)
    found.graph.initializer.append(helper.make_tensor("s", TensorProto.INT64, [2, 2], [0] * 4))
    for op in before:
        found.graph.node.insert(0, helper.make_node(op, ["x", "s", "s"], ["z"]))
    code = "import sys; from opcel_compiler.frontend import importer; importer.import_model(sys.stdin.buffer.read())"
    done = subprocess.run([sys.executable, "-c", code], input=found.SerializeToString(), capture_output=True)
    assert done.returncode == 1
    assert b"ModelError: node 'y' (GatherND): batch_dims=-128 must not be negative" in done.stderr


def test_as_many_factors_as_no_tensor_has_axes() -> None:
    found = model("Resize", [2, 2])
    found.graph.node[0].input.extend(["", "s"])
    found.graph.input.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [1 << 32]))
    with pytest.raises(ModelError, match="4294967296 factors"):
        import_model(found.SerializeToString())
