"""If, Loop and Scan: as regions where data decides, inlined or unrolled where nothing does; and their way back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from onnx_harness import check, floats

from opcel_compiler.frontend.importer import Imported, import_model
from opcel_compiler.ir.interpret import InterpretError, run

X = floats(3, 4)


def model(text: str, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    out: onnx.ModelProto = parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}]>\n{text}')
    out.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in constants.items())
    onnx.checker.check_model(out)
    return out


def ops(imported: Imported) -> list[str]:
    return [n.op for n in imported.graph.walk()]


IF = """m (float[3,4] x, bool[{n}] c) => (float[3,4] y) {{
  y = If (c) < then_branch = t () => (float[3,4] a) {{ a = Add(x, w) }},
               else_branch = e () => (float[3,4] b) {{ b = Identity(x) }} >
}}"""


@pytest.mark.parametrize("holds", [True, False])
def test_an_if_has_a_region_for_each_branch(holds: bool) -> None:
    imported = check(model(IF.format(n=1), w=X[0]), {"x": X, "c": np.array([holds])})
    assert ops(imported).count("if_") == 1


def test_a_branch_that_is_known_is_inlined() -> None:
    text = IF.format(n=1).replace(", bool[1] c", "")
    imported = check(model(text, w=X[0], c=np.array([True])), {"x": X})
    assert ops(imported) == ["constant", "add"]


def test_a_condition_on_symbolic_sizes_stays() -> None:
    text = """m (float[n] x) => (float[1] y) {
      s = Shape(x) k = Squeeze(s) two = Constant<value_int=2>() c = Less(k, two)
      y = If (c) < then_branch = t () => (float[1] a) { a = ReduceSum(x) },
                   else_branch = e () => (float[1] b) { b = ReduceMax(x) } > }"""
    assert ops(check(model(text), {"x": floats(1)})).count("if_") == 1
    assert ops(check(model(text), {"x": floats(3)})).count("if_") == 1


def test_branches_of_different_ranks_stay_opaque() -> None:
    text = """m (float[3,4] x, bool c) => (float[k] y) {
      y = If (c) < then_branch = t () => (float[3,4] a) { a = Identity(x) },
                   else_branch = e () => (float[3] b) { b = ReduceSum<keepdims=0>(x, one) } > }"""
    imported = import_model(model(text, one=np.int64([1])))
    (node,) = imported.foreign
    assert "one branch gives f32[3, 4], the other f32[3]" in node.attrs["reason"]


WHILE = """m (float[4] x, {inputs}) => (float[4] y) {{
  y = Loop ({m}, {c}, x) < body = b (int64 i, bool going, float[4] a) => (bool on, float[4] o) {{
    f = Cast<to=1>(i) g = Add(a, f) o = Mul(g, two) s = ReduceMax<keepdims=0>(o) on = Less(s, limit) }} >
}}"""


@pytest.mark.parametrize("start", [True, False])
def test_a_loop_tests_its_condition_before_each_iteration(start: bool) -> None:
    text = WHILE.format(inputs="bool c", m="m", c="c")
    m = model(text, two=np.float32(2), limit=np.float32(40), m=np.int64(10))
    assert ops(check(m, {"x": floats(4), "c": np.array(start)})).count("loop") == 1


def test_a_loop_without_a_limit() -> None:
    text = WHILE.format(inputs="bool c", m="", c="c")
    check(model(text, two=np.float32(2), limit=np.float32(40)), {"x": floats(4, low=1), "c": np.array(True)})


COUNTED = """m (float[{n},4] x, float[4] init) => (float[4] y, float[{n},4] rows) {{
  s = Shape(x) zero = Constant<value_ints=[0]>() m = Gather(s, zero)
  y, rows = Loop (m, , init) < body = b (int64 i, bool going, float[4] a) => (bool on, float[4] o, float[4] row) {{
    on = Identity(going) part = Gather(x, i) o = Add(a, part) row = Mul(o, w) }} >
}}"""


@pytest.mark.parametrize("n", [3, "n"])
def test_rows_of_a_counted_loop_are_stacked(n: int | str) -> None:
    imported = check(model(COUNTED.format(n=n), w=floats(4, seed=3)), {"x": X, "init": floats(4, seed=1)})
    (loop,) = [node for node in imported.graph.walk() if node.op == "loop"]
    assert not loop.attrs["conditional"]
    inside = [node.op for node in loop.regions[0].nodes]
    assert "gather" not in inside and "slice" in inside  # the number of the iteration is a symbol


def test_a_carried_value_that_grows_is_unrolled() -> None:
    text = """m (float[2] x) => (float[8] y) {
      y = Loop (three, , x) < body = b (int64 i, bool going, float[n] a) => (bool on, float[k] o) {
        on = Identity(going) o = Concat<axis=0>(a, x) } > }"""
    imported = check(model(text, three=np.int64(3)), {"x": floats(2)})
    assert "loop" not in ops(imported) and "concat" in ops(imported)


def test_a_carried_value_that_grows_by_a_count_from_data_stays_opaque() -> None:
    text = """m (float[2] x, int64 m) => (float[k] y) {
      y = Loop (m, , x) < body = b (int64 i, bool going, float[n] a) => (bool on, float[k] o) {
        on = Identity(going) o = Concat<axis=0>(a, x) } > }"""
    (node,) = import_model(model(text)).foreign
    assert node.attrs["op_type"] == "Loop"


SCAN = """m (float[2] init, float[{shape}] x) => (float[2] y, float[k,2] z) {{
  y, z = Scan <num_scan_inputs=1{axes}, body = b (float[2] a, float[2] e) => (float[2] o, float[2] row) {{
    o = Add(a, e) row = Mul(o, e) }}> (init, x)
}}"""


@pytest.mark.parametrize("axis, back, out_axis, out_back", [(0, 0, 0, 0), (1, 1, 0, 1), (1, 0, 1, 0), (0, 1, -1, 1)])
def test_scans_in_every_direction(axis: int, back: int, out_axis: int, out_back: int) -> None:
    axes = f", scan_input_axes=[{axis}], scan_input_directions=[{back}], scan_output_axes=[{out_axis}], "
    axes += f"scan_output_directions=[{out_back}]"
    shape = (2, 5) if axis else (5, 2)
    text = SCAN.format(shape=",".join(map(str, shape)), axes=axes).replace("k,2", "5,2" if out_axis == 0 else "2,5")
    assert ops(check(model(text), {"init": floats(2), "x": floats(*shape, seed=2)})).count("loop") == 1


def test_a_nested_loop_sees_the_values_of_all_graphs_around_it() -> None:
    text = """m (float[3] x, bool c) => (float[3] y) {
      y = If (c) < then_branch = t () => (float[3] r) {
          d = Mul(x, two)
          r = Loop (m, , x) < body = b (int64 i, bool g, float[3] a) => (bool on, float[3] o) {
              on = Identity(g)
              p = Loop (m, , a) < body = b2 (int64 j, bool h, float[3] q) => (bool on2, float[3] q2) {
                  on2 = Identity(h) ij = Add(i, j) f = Cast<to=1>(ij) q1 = Add(q, f) q2 = Add(q1, d) } >
              o = Add(p, x) } > },
        else_branch = e () => (float[3] s) { s = Neg(x) } > }"""
    m = model(text, two=np.float32(2), m=np.int64(2))
    check(m, {"x": floats(3), "c": np.array(True)})
    assert ops(check(m, {"x": floats(3), "c": np.array(False)})).count("loop") == 2


# -- sequences ---------------------------------------------------------------------------------------------------------


def test_sequences_of_known_length_leave_nothing() -> None:
    text = """m (float[5,4] x, float[2,4] w) => (float[k,4] y, float[1,4] z, int64 n, float[2,3,4] v) {
      s = SplitToSequence<axis=0>(x, two) first = SequenceAt(s, zero) s1 = SequenceInsert(s, w, one)
      s2 = SequenceErase(s1, zero) y = ConcatFromSequence<axis=0>(s2) z = SequenceAt(s2, last) n = SequenceLength(s2)
      e = SequenceEmpty() t = SequenceConstruct(first, w) t1 = SequenceInsert(t, first) r = Identity(t1)
      v = ConcatFromSequence<axis=1, new_axis=1>(r) }"""
    m = model(text, two=np.int64(2), zero=np.int64(0), one=np.int64(1), last=np.int64(-1))
    assert "sequence" not in ops(check(m, {"x": floats(5, 4), "w": floats(2, 4, seed=1)}))


APPENDS = """m (float[{n},4] x, float[4] init) => (float[k] y, float[4] end{more}) {{
  s = Shape(x) zero = Constant<value_ints=[0]>() m = Gather(s, zero) e = SequenceEmpty()
  q, end = Loop (m, , e, init) < body = b (int64 i, bool going, seq(float[4]) t, float[4] a)
      => (bool on, seq(float[4]) u, float[4] o) {{
    on = Identity(going) part = Gather(x, i) o = Add(a, part) row = Mul(o, o) u = SequenceInsert(t, row) }} >
  {use}
}}"""


@pytest.mark.parametrize(
    "use, more, shape",
    [
        ("y = ConcatFromSequence<axis=0>(q)", "", "k"),
        ("y = ConcatFromSequence<axis=-1, new_axis=1>(q)", "", "4,k"),
        ("two = Constant<value_int=2>() y = SequenceAt(q, two)", "", "4"),
        ("c = ConcatFromSequence<axis=0>(q) y = Identity(c) n = SequenceLength(q)", ", int64 n", "k"),
    ],
)
@pytest.mark.parametrize("n", [3, "n"])
def test_a_sequence_that_a_loop_appends_to_is_a_stack_of_rows(use: str, more: str, shape: str, n: int | str) -> None:
    text = APPENDS.format(n=n, use=use, more=more).replace("float[k] y", f"float[{shape}] y")
    imported = check(model(text), {"x": X, "init": floats(4, seed=1)})
    assert ops(imported).count("loop") == 1 and "sequence" not in ops(imported)


def test_a_sequence_that_grows_otherwise_is_unrolled() -> None:
    text = """m (float[3,4] x) => (float[k] y) {
      e = SequenceEmpty()
      q = Loop (three, , e) < body = b (int64 i, bool going, seq(float[k]) t) => (bool on, seq(float[k]) u) {
        on = Identity(going) part = Gather(x, i) u = SequenceInsert(t, part, front) } >
      y = ConcatFromSequence<axis=0>(q) }"""
    assert "loop" not in ops(check(model(text, three=np.int64(3), front=np.int64(0)), {"x": X}))


def test_a_sequence_map_is_its_body_for_each_element() -> None:
    text = """m (float[3,4] x, float[4] w) => (float[k] y) {
      s = SplitToSequence<axis=0, keepdims=0>(x)
      t = SequenceMap (s, w) < body = b (float[4] a, float[4] c) => (float[4] o) { o = Mul(a, c) } >
      y = ConcatFromSequence<axis=0>(t) }"""
    check(model(text), {"x": X, "w": floats(4, seed=1)})


def test_branches_that_give_sequences() -> None:
    text = """m (float[4] x, bool c) => (float[8] y) {
      s = If (c) < then_branch = t () => (seq(float[4]) a) { n = Neg(x) a = SequenceConstruct(x, n) },
                   else_branch = e () => (seq(float[4]) b) { b = SequenceConstruct(x, x) } >
      y = ConcatFromSequence<axis=0>(s) }"""
    for c in (True, False):
        assert ops(check(model(text), {"x": floats(4), "c": np.array(c)})).count("if_") == 1


def test_what_a_model_gives_as_a_sequence_stays_one() -> None:
    text = """m (float[3,4] x) => (seq(float[1,4]) y) { a = Neg(x) y = SplitToSequence<axis=0>(a) }"""
    imported = check(model(text), {"x": X})
    assert ops(imported)[-1] == "sequence"


def test_an_optional_that_holds_something_is_that() -> None:
    text = """m (float[4] x) => (float[4] y) {
      o = Optional(x) h = OptionalHasElement(o)
      y = If (h) < then_branch = t () => (float[4] a) { g = OptionalGetElement(o) a = Neg(g) },
                   else_branch = e () => (float[4] b) { b = Identity(x) } > }"""
    assert ops(check(model(text, opset=18), {"x": floats(4)})) == ["neg"]


def test_a_branch_that_breaks_a_contract_may_stand_as_long_as_it_is_not_taken() -> None:
    text = """m (float[2,3] x, bool c) => (float[2,4] y) {
      y = If (c) < then_branch = t () => (float[2,4] a) { a = MatMul(x, w) },
                   else_branch = e () => (float[2,4] b) { b = MatMul(x, v) } > }"""
    m = model(text, w=floats(3, 4), v=floats(5, 4))
    x = floats(2, 3)
    imported = import_model(m)
    assert not imported.foreign and ops(imported)[-1] == "invalid"
    np.testing.assert_allclose(run(imported.graph, {"x": x, "c": np.array(True)})["y"], x @ floats(3, 4), rtol=1e-5)
    with pytest.raises(InterpretError):
        run(imported.graph, {"x": x, "c": np.array(False)})
