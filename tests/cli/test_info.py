from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import Opcel

from opcel_compiler.runtime.integrity import stamped
from opcel_compiler.targets import list_targets


def test_an_artifact_tells_its_facts_without_its_code(opcel: Opcel, artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.opcel"
    shutil.copytree(artifact, copy)
    (copy / "model.so").write_bytes(b"no code")
    result = opcel("info", copy)
    assert (result.code, result.err) == (0, "")
    rows = dict(line.split(None, 1) for line in result.out.splitlines() if not line.startswith(" "))
    assert rows["artifact"].startswith(f"{copy}, ") and rows["model"].startswith("small, SHA-256 ")
    assert rows["inputs"] == "x f32[n, 8]" and rows["outputs"] == "y f32[n, 5]"
    assert rows["modules"] == "model.so (cpu)"
    assert rows["proof"].startswith("proved against ")
    facts = json.loads(opcel("info", copy, "--json").out)
    assert facts["kind"] == "artifact"
    assert facts["manifest"] == json.loads((artifact / "manifest.json").read_text())
    assert facts["report"] == json.loads((artifact / "report.json").read_text())


def test_a_region_is_among_the_modules_with_its_reason(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    assert opcel("compile", models / "det.onnx", "-q").code == 0
    out = opcel("info", "det.opcel").out
    assert "region_0.onnx (onnxruntime)" in out and "Det (det_0): " in out


def test_a_model_tells_what_it_takes_and_holds(opcel: Opcel, models: Path) -> None:
    result = opcel("info", models / "mlp.onnx")
    assert result.code == 0
    rows = dict(line.split(None, 1) for line in result.out.splitlines())
    assert rows["opsets"].startswith("ai.onnx 17")
    assert rows["inputs"] == "x f32[n, 8]" and rows["outputs"] == "y f32[n, 5]"
    assert rows["parameters"] == "45"
    assert "matmul 1" in rows["nodes"] and rows["foreign"] == "none: every operator is known"


def test_a_model_tells_its_foreign_operators(opcel: Opcel, models: Path) -> None:
    result = opcel("info", models / "frob.onnx")
    assert "foreign     com.example.Frob (frob_0): " in result.out
    facts = json.loads(opcel("info", models / "frob.onnx", "--json").out)
    assert facts["kind"] == "model" and facts["opsets"] == {"": 17, "com.example": 1}
    assert facts["operators"] == {"foreign": 1, "relu": 1}
    assert [(f["op"], f["origin"]) for f in facts["foreign"]] == [("com.example.Frob", ["frob_0"])]
    assert facts["inputs"] == [{"name": "x", "dtype": "f32", "shape": ["n", 5]}]


def test_a_graph_as_text_is_a_model_too(opcel: Opcel, tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text('graph g(%x: f32[2]) {\n  %y = relu(%x)\n  return %y as "y"\n}\n')
    assert "nodes       1 after import: relu 1" in opcel("info", "g.txt").out


def test_targets_lists_all(opcel: Opcel) -> None:
    result = opcel("info", "--targets")
    assert [line.split()[0] for line in result.out.splitlines()] == list(list_targets())
    facts = json.loads(opcel("info", "--targets", "--json").out)
    assert [t["id"] for t in facts["targets"]] == list(list_targets())
    assert sum(t["host"] for t in facts["targets"]) == 1


@pytest.mark.parametrize("name", ["host", *list_targets()])
def test_every_target_tells_its_facts(opcel: Opcel, name: str) -> None:
    result = opcel("info", name)
    assert result.code == 0
    assert {"target", "runs", "units", "memories", "dtypes", "pipeline"} <= {
        line.split()[0] for line in result.out.splitlines()
    }
    facts = json.loads(opcel("info", name, "--json").out)
    assert facts["kind"] == "target" and (name == "host" or facts["target"]["id"] == name)


def test_a_targets_missing_features_are_named(opcel: Opcel, monkeypatch: pytest.MonkeyPatch) -> None:
    from opcel_compiler.targets import host

    monkeypatch.setattr(host, "cpu_features", lambda: frozenset({"avx"}))
    assert "runs here   no, this CPU lacks avx2, fma" in opcel("info", "x86-64-avx2").out


@pytest.mark.parametrize(
    ("subject", "message"),
    [
        ("nothing", "nothing is no file, no artifact and no target; the targets are host, null, x86-64"),
        ("folder", "folder is not a compiled model: cannot read manifest.json"),
        ("noise.onnx", "noise.onnx is no ONNX model"),
        ("noise.yaml", "noise.yaml:1"),
        ("damaged", "damaged is damaged: cannot read report.json"),
        ("partial", "partial is damaged: its manifest or report is not whole ('target')"),
        ("program.txt", "program.txt is a Program; see it with `opcel opt program.txt`"),
    ],
)
def test_an_error_is_one_line(opcel: Opcel, artifact: Path, tmp_path: Path, subject: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "noise.onnx").write_bytes(b"\xff\xfe no model")
    (tmp_path / "noise.yaml").write_text("- no mapping\n")
    (tmp_path / "program.txt").write_text("program p(@x) -> (@y) {\n  input @x: f32[2]\n  output @y: f32[2]\n}\n")
    partial = json.dumps(stamped({"format": 1, "inputs": [], "outputs": [], "modules": []}))
    for name, manifest in (("damaged", None), ("partial", partial)):
        shutil.copytree(artifact, tmp_path / name)
        (tmp_path / name / "report.json").write_text("{" if manifest is None else "{}")
        if manifest is not None:
            (tmp_path / name / "manifest.json").write_text(manifest)
    result = opcel("info", subject)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("opcel: error: ") and result.err.count("\n") == 1
    assert message in result.err
