from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Opcel


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.standard_normal((40, 1, 8)).astype(np.float32))
    return tmp_path / "data.npz"


def test_statistics_are_written_and_a_compile_takes_them(
    opcel: Opcel, models: Path, data: Path, tmp_path: Path
) -> None:
    model = models / "mlp.onnx"
    result = opcel("calibrate", model, "--data", data, "--input-range", "x=-6..6")
    assert result.code == 0, result.err
    rows = dict(line.split(None, 1) for line in result.out.splitlines())
    assert rows["calibrated"].startswith("40 samples, ") and rows["statistics"].startswith("mlp.stats.json, ")
    first = (tmp_path / "mlp.stats.json").read_bytes()
    again = opcel("calibrate", model, "--data", data, "-o", "b.json", "--json", "--samples", "40")
    facts = json.loads(again.out)
    assert (facts["samples"], facts["random"], facts["warnings"]) == (40, False, [])
    assert (tmp_path / "b.json").read_bytes() == first
    made = opcel("compile", model, "-o", "a.opcel", "--precision", "int8", "--calibrate", "mlp.stats.json", "--json")
    assert made.code == 0, made.err
    assert json.loads(made.out)["calibration"]["samples"] == 40


def test_channels_that_are_never_seen_are_listed(opcel: Opcel, models: Path, data: Path) -> None:
    x = np.load(data)["x"]
    x[:, 0, [2, 5]] = 0
    np.savez(data, x=x)
    found = opcel("calibrate", models / "mlp.onnx", "--data", data)
    assert found.code == 0 and "dead        %x: 2 channels are zero in all samples: 2, 5\n" in found.out
    facts = json.loads(opcel("calibrate", models / "mlp.onnx", "--data", data, "--json").out)
    assert [v["dead_channels"] for v in facts["values"] if v["name"] == "x"] == [[2, 5]]


def test_mistakes_are_told(opcel: Opcel, models: Path, data: Path, tmp_path: Path) -> None:
    model = models / "mlp.onnx"
    assert opcel("calibrate", model).code == 2
    none = opcel("calibrate", model, "--data", "nothing.npz")
    assert none.code == 1 and "cannot read the calibration data nothing.npz" in none.err
    bad = opcel("calibrate", model, "--data", data, "--input-range", "x=3")
    assert bad.code == 2 and "name=low..high" in bad.err
    x = np.load(data)["x"]
    x[3, 0, 2] = np.nan
    np.savez(data, x=x)
    nan = opcel("calibrate", model, "--data", data)
    assert nan.code == 1 and "sample 3 (data.npz, item 3): input 'x' is nan at [0, 2]" in nan.err
    skipped = opcel("calibrate", model, "--data", data, "--on-bad-sample", "skip")
    assert (
        skipped.code == 0 and "39 samples, 1 left out" in skipped.out and "1 bad samples were left out" in skipped.err
    )
    few = opcel("calibrate", model, "--data", data, "--samples", "2")
    assert few.code == 1 and "holds 2 samples" in few.err
    assert "Traceback" not in none.err + nan.err + few.err


def test_random_numbers_are_stamped(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    result = opcel("calibrate", models / "mlp.onnx", "--allow-random-calibration")
    assert result.code == 0 and "32 random samples" in result.out and "ranges mean nothing" in result.err
    assert json.loads((tmp_path / "mlp.stats.json").read_text())["random"] is True
