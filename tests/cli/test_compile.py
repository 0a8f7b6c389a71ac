from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Opcel

from opcel_compiler.cli import main_compile


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_summary_says_what_was_made(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    result = opcel("compile", models / "mlp.onnx", "--target", "x86-64")
    assert result.code == 0
    rows = dict(line.split(None, 1) for line in result.out.splitlines())
    assert rows["compiled"] == f"{models / 'mlp.onnx'} for x86-64 (SSE2) (x86-64)"
    assert rows["inputs"] == "x f32[n, 8]" and rows["outputs"] == "y f32[n, 5]"
    assert rows["nodes"].startswith("2 native; 5.12 k multiply-adds, 100.0% native; ")
    assert rows["proof"].startswith("proved against ONNX Runtime") and "largest error" in rows["proof"]
    assert "weights" in rows["memory"]
    assert rows["artifact"].startswith("mlp.opcel, ")
    assert left_in(tmp_path) == ["mlp.opcel"]
    assert "importing" in result.err and "\x1b" not in result.err


def test_json_is_the_report_and_nothing_else(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    result = opcel("compile", models / "mlp.onnx", "-o", "a.opcel", "--json")
    assert (result.code, result.err) == (0, "")
    assert json.loads(result.out) == json.loads((tmp_path / "a.opcel" / "report.json").read_text())


def test_quiet_prints_nothing(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_compile([str(models / "mlp.onnx"), "-o", str(tmp_path / "a.opcel"), "-q"]) == 0
    assert capsys.readouterr() == ("", "")
    assert left_in(tmp_path) == ["a.opcel"]


def test_an_artifact_is_replaced_by_the_next(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert opcel("compile", models / "mlp.onnx", "-q").code == 0
    assert left_in(tmp_path) == ["mlp.opcel"]


def test_without_proof_the_artifact_says_unproved(opcel: Opcel, models: Path) -> None:
    result = opcel("compile", models / "mlp.onnx", "--no-proof")
    assert result.code == 0
    assert "proof       unproved: " in result.out


def test_given_inputs_are_those_of_the_proof(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    assert opcel("compile", models / "mlp.onnx", "--inputs", models / "x.npz", "-q").code == 0
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    result = opcel("compile", models / "mlp.onnx", "-o", "b.opcel", "--inputs", "other.npz", "-q")
    assert result.code == 1
    assert "the sample inputs lack x" in result.err
    assert left_in(tmp_path) == ["mlp.opcel", "other.npz"]


def test_fallback_names_the_node_and_the_reason(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    warned = opcel("compile", models / "det.onnx")
    assert warned.code == 0
    assert "1 native, 1 in ONNX Runtime" in warned.out and "            Det (det_0): " in warned.out
    allowed = opcel("compile", models / "det.onnx", "--fallback=allow")
    assert allowed.code == 0
    assert "1 in ONNX Runtime" in allowed.out and "det_0" not in allowed.out
    refused = opcel("compile", models / "det.onnx", "-o", "c.opcel", "--fallback=error", "-q")
    assert refused.code == 3
    assert refused.err.startswith("opcel: error: 1 node cannot run natively") and "det_0" in refused.err
    assert left_in(tmp_path) == ["det.opcel"]


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["none.onnx"], 1, "none.onnx does not exist"),
        (["folder"], 1, "folder is a folder, not a model file"),
        (["noise.onnx"], 1, "noise.onnx is no ONNX model"),
        (["mlp.onnx", "--target", "x86-63"], 1, "no target 'x86-63'; did you mean 'x86-64'?"),
        (["mlp.onnx", "--target", "null", "--pipeline", "simplify"], 1, "target null has no code generator"),
        (["mlp.onnx", "--pipeline", "fuze"], 1, "no pass is called 'fuze'; did you mean 'fuse'?"),
        (["mlp.onnx", "--pipeline", "fuse{nodes=1}"], 1, "pass fuse has no option 'nodes'"),
        (["mlp.onnx", "-o", "folder"], 4, "folder exists and is not a compiled model"),
        (["mlp.onnx", "-o", "none/a.opcel"], 4, "does not exist; make it or choose another output"),
        (["mlp.onnx", "--inputs", "none.npz"], 1, "cannot read none.npz: No such file or directory"),
        (["mlp.onnx", "--inputs", "noise.onnx"], 1, "noise.onnx is no .npz file of plain arrays"),
        (["frob.onnx"], 1, "com.example::Frob has none; and ONNX Runtime cannot run it either"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(
    opcel: Opcel, models: Path, tmp_path: Path, argv: list[str], status: int, message: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "noise.onnx").write_bytes(b"\xff\xfe no model")
    for name in ("mlp.onnx", "frob.onnx"):
        (tmp_path / name).write_bytes((models / name).read_bytes())
    before = left_in(tmp_path)
    result = opcel("compile", *argv, "-q")
    assert (result.code, result.out) == (status, "")
    assert result.err.startswith("opcel: error: ") and result.err.count("\n") == 1
    assert message in result.err
    assert left_in(tmp_path) == before and left_in(tmp_path / "folder") == ["file"]


def test_interrupted_it_leaves_nothing(
    opcel: Opcel, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opcel_compiler import driver

    def interrupted(*_: object, **__: object) -> None:
        assert any(path.suffix == ".tmp" for path in tmp_path.iterdir()), "interrupt it while it writes"
        raise KeyboardInterrupt

    monkeypatch.setattr(driver, "build", interrupted)
    result = opcel("compile", models / "mlp.onnx", "-q")
    assert (result.code, result.err) == (130, "opcel: error: interrupted\n")
    assert left_in(tmp_path) == []


def test_precision_and_its_limit(opcel: Opcel, models: Path) -> None:
    result = opcel("compile", models / "mlp.onnx", "--precision", "bf16", "--target", "x86-64-avx2")
    assert result.code == 1 and result.err.count("\n") == 1 and "--precision f32" in result.err
    for wrong in ("0", "-1", "nan", "inf", "x"):
        assert opcel("compile", models / "mlp.onnx", "--max-error", wrong).code == 2
    target = ("--target", "x86-64-avx512-vnni-bf16", "--no-proof")
    result = opcel("compile", models / "mlp.onnx", "--precision", "bf16", *target)
    assert result.code == 0 and "precision   products in bf16, sums in f32" in result.out
