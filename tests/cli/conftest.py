"""Small models, one artifact, and a way to call the commands in this process."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from opcel_compiler.cli import main

sys.path.insert(0, str(Path(__file__).parent))

from commands import Opcel, Result


@pytest.fixture(autouse=True)
def fallback(det_falls_back: None) -> None:
    """The model det.onnx has a node that falls back."""


@pytest.fixture
def opcel(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opcel:
    """opcel("info", path): the exit status and output of the command, run in the folder `tmp_path`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPCEL_DEBUG", raising=False)

    def call(*argv: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(a) for a in argv])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return Result(code, *capsys.readouterr())

    return call


def _save(path: Path, nodes: list[onnx.NodeProto], shape: list[str | int], domain: str = "") -> Path:
    def value(name: str, dims: list[str | int]) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, dims)

    rng = np.random.default_rng(0)
    weights = [("w", rng.standard_normal((8, 5)).astype(np.float32)), ("b", np.ones(5, np.float32))]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes, "small", [value("x", shape)], [value("y", ["n", 5])],
        [numpy_helper.from_array(array, name) for name, array in weights if name in used],
        value_info=[value("f", ["n", 5])] if "f" in used else [],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with mlp.onnx (x f32[n, 8] to y f32[n, 5]), det.onnx (Det falls back), frob.onnx (an operator
    of an unknown domain) and x.npz (x with n = 3)."""
    folder = tmp_path_factory.mktemp("models")
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="gemm_0")
    _save(folder / "mlp.onnx", [gemm, helper.make_node("Relu", ["g"], ["y"], name="relu_0")], ["n", 8])
    det = helper.make_node("Det", ["r"], ["y"], name="det_0")
    _save(folder / "det.onnx", [helper.make_node("Relu", ["x"], ["r"], name="relu_0"), det], ["n", 5, 4, 4])
    frob = helper.make_node("Frob", ["x"], ["f"], name="frob_0", domain="com.example")
    _save(folder / "frob.onnx", [frob, helper.make_node("Relu", ["f"], ["y"])], ["n", 5], "com.example")
    np.savez(folder / "x.npz", x=np.arange(24, dtype=np.float32).reshape(3, 8))
    return folder


@pytest.fixture(scope="session")
def artifact(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifact of mlp.onnx."""
    path = tmp_path_factory.mktemp("artifact") / "mlp.opcel"
    assert main(["compile", str(models / "mlp.onnx"), "-o", str(path), "--quiet"]) == 0
    return path
