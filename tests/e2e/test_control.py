"""Control flow through the C interface: images in branches and loops, nested scans, conditions from data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper, parser

from opcel_compiler import compile as opcel_compile
from opcel_compiler.runtime import CompiledModel, FeedError, RunError

TEXT = """<ir_version: 8, opset_import: ["": 17]>
m (float[1,8,12,12] x, bool flag, float[s,4,5] seq, bool keep, int64 unused)
  => (float[1,8,12,12] y, float[4] acc, float[s,4,5] sums, float[3] last, float[2,5] swapped) {
  y = If (flag) <
    then_branch = t () => (float[1,8,12,12] ty) {
      c1 = Conv <pads=[1,1,1,1]> (x, w) c2 = Relu(c1) c3 = Conv <pads=[1,1,1,1]> (c2, w) ty = Add(c3, x) },
    else_branch = e () => (float[1,8,12,12] ey) {
      d1 = Conv <pads=[1,1,1,1]> (x, w)
      ey = Loop (five, , d1) <body = b (int64 i, bool c, float[1,8,12,12] st) => (bool co, float[1,8,12,12] so) {
        co = Identity(c) k = Conv <pads=[1,1,1,1]> (st, w) k2 = Relu(k) so = Add(k2, x) }> }>
  acc, sums = Scan <num_scan_inputs=1, body = sb (float[4] a, float[4,5] r) => (float[4] ao, float[4,5] o) {
    r1 = ReduceSum<keepdims=0>(r, one) ao = Add(a, r1)
    t2, t3 = Scan <num_scan_inputs=1, scan_input_axes=[1], scan_input_directions=[1], scan_output_axes=[1],
      body = ib (float[4] p, float[4] q) => (float[4] po, float[4] qo) { po = Mul(p, q) qo = Add(po, ao) }> (ones, r)
    o = Add(t3, r) }> (zeros, seq)
  last, l2 = Loop (ten, keep, l0, l1) <body = wb (int64 i, bool c, float[3] u, float[3] v)
      => (bool co, float[3] uo, float[3] vo) {
    s = Add(u, v) m = ReduceSum<keepdims=0>(s) co = Less(m, lim) uo = Identity(v) vo = Identity(s) }>
  swapped, other = Loop (three, , q0, q1) <body = sw (int64 i, bool c, float[2,5] u, float[2,5] v)
      => (bool co, float[2,5] uo, float[2,5] vo) {
    co = Identity(c) uo = Identity(v) fi = Cast<to=1>(i) vo = Add(u, fi) }>
}"""


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    out: onnx.ModelProto = parser.parse_model(TEXT)
    del out.graph.input[4]
    rng = np.random.default_rng(0)
    constants = {
        "w": (rng.standard_normal((8, 8, 3, 3)) / 9).astype(np.float32), "five": np.int64(5), "one": np.int64([1]),
        "zeros": np.zeros(4, np.float32), "ones": np.ones(4, np.float32), "ten": np.int64(10), "three": np.int64(3),
        "l0": np.float32([1, 2, 3]), "l1": np.float32([3, 2, 1]), "lim": np.float32(50),
        "q0": np.arange(10, dtype=np.float32).reshape(2, 5), "q1": np.zeros((2, 5), np.float32),
    }  # fmt: skip
    out.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    onnx.checker.check_model(out, full_check=True)
    return out


def test_branches_and_loops_agree_with_onnx_runtime(model: onnx.ModelProto, tmp_path: Path) -> None:
    session = ort.InferenceSession(model.SerializeToString())
    with opcel_compile(model, output=tmp_path / "m", fallback="error", proof=False) as compiled:
        for seed, (flag, keep) in enumerate([(True, True), (True, False), (False, True)]):
            rng = np.random.default_rng(seed)
            feeds = {
                "x": rng.standard_normal((1, 8, 12, 12)).astype(np.float32), "flag": np.array(flag),
                "seq": rng.standard_normal((seed + 1, 4, 5)).astype(np.float32), "keep": np.array(keep),
            }  # fmt: skip
            got = compiled.run(feeds)
            for out, want in zip(session.get_outputs(), session.run(None, feeds), strict=True):
                np.testing.assert_allclose(got[out.name], want, rtol=1e-4, atol=1e-4, err_msg=out.name)
        report = json.loads((tmp_path / "m" / "report.json").read_text())
        assert len(compiled.profile(feeds, 2)) == len(report["kernels"])  # marks of blocks are no steps


LATE = """<ir_version: 8, opset_import: ["": 17]>
m (float[n,3] x, int64 times, bool flag)
  => (float[3] sum, float[k1,3] rows, float[3] end, float[k2,3] until, float[k3,3] either, float[k4,3] seen) {
  sum, rows = Loop (times, , zeros) <body = a (int64 i, bool c, float[3] s) => (bool co, float[3] so, float[3] row) {
    co = Identity(c) f = Cast<to=1>(i) so = Add(s, f) row = Mul(so, two) }>
  end, until = Loop (many, yes, ones) <body = b (int64 i, bool c, float[3] s) => (bool co, float[3] so, float[3] row) {
    so = Mul(s, two) row = Identity(s) m = ReduceMax<keepdims=0>(so) co = Less(m, limit) }>
  either = If (flag) <
    then_branch = t () => (float[p,3] ty) { d = Concat<axis=0>(x, x) ty = Neg(d) },
    else_branch = e () => (float[q,3] ey) { ey = Slice(x, two_i, high, zero_i) }>
  last, seen = Loop (three, , one_row) <body = g (int64 i, bool c, float[1,3] s)
      => (bool co, float[1,3] so, float[3] v) {
    co = Identity(c) one = Constant<value_int=1>() j = Add(i, one) from = Unsqueeze(i, zero_i) to = Unsqueeze(j, zero_i)
    part = Slice(x, from, to, zero_i) so = Add(s, part) v = Squeeze(so, zero_i) }>
}"""


@pytest.fixture(scope="module")
def late(tmp_path_factory: pytest.TempPathFactory) -> tuple[ort.InferenceSession, CompiledModel]:
    model: onnx.ModelProto = parser.parse_model(LATE)
    constants = {
        "zeros": np.zeros(3, np.float32), "ones": np.float32([1, 2, 1]), "two": np.float32(2), "many": np.int64(20),
        "yes": np.array(True), "limit": np.float32(100), "two_i": np.int64([2]), "high": np.int64([1 << 40]),
        "zero_i": np.int64([0]), "three": np.int64(3), "one_row": np.zeros((1, 3), np.float32),
    }  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items())
    folder = tmp_path_factory.mktemp("late") / "m"
    compiled = opcel_compile(model, output=folder, fallback="error", proof=False)
    return ort.InferenceSession(model.SerializeToString()), compiled


@pytest.mark.parametrize("n, times, flag", [(5, 4, True), (3, 0, False), (7, 1, False), (4, 9, True)])
def test_sizes_that_control_flow_makes(
    late: tuple[ort.InferenceSession, CompiledModel], n: int, times: int, flag: bool
) -> None:
    x = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
    feeds = {"x": x, "times": np.array(times), "flag": np.array(flag)}
    session, compiled = late
    got = compiled.run(feeds)
    for out, want in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert got[out.name].shape == want.shape
        np.testing.assert_allclose(got[out.name], want, rtol=1e-5, atol=1e-5, err_msg=out.name)


def test_a_size_that_must_stay_the_same_is_checked_in_every_iteration(
    late: tuple[ort.InferenceSession, CompiledModel],
) -> None:
    feeds = {"x": np.ones((2, 3), np.float32), "times": np.array(1), "flag": np.array(True)}
    with pytest.raises((FeedError, RunError), match="Loop_2"):  # the third slice of two rows is empty
        late[1].run(feeds)


def test_a_branch_that_breaks_a_contract_fails_when_it_is_taken(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]>
    m (float[2,3] x, bool c) => (float[2,4] y) {
      y = If (c) < then_branch = t () => (float[2,4] a) { a = MatMul(x, w) },
                   else_branch = e () => (float[2,4] b) { b = MatMul(x, v) } > }"""
    model: onnx.ModelProto = parser.parse_model(text)
    for name, rows in (("w", 3), ("v", 5)):
        model.graph.initializer.append(numpy_helper.from_array(np.ones((rows, 4), np.float32), name))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    with opcel_compile(model, output=tmp_path / "m", fallback="error", proof=False) as compiled:
        np.testing.assert_array_equal(compiled.run({"x": x, "c": np.array(True)})["y"], x @ np.ones((3, 4)))
        with pytest.raises(RunError, match="MatMul_0"):
            compiled.run({"x": x, "c": np.array(False)})
