"""`opcel check` and --min-coverage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import onnx
import pytest
from commands import Opcel
from onnx import TensorProto, helper

from opcel_compiler.check import check
from opcel_compiler.codegen.cpu.build import generate
from opcel_compiler.codegen.cpu.host import unbound_symbols
from opcel_compiler.compilation import prepare
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.regions import region_models

ROOT = Path(os.environ.get("OPCEL_MODELS", "/nonexistent"))
FOLDERS = ("real", "onnx_light", "malformed", "ort_testdata")
NETWORKS = sorted(p.relative_to(ROOT).as_posix() for d in FOLDERS for p in (ROOT / d).glob("**/*.onnx"))


def test_all_native(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    result = opcel("check", models / "mlp.onnx", "--target", "x86-64", "--min-coverage", "100%")
    assert (result.code, result.err) == (0, "")
    assert "result      everything runs natively" in result.out
    assert list(tmp_path.iterdir()) == []


def test_precision_is_that_of_a_compile(opcel: Opcel, models: Path) -> None:
    assert opcel("check", models / "mlp.onnx", "--target", "x86-64-avx512-vnni-bf16", "--precision", "bf16").code == 0
    result = opcel("check", models / "mlp.onnx", "--target", "x86-64", "--precision", "bf16")
    assert result.code != 0 and "no instructions for products in bf16" in result.err


def test_a_fallback_names_node_operator_opset_and_reason(opcel: Opcel, models: Path) -> None:
    result = opcel("check", models / "det.onnx")
    assert result.code == 0
    assert "falls back  det_0 (Det of opset 17): The operator needs a CPU kernel: Det has none" in result.out
    assert "1 native, 1 in ONNX Runtime; 0 multiply-adds; " in result.out
    facts = json.loads(opcel("check", models / "det.onnx", "--json").out)
    (entry,) = facts["fallback"]
    assert (entry["op"], entry["origin"], entry["operators"]) == ("Det", ["det_0"], ["Det:17"])
    coverage = facts["coverage"]
    assert entry["seconds_modelled"] == coverage["fallback_seconds_modelled"] > 0
    native = coverage["native_seconds_modelled"]
    assert coverage["share"] == pytest.approx(native / (native + entry["seconds_modelled"]))


def test_min_coverage_holds_for_check_and_compile_alike(opcel: Opcel, models: Path, tmp_path: Path) -> None:
    share = json.loads(opcel("check", models / "det.onnx", "--json").out)["coverage"]["share"]
    assert 0 < share < 1
    for command in (["check"], ["compile", "--fallback=allow", "--no-proof"]):
        assert opcel(*command, models / "det.onnx", "--min-coverage", f"{share - 1e-6}").code == 0
        assert opcel(*command, models / "det.onnx", "-q" if command[1:] else "--json",
                     "--min-coverage", f"{100 * share + 1e-3}%").code == 3  # fmt: skip
    (tmp_path / "none").mkdir()
    refused = opcel("compile", models / "det.onnx", "-o", "none/a.opcel", "--min-coverage=99.9%", "--fallback=allow")
    assert refused.code == 3 and "of the modelled time are native, and 99.9% are asked for" in refused.err
    assert list((tmp_path / "none").iterdir()) == []


@pytest.mark.parametrize("text", ["95 percent", "120%", "-1", "most"])
def test_a_share_is_a_percentage_or_a_fraction(opcel: Opcel, models: Path, text: str) -> None:
    result = opcel("check", models / "mlp.onnx", f"--min-coverage={text}")
    assert result.code == 2 and "is no share; write 95% or 0.95" in result.err


def _untyped(path: Path) -> Path:
    """An operator that no one knows, whose result has no shape."""
    nodes = [helper.make_node("Frob", ["x"], ["f"], "frob_0", domain="com.example"),
             helper.make_node("Relu", ["f"], ["y"], "relu_0")]  # fmt: skip
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [2]), ("y", None)))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 3)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [x], [y]), opset_imports=opsets, ir_version=8), path)
    return path


def test_what_cannot_be_lowered_is_refused_node_by_node(opcel: Opcel, tmp_path: Path) -> None:
    result = opcel("check", _untyped(tmp_path / "untyped.onnx"))
    assert result.code == 1
    assert "falls back  frob_0 (com.example::Frob of opset 3): " in result.out
    assert "refused     " in result.out and "ONNX Runtime cannot run it either: " in result.out
    assert "everything" not in result.out
    assert opcel("check", tmp_path / "untyped.onnx", "--min-coverage=1%").code == 3
    assert opcel("compile", tmp_path / "untyped.onnx", "--fallback=allow").code == 1


def test_a_target_without_code_is_refused(opcel: Opcel, models: Path) -> None:
    result = opcel("check", models / "mlp.onnx", "--target", "null")
    assert result.code == 1 and "refused     target null has no code generator" in result.out


def test_a_model_of_strings_falls_back_whole(opcel: Opcel, tmp_path: Path) -> None:
    nodes = [helper.make_node("Unsqueeze", ["x", "a"], ["u"], "one"), helper.make_node("Relu", ["z"], ["r"], "two")]
    x, z, u, r = (helper.make_tensor_value_info(n, t, None) for n, t in (("x", 8), ("z", 1), ("u", 8), ("r", 1)))
    for value in (x, z):
        value.type.tensor_type.shape.dim.add().dim_value = 3
    axes = helper.make_tensor("a", TensorProto.INT64, [1], [0])
    graph = helper.make_graph(nodes, "g", [x, z], [u, r], [axes])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "s.onnx")
    result = opcel("check", "s.onnx")
    assert result.code == 0 and "refused" not in result.out
    assert "falls back  two (Relu of opset 17): " in result.out and "the input 'x' is string[3]" in result.out
    assert opcel("compile", "s.onnx", "-o", "s.opcel", "--fallback=error").code == 3
    assert opcel("compile", "s.onnx", "-o", "s.opcel", "--fallback=allow").code == 0


@pytest.mark.parametrize("name", ["none.onnx", "noise.onnx"])
def test_what_is_no_model_is_one_error(opcel: Opcel, tmp_path: Path, name: str) -> None:
    (tmp_path / "noise.onnx").write_bytes(b"\xff\xfe no model")
    result = opcel("check", name)
    assert (result.code, result.out) == (1, "") and result.err.count("\n") == 1


@pytest.mark.skipif(not NETWORKS, reason="OPCEL_MODELS does not name the folder of trained networks")
@pytest.mark.parametrize("name", NETWORKS)
def test_check_agrees_with_the_stages_of_compile(name: str) -> None:
    """Same nodes, same refusal; the generated text, which check does not make, can be made for what it accepts."""
    try:
        found = check(ROOT / name)
    except ModelError as error:
        with pytest.raises(ModelError) as again:
            prepare(ROOT / name)
        assert str(again.value) == str(error)
        return
    try:
        work = prepare(ROOT / name)
        assert work.program is not None
        generate(work.program, work.target)
        refused = not work.whole and bool(unbound_symbols(work.program))
        for _ in region_models(work):
            pass
    except OpcelError:
        refused = True
    else:
        assert [(f.op, list(f.origin), f.reason) for f in work.fallbacks] == [
            (f["op"], f["origin"], f["reason"]) for f in found.fallbacks
        ]
        assert found.coverage == work.coverage
    assert bool(found.refused) == refused
    assert all(f["operators"] and f["reason"] for f in found.fallbacks if f["origin"])
