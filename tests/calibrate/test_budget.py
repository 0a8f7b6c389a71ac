"""The search for a plan within a budget: what goes back to float, how often it is checked, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

import opcel_compiler as oc
from opcel_compiler.budget import Budget, compile_within
from opcel_compiler.quantization.budget import (
    Found,
    Limits,
    Priced,
    knapsack,
    search,
    slower,
    to_revert,
    within_latency,
)  # fmt: skip
from opcel_compiler.quantization.recipe import QuantizationError, Recipe

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
LAYERS = [Priced("cheap", 0.1, 1e-3), Priced("dear", 0.8, 1e-6), Priced("fine", 0.0, 5e-4), Priced("slow", 0.1, -1e-6)]


def test_what_loses_most_for_its_time_goes_first() -> None:
    assert [p.name for p in to_revert(LAYERS, 1.0, 0.15)] == ["slow", "dear"]
    assert [p.name for p in to_revert(LAYERS, 1.0, 0.05)] == ["slow", "dear", "cheap"]
    assert to_revert(LAYERS, 0.1, 0.1) == []
    assert list(slower(LAYERS)) == ["slow"]


@pytest.mark.parametrize(
    ("drops", "reverted", "validations"),
    [([0.05], {"slow", "dear"}, 1), ([0.2, 0.05], {"slow", "dear", "cheap"}, 2),
     ([0.5, 0.4], {"slow", "dear", "cheap", "fine"}, 2)],
)  # fmt: skip
def test_a_plan_is_checked_as_a_whole_and_float_is_the_last_resort(drops, reverted, validations) -> None:
    asked: list[set[str]] = []
    better: list[Found] = []

    def validate(kept) -> tuple[float, float]:
        asked.append(set(kept))
        return drops[len(asked) - 1], 0.0

    found = search(LAYERS, Found({}, 1.0), Limits(0.1875), "kl", validate, better.append)
    assert set(found.reverted) == reverted and len(asked) == validations
    assert found.drop <= 0.1875 and better[-1] is found
    assert all("saves" in why for why in found.reverted.values())


def test_what_is_good_enough_is_not_searched() -> None:
    base = Found({}, 0.1, 0.5)
    found = search(LAYERS, base, Limits(0.2, 0.6), "kl", lambda _: pytest.fail("it validates"), lambda _: None)
    assert not found.reverted


@pytest.mark.parametrize("seed", range(8))
def test_a_knapsack_holds_the_most(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.random(10), rng.integers(0, 50, 10) * 1.0
    capacity = 64.0  # of which the parts are whole numbers, so that none is rounded
    found = knapsack(list(values), list(weights), capacity)
    each = [[i for i in range(10) if mask >> i & 1] for mask in range(1 << 10)]
    best = max(values[items].sum() for items in each if weights[items].sum() <= capacity)
    assert weights[sorted(found)].sum() <= capacity and values[sorted(found)].sum() == pytest.approx(best)
    assert knapsack(list(values), list(weights), 0.0) == {i for i in range(10) if weights[i] == 0}


# name, loss, seconds saved: the greedy order by loss for each second is a, b, c; b and c together lose more than a.
COSTLY = [Priced("a", 0.4, 3e-3), Priced("b", 0.3, 2.5e-3), Priced("c", 0.29, 2.5e-3), Priced("d", 0.01, 4e-3)]


def test_within_a_latency_the_layers_that_lose_most_go_back() -> None:
    assert {p.name for p in within_latency(COSTLY, 5e-3)} == {"b", "c"}
    assert {p.name for p in within_latency(COSTLY, 9e-3)} == {"a", "b", "c"}
    assert {p.name for p in within_latency(LAYERS, 0.0)} == {"slow"}


@pytest.mark.parametrize(
    ("checked", "reverted"),
    [
        # What is fast enough keeps the drop too: taken, though less would have to go back for the drop alone.
        ([(0.2, 15e-3)], {"a", "b", "c"}),
        # It drops too much: what keeps the drop and saves the most seconds, however long it takes.
        ([(0.6, 15e-3), (0.1, 18e-3)], {"a", "b", "c"}),
        # It takes longer than expected, and nothing is faster and keeps the drop.
        ([(0.2, 17e-3), (0.1, 17e-3)], {"a", "b", "c"}),
        # Nothing keeps the drop: all in float.
        ([(0.6, 15e-3), (0.6, 18e-3)], {"a", "b", "c", "d"}),
    ],
)
def test_a_latency_is_kept_as_far_as_the_drop_allows(checked: list[tuple[float, float]], reverted: set[str]) -> None:
    asked: list[set[str]] = []

    def validate(kept) -> tuple[float, float]:
        asked.append(set(kept))
        return checked[len(asked) - 1]

    better: list[Found] = []
    found = search(COSTLY, Found({}, 1.0, 6e-3), Limits(0.5, 15.5e-3), "kl", validate, better.append)
    assert set(found.reverted) == reverted and len(asked) == len(checked) and better[-1] is found
    assert asked[0] == {"a", "b", "c"}, "the most loss in the 9.5 ms that may be given up"


def test_only_layers_that_8_bits_make_slower_help_a_latency() -> None:
    base, limits = Found({}, 0.1, 2e-3), Limits(0.2, 1.5e-3)
    for seconds, reverted in ((1e-3, {"slow"}), (1.9e-3, set())):
        found = search(LAYERS, base, limits, "kl", lambda _, s=seconds: (0.1, s), lambda _: None, slower(LAYERS))
        assert set(found.reverted) == reverted
    assert search(LAYERS, base, limits, "kl", lambda _: pytest.fail("it validates"), lambda _: None) is base


# -- compiled ----------------------------------------------------------------------------------------------------------


def samples() -> list[dict[str, np.ndarray]]:
    with np.load(DIGITS / "digits.npz") as file:
        return [{"image": file["image"][i : i + 1]} for i in range(32)]


RECIPE = Recipe(calibrate=samples())


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The digits network within half of what it loses in 8 bits, measured as its relative error."""
    folder = tmp_path_factory.mktemp("budget")
    with oc.compile(DIGITS / "digits.onnx", output=folder / "a.opcel", precision="int8", recipe=RECIPE) as model:
        full = model.report["quantization"]["accuracy"]["relative_l2"]
    budget = Budget(full / 2, "sqnr", max_latency=1e-9, sensitivity=folder / "digits.sensitivity")
    compile_within(DIGITS / "digits.onnx", budget, output=folder / "a.opcel", recipe=RECIPE).close()
    return folder, folder / "a.opcel"


def test_layers_go_back_until_the_drop_is_met(tight: tuple[Path, Path]) -> None:
    told = json.loads((tight[1] / "report.json").read_text())["quantization"]
    budget = told["budget"]
    assert budget["met"] and budget["validations"] <= 3 and not budget["ended"] and budget["latency_met"] is False
    names = {row["name"] for row in budget["reverted"]}
    kept = {row["name"]: row["reason"] for row in told["rows"] if row["scheme"] == "float"}
    assert names and names <= set(kept) and all("saves" in kept[n] or "slower" in kept[n] for n in names)
    known = json.loads((tight[0] / "digits.sensitivity").read_text())
    assert set(known["layers"]) == set(known["seconds"]) == {row["name"] for row in told["rows"]}
    assert budget["latency"] in known["runs"].values()


def test_what_was_measured_before_gives_the_same_artifact(tight: tuple[Path, Path], tmp_path: Path) -> None:
    before = (tight[0] / "digits.sensitivity").read_bytes()
    told = json.loads((tight[1] / "report.json").read_text())["quantization"]["budget"]
    budget = Budget(told["max_drop"], "sqnr", max_latency=1e-9, sensitivity=tight[0] / "digits.sensitivity")
    compile_within(DIGITS / "digits.onnx", budget, output=tmp_path / "b.opcel", recipe=RECIPE).close()
    assert (tight[0] / "digits.sensitivity").read_bytes() == before
    for name in ("model.so", "weights.bin", "manifest.json", "report.json"):
        assert (tmp_path / "b.opcel" / name).read_bytes() == (tight[1] / name).read_bytes()


@pytest.mark.parametrize("how", ["interrupted", "out of time"])
def test_a_search_that_is_ended_leaves_the_best_so_far(how: str, tmp_path: Path) -> None:
    metric = "sqnr"
    if how == "interrupted":
        (tmp_path / "stop.py").write_text("def stop(wants, gots):\n    raise KeyboardInterrupt\n")
        metric = f"{tmp_path / 'stop.py'}:stop"
    budget = Budget(1e-9, metric, seconds=1e-9 if how == "out of time" else None)
    with compile_within(DIGITS / "digits.onnx", budget, output=tmp_path / "c.opcel", recipe=RECIPE) as model:
        told = model.report["quantization"]["budget"]
        assert told["ended"] == how and told["drop"] is None and not told["met"]
        assert next(iter(model.run(samples()[0]).values())).shape == (1, 10)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir() and p.name != "__pycache__"] == ["c.opcel"]


def test_the_exported_model_is_that_of_the_best_artifact(tmp_path: Path) -> None:
    """The second candidate is compiled, but the search ends before it is known to be better."""
    (tmp_path / "drops.py").write_text(
        "found = [1.0, 0.5]\n\ndef drop(wants, gots):\n    if not found:\n        raise KeyboardInterrupt\n"
        "    return found.pop(0)\n"
    )
    export = tmp_path / "apart" / "model.onnx"
    export.parent.mkdir()
    budget = Budget(0.4, f"{tmp_path / 'drops.py'}:drop")
    made = compile_within(DIGITS / "digits.onnx", budget, output=tmp_path / "e.opcel", recipe=RECIPE, export_qdq=export)
    with made as model:
        told = model.report["quantization"]
    assert told["budget"]["ended"] == "interrupted" and told["budget"]["validations"] == 3
    assert 0 < told["quantized"] < told["layers"]
    assert integer_layers(export) == told["quantized"] and [p.name for p in export.parent.iterdir()] == ["model.onnx"]


def integer_layers(path: Path) -> int:
    """The products of an ONNX model whose weights are dequantized."""
    nodes = onnx.load(path).graph.node
    codes = {o for n in nodes if n.op_type == "DequantizeLinear" for o in n.output}
    return sum(n.op_type in ("Conv", "MatMul", "Gemm") and n.input[1] in codes for n in nodes)


def test_a_budget_needs_data(tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="a budget is kept on data"):
        compile_within(DIGITS / "digits.onnx", Budget(0.1), output=tmp_path / "d.opcel")
