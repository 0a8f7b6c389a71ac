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
