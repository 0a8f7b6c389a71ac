"""Products with weights of a few bits from file to artifact: rounded and plain rows, in one model at every level."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import opcel_compiler as oc
from opcel_compiler.calibrate.errors import CalibrationError
from opcel_compiler.quantization.recipe import Recipe
from opcel_compiler.targets import load_target
from opcel_compiler.targets.host import missing_features

RNG = np.random.default_rng(0)
TARGETS = ("x86-64", "x86-64-avx2", "x86-64-avx512", "x86-64-avx512-vnni-bf16")


def products(k: int = 72, n: int = 50) -> onnx.ModelProto:
    """Products of x [2, 3, k], each with a Relu and a sum of another's, which kernels take in."""
    nodes, tensors, outputs = [], {}, []
    cases = [(bits, level, zero) for bits in (4, 8) for level in (0, 4) for zero in (False, True)]
    for i, (bits, level, zero) in enumerate(cases):
        blocks = -(-k // 32)
        tensors[f"w{i}"] = RNG.integers(0, 256, (n, blocks, 4 * bits), np.uint8)
        tensors[f"s{i}"] = RNG.uniform(0.01, 0.02, (n, blocks)).astype(np.float32) / (1 << (bits - 4))
        tensors[f"z{i}"] = RNG.integers(0, 256, (n, -(-blocks * bits // 8)), np.uint8)
        names = ["x", f"w{i}", f"s{i}"] + ([f"z{i}"] if zero else [])
        attrs = {"K": k, "N": n, "bits": bits, "block_size": 32, "accuracy_level": level}
        nodes += [
            helper.make_node("MatMulNBits", names, [f"p{i}"], domain="com.microsoft", **attrs),
            helper.make_node("Relu", [f"p{i}"], [f"y{i}"]),
        ]
        outputs.append(f"y{i}")
    for i, (kind, block) in enumerate((("int4", 8), ("uint4", 24), ("int8", 72))):
        dtype = getattr(ml_dtypes, kind) if kind != "int8" else np.int8
        low = 0 if kind == "uint4" else -100 if kind == "int8" else -8
        tensors[f"b{i}"] = RNG.integers(low, min(low + 201, low + 16 if kind != "int8" else 101), (k, n)).astype(dtype)
        tensors[f"c{i}"] = RNG.uniform(0.01, 0.02, (k // block, n)).astype(np.float32) / (16 if kind == "int8" else 1)
        nodes += [
            helper.make_node("DequantizeLinear", [f"b{i}", f"c{i}"], [f"d{i}"], axis=0, block_size=block),
            helper.make_node("MatMul", ["x", f"d{i}"], [f"m{i}"]), helper.make_node("Add", [f"m{i}", "y0"], [f"q{i}"]),
        ]  # fmt: skip
        outputs.append(f"q{i}")
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, k])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3, n]) for name in outputs],
        [numpy_helper.from_array(v, name) for name, v in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("target", TARGETS)
def test_every_form_at_every_level(target: str, tmp_path: Path) -> None:
    if missing_features(load_target(target)):
        pytest.skip(f"this CPU lacks what {target} needs")
    with oc.compile(products(), target, tmp_path / "out", fallback="error", max_error=2e-4) as model:
        assert model.report["proof"]["status"] == "proved"
        assert {k["family"] for k in model.report["kernels"]} == {"gemm.nbits"}
        levels = {name: model.run({"x": np.ones((2, 3, 72), np.float32)})[name] for name in ("y0",)}
        assert levels["y0"].shape == (2, 3, 50)


def test_precision_int4_keeps_weights_in_4_bits(tmp_path: Path) -> None:
    k, n = 512, 384
    tensors = [RNG.normal(size=(k, n)).astype(np.float32) / 20, RNG.normal(size=(n, k)).astype(np.float32) / 20]
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w1"], ["t"]), helper.make_node("Tanh", ["t"], ["y"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", k])],
        [numpy_helper.from_array(v, f"w{i}") for i, v in enumerate(tensors)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with oc.compile(model, output=tmp_path / "out", precision="int4", fallback="error") as compiled:
        assert [kernel["family"] for kernel in compiled.report["kernels"]] == ["gemm.nbits", "gemm.nbits"]
        assert 4.25 <= 8 * (tmp_path / "out" / "weights.bin").stat().st_size / (2 * k * n) <= 4.5
        proof = compiled.report["proof"]
        assert proof["status"] == "proved" and 1e-3 < proof["outputs"][0]["relative_l2"] < 0.25
        x = RNG.normal(size=(40, k)).astype(np.float32)
        whole = compiled.run({"x": x})["y"]
        for rows in (1, 2, 5, 17):
            np.testing.assert_allclose(compiled.run({"x": x[:rows]})["y"], whole[:rows], rtol=1e-6, atol=1e-7)


def test_samples_make_weights_of_4_bits_better(tmp_path: Path) -> None:
    """GPTQ on inputs of few factors; too few samples are refused."""
    k, n = 300, 256
    tensors = {"w": RNG.normal(size=(k, n)).astype(np.float32) / 16}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 16, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, n])],
        [numpy_helper.from_array(v, name) for name, v in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    factors = RNG.normal(size=(32, k))
    samples = [{"x": (RNG.normal(size=(1, 16, 32)) @ factors).astype(np.float32)} for _ in range(40)]
    test = samples.pop()["x"]
    off = []
    for data in (None, samples):
        with oc.compile(model, precision="int4", recipe=Recipe(calibrate=data), inputs={"x": test}) as compiled:
            difference = compiled.run({"x": test})["y"] - test @ tensors["w"]
            off.append(float(np.linalg.norm(difference) / np.linalg.norm(test @ tensors["w"])))
    assert 0.01 < off[0] < 0.2 and off[1] < 0.4 * off[0]
    with pytest.raises(CalibrationError, match="needs 8 samples or more, and the calibration data hold 3"):
        oc.compile(model, precision="int4", recipe=Recipe(calibrate=samples[:3]), output=tmp_path / "out")
    large = [*samples[:4], {"x": np.full_like(test, 3e38)}, *samples[4:]]
    with pytest.raises(CalibrationError, match=r"sample 4 .* makes elements of %x NaN or infinite") as caught:
        oc.compile(model, precision="int4", recipe=Recipe(calibrate=large), output=tmp_path / "out")
    assert (caught.value.sample, caught.value.tensor) == (4, "x")
    assert list(tmp_path.iterdir()) == []
