"""Bad models, options, disks and artifacts, as a user meets them: one error, its status, nothing left behind."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import Opcel
from onnx import TensorProto, helper, numpy_helper

from opcel_compiler.runtime.integrity import stamped

ROOT = Path(__file__).resolve().parents[2]


def value(name: str, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(
    *nodes: onnx.NodeProto, shape: list[int | str] | None = None, opset: int = 17, domain: str = "",
    constants: tuple[onnx.TensorProto, ...] = (),
) -> onnx.ModelProto:  # fmt: skip
    inputs, outputs = [value("x", shape or ["n", 4])], [value("y", None)]
    graph = helper.make_graph(list(nodes), "g", inputs, outputs, list(constants))
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def node(op: str, inputs: str = "x", outputs: str = "y", **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), f"the_{op}", **attributes)


def external(location: str, length: int = 16) -> onnx.ModelProto:
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, text in (("location", location), ("offset", "0"), ("length", str(length))):
        w.external_data.add(key=key, value=text)
    return model(node("Add", "x w"), constants=(w,))


def nested(depth: int) -> bytes:
    """A branch in a branch in a branch, as bytes: the library that writes models does not go as deep."""

    def field(number: int, payload: bytes) -> bytes:
        size, length = b"", len(payload)
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + payload

    graph = b""
    for _ in range(depth):
        branch = field(1, b"then_branch") + field(6, graph) + bytes([20 << 3 & 127 | 128, 1, 5])
        graph = field(1, field(1, b"c") + field(2, b"z") + field(4, b"If") + field(5, branch))
    return bytes([8, 8]) + field(8, bytes([16, 17])) + field(7, graph + field(12, field(1, b"z")))


def cyclic() -> onnx.ModelProto:
    return model(node("Add", "x b", "a"), node("Neg", "a", "b"), node("Abs", "b", "y"))


def sized(count: int) -> onnx.ModelProto:
    shape = numpy_helper.from_array(np.array([1_000_000, 1_000_000, count]), "s")
    return model(node("ConstantOfShape", "s", "a"), node("ReduceSum", "a"), constants=(shape,))


def unbound() -> onnx.ModelProto:
    frob = node("Frob", "a", "b", domain="com.example")
    return model(node("Relu", "x", "a"), frob, node("Abs", "b"), domain="com.example")


def silent() -> onnx.ModelProto:
    made = model(node("Relu"))
    del made.graph.output[:]
    return made


def chosen(condition: list[bool], *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """An If on `condition`, which varies with the input; `nodes` are one branch of it."""
    parts = [
        helper.make_graph(list(some), "branch", [], [value("z", None)]) for some in (nodes, [node("Abs", "x", "z")])
    ]
    test = numpy_helper.from_array(np.array(condition), "t")
    first = node("ReduceSum", "x", "s", keepdims=0), node("Cast", "s", "c", to=TensorProto.BOOL), node("Or", "c t", "d")
    return model(*first, node("If", "d", then_branch=parts[0], else_branch=parts[1]), constants=(test,))


BAD: dict[str, tuple[Callable[[], onnx.ModelProto], tuple[str, ...]]] = {
    "opset of the future": (lambda: model(node("Relu"), opset=999), ("opset 999", "export the model at an opset")),
    "no such operator": (lambda: model(node("Frobnicate")), ("'the_Frobnicate'", "no operator 'Frobnicate'")),
    "domain not imported": (
        lambda: model(node("Frob", domain="com.example")), ("'the_Frob'", "imports no opset of domain 'com.example'"),
    ),
    "operator of unknown result": (unbound, ("the_Frob", "Frob", "ONNX Runtime cannot run it")),
    "cycle": (cyclic, ("'the_Add'", "cycle")),
    "nothing makes it": (lambda: model(node("Add", "x nowhere")), ("the_Add", "'nowhere'")),
    "external file is absent": (lambda: external("w.bin"), ("'w'", "'w.bin' is missing")),
    "external file is short": (lambda: external("short.bin"), ("'w'", "'short.bin', which has 8", "truncated")),
    "external file outside": (lambda: external("../w.bin"), ("'w'", "only files below the model's folder")),
    "external file absolute": (lambda: external("/etc/passwd"), ("'w'", "only files below the model's folder")),
    "external file by a link": (lambda: external("link.bin"), ("'w'", "leads outside the model's folder")),
    "external file by a linked folder": (lambda: external("up/w.bin"), ("'w'", "leads outside the model's folder")),
    "external entry is short": (lambda: external("short.bin", 8), ("'w' needs 16 bytes", "holds 8")),
    "type that an operator does not take": (
        lambda: model(node("Cast", "x", "i", to=TensorProto.INT32), node("Sin", "i"), shape=[2, 4]),
        ("'the_Sin' (Sin) does not take tensor(int32) as its input 'input'", "tensor(float16); put a Cast before it"),
    ),
    "operands of two types": (
        lambda: model(node("Cast", "x", "i", to=TensorProto.INT32), node("PRelu", "x i"), shape=[2, 4]),
        ("'the_PRelu' (PRelu)", "are tensor(float) and tensor(int32)", "put a Cast before its input 'slope'"),
    ),
    "no output": (silent, ("graph 'g' has no outputs", "export the model with")),
    "two nodes of a name": (
        lambda: model(node("Neg", "x", "a"), node("Neg", "a", "y")),
        ("two nodes of graph 'g' are called 'the_Neg'", "gives 'a' and Neg, which gives 'y'", "a name of its own"),
    ),
    "two nodes of a name in a branch": (
        lambda: chosen([False], node("Neg", "x", "b"), node("Neg", "b", "z")),
        ("two nodes of graph 'branch' are called 'the_Neg'",),
    ),
    "condition of many": (
        lambda: chosen([True, False], node("Neg", "x", "z")),
        ("'the_If' (If)", "bool[2], and must be one bool", "reduce it"),
    ),
    "shape of 0 and -1": (
        lambda: model(node("Constant", "", "s", value_ints=[0, -1]), node("Reshape", "x s", allowzero=1)),
        ("'the_Reshape' (Reshape)", "[0, -1] has a size of 0 beside -1", "write the size"),
    ),
    "absurd sizes": (lambda: sized(1_000_000), ("'the_ConstantOfShape'", "has 1e+18 elements", "at most 1024 GiB")),
    "absurd input": (lambda: model(node("Relu"), shape=[1 << 30, 1 << 30]), ("'x'", "has 1.2e+18 elements")),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a model, with files around it that no model may read."""
    (tmp_path / "w.bin").write_bytes(bytes(16))
    inside = tmp_path / "models"
    inside.mkdir()
    (inside / "short.bin").write_bytes(bytes(8))
    (inside / "link.bin").symlink_to(tmp_path / "w.bin")
    (inside / "up").symlink_to(tmp_path)
    return inside


def refused(opcel: Opcel, folder: Path, argv: list[object], status: int, *parts: str) -> str:
    """Runs a command that must fail with one line that holds `parts`, and leave no file in `folder`."""
    before = sorted(folder.rglob("*"))
    result = opcel(*argv)
    assert result.err.startswith("opcel: error: ") and result.err.count("\n") == 1, result.err
    assert (result.code, result.out) == (status, ""), result.err
    for part in parts:
        assert part in result.err, result.err
    assert sorted(folder.rglob("*")) == before
    return result.err


@pytest.mark.parametrize("name", BAD)
def test_bad_models(opcel: Opcel, folder: Path, name: str) -> None:
    build, parts = BAD[name]
    (folder / "m.onnx").write_bytes(build().SerializeToString())
    refused(opcel, folder.parent, ["compile", folder / "m.onnx", "-o", folder / "m.opcel", "-q"], 1, *parts)


@pytest.mark.parametrize("cut", [0, 1, 40, -1])
def test_truncated_models(opcel: Opcel, folder: Path, cut: int) -> None:
    w = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    data = model(node("MatMul", "x w"), shape=["n", 64], constants=(w,)).SerializeToString()
    (folder / "m.onnx").write_bytes(data[:cut])
    refused(opcel, folder.parent, ["compile", folder / "m.onnx", "-o", folder / "m.opcel", "-q"], 1, "m.onnx is")


@pytest.mark.parametrize("depth", [32, 3000])
def test_deep_nesting(opcel: Opcel, folder: Path, depth: int) -> None:
    (folder / "m.onnx").write_bytes(nested(depth))
    refused(opcel, folder.parent, ["compile", folder / "m.onnx", "-o", folder / "m.opcel", "-q"], 1, "nest", " deep")


# -- dimensions --------------------------------------------------------------------------------------------------------


def test_dimensions_are_fixed_and_limited(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    assert opcel("compile", models / "mlp.onnx", "-o", "a", "-q", "--dim", "n=3").code == 0
    facts = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert facts["inputs"][0]["shape"] == [3, 8] and facts["dims"] == {"n": 3}
    assert opcel("run", "a", "--prove", models / "mlp.onnx", "-q").code == 0
    assert opcel("compile", models / "mlp.onnx", "-o", "b", "-q", "--dim", "n=2..4").code == 0
    assert opcel("run", "b", "--dim", "n=4", "-q").code == 0
    assert "n must be 2 to 4" in opcel("run", "b", "--dim", "n=5", "-q").err
    assert opcel("check", models / "mlp.onnx", "--dim", "n=3").code == 0


def test_dimensions_that_cannot_be(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    start = ["compile", models / "mlp.onnx", "-q", "--dim"]
    refused(opcel, tmp_path, [*start, "m=3"], 1, "no dimension of the model is called 'm'; its inputs have n")
    refused(opcel, tmp_path, [*start, "n=5..3"], 1, "the dimension 'n' cannot be 5 to 3")
    refused(opcel, tmp_path, [*start, "n"], 2, "'n' is not of the form name=value")
    refused(opcel, tmp_path, [*start, "n=x"], 2, "'x' is not a whole number of at least 1")


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 9), np.float32), "input 'x'"),
        (np.zeros(8, np.float32), "input 'x'"),
        (np.zeros((3, 8), np.float64), "input 'x': element type float64 given, float32 expected"),
        (np.zeros((3, 8), np.int64), "input 'x': element type int64 given, float32 expected"),
    ],
)
def test_inputs_that_do_not_fit(opcel: Opcel, artifact: Path, tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "x.npz", x=array)
    refused(opcel, tmp_path, ["run", artifact, "--inputs", "x.npz", "-o", "y.npz"], 1, message)


def test_sizes_that_no_memory_holds(tmp_path: Path) -> None:
    import opcel_compiler as oc

    product = (node("Transpose", "x", "t", perm=[1, 0]), node("MatMul", "x t", "a"))
    pair = model(*product, node("Softmax", "a"), shape=["n", 1])
    with oc.compile(pair, output=tmp_path / "a.opcel") as compiled:
        for n in (1 << 24, 1 << 40, 1 << 60):
            huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), (n, 1), (0, 0))
            with pytest.raises(oc.runtime.RunError, match=r"no memory for"):
                compiled.run({"x": huge})
        np.testing.assert_allclose(compiled.run({"x": np.ones((4, 1), np.float32)})["y"], np.full((4, 4), 0.25))


def test_images_that_are_too_small(tmp_path: Path) -> None:
    import opcel_compiler as oc

    w = numpy_helper.from_array(np.ones((8, 3, 5, 5), np.float32), "w")
    conv = model(node("Conv", "x w", "a"), node("GlobalAveragePool", "a"), shape=[1, 3, "h", "w"], constants=(w,))
    with oc.compile(conv, output=tmp_path / "a.opcel", dims={"h": (5, None), "w": (1, None)}) as compiled:
        with pytest.raises(oc.runtime.FeedError, match=r"the_Conv: its result would have a size of .* = -2"):
            compiled.run({"x": np.zeros((1, 3, 9, 2), np.float32)})
        with pytest.raises(oc.runtime.FeedError, match="h must be at least 5"):
            compiled.run({"x": np.zeros((1, 3, 4, 9), np.float32)})


# -- where the artifact goes -------------------------------------------------------------------------------------------


def limited(size: int) -> Callable[[], None]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return limit


def weighty(path: Path, kilobytes: int) -> Path:
    w = numpy_helper.from_array(np.ones((256, kilobytes), np.float32), "w")
    path.write_bytes(model(node("MatMul", "x w"), shape=["n", 256], constants=(w,)).SerializeToString())
    return path


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """Weights of 300 KiB where a file may have 200."""
    source, output = weighty(tmp_path / "m.onnx", 300), tmp_path / "place"
    output.mkdir()
    command = [sys.executable, "-m", "opcel_compiler.cli", "compile", str(source), "-o", str(output / "a"), "-q"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPCEL_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, preexec_fn=limited(200 << 10)
    )
    assert done.returncode == 4, done.stderr
    assert done.stderr == f"opcel: error: cannot write {output / 'a'}: File too large\n"
    assert not list(output.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_small_disk(opcel: Opcel, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=False).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        for size in (300, 190):  # the weights alone are too much; the library is
            source = weighty(tmp_path / "m.onnx", size)
            result = opcel("compile", source, "-o", disk / "a", "-q")
            assert result.code in (4, 5) and result.err.startswith("opcel: error: "), result.err
            assert "No space left" in result.err or "no space" in result.err.lower()
            assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_terminated_it_leaves_nothing(models: Path, tmp_path: Path) -> None:
    slow = tmp_path / "cxx"
    slow.write_text('#!/bin/sh\nif [ "$1" = --version ]; then echo cxx; else touch started; exec sleep 3; fi\n')
    slow.chmod(0o755)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "CXX": str(slow), "OPCEL_CACHE": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path / "tmp"),
    }  # fmt: skip
    (tmp_path / "tmp").mkdir()
    (tmp_path / "out").mkdir()
    output = tmp_path / "out" / "a"
    command = [sys.executable, "-m", "opcel_compiler.cli", "compile", str(models / "mlp.onnx"), "-o", str(output), "-q"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list((tmp_path / "tmp").rglob("started")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (143, "opcel: error: terminated\n")
    assert not list((tmp_path / "out").iterdir()) and not list((tmp_path / "tmp").iterdir())


# -- artifacts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "verified"), [("manifest.json", False), ("model.so", False), ("weights.bin", True)])
def test_one_flipped_bit(opcel: Opcel, artifact: Path, tmp_path: Path, file: str, verified: bool) -> None:
    """Everywhere in the manifest; here and there in what is larger. Weights are read whole only when that is asked."""
    size = (artifact / file).stat().st_size
    for at in range(0, size, 1 + size // 24):
        shutil.copytree(artifact, tmp_path / "copy")
        data = bytearray((tmp_path / "copy" / file).read_bytes())
        data[at] ^= 4
        (tmp_path / "copy" / file).write_bytes(bytes(data))
        command = ["info", "copy", "--verify"] if verified else ["run", "copy", "-q"]
        text = refused(opcel, tmp_path, list(command), 1)
        assert "damaged" in text or "format" in text or "lacks" in text, text
        shutil.rmtree(tmp_path / "copy")
    assert opcel("info", artifact, "--verify").code == 0


@pytest.mark.parametrize("file", ["model.so", "weights.bin", "manifest.json"])
def test_a_file_cut_short(opcel: Opcel, artifact: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(artifact, tmp_path / "copy")
    data = (artifact / file).read_bytes()
    (tmp_path / "copy" / file).write_bytes(data[: len(data) // 2])
    refused(opcel, tmp_path, ["run", "copy", "-q"], 1, file)


def edited(artifact: Path, to: Path, **entries: object) -> Path:
    shutil.copytree(artifact, to)
    manifest = json.loads((to / "manifest.json").read_text())
    (to / "manifest.json").write_text(json.dumps(stamped(manifest | entries)))
    return to


def test_foreign_artifacts(opcel: Opcel, artifact: Path, tmp_path: Path) -> None:
    target = {"id": "riscv64-v", "name": "RISC-V with V", "isa": "v", "features": ["rvv"]}
    edited(artifact, tmp_path / "other", target=target)
    refused(opcel, tmp_path, ["run", "other"], 1, "compiled for RISC-V with V, this CPU lacks rvv", "compile the model")
    edited(artifact, tmp_path / "next", format=99)
    refused(opcel, tmp_path, ["run", "next"], 1, "has format 99", "reads format 1", "compile the model again")


# -- files from elsewhere ----------------------------------------------------------------------------------------------

MODELS = Path(os.environ.get("OPCEL_MODELS", "/nonexistent")) / "malformed"
ACCEPTED = {
    "migraphx__convinteger_mismatched_input_types_test": "valid since opset 10: the operands may differ in sign",
    "migraphx__if_param_excp_test": "a branch's output has another name than the node's, as it may",
    "ort__ort_github_issue_12151_neg_dq_axis": "a negative axis is valid",
    "polygraphy__bad_graph_conditionally_invalid": "only one of the branches is wrong, which may never be taken",
    "real__bert_toy_optimized": "unsorted, and a domain that is known without an import",
}
"""Files that are not wrong, only odd, and why."""


@pytest.mark.skipif(not MODELS.is_dir(), reason="OPCEL_MODELS does not name the folder of models")
@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda p: p.stem)
def test_malformed_files(opcel: Opcel, tmp_path: Path, path: Path) -> None:
    result = opcel("compile", path, "-o", "m.opcel", "-q", "--fallback=allow")
    if path.stem in ACCEPTED:
        assert result.code == 0, result.err
        return
    assert result.err.startswith("opcel: error: ") and result.code in (1, 6), result
    assert not list(tmp_path.iterdir())
