"""The programs in benchmarks/: the exporter and the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import dynamic, export, int4, int4_accuracy, networks
from benchmarks.int8.cases import Case, write

from .builder import Net


def run(module: str, *argv: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, argv)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(export.__file__).parents[1])
    assert done.returncode == status, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """small.onnx with its feeds."""
    path = tmp_path_factory.mktemp("networks")
    net = Net("small")
    net.output("y", net("Relu", net("MatMul", net.input("x", 4, 32), net.weight(32, 16))))
    onnx.save(net.model(), path / "small.onnx")
    np.savez(path / "small.npz", x=np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32))
    return path


def test_one_artifact_for_many_sizes(tmp_path: Path) -> None:
    net = Net("sized")
    net.output("y", net("Relu", net("MatMul", net.input("x", "batch", "length", 8), net.weight(8, 4))))
    onnx.save(net.model(), tmp_path / "sized.onnx")
    options = ["--sizes", "batch=1..3", "length=1..40", "--fixed", "2,5", "--points", 2, "--calls", 20, "--rounds", 1]
    run("dynamic", tmp_path / "sized.onnx", *options, "--threads", 1, "--json", tmp_path / "dynamic.json")
    facts = json.loads((tmp_path / "dynamic.json").read_text())
    assert len(facts["right"]) == 6 and all(row["within"] for row in facts["right"])
    assert {(r["batch"], r["length"]) for r in facts["right"]} >= {(1, 1), (3, 1), (1, 40), (3, 40)}
    assert facts["specialized"][0]["ratio"] > 0
    (changing,) = facts["changing"]
    assert changing["calls"] == 20 and changing["ratios"]["ort"] > 0


def test_changing_sizes_differ_and_stay_in_their_spans() -> None:
    found = dynamic.changing_sizes({"batch": (1, 2), "length": (1, 8)}, 16)
    assert {(s["batch"], s["length"]) for s in found} == {(b, n) for b in (1, 2) for n in range(1, 9)}


def test_tiny_compares_the_c_call_too(folder: Path, tmp_path: Path) -> None:
    command = [folder / "small.onnx", folder / "small.npz", "--rounds", 1, "--calls", 20, "--threads", 1]
    run("tiny", *command, "--json", tmp_path / "tiny.json")
    facts = json.loads((tmp_path / "tiny.json").read_text())
    for name in ("opcel", "opcel-out", "opcel-c", "ort", "ort-binding"):
        assert facts["engines"][name]["within"] and facts["engines"][name]["p50_us"] > 0
    assert facts["ratios"]["opcel-c/ort-binding"] > 0


def test_a_network_that_is_not_there_is_named(folder: Path) -> None:
    assert networks.names_in(folder, ()) == ["small"]
    with pytest.raises(SystemExit, match="does not hold large, as NAME"):
        networks.names_in(folder, ["small", "large"])
    with pytest.raises(SystemExit, match="any network"):
        networks.names_in(folder / "none", ())


def test_without_pytorch_the_exporter_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export, "NEEDED", ("json", "no_such_package"))
    with pytest.raises(SystemExit, match=r"mlp must be exported first, and no_such_package is not installed: pip"):
        export.export_all(["mlp"], tmp_path / "out", export.Settings())
    assert not (tmp_path / "out").exists()
    assert "no network is called mpl" in run("export", tmp_path, "mpl", status=2).stderr


@pytest.mark.skipif(bool(export.missing_packages()), reason="PyTorch, transformers or onnxscript is not installed")
@pytest.mark.parametrize("settings", [export.Settings(2), export.Settings(dynamic=True), export.Settings(dynamo=True)])
def test_an_export_has_the_shapes_asked_for(tmp_path: Path, settings: export.Settings) -> None:
    for name in ("mlp", "lstm"):
        export.export(name, tmp_path, settings)
        (x,) = onnx.load(tmp_path / f"{name}.onnx").graph.input
        first = x.type.tensor_type.shape.dim[0]
        assert (first.dim_param == "batch") if settings.dynamic else (first.dim_value == settings.batch)
        with np.load(tmp_path / f"{name}.npz") as file:
            assert file["x"].shape[0] == settings.batch


def test_a_product_of_4_bits_beside_the_peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4, "DEPTH", 256)
    monkeypatch.setattr(int4, "COLUMNS", 512)
    name = "gemv_4096x28672_g128"
    common = ["int4", "--networks", str(tmp_path), "--work", str(tmp_path / "work"), "--only", name]
    files = ["--json", str(tmp_path / "int4.json"), "--markdown", str(tmp_path / "int4.md")]
    for argv in (["--build"], ["--rounds", "2", "--threads", "1", "--block", "0.01", *files]):
        monkeypatch.setattr(sys, "argv", [*common, *argv])
        int4.main()
    (row,) = json.loads((tmp_path / "int4.json").read_text())["rows"]
    assert row["bytes"] == 256 * 512 // 2 + 2 * 512 * 4 + 4 * (256 + 512)  # codes, scales, x and y
    assert row["engines"][0]["engine"] == "opcel" and row["engines"][0]["within"]
    assert row["bandwidth_low"] <= row["bandwidth"] <= row["bandwidth_high"] and row["share"] > 0
    assert row["ratio"] == min(e["speedup"] for e in row["engines"][1:] if "speedup" in e)
    assert (tmp_path / "int4.md").read_text().splitlines()[2].startswith(f"| {name} | 1 | ")


def test_gptq_is_judged_beside_rounding_to_nearest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    net = Net("small")
    hidden = net("MatMul", net.input("x", 8, 256), net.const(rng.standard_normal((256, 256)).astype(np.float32) / 16))
    net.output("y", net("MatMul", hidden, net.const(rng.standard_normal((256, 16)).astype(np.float32) / 2)))
    onnx.save(net.model(), tmp_path / "small.onnx")
    mix = rng.standard_normal((16, 256)).astype(np.float32) / 4
    x = rng.standard_normal((48, 8, 16)).astype(np.float32) @ mix
    write(tmp_path, "small", {"x": x[:32]}, {"x": x[32:]}, metric="classes", about="a test")
    (row,) = int4_accuracy.rows_of(Case(tmp_path, "small"), 128, ["symmetric"])
    assert 0 < row["ways"]["gptq"]["kl"] == pytest.approx(row["ratio"] * row["ways"]["nearest"]["kl"])
    assert row["ratio"] < 0.6
    assert int4_accuracy.table([row]).splitlines()[2].endswith(f"| {row['ratio']:.2f} |")
