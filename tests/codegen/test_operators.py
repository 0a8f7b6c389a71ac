"""One operator at a time, compiled and proved: the odd shapes of each kernel family."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import opcel_compiler as oc

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@dataclass
class Case:
    """Nodes as (op, inputs, outputs, attributes); x, z are inputs, y is the output; the kernel families expected."""

    nodes: list[tuple[str, str, str, dict[str, object]]]
    families: list[str]
    inputs: dict[str, list[int | str]]
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    dtype: int = TensorProto.FLOAT

    def model(self) -> onnx.ModelProto:
        nodes = [helper.make_node(op, i.split(), o.split(), **a) for op, i, o, a in self.nodes]
        inputs = [helper.make_tensor_value_info(n, self.dtype, s) for n, s in self.inputs.items()]
        outputs = [helper.make_empty_tensor_value_info("y")]
        graph = helper.make_graph(
            nodes, "one", inputs, outputs, [numpy_helper.from_array(v, k) for k, v in self.constants.items()]
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


RELAYOUT = ["relayout", "conv.blocked", "relayout"]
CASES = {
    "conv, one filter": Case(
        [("Conv", "x w b", "y", {})], RELAYOUT, {"x": [1, 8, 5, 5]}, {"w": floats(1, 8, 3, 3), "b": floats(1)}
    ),
    "conv, one weight": Case(
        [("Conv", "x w b", "y", {})], ["conv.blocked", "relayout"], {"x": [1, 1, 5, 5]},
        {"w": floats(1, 1, 1, 1), "b": floats(1)},
    ),
    "conv 1-D with epilogue": Case(
        [("Conv", "x w b", "a", {"pads": [1, 1]}), ("Relu", "a", "y", {})], RELAYOUT, {"x": [2, 20, 30]},
        {"w": floats(33, 20, 3), "b": floats(33)},
    ),
    "conv, dynamic batch and size": Case(
        [("Conv", "x w", "a", {"pads": [1, 1, 1, 1], "strides": [2, 2]}), ("Sigmoid", "a", "y", {})], RELAYOUT,
        {"x": ["n", 20, "h", "w"]}, {"w": floats(40, 20, 3, 3)},
    ),
    "conv 3-D": Case(
        [("Conv", "x w", "a", {"pads": [1] * 6}), ("Sigmoid", "a", "y", {})], ["conv.reference", "elementwise"],
        {"x": [1, 4, 6, 7, 8]}, {"w": floats(5, 4, 3, 3, 3)},
    ),
    "conv in groups": Case(
        [("Conv", "x w", "a", {"group": 2}), ("Add", "a x", "y", {})], RELAYOUT,
        {"x": [1, 6, 9, 9]}, {"w": floats(6, 3, 1, 1)},
    ),
    "conv in small groups": Case(
        [("Conv", "x w", "y", {"group": 8, "pads": [1, 1, 1, 1]})], ["relayout", "conv.depthwise", "relayout"],
        {"x": [2, 32, 7, 7]}, {"w": floats(32, 4, 3, 3)},
    ),
    "conv in small groups with fewer filters": Case(
        [("Conv", "x w", "y", {"group": 8, "pads": [1, 1, 1, 1]})], RELAYOUT, {"x": [2, 32, 7, 7]},
        {"w": floats(16, 4, 3, 3)},
    ),
    "depthwise with a multiplier": Case(
        [("Conv", "x w", "y", {"group": 16, "pads": [1, 1, 1, 1]})], RELAYOUT, {"x": [1, 16, 7, 7]},
        {"w": floats(48, 1, 3, 3)},
    ),
    "conv in many odd groups": Case(
        [("Conv", "x w", "y", {"group": 17})], ["conv.reference"], {"x": [1, 34, 5, 5]}, {"w": floats(51, 2, 3, 3)},
    ),
    "conv in groups of whole blocks": Case(
        [("Conv", "x w", "y", {"group": 2, "pads": [1, 1, 1, 1]})], RELAYOUT, {"x": [1, 32, 7, 9]},
        {"w": floats(64, 16, 3, 3)},
    ),
    "dilated depthwise": Case(
        [("Conv", "x w", "y", {"group": 18, "pads": [2, 2, 2, 2], "dilations": [2, 2]})],
        ["relayout", "conv.depthwise", "relayout"], {"x": [2, 18, 9, 11]}, {"w": floats(18, 1, 3, 3)},
    ),
    "conv of a transposed input": Case(
        [("Transpose", "x", "t", {"perm": [0, 3, 1, 2]}), ("Conv", "t w", "y", {})], ["copy", *RELAYOUT],
        {"x": [1, 9, 9, 20]}, {"w": floats(16, 20, 3, 3)},
    ),
    "residual of another branch": Case(
        [
            ("Conv", "x w", "a", {"pads": [1, 1, 1, 1]}), ("Conv", "x v", "b", {}), ("Add", "a b", "c", {}),
            ("Relu", "c", "y", {}),
        ],
        ["relayout", "conv.blocked", "conv.blocked", "relayout"], {"x": [1, 16, 8, 8]},
        {"w": floats(24, 16, 3, 3), "v": floats(24, 16, 1, 1)},
    ),
    "transposed conv in small groups, then elementwise": Case(
        [
            ("ConvTranspose", "x w", "a", {"group": 2, "strides": [1, 2], "pads": [0, 2, 0, 2]}),
            ("PRelu", "a s", "b", {}), ("Tanh", "b", "y", {}),
        ],
        ["relayout", *["conv.depthwise", "relayout", "copy"] * 2, *["elementwise"] * 2], {"x": [1, 16, 1, 33]},
        {"w": floats(16, 8, 1, 5), "s": floats(16, 1, 1)},
    ),
    "max pool between convs": Case(
        [
            ("Conv", "x w", "a", {}), ("MaxPool", "a", "b", {"kernel_shape": [3, 3], "strides": [2, 2]}),
            ("Conv", "b v", "y", {"pads": [1, 1, 1, 1]}),
        ],
        ["relayout", "conv.blocked", "pool.blocked", "conv.blocked", "relayout"], {"x": [1, 16, 13, 13]},
        {"w": floats(16, 16, 3, 3), "v": floats(16, 16, 3, 3)},
    ),
    "average pool with padding": Case(
        [("AveragePool", "x", "y", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1})],
        ["pool.reference"], {"x": [2, 3, 7, 8]},
    ),
    "matmul of one element": Case([("MatMul", "x w", "y", {})], ["vector"], {"x": [3, 1]}, {"w": floats(1, 1)}),
    "matmul with bias, gelu and residual": Case(
        [("MatMul", "x w", "a", {}), ("Add", "a b", "c", {}), ("Tanh", "c", "d", {}), ("Add", "d x", "y", {})],
        ["gemm"], {"x": [2, 5, 40]}, {"w": floats(40, 40), "b": floats(40)},
    ),
    "matmul of two inputs": Case(
        [("MatMul", "x z", "y", {})], ["pack", "gemm"], {"x": [3, 4, 5], "z": [3, 5, 70]}
    ),
    "matmul of rows a page apart": Case(
        [("MatMul", "x w", "a", {}), ("MatMul", "a v", "y", {})], ["gemm", "gemm"], {"x": [2, 15, 8]},
        {"w": floats(8, 1024), "v": floats(1024, 5)},
    ),
    "attention and matmul of rows a page apart": Case(
        [
            ("MatMul", "x w", "a", {}), ("Reshape", "a s", "h", {}), ("Transpose", "h", "q", {"perm": [0, 2, 1, 3]}),
            ("Transpose", "h", "k", {"perm": [0, 2, 3, 1]}), ("MatMul", "q k", "p", {}),
            ("Softmax", "p", "m", {"axis": -1}), ("MatMul", "m q", "o", {}),
            ("Transpose", "o", "t", {"perm": [0, 2, 1, 3]}), ("Reshape", "t r", "u", {}), ("Add", "u a", "n", {}),
            ("LayerNormalization", "n g", "l", {"axis": -1}), ("MatMul", "l v", "y", {}),
        ],
        ["gemm", "attention", "layer_norm", "gemm"], {"x": [1, 15, 8]},
        {
            "w": floats(8, 1024), "v": floats(1024, 5), "g": floats(1024), "s": np.array([1, 15, 16, 64]),
            "r": np.array([1, 15, 1024]),
        },
    ),
    "matmul, both broadcast": Case(
        [("MatMul", "x z", "y", {})], ["matmul.reference"], {"x": [2, 3, 4, 5], "z": [2, 1, 5, 6]}
    ),
    "matmul by a vector": Case([("MatMul", "x z", "y", {})], ["matmul.reference"], {"x": [4, 5], "z": [5]}),
    "matmul of a transposed operand": Case(
        [("Transpose", "x", "t", {"perm": [1, 0]}), ("MatMul", "t w", "y", {})], ["copy", "gemm"], {"x": [7, 9]},
        {"w": floats(7, 33)},
    ),
    "long sum": Case([("MatMul", "x w", "y", {})], ["gemm"], {"x": [5, 3000]}, {"w": floats(3000, 17)}),
    "long sum of few rows": Case([("MatMul", "x w", "y", {})], ["vector"], {"x": [3, 3000]}, {"w": floats(3000, 17)}),
    "integer matmul": Case(
        [("MatMul", "x z", "y", {})], ["matmul.reference"], {"x": [3, 4], "z": [4, 5]}, dtype=TensorProto.INT32
    ),
    "gather by a constant": Case(
        [("Gather", "x i", "y", {"axis": 1})], ["copy"], {"x": [2, 7, 5]}, {"i": np.array(0)}
    ),
    "gather with negative indices": Case(
        [("Gather", "x i", "y", {"axis": 1})], ["gather"], {"x": [2, 7, 5]}, {"i": np.array([[1, -1], [0, 3]])}
    ),
    "softmax over a middle axis": Case(
        [("Softmax", "x", "y", {"axis": 1})], ["copy", "softmax", "copy"], {"x": [2, 5, 6]}
    ),
    "normalisation of one element": Case(
        [("LayerNormalization", "x w b", "y", {})], ["layer_norm"], {"x": [3, 1]}, {"w": floats(1), "b": floats(1)}
    ),
    "normalisation over two axes": Case(
        [("LayerNormalization", "x w", "y", {"axis": 1})], ["layer_norm"], {"x": [3, 4, 5]}, {"w": floats(4, 5)}
    ),
    "reduce a middle axis": Case(
        [("ReduceMax", "x", "y", {"axes": [1], "keepdims": 0})], ["reduce.rows"], {"x": [4, 5, 6]}
    ),
    "reduce outer and inner axes": Case(
        [("ReduceMean", "x", "y", {"axes": [0, 2]})], ["reduce_mean"], {"x": [4, 5, 6]}
    ),
    "reduce everything": Case([("ReduceSum", "x", "y", {"keepdims": 0})], ["reduce.rows"], {"x": [4, 5, 6]}),
    "reduce integers": Case(
        [("ReduceSum", "x", "y", {"keepdims": 0})], ["reduce_sum"], {"x": [4, 5]}, dtype=TensorProto.INT64
    ),
    "arg max": Case([("ArgMax", "x", "y", {"axis": 1})], ["arg_max"], {"x": [3, 7, 2]}),
    "concat": Case([("Concat", "x z", "y", {"axis": 1})], ["copy", "copy"], {"x": [2, 3, 4], "z": [2, 5, 4]}),
    "pad": Case(
        [("Pad", "x p v", "y", {})], ["copy", "copy"], {"x": [2, 3]},
        {"p": np.array([1, 0, 0, 2]), "v": np.array(1.5, np.float32)},
    ),
    "strided slice": Case(
        [("Slice", "x s e a t", "y", {})], ["copy"], {"x": [9, 8]},
        {"s": np.array([8, 1]), "e": np.array([-100, 7]), "a": np.array([0, 1]), "t": np.array([-2, 3])},
    ),
    "broadcasts of every kind": Case(
        [("Mul", "x z", "a", {}), ("Sub", "a k", "b", {}), ("Max", "b x", "y", {})], ["elementwise"],
        {"x": [2, 3, 21], "z": [3, 1]}, {"k": floats(21)},
    ),
    "comparison and choice": Case(
        [("Less", "x z", "a", {}), ("Not", "a", "b", {}), ("Where", "b x k", "y", {})], ["elementwise"],
        {"x": [5, 7], "z": [5, 7]}, {"k": np.array(2.0, np.float32)},
    ),
    "integer arithmetic": Case(
        [("Add", "x z", "a", {}), ("Mul", "a x", "b", {}), ("Div", "b k", "y", {})], ["elementwise"],
        {"x": [3, 4], "z": [4]}, {"k": np.array(3)}, dtype=TensorProto.INT64,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str) -> None:
    case = CASES[name]
    with oc.compile(case.model(), fallback="error", threads=2) as model:
        assert model.report["proof"]["status"] == "proved"
        assert [k["family"] for k in model.report["kernels"]] == case.families
