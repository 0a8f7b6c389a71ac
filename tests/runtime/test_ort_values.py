"""Arrays of element types that ONNX Runtime's Python interface takes no arrays of."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from opcel_compiler.runtime.ort_values import pack, run_session, unpack

WIDE = [1.5, -2.0, 0.0, 448.0, 3.0]
FLOATS = {
    "bfloat16": TensorProto.BFLOAT16, "float8_e4m3fn": TensorProto.FLOAT8E4M3FN, "float8_e5m2": TensorProto.FLOAT8E5M2,
}  # fmt: skip
INTEGERS = {
    "int4": (TensorProto.INT4, [-8, 7, -1, 0, 3]), "uint4": (TensorProto.UINT4, [0, 15, 8, 1, 7]),
}  # fmt: skip


def session(source: int, target: int, count: int) -> ort.InferenceSession:
    x, y = (helper.make_tensor_value_info(n, t, [count]) for n, t in (("x", source), ("y", target)))
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=target)], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", FLOATS)
def test_small_floats_go_in_and_out(name: str) -> None:
    wide = np.array(WIDE, np.float32)
    narrow = wide.astype(getattr(ml_dtypes, name))
    (got,) = run_session(session(TensorProto.FLOAT, FLOATS[name], 5), ["y"], {"x": wide})
    assert got.dtype == narrow.dtype and np.array_equal(got.astype(np.float32), narrow.astype(np.float32))
    (back,) = run_session(session(FLOATS[name], TensorProto.FLOAT, 5), ["y"], {"x": narrow})
    assert np.array_equal(back, narrow.astype(np.float32))


@pytest.mark.parametrize("name", INTEGERS)
def test_packed_integers_go_in_and_out(name: str) -> None:
    code, values = INTEGERS[name]
    wide = np.array(values, np.float32)
    narrow = np.array(values).astype(getattr(ml_dtypes, name))
    (got,) = run_session(session(TensorProto.FLOAT, code, 5), ["y"], {"x": wide})
    assert got.dtype == narrow.dtype and got.astype(int).tolist() == values
    (back,) = run_session(session(code, TensorProto.FLOAT, 5), ["y"], {"x": narrow})
    assert back.tolist() == values


@pytest.mark.parametrize(("bits", "count"), [(4, 5), (2, 7), (4, 0)])
def test_the_first_lies_lowest(bits: int, count: int) -> None:
    values = np.arange(count, dtype=np.uint8) % (1 << bits)
    packed = pack(values, bits)
    assert packed.size == -(-count * bits // 8)
    assert not count or packed[0] & ((1 << bits) - 1) == values[0]
    assert unpack(packed, bits, count).tolist() == values.tolist()
