"""benchmarks.performance and its page: the arithmetic by hand, and one run on a small network."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from benchmarks import artifacts, choices, export, figures, performance, performance_page
from benchmarks.artifacts import Artifacts, Network, Skipped
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.program import Kernel
from opcel_compiler.search.tune import Found

from .builder import Net


def engine(name: str, p50: float, speedup: float | None = None, **more: Any) -> dict[str, Any]:
    known = {"engine": name, "title": name.upper(), "p50_s": p50, "p95_s": 2 * p50, "p99_s": 3 * p50, **more}
    return known if speedup is None else {**known, "speedup": speedup}


def row(name: str, ratio: float, **more: Any) -> dict[str, Any]:
    engines = [engine("opcel", 0.010, within=True), engine("ort", 0.02, ratio + 1), engine("ov", 0.03, ratio)]
    return {"network": name, "engines": engines, "ratio": ratio, "floor_share": 0.5, **more}


def test_the_best_peer_is_the_fastest() -> None:
    measured = row("net", 1.25)
    best = figures.best_peer(measured)
    assert best is not None and best["engine"] == "ov" and figures.ratio(measured) == 1.25
    assert figures.tail_ratio(measured) == pytest.approx(2.0)  # 0.06 of ORT over 0.03 of ours
    alone = {"engines": [engine("opcel", 1.0), {"engine": "ort", "title": "ORT", "error": "cannot"}]}
    assert figures.best_peer(alone) is None and figures.ratio(alone) is None and figures.tail_ratio(alone) is None


def test_the_mean_is_capped_and_leaves_the_smallest_network_out() -> None:
    found = figures.overall({"a": 8.0, "b": 0.5, "mlp": 0.1})
    assert found == {"geomean": pytest.approx(1.0), "of": 2, "worst": "b", "worst_ratio": 0.5}
    assert figures.overall({"mlp": 1.5})["geomean"] == pytest.approx(1.5)
    assert figures.overall({}) == {}
    with pytest.raises(ValueError, match="no values"):
        figures.geometric_mean([])


def test_the_bytes_of_a_step_are_those_its_kernels_read() -> None:
    report = {"kernels": [{"weight_bytes": 400}, {"weight_bytes": 20}], "memory": {"weights_bytes": 10_000}}
    assert figures.decode_bytes(report, 3, 5) == 428


def test_rows_of_one_network_are_told_apart() -> None:
    options: dict[str, Any] = {"precision": "bf16", "state": ("past_*:9",), "small": True, "batch": 8}
    assert figures.label({"network": "net"}) == "net"
    assert figures.label({"network": "net", **options}) == "net batch 8 bf16 state small"


def run_of(*rows: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"sections": {"fp32-2t": {"rows": list(rows), **facts}}}


PAGE = "Head\n\n<!-- begin fp32-2t -->\nstale\n<!-- end fp32-2t -->\n\nBy hand.\n"


def test_the_page_shows_each_run_and_the_median() -> None:
    runs = [
        run_of(row("net", ratio), row("b", 1.0), geomean=ratio, of=2, worst="b", worst_ratio=ratio / 2)
        for ratio in (1.5, 1.1, 1.3)
    ]
    del runs[0]["sections"]["fp32-2t"]["rows"][1]
    page = performance_page.fill(PAGE, runs)
    assert page.startswith("Head\n\n") and page.endswith("<!-- end fp32-2t -->\n\nBy hand.\n") and "stale" not in page
    lines = [line for line in page.splitlines() if line.startswith("| ")]
    assert (
        lines[0].startswith("| network | OPCEL P50 / P95 / P99 ms | ORT ")
        and "| run 3 | median | of the floor" in lines[0]
    )
    assert lines[1].split(" | ")[1] == "10.00 / 20.00 / 30.00"
    assert lines[1].endswith("| 1.50 | 1.10 | 1.30 | **1.30** | 50% | yes |")
    assert lines[2].endswith("| 1.00 | 1.00 | - | **1.00** | 50% | yes |")
    assert (
        "Geometric mean of 2 rows, each ratio capped at 2: 1.500, 1.100, 1.300; median 1.300. Worst: b, 0.55." in page
    )
    assert performance_page.fill(page, runs) == page


def test_a_run_of_some_networks_has_no_mean_of_all() -> None:
    whole = run_of(row("net", 1.2), row("b", 1.2), geomean=1.2, of=2, worst="b", worst_ratio=1.2)
    part = run_of(row("net", 1.8), geomean=1.8, of=1, worst="net", worst_ratio=1.8)
    page = performance_page.fill(PAGE, [whole, part])
    assert "| 1.20 | 1.80 | **1.50** |" in page
    assert "Geometric mean of 2 rows, each ratio capped at 2: 1.200; median 1.200. Worst: b, 1.20." in page


def test_what_was_not_measured_says_so() -> None:
    assert "Not measured: no bf16 here." in performance_page.fill(PAGE, [run_of(skipped="no bf16 here")])
    failed = {"network": "net", "engines": [], "error": "cannot | be"}
    assert "| cannot / be |" in performance_page.fill(PAGE, [run_of(failed)])
    with pytest.raises(ValueError, match="no run has the section fp32-2t"):
        performance_page.fill(PAGE, [{"sections": {}}])
    with pytest.raises(ValueError, match="not closed"):
        performance_page.fill("<!-- begin fp32-2t -->\n", [run_of(row("net", 1.0))])


def test_the_table_of_compiles() -> None:
    sizes = {"artifact_bytes": 3e6, "model_bytes": 2e6, "transformed_bytes": 1e6, "engines": []}
    rows = [{"network": "net", "cold_s": cold, "warm_s": 0.5, **sizes} for cold in (9.0, 4.0, 5.0)]
    text = performance_page.section("compile", [{"rows": [r]} for r in rows])
    assert text.splitlines()[-1] == "| net | 5.0 | 0.50 | 3.0 | 2.0 | 1.0 |"


def test_the_table_of_small_calls() -> None:
    def run(ratio: float) -> dict[str, Any]:
        engines = {"opcel": {"p50_us": 2.0, "p99_us": 4.0}, "ort": {"p50_us": 2 * ratio, "p99_us": 9.0}}
        facts = {"ratios": {"opcel/ort": ratio}, "engines": engines}
        return {"rows": [{"network": "mlp", "threads": 2, "tiny": facts, "engines": []}]}

    text = performance_page.section("tiny", [run(3.0), run(1.0), run(2.0)])
    assert text.splitlines()[-1] == ("| 2 | opcel | ort | 2.00 / 4.00 | 4.00 / 9.00 | 3.00, 1.00, 2.00 | **2.00** |")


def test_a_row_that_is_wrong_or_missing_fails_the_run() -> None:
    assert performance.is_good(row("net", 1.0))
    assert performance.is_good({"engines": [], "error": "skipped: no such option"})
    assert not performance.is_good({"engines": [], "error": "cannot be compiled"})
    assert not performance.is_good({"engines": [engine("opcel", 1.0, within=False)]})
    assert performance.is_good({"engines": [engine("opcel", 1.0, within=True), engine("ort", 1.0, 1.0, within=False)]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("networks")
    net = Net("small")
    net.output("y", net("Relu", net("MatMul", net.input("x", 4, 32), net.weight(32, 16))))
    onnx.save(net.model(), path / "small.onnx")
    np.savez(path / "small.npz", x=np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32))
    return path


def test_an_artifact_is_compiled_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, network = Artifacts(tmp_path), Network(folder, "small")
    path, report = kept.compiled(network)
    assert report["memory"]["weights_by_packing"] and path.is_dir()
    monkeypatch.setattr(artifacts.opcel_compiler, "compile", None)
    assert kept.compiled(network) == (path, report) == Artifacts(tmp_path).compiled(network)
    assert "/" not in kept.path(Network(folder, "small", options=(("state", ("a/*=b_*:4",)),))).name
    other = Network(folder, "small", options=(("no_such", True),))
    assert kept.path(other) != path
    monkeypatch.undo()
    with pytest.raises(Skipped, match="no option no_such"):
        kept.compiled(other)


def test_a_run_writes_its_sections_and_keeps_the_others(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "performance-1.json"
    file.write_text(json.dumps({"sections": {"batch": {"rows": []}}}))
    command = [sys.executable, "-m", "benchmarks.performance", "small", "--networks", str(folder), "--json", str(file)]
    options = ["--only", "fp32-1t", "--rounds", "1", "--block", "0.001", "--work", str(tmp_path / "work")]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, cwd=Path(export.__file__).parents[1], check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ratio = the best peer's time / ours" in done.stdout and "-- fp32-1t" in done.stdout
    facts = json.loads(file.read_text())
    assert set(facts["sections"]) == {"batch", "fp32-1t"}
    (found,) = facts["sections"]["fp32-1t"]["rows"]
    peers = {e["engine"]: e for e in found["engines"] if "speedup" in e}
    assert found["threads"] == 1 and found["weights"] == "resident"
    assert found["ratio"] == min(e["speedup"] for e in peers.values()) == peers[found["best"]]["speedup"]
    assert facts["sections"]["fp32-1t"]["geomean"] == pytest.approx(min(2, found["ratio"]))
    wrong = subprocess.run(
        [*command, "--only", "fp64"], capture_output=True, text=True, cwd=Path(export.__file__).parents[1], check=False
    )
    assert wrong.returncode == 2 and "no section is called fp64" in wrong.stderr


def test_choices_are_summed_over_a_network() -> None:
    def found(chosen: float, best: float, count: int) -> Found:
        return Found(Kernel("gemm", Graph("g"), [], []), "text", count, chosen, best, "gemm", {"panel": 64}, 3)

    row = choices.network_row("net", [found(1.0, 1.0, 10), found(1.1, 1.0, 2)])
    assert (row["chosen_s"], row["best_s"], row["kernels"]) == (pytest.approx(12.2), 12.0, 2)
    assert row["worst"] == pytest.approx(1.1) and [o["gain"] for o in row["over"]] == [pytest.approx(1.1)]
    assert row["over"][0]["seconds"] == pytest.approx(0.2)
    assert choices.is_good(row)
    assert not choices.is_good(choices.network_row("net", [found(1.0, 1.0, 100), found(1.2, 1.0, 1)]))
    assert not choices.is_good(choices.network_row("net", [found(1.1, 1.0, 1)]))
    assert choices.is_good(choices.network_row("net", []))
