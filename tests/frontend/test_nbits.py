"""Products with weights of a few bits against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_harness import floats, interpret, reference, same

from opcel_compiler.frontend.importer import import_model

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "float"])
@pytest.mark.parametrize("bias", [False, True])
def test_against_onnxruntime(bits: int, zeros: str, bias: bool) -> None:
    if zeros == "float" and bits == 8:
        pytest.skip("ONNX Runtime takes zero points of 8 bits as bytes only")
    k, n, block = 80, 5, 32
    blocks = -(-k // block)
    tensors = {
        "w": RNG.integers(0, 256, (n, blocks, block * bits // 8), np.uint8),
        "s": RNG.random((n, blocks), np.float32),
    }  # fmt: skip
    if zeros == "packed":
        tensors["z"] = RNG.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8)
    elif zeros == "float":
        tensors["z"] = RNG.integers(0, 16, (n, blocks)).astype(np.float32)
    names = ["x", "w", "s", "z" if "z" in tensors else ""]
    if bias:
        tensors["b"] = floats(n)
        names += ["", "b"]
    node = helper.make_node(
        "MatMulNBits", names, ["y"], domain="com.microsoft", K=k, N=n, bits=bits, block_size=block, accuracy_level=1
    )
    x = floats(3, 2, k)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, name) for name, v in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    imported = import_model(model)
    assert not imported.foreign, imported.foreign[0].attrs["reason"]
    same(interpret(imported, {"x": x}), reference(model, {"x": x}), 1e-4, 1e-4)
