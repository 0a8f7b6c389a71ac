"""The programs in benchmarks/: the exporter and the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks import export, networks, peers

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


def test_compare_prints_and_writes_a_row(folder: Path, tmp_path: Path) -> None:
    done = run("compare", folder, "--rounds", 1, "--threads", 1, "--json", tmp_path / "rows.json")
    assert done.stdout.splitlines()[-1].startswith("small ")
    facts = json.loads((tmp_path / "rows.json").read_text())
    (row,) = facts["rows"]
    assert (facts["threads"], facts["rounds"]) == (1, 1) and facts["machine"]["onnxruntime"]
    assert row["within"] and row["they_are_within"] and row["ratio"] > 0 and row["max_abs"] < 1e-5


def test_peers_prints_and_writes_a_row(folder: Path, tmp_path: Path) -> None:
    command = ["small", "--networks", folder, "--rounds", 1, "--threads", 1, "--against", "ort"]
    done = run("peers", *command, "--json", tmp_path / "peers.json")
    header, row = done.stdout.splitlines()[1:3]
    assert header == peers.HEADER and row.startswith("small ") and "within, largest error" in row
    (facts,) = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert [engine["engine"] for engine in facts["engines"]] == ["opcel", "ort"]
    floor = 2 * 4 * 32 * 16 / facts["peak_flops"]
    assert facts["floor_s"] >= floor > 0
    assert facts["floor_share"] == pytest.approx(facts["floor_s"] / facts["engines"][0]["p50_s"])


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
