"""However a network is spelled, the same kernels come out: see spellings/export.py for the models."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import opcel_compiler as oc
from opcel_compiler.compilation import Compilation, prepare
from opcel_compiler.ir.interpret import run

from .conftest import assert_same, reference
from .twins import TWINS, feeds

FOLDER = Path(__file__).parent / "spellings"
BLOCKS = {
    "encoder": {"attention": 1, "layer_norm": 2, "gemm": 6},
    "decoder": {"attention": 1, "layer_norm": 2, "gemm": 4},
    "grouped": {"attention": 1, "rms_norm": 2, "gemm": 7},
}
"""Their kernels, without those of elementwise work and movement."""
SPELLINGS = ("opset13", "opset17", "dynamo", "dynamo23")
LEVELS = {"extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL}
OPERATORS = {
    "encoder": {"attention", "gelu", "layer_norm"}, "decoder": {"attention", "gelu", "layer_norm"},
    "grouped": {"attention", "silu", "rms_norm"},
}  # fmt: skip
SPELLED_OUT = {
    "softmax",
    "tanh",
    "erf",
    "sigmoid",
    "sqrt",
    "reduce_mean",
    "pow",
    "exp",
    "expand",
    "foreign",
    "external",
}


def optimized(model: Path, level: str, folder: Path) -> Path:
    """The model as ONNX Runtime's session optimizer writes it."""
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(folder / f"{model.stem}-{level}.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return Path(options.optimized_model_filepath)


def families(work: Compilation) -> Counter[str]:
    assert work.program is not None
    return Counter(k.family for k in work.program.kernels)


def operators(work: Compilation) -> set[str]:
    return {n.op for f in work.graph.nodes for n in (f, *(i for r in f.regions for i in r.nodes))}


def check(block: str, path: Path) -> Compilation:
    work = prepare(path)
    assert not work.fallbacks
    assert OPERATORS[block] <= operators(work) and not operators(work) & SPELLED_OUT
    model = onnx.load(path)
    given = feeds(model, {"batch": 3, "length": 6})
    inside = zip(work.graph.inputs, work.imported.input_names, strict=True)
    got = run(work.graph, {v.name: given[name] for v, name in inside})
    assert_same(dict(zip(work.imported.output_names, got.values(), strict=True)), reference(model, given))
    return work


@pytest.fixture(scope="module")
def expected() -> dict[str, Counter[str]]:
    return {block: families(prepare(FOLDER / f"{block}-opset17.onnx")) for block in BLOCKS}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("block", BLOCKS)
def test_exporters(block: str, spelling: str, expected: dict[str, Counter[str]]) -> None:
    found = families(check(block, FOLDER / f"{block}-{spelling}.onnx"))
    assert found == expected[block]
    assert Counter(BLOCKS[block]) <= found


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("block", BLOCKS)
def test_onnx_runtime_optimized(
    block: str, spelling: str, level: str, expected: dict[str, Counter[str]], tmp_path: Path
) -> None:
    path = optimized(FOLDER / f"{block}-{spelling}.onnx", level, tmp_path)
    assert families(check(block, path)) == expected[block]


def test_the_models_hold_what_they_are_for(tmp_path: Path) -> None:
    made = [optimized(FOLDER / f"{b}-{s}.onnx", "all", tmp_path) for b in BLOCKS for s in SPELLINGS]
    fused = {n.op_type for path in (*made, FOLDER / "encoder-transformers.onnx") for n in onnx.load(path).graph.node}
    assert fused >= {
        "Attention", "BiasGelu", "FastGelu", "FusedMatMul", "Gelu", "QuickGelu", "SimplifiedLayerNormalization",
        "SkipLayerNormalization",
    }  # fmt: skip
    plain = {n.op_type for b in BLOCKS for n in onnx.load(FOLDER / f"{b}-opset13.onnx").graph.node}
    assert not plain & {"LayerNormalization", "Gelu", "Attention"}


def test_the_transformer_optimizer(expected: dict[str, Counter[str]]) -> None:
    """It joins the products of q, k and v and turns the mask into counts; the rest is the same."""
    found = families(check("encoder", FOLDER / "encoder-transformers.onnx"))
    assert found["gemm"] == expected["encoder"]["gemm"] - 2
    assert [found[f] for f in ("attention", "layer_norm")] == [
        expected["encoder"][f] for f in ("attention", "layer_norm")
    ]


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_fused_convolutions(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(TWINS[name].build(), path)
    fused = optimized(path, "extended", tmp_path)
    assert "FusedConv" in {n.op_type for n in onnx.load(fused).graph.node}
    assert families(prepare(fused)) == families(prepare(path))


@pytest.mark.parametrize("block", BLOCKS)
def test_an_optimized_model_compiles(block: str, tmp_path: Path) -> None:
    path = optimized(FOLDER / f"{block}-opset17.onnx", "extended", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = oc.compile(path, output=tmp_path / "a.opcel", fallback="error")
    given = feeds(onnx.load(path), {"batch": 2, "length": 9})
    with model:
        assert model.manifest["proof"]["status"] == "proved"
        assert_same(model.run(given), reference(onnx.load(path), given))
        assert all(np.isfinite(v).all() for v in model.run(given).values())
