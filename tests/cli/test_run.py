from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import Opcel

from opcel_compiler.runtime.integrity import stamped


def test_given_inputs_give_the_models_outputs(opcel: Opcel, models: Path, artifact: Path, tmp_path: Path) -> None:
    result = opcel("run", artifact, "--inputs", models / "x.npz", "-o", "y.npz", "--threads", 2)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0].startswith("output      y float32[3, 5]  min 0, max ")
    assert lines[2] == "saved       y.npz"
    import onnxruntime

    x = np.load(models / "x.npz")["x"]
    (want,) = onnxruntime.InferenceSession(str(models / "mlp.onnx")).run(None, {"x": x})
    with np.load(tmp_path / "y.npz") as saved:
        assert saved.files == ["y"]
        np.testing.assert_allclose(saved["y"], want, rtol=1e-5, atol=1e-5)


def test_random_inputs_are_seeded_and_sized(opcel: Opcel, artifact: Path, tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        assert opcel("run", artifact, "--dim", "n=7", "-o", name, "-q").out == ""
    first, second = (np.load(tmp_path / name)["y"] for name in ("a.npz", "b.npz"))
    assert first.shape == (7, 5)
    np.testing.assert_array_equal(first, second)
    assert "float32[1, 5]" in opcel("run", artifact).out


def test_repeat_times_the_runs(opcel: Opcel, artifact: Path) -> None:
    result = opcel("run", artifact, "--repeat", 5, "--threads", 1)
    assert result.code == 0
    line = result.out.splitlines()[-1]
    assert line.startswith("latency     min ") and line.endswith("(5 runs, 1 thread, weights: map)")
    facts = json.loads(opcel("run", artifact, "--repeat", 5, "--threads", 1, "--json", "--weights", "resident").out)
    latency = facts["latency"]
    assert 0 < latency["min_s"] <= latency["p50_s"] <= latency["p95_s"]
    assert (latency["runs"], latency["threads"], latency["weights"]) == (5, 1, "resident")


def test_json_holds_facts_of_each_output_and_no_nan(opcel: Opcel, artifact: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "nan.npz", x=np.full((2, 8), np.nan, np.float32))
    facts = json.loads(opcel("run", artifact, "--inputs", "nan.npz", "--json").out)
    (output,) = facts["outputs"]
    assert (output["name"], output["dtype"], output["shape"]) == ("y", "float32", [2, 5])
    assert output["non_finite"] == 10 and output["values"][0] == "nan" and "mean" not in output


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none.opcel"], "none.opcel is not a compiled model: cannot read manifest.json"),
        (["mlp.onnx"], "mlp.onnx is a file, not a compiled model; compile it with `opcel compile` first"),
        (["partial"], "partial is damaged: its manifest's inputs are not whole ('shape')"),
        (["{artifact}", "--dim", "m=3"], "no input has a dimension 'm'; there are n"),
        (["{artifact}", "--inputs", "none.npz"], "cannot read none.npz: No such file or directory"),
        (["{artifact}", "--inputs", "one.npy"], "one.npy holds one array without a name"),
        (["{artifact}", "--inputs", "other.npz"], "other.npz lacks x; the model takes x, the file has z"),
        (["{artifact}", "--inputs", "more.npz"], "more.npz has z, which is no input; the model takes x"),
        (["{artifact}", "--inputs", "objects.npz"], "objects.npz is no .npz file of plain arrays"),
        (["{artifact}", "--inputs", "wide.npz"], "input 'x': shape [2, 9] given, [n, 8] expected"),
        (["{artifact}", "--output", "none/y.npz"], "cannot write none/y.npz: No such file or directory"),
        (["{artifact}", "--output", "."], "cannot write .: it is a folder"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(
    opcel: Opcel, models: Path, artifact: Path, tmp_path: Path, argv: list[str], message: str
) -> None:
    (tmp_path / "mlp.onnx").write_bytes((models / "mlp.onnx").read_bytes())
    x = np.zeros((2, 8), np.float32)
    np.save(tmp_path / "one.npy", x)
    np.savez(tmp_path / "other.npz", z=x)
    np.savez(tmp_path / "more.npz", x=x, z=x)
    np.savez(tmp_path / "objects.npz", x=np.array([object()]))
    np.savez(tmp_path / "wide.npz", x=np.zeros((2, 9), np.float32))
    (tmp_path / "partial").mkdir()
    manifest = {"format": 1, "inputs": [{"name": "x"}], "outputs": [], "modules": []}
    (tmp_path / "partial" / "manifest.json").write_text(json.dumps(stamped(manifest)))
    before = sorted(tmp_path.iterdir())
    result = opcel("run", *(a.format(artifact=artifact) for a in argv))
    assert result.code == 1 and result.out == ""
    assert result.err.startswith("opcel: error: ") and result.err.count("\n") == 1
    assert message in result.err
    assert sorted(tmp_path.iterdir()) == before


def test_outputs_of_any_name_and_dtype_are_saved(tmp_path: Path) -> None:
    from opcel_compiler.cli.files import read_arrays, write_arrays

    arrays: dict[str, np.ndarray] = {
        "file": np.arange(3), "a/b:0": np.array(1.5, np.float16), "s": np.array(["é", "bc"], object),
        "t": np.asfortranarray(np.ones((2, 3), bool)),
    }  # fmt: skip
    write_arrays(tmp_path / "y.npz", arrays)
    found = read_arrays(tmp_path / "y.npz")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["y.npz"]


def test_prove_stamps_an_unproved_artifact_and_refuses_another_model(
    opcel: Opcel, models: Path, tmp_path: Path
) -> None:
    artifact = tmp_path / "m.opcel"
    assert opcel("compile", str(models / "mlp.onnx"), "-o", str(artifact), "--no-proof", "--quiet").code == 0
    assert json.loads((artifact / "manifest.json").read_text())["proof"]["status"] == "unproved"
    result = opcel("run", str(artifact), "--prove", str(models / "mlp.onnx"))
    assert result.code == 0 and "proved against ONNX Runtime" in result.out
    assert json.loads((artifact / "manifest.json").read_text())["proof"]["status"] == "proved"
    other = tmp_path / "other.onnx"
    other.write_bytes((models / "mlp.onnx").read_bytes() + b"\x3a\x00")
    refused = opcel("run", str(artifact), "--prove", str(other))
    assert refused.code != 0 and refused.err.count("\n") == 1
