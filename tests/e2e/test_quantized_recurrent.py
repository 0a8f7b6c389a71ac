"""Recurrent layers of floats by the recipe of precision int8, as a whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import opcel_compiler as oc
from opcel_compiler.cli import main
from opcel_compiler.compilation import prepare
from opcel_compiler.driver import ExportWarning
from opcel_compiler.quantization.recipe import Recipe

from .twins import feeds
from .twins_more import ALL, gru, lstm

pytestmark = pytest.mark.filterwarnings("ignore::opcel_compiler.calibrate.errors.CalibrationWarning")


BUILT = {"lstm": partial(lstm, hidden=40), "gru": partial(gru, hidden=36, last=33)}


def data(name: str, model: onnx.ModelProto, first: int, count: int) -> list[dict[str, np.ndarray]]:
    return [feeds(model, ALL[name].sizes[0], seed) for seed in range(first, first + count)]


def in_onnxruntime(model: onnx.ModelProto | Path, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, given), strict=True))


def loss(wants: dict[str, np.ndarray], gots: Any) -> float:
    pairs = [(want.astype(np.float64), gots[name]) for name, want in wants.items()]
    return float(np.sqrt(sum(np.square(g - w).sum() for w, g in pairs) / sum(np.square(w).sum() for w, _ in pairs)))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_every_layer_multiplies_integers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, artifact, export = BUILT[name](), tmp_path / "m.opcel", tmp_path / "m.onnx"
    recipe = Recipe(data(name, model, 0, 8))
    with pytest.warns(ExportWarning, match="recurrent"):
        compiled = oc.compile(model, "host", artifact, 2, precision="int8", recipe=recipe, export_qdq=export)
    with compiled:
        told = compiled.report["quantization"]
        assert told["macs_share"] == 1 and all(row["integers"] for row in told["rows"])
        steps = {row["op"]: row for row in told["rows"]}
        recurrent = {"lstm": {"lstm"}, "gru": {"gru", "rnn"}}[name]
        assert recurrent <= set(steps)
        for op in recurrent:
            assert steps[op]["kernel"] == f"gemm.int8, {op}" and steps[op]["sqnr_db"] > 30
        for given in data(name, model, 8, 2):
            want = in_onnxruntime(model, given)
            assert 1e-5 < loss(want, compiled.run(given)) < 0.03
            assert loss(want, in_onnxruntime(export, given)) < 0.03
    kinds = [n.op_type for n in onnx.load(export).graph.node]
    assert kinds.count("LSTM" if name == "lstm" else "GRU") == (2 if name == "lstm" else 1)
    assert ("QuantizeLinear" in kinds) == (name == "lstm"), "the gru twin is made of recurrent layers alone"
    assert main(["explain", "--quant", str(artifact), "--measure"]) == 0
    out = capsys.readouterr().out
    assert f"gemm.int8, {name} s32" in out and "stays float" not in out


@pytest.mark.parametrize(
    ("choices", "why"),
    [
        ({"least_sqnr": 100.0}, "dB of signal to noise in 8 bits, less than 100"),
        ({"kept": {"$y": "it is asked for"}}, "it is asked for"),
    ],
)
def test_a_layer_goes_back_to_float(choices: dict[str, Any], why: str) -> None:
    model = BUILT["lstm"]()
    recipe = Recipe(data("lstm", model, 0, 4))
    first = prepare(model, "x86-64-avx512-vnni-bf16", precision="int8", recipe=recipe)
    assert first.planner is not None and first.program is not None
    name = next(row["name"] for row in first.planner.layers if row["op"] == "lstm")
    kept = {name if n == "$y" else n: reason for n, reason in choices.get("kept", {}).items()}
    again = prepare(
        model, "x86-64-avx512-vnni-bf16", precision="int8",
        recipe=Recipe(recipe.calibrate, **{**choices, **({"kept": kept} if kept else {})}),
    )  # fmt: skip
    assert again.planner is not None and again.program is not None
    assert why in again.planner.plan.kept[name]
    precisions = [[k.params["precision"] for k in w.program.kernels if k.family == "lstm"] for w in (first, again)]
    assert precisions[0] == ["int8", "int8"] and precisions[1][0] == "f32"
