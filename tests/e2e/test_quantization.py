"""Precision int8 as a whole: what is lost on twins, also on those made hard; data, statistics and artifacts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import opcel_compiler as oc
from opcel_compiler.cli import main
from opcel_compiler.compilation import prepare
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.quantization import Plan, channel_readers
from opcel_compiler.quantization.planner import Planner
from opcel_compiler.quantization.recipe import QuantizationError, Recipe
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.targets import load_target

from .twins import feeds
from .twins_more import ALL

TARGET = load_target("x86-64-avx512-vnni-bf16")
BEFORE = TARGET.pipeline.split(",equalize")[0]
DIGITS = Path(__file__).parents[2] / "examples" / "digits"


def imported(name: str) -> tuple[Graph, list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """A twin's graph before quantization, samples to calibrate with and others, by the graph's names."""
    twin = ALL[name]
    model = twin.build()
    found = import_model(model)
    PassManager.run(found.graph, Pipeline.parse(BEFORE), PassContext(target=TARGET))
    names = dict(zip(found.input_names, (v.name for v in found.graph.inputs), strict=True))
    data = [{names[n]: a for n, a in feeds(model, twin.sizes[0], seed).items()} for seed in range(12)]
    return found.graph, data[:8], data[8:]


def quantized(graph: Graph, samples: list[dict[str, np.ndarray]], **choices) -> Planner:
    """Quantize a graph in place as `prepare` does."""
    names = [v.name for v in graph.inputs]
    planner = Planner(Recipe(calibrate=samples, **choices), graph, names, TARGET, "")
    ctx = PassContext(target=TARGET, quantization=planner.before_equalize())
    PassManager.run(graph, Pipeline.parse("equalize"), ctx)
    ctx.quantization = planner.plan = planner.before_quantize()
    PassManager.run(graph, Pipeline.parse("quantize"), ctx)
    return planner


def sqnr(wants: list[Mapping[str, np.ndarray]], gots: list[Mapping[str, np.ndarray]]) -> float:
    pairs = [(w[k].astype(np.float64), g[k]) for w, g in zip(wants, gots, strict=True) for k in w]
    return 10 * np.log10(sum(np.square(w).sum() for w, _ in pairs) / sum(np.square(w - g).sum() for w, g in pairs))


def after(graph: Graph, samples, others, **choices) -> tuple[float, Planner]:
    """The signal to noise of a graph's outputs on samples not seen, once it is quantized."""
    want = [run(graph, f) for f in others]
    planner = quantized(graph, samples, **choices)
    return sqnr(want, [run(graph, f) for f in others]), planner


@pytest.mark.parametrize("name", ["digits", "mobilenet", "resnet", "unet", "vit", "bert-dynamo", "mlp"])
def test_the_default_recipe_keeps_thirty_decibels(name: str) -> None:
    found, planner = after(*imported(name))
    layers = [n for n, layer in planner.plan.layers.items() if layer.scheme != "float"]
    assert found >= 30 and len(layers) > 2


def spoil(graph: Graph, op: str, factors) -> int:
    """Multiply the channels of what `op` makes, undone in the layers that read it: the function stays as it is."""
    divided = {}
    for node in graph.nodes:
        value = node.results[0] if node.results else None
        if node.op == op and value is not None and (readers := channel_readers(value)) is not None and readers[2]:
            divided[value.name] = 1 / factors(value.tensor.dims[readers[1]])
    PassManager.run(graph, Pipeline.parse("equalize"), PassContext(quantization=Plan(divided=divided)))
    return len(divided)


def outliers(channels: int) -> np.ndarray:
    random = np.random.default_rng(channels)
    out = np.ones(channels, np.float32)
    out[random.choice(channels, max(1, min(6, channels // 8)), replace=False)] = 60
    return out


def spread(channels: int) -> np.ndarray:
    return np.exp2(np.random.default_rng(channels).uniform(-6, 6, channels)).astype(np.float32)


@pytest.mark.parametrize(("name", "op", "factors"), [("vit", "layer_norm", outliers), ("mobilenet", "min", spread),
                                                     ("digits", "relu", spread)])  # fmt: skip
def test_channels_far_apart_are_evened_out(name: str, op: str, factors) -> None:
    losses = {}
    for equalize in (True, False):
        graph, samples, others = imported(name)
        assert spoil(graph, op, factors)
        losses[equalize], _ = after(graph, samples, others, equalize=equalize, least_sqnr=-np.inf)
    assert losses[True] >= 30 and losses[True] > losses[False] + 6


def test_rows_with_scales_of_their_own_are_a_choice() -> None:
    found, planner = after(*imported("vit"), activations="dynamic")
    assert found >= 30 and {layer.scheme for layer in planner.plan.layers.values()} >= {"dynamic"}


def with_a_loud_row(loud: float, rows: slice) -> tuple[Graph, list[dict[str, np.ndarray]]]:
    """Two products of one value, whose first row reaches `loud` times as far, and `rows` of what they give; samples."""
    random = np.random.default_rng(0)
    held = [Constant(random.standard_normal((32, n)).astype(np.float32)) for n in (24, 16)]
    graph = parse_graph(
        f"""graph main(%x: f32[64, 32]) {{
          %w = f32[32, 24] #{held[0].digest}
          %u = f32[32, 16] #{held[1].digest}
          %a = matmul(%x, %w)
          %b = matmul(%x, %u)
          %c = concat(%a, %b){{axis=1}}
          %y = slice(%c){{starts=[{rows.start}, 0], sizes=[{rows.stop - rows.start}, 40], steps=[1, 1]}}
          return %y
        }}""",
        {c.digest: c for c in held},
    )
    data = [{"x": random.standard_normal((64, 32)).astype(np.float32)} for _ in range(12)]
    for given in data:
        given["x"][0] *= loud
    return graph, data


@pytest.mark.parametrize(("loud", "scheme"), [(100.0, "dynamic"), (1.0, "static")])
def test_rows_have_scales_of_their_own_where_a_loud_one_drowns_the_others(loud: float, scheme: str) -> None:
    losses = {}
    for activations in ("auto", "static"):
        graph, data = with_a_loud_row(loud, slice(1, 64))
        losses[activations], planner = after(graph, data[:8], data[8:], activations=activations)
        layers = {layer.scheme for layer in planner.plan.layers.values()}
        assert layers == {scheme if activations == "auto" else "static"}
    assert losses["auto"] > 30 and (losses["auto"] > losses["static"] + 20) == (scheme == "dynamic")


def test_a_loud_row_that_matters_is_not_clipped() -> None:
    """The squares of all elements say that it should be."""
    losses = {}
    for threshold in ("auto", "mse", "minmax"):
        graph, data = with_a_loud_row(30.0, slice(0, 1))
        losses[threshold], _ = after(graph, data[:8], data[8:], threshold=threshold, activations="static")
    assert losses["auto"] == losses["minmax"] > losses["mse"] + 2


def test_a_layer_that_eight_bits_ruin_stays_float_and_says_so() -> None:
    graph, samples, others = imported("digits")
    spoil(graph, "relu", spread)
    _, planner = after(graph, samples, others, equalize=False, least_sqnr=40.0)
    assert any("dB of signal to noise in 8 bits, less than 40" in reason for reason in planner.plan.kept.values())


def test_corrections_are_kept_only_where_they_help_data_not_seen() -> None:
    graph, samples, _ = imported("digits")
    corrected = quantized(graph, samples)
    assert corrected.plan.corrections
    graph, samples, _ = imported("digits")
    assert not quantized(graph, samples[:1]).plan.corrections


# -- compile -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """The digits network compiled from samples, which writes its statistics."""
    folder = tmp_path_factory.mktemp("digits")
    recipe = Recipe(calibrate=digits_samples()[:64], statistics=folder / "digits.stats")
    oc.compile(DIGITS / "digits.onnx", output=folder / "a.opcel", precision="int8", recipe=recipe).close()
    return folder, recipe


def digits_samples() -> list[dict[str, np.ndarray]]:
    with np.load(DIGITS / "digits.npz") as file:
        return [{"image": file["image"][i : i + 1]} for i in range(len(file["image"]))]


def test_trained_digits_keep_their_accuracy(made: tuple[Path, Recipe]) -> None:
    with np.load(DIGITS / "digits_labels.npz") as file:
        labels = file["label"]
    with oc.load(made[0] / "a.opcel") as model:
        got = np.array([np.argmax(next(iter(model.run(f).values()))) for f in digits_samples()])
        manifest = model.manifest
    assert np.mean(got == labels) >= 0.99
    assert manifest["precision"] == "int8" and manifest["quantization"]["samples"] == 64
    assert "random" not in manifest["quantization"]


def test_the_report_tells_of_every_layer(made: tuple[Path, Recipe], capsys: pytest.CaptureFixture[str]) -> None:
    folder = made[0] / "a.opcel"
    told = json.loads((folder / "report.json").read_text())["quantization"]
    assert told["accuracy"]["sqnr_db"] > 30 and told["accuracy"]["top1_agreement"] == 1
    assert told["macs_share"] == 1 and told["quantized"] == told["layers"] == len(told["rows"])
    for row in told["rows"]:
        assert row["sqnr_db"] > 30 and row["low"] <= 0 < row["high"] and row["kernel"] and not row["reason"]
    assert "<h2>Quantization</h2>" in (folder / "report.html").read_text()
    assert main(["explain", "--quant", str(folder), "--measure"]) == 0
    text = capsys.readouterr().out
    assert f"{told['quantized']} of {told['layers']} layers" in text and "gemm" in text


def test_the_same_statistics_and_data_give_the_same_bytes(made: tuple[Path, Recipe], tmp_path: Path) -> None:
    folder, recipe = made
    before = (folder / "digits.stats").read_bytes()
    oc.compile(DIGITS / "digits.onnx", output=tmp_path / "b.opcel", precision="int8", recipe=recipe).close()
    assert (folder / "digits.stats").read_bytes() == before
    for name in ("weights.bin", "model.so", "manifest.json", "report.json"):
        assert (tmp_path / "b.opcel" / name).read_bytes() == (folder / "a.opcel" / name).read_bytes()


def test_statistics_alone_are_enough(made: tuple[Path, Recipe]) -> None:
    recipe = replace(made[1], calibrate=None)
    work = prepare(DIGITS / "digits.onnx", precision="int8", recipe=recipe)
    assert work.planner is not None and not work.planner.samples
    assert sum(n.op == "quantize" for n in work.imported.graph.walk()) >= 2


def test_without_data_int8_is_refused_and_random_numbers_are_stamped(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="--calibrate DATA"):
        oc.compile(DIGITS / "digits.onnx", precision="int8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = tmp_path / "r.opcel"
        recipe = Recipe(allow_random=True)
        oc.compile(DIGITS / "digits.onnx", output=out, precision="int8", recipe=recipe, proof=False).close()
    assert json.loads((out / "manifest.json").read_text())["quantization"]["random"] is True
