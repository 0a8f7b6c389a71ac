"""A small network that has what calibration meets, and samples of it."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper


@functools.cache
def network() -> bytes:
    """x[n, 3, h, w], and y[n, 4] that is added: Sqrt, Conv, Relu, MaxPool, Conv and Add, mean, MatMul."""
    rng = np.random.default_rng(5)
    weights = {
        "w1": rng.standard_normal((20, 3, 3, 3)) * 0.3, "b1": rng.standard_normal(20),
        "w2": rng.standard_normal((20, 20, 3, 3)) * 0.1, "w3": rng.standard_normal((20, 4)), "b3": np.ones(4),
    }  # fmt: skip
    nodes = [
        helper.make_node("Sqrt", ["x"], ["r"], name="root"),
        helper.make_node("Conv", ["r", "w1", "b1"], ["c1"], name="first", pads=[1] * 4),
        helper.make_node("Relu", ["c1"], ["a1"], name="relu"),
        helper.make_node("MaxPool", ["a1"], ["p"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p", "w2"], ["c2"], name="second", pads=[1] * 4),
        helper.make_node("Add", ["c2", "p"], ["s"], name="residual"),
        helper.make_node("GlobalAveragePool", ["s"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w3"], ["m"], name="head"),
        helper.make_node("Add", ["m", "b3"], ["n"], name="bias"),
        helper.make_node("Add", ["n", "y"], ["out"], name="end"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4]),
    ]
    outputs = [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
    constants = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "small", inputs, outputs, constants)
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def sample(seed: int, size: tuple[int, int] = (12, 10)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "x": (rng.random((1, 3, *size)) * (1 + seed % 3)).astype(np.float32),
        "y": rng.standard_normal((1, 4)).astype(np.float32),
    }


def samples(count: int = 32, ragged: bool = False) -> Iterator[dict[str, np.ndarray]]:
    for i in range(count):
        yield sample(i, (12 + 2 * (i % 3), 10 + i % 4) if ragged else (12, 10))
