"""Why a quantized layer is computed in floats, in the report and in `opcel check`, by the user's node names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from opcel_compiler.check import check

RNG = np.random.default_rng(0)
TYPES = {"u8": np.uint8, "i8": np.int8, "i16": np.int16, "u16": np.uint16}


def model(x: str = "u8", w: str | None = "i8", wzero: int = 0, op: str = "MatMul", constant: bool = True) -> Any:
    """x quantized and dequantized, times weights dequantized from `w` (None: floats), by the node "layer"."""
    zeros = {"s": np.float32(0.05), "z": np.array(3, TYPES[x]), "ws": np.float32(0.02)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
    ]
    shape = (24, 6) if op == "MatMul" else (24, 6, 2, 2)
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 24] if op == "MatMul" else [1, 24, 5, 5])]
    if w is None:
        zeros["wd"] = RNG.standard_normal(shape).astype(np.float32)
    else:
        if constant:
            zeros["w"] = RNG.integers(0, 100, shape).astype(TYPES[w])
        else:
            inputs.append(
                helper.make_tensor_value_info("w", helper.np_dtype_to_tensor_dtype(np.dtype(TYPES[w])), shape)
            )
        zeros["wz"] = np.array(wzero, TYPES[w])
        nodes.append(helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"]))
    nodes.append(helper.make_node(op, ["xd", "wd"], ["y"], name="layer"))
    held = [numpy_helper.from_array(np.asarray(a), n) for n, a in zeros.items()]
    out = [helper.make_empty_tensor_value_info("y")]
    graph = helper.make_graph(nodes, "g", inputs, out, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize(
    "case, reason",
    [
        ({}, None),
        ({"x": "i8"}, None),
        ({"w": "u8", "wzero": 128}, None),
        ({"x": "i16"}, "operands of i16 are multiplied as floats"),
        ({"x": "u16", "w": "i16"}, "operands of u16 and i16 are multiplied as floats"),
        ({"w": None}, "its weights are not quantized"),
        ({"w": "u8", "wzero": 5}, None),
        ({"w": "i8", "wzero": 5}, None),
        ({"w": "i8", "constant": False}, "its second operand is not constant"),
        ({"op": "ConvTranspose"}, None),
    ],
)
def test_reasons(case: dict[str, Any], reason: str | None) -> None:
    found = check(model(**case), "x86-64-avx2").quantized
    assert found["layers"] == 1
    if reason is None:
        assert found["in_floats"] == []
    else:
        (entry,) = found["in_floats"]
        assert entry["origin"] == ["layer"] and reason in entry["reason"]


@pytest.mark.parametrize("wide, layers", [(False, 1), (True, 0)])
def test_sums_of_integers_are_quantized_layers(wide: bool, layers: int) -> None:
    """MatMulInteger is one, a MatMul of integers of 32 bits is none."""
    b = RNG.integers(-9, 9, (24, 70)).astype(np.int32 if wide else np.int8)
    node = helper.make_node("MatMul" if wide else "MatMulInteger", ["x", "b"], ["y"], name="layer")
    kind = TensorProto.INT32 if wide else TensorProto.UINT8
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", kind, [4, 24])], [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(b, "b")],
    )  # fmt: skip
    found = check(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "x86-64-avx2")
    assert found.quantized.get("layers", 0) == layers


def test_a_float_model_has_none() -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])], [helper.make_empty_tensor_value_info("y")],
    )  # fmt: skip
    found = check(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "x86-64-avx2")
    assert found.quantized == {} and "quantization" not in found.as_dict()
