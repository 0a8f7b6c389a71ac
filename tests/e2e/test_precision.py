"""Products in bf16: asked for by name, measured in a bound of their own, refused where they cannot be had."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import opcel_compiler as oc
from opcel_compiler.compilation import prepare
from opcel_compiler.driver import prove_artifact
from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.program_text import equal_programs, parse_program, print_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.ir.types import BF16
from opcel_compiler.proof import BF16_NORM, Bound, ProofError, compare, manifest_bound
from opcel_compiler.quantization.recipe import Recipe
from opcel_compiler.targets import TargetError, load_target
from opcel_compiler.targets.host import missing_features

from .builder import Net
from .conftest import reference
from .twins import feeds, mlp
from .twins_more import ALL

BF16_TARGET = "x86-64-avx512-vnni-bf16"


@pytest.mark.parametrize("target", ["x86-64", "x86-64-avx2", "x86-64-avx512", "null"])
def test_a_target_without_bf16_refuses_and_names_one_that_has_it(target: str, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=f"target {target} has no .*--precision f32, or for {BF16_TARGET}"):
        oc.compile(mlp(), target, tmp_path / "out", precision="bf16")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_precision_or_a_limit_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(OpcelError, match="precision is one of f32, bf16, int8, int4, not 'f16'"):
        oc.compile(mlp(), output=tmp_path / "out", precision="f16")
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(OpcelError, match="the largest error is a positive number"):
            oc.compile(mlp(), output=tmp_path / "out", max_error=wrong)


def test_the_artifact_states_its_precision_and_bound(tmp_path: Path) -> None:
    model = mlp()
    with oc.compile(model, BF16_TARGET, tmp_path / "out", precision="bf16", proof=False) as compiled:
        assert (compiled.manifest["precision"], compiled.report["precision"]) == ("bf16", "bf16")
        assert manifest_bound(compiled.manifest) == Bound.of("bf16")
    assert compiled.manifest["max_error"] == BF16_NORM
    with oc.compile(model, output=tmp_path / "f32", max_error=5e-5) as compiled:
        assert (compiled.manifest["precision"], compiled.manifest["max_error"]) == ("f32", 5e-5)
        assert "relative L2 <= 5e-05" in compiled.report["proof"]["bound"]


def test_a_limit_that_is_missed_is_a_failed_proof(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match=r"outside its bound \(.*relative L2 <= 1e-12\)"):
        oc.compile(mlp(), output=tmp_path / "out", max_error=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_a_later_proof_has_the_artifacts_bound(tmp_path: Path) -> None:
    model = tmp_path / "mlp.onnx"
    model.write_bytes(mlp().SerializeToString())
    oc.compile(model, output=tmp_path / "out", proof=False, max_error=1e-12).close()
    with pytest.raises(ProofError, match="relative L2 <= 1e-12"):
        prove_artifact(tmp_path / "out", model)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["proof"]["status"] == "unproved"


def test_the_bound_of_bf16_is_that_of_the_norm() -> None:
    want = np.array([1e-6, 100.0, -50.0], np.float32)
    bound = Bound.of("bf16")
    assert str(bound) == "relative L2 <= 0.02"
    assert compare("y", want + np.float32(0.5), want, bound).within
    assert not compare("y", want * np.float32(1.03), want, bound).within
    for hole in (np.nan, np.inf):
        got = want.copy()
        got[1] = hole
        assert not compare("y", got, want, bound).within


def test_the_bound_of_narrow_floats_is_their_precision() -> None:
    want = np.float32([1, 1e-3, -50]).astype(np.float16)
    assert compare("y", np.nextafter(want, np.float16(0)), want, Bound()).within
    assert not compare("y", (want * np.float16(1.02)).astype(np.float16), want, Bound()).within


def test_the_bound_of_a_grid_is_that_of_the_norm() -> None:
    want = np.random.default_rng(0).integers(0, 256, 1000, np.uint8)
    near, far = want.copy(), want.copy()
    near[:9] ^= 1
    far[:90] ^= 128
    assert compare("y", near, want, Bound.of("f32", quantized=True)).within
    assert not compare("y", far, want, Bound.of("f32", quantized=True)).within
    assert not compare("y", near, want, Bound()).within
    assert not compare("y", near.astype(np.int64), want.astype(np.int64), Bound.of("f32", quantized=True)).within


# -- kernels in bf16 ---------------------------------------------------------------------------------------------------

runs_bf16 = pytest.mark.skipif(bool(missing_features(load_target(BF16_TARGET))), reason="this CPU has no AVX512_BF16")
NAMES = [
    "mlp-symbolic", "digits", "resnet-odd", "mobilenet", "bert-torchscript-symbolic", "lstm", "gru", "unet", "vit",
    "whisper", "gpt-symbolic", "llama", "resnet-symbolic", "unet-odd", "unet-symbolic", "generator",
]  # fmt: skip
IMAGES = {"resnet-odd", "mobilenet", "unet", "resnet-symbolic", "unet-odd", "unet-symbolic", "generator"}


@runs_bf16
@pytest.mark.parametrize("name", NAMES)
def test_twins(name: str, tmp_path: Path) -> None:
    """Proved in the bound of bf16 and within it on other inputs, whatever the number of threads."""
    spec = ALL[name]
    model = spec.build()
    with oc.compile(model, output=tmp_path / "out", fallback="error", precision="bf16") as compiled:
        assert compiled.manifest["proof"]["status"] == "proved"
        for seed, sizes in enumerate(spec.sizes, 1):
            given = feeds(model, sizes, seed)
            got = compiled.run(given)
            for key, want in reference(model, given).items():
                row = compare(key, got[key], want, Bound.of("bf16"))
                assert row.within, (sizes, row)
                assert name not in IMAGES or row.relative_l2 > 1e-5, "computed in f32"
            with oc.load(compiled.path, threads=3) as other:
                for key, value in other.run(given).items():
                    np.testing.assert_array_equal(value, got[key])


@runs_bf16
def test_a_product_is_computed_in_bf16_and_measurably_so(tmp_path: Path) -> None:
    """Operands that bf16 cannot hold: the result is that of rounded operands, and the error is in the stamp."""
    net = Net("odd")
    w = np.random.default_rng(0).normal(size=(33, 17)).astype(np.float32)
    net.output("y", net("MatMul", net.input("x", 9, 33), w))
    x = np.random.default_rng(1).normal(size=(9, 33)).astype(np.float32)
    with oc.compile(net.model(), output=tmp_path / "out", precision="bf16") as compiled:
        y = compiled.run({"x": x})["y"]
        (error,) = (row["relative_l2"] for row in compiled.report["proof"]["outputs"])
        assert "gemm.bf16" in {k["family"] for k in compiled.report["kernels"]}
    rounded = x.astype(BF16.numpy).astype(np.float64) @ w.astype(BF16.numpy).astype(np.float64)
    np.testing.assert_allclose(y, rounded, rtol=1e-4, atol=1e-4)
    assert 1e-4 < error < BF16_NORM
    with pytest.raises(ProofError, match="relative L2 <= 1e-05"):
        oc.compile(net.model(), output=tmp_path / "out", precision="bf16", max_error=1e-5)


@runs_bf16
@pytest.mark.parametrize("name", ["vit", "bert-torchscript-symbolic", "whisper"])
def test_rounding_early_changes_no_bit(name: str, tmp_path: Path) -> None:
    """Kernels that only round go, values take two bytes, and the results stay as they are."""
    model, spec = ALL[name].build(), ALL[name]
    pipeline = load_target(BF16_TARGET).pipeline
    assert ",round-early" in pipeline
    late = pipeline.replace(",round-early", "")
    plain = oc.compile(model, BF16_TARGET, tmp_path / "a", precision="bf16", pipeline=late)
    stored = oc.compile(model, BF16_TARGET, tmp_path / "b", precision="bf16")
    with plain, stored:
        rounds = [sum(k["family"] == "round" for k in c.report["kernels"]) for c in (plain, stored)]
        assert rounds[1] < rounds[0]
        given = feeds(model, spec.sizes[0])
        for key, value in plain.run(given).items():
            np.testing.assert_array_equal(stored.run(given)[key], value)


@runs_bf16
def test_attention_between_layers_of_bytes_is_in_bf16(tmp_path: Path) -> None:
    """With precision int8, where its result becomes bytes: read as the products before it have rounded it."""
    model, spec = ALL["vit"].build(), ALL["vit"]
    samples = [feeds(model, spec.sizes[1], seed) for seed in range(8)]
    recipe = Recipe(samples, statistics=tmp_path / "s", threshold="minmax")
    with oc.compile(model, BF16_TARGET, tmp_path / "a", precision="int8", recipe=recipe) as compiled:
        assert [k["family"] for k in compiled.report["kernels"]].count("attention.bf16") == 2
        late = load_target(BF16_TARGET).pipeline.replace(",round-early", "")
        with oc.compile(model, BF16_TARGET, tmp_path / "b", precision="int8", recipe=recipe, pipeline=late) as plain:
            given = feeds(model, spec.sizes[0], 9)
            for key, value in plain.run(given).items():
                np.testing.assert_array_equal(compiled.run(given)[key], value)
    recipe = replace(recipe, calibrate=None)
    layers = prepare(model, BF16_TARGET, precision="int8", recipe=recipe).planner.plan.layers
    kept = replace(recipe, kept=dict.fromkeys(layers, "asked for"))
    for target, r, count in ((BF16_TARGET, recipe, 2), ("x86-64-avx512", recipe, 0), (BF16_TARGET, kept, 0)):
        program = prepare(model, target, precision="int8", recipe=r).program
        stored = [b for b in program.buffers if b.layout.storage == "bf16"]
        assert (sum(k.family == "attention.bf16" for k in program.kernels), len(stored)) == (count, 3 * count)


def test_programs_with_storage_are_valid_and_mean_the_same() -> None:
    """The Program of a transformer after round-early: verified, read back from text, run by the interpreter."""
    model = ALL["vit"].build()
    program = prepare(model, BF16_TARGET, precision="bf16").program
    assert program is not None
    verify_program(program)
    assert any(b.layout.storage and b.kind == "temp" for b in program.buffers)
    bert = prepare(ALL["bert-torchscript"].build(), BF16_TARGET, precision="bf16").program
    assert bert is not None and any(len(k.outputs) == 2 for k in bert.kernels)
    store: dict[str, Constant] = {}
    back = parse_program(print_program(program, constants=store), store)
    assert equal_programs(program, back) is None
    given = feeds(model, {"batch": 2})
    got = run_program(program, {b.name: given[n] for b, n in zip(program.inputs, given, strict=True)})
    (want,) = reference(model, given).values()
    row = compare("y", *got.values(), want, Bound.of("bf16"))
    assert row.within and row.relative_l2 > 1e-5, row
