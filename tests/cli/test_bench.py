"""`opcel bench` and its harness."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import Opcel
from onnx import TensorProto, helper

from opcel_compiler.bench import measure as harness
from opcel_compiler.bench.bounds import Bound, evaluated, step_times, symbol_sizes
from opcel_compiler.bench.engines import OPCEL, PEERS, Engine
from opcel_compiler.bench.machine import SIZES, Machine
from opcel_compiler.bench.measure import Pace, measure, ratios_by_round
from opcel_compiler.bench.turns import EngineError, Worker
from opcel_compiler.bench.worker import block
from opcel_compiler.codegen.cpu.build import CSRC


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "BLOCK_S", 0.001)


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def feeds_file(models: Path) -> Path:
    return models / "x.npz"


def test_figures_of_both_engines(opcel: Opcel, models: Path, artifact: Path, feeds_file: Path) -> None:
    result = opcel(
        "bench", artifact, "--model", models / "mlp.onnx", "--against", "ort", "--inputs", feeds_file, "--threads", 1,
        "--rounds", 3, "--price", "3.6", "--json",
    )  # fmt: skip
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    assert (facts["threads"], facts["rounds"]) == (1, 3)
    assert facts["reference"] == "ONNX Runtime, optimizations off"
    ours, theirs = facts["engines"]
    assert [ours["engine"], theirs["engine"]] == ["opcel", "ort"]
    for row in (ours, theirs):
        assert 0 < row["p50_s"] <= row["p95_s"] <= row["p99_s"]
        assert row["calls"] >= 9 and row["failures"] == 0 and row["within"] is True
        assert row["load_s"] > 0 and row["first_s"] > 0 and row["peak_bytes"] > 1 << 20
        # 3.6 dollars an hour are a thousandth a second: a million calls cost 1000 times their mean time.
        assert row["cost_per_million"] * row["per_second"] == pytest.approx(1000)
        assert [o["name"] for o in row["outputs"]] == ["y"]
    assert "ratio" not in ours
    assert 0 < theirs["ratio_low"] <= theirs["ratio"] <= theirs["ratio_high"]
    assert 0 < theirs["speedup_low"] <= theirs["speedup"] <= theirs["speedup_high"]
    assert (ours["weights"], "weights" in theirs) == ("map", False)


def test_rows_name_the_mode_of_the_weights(opcel: Opcel, artifact: Path, feeds_file: Path) -> None:
    result = opcel("bench", artifact, "--inputs", feeds_file, "--weights", "resident", "--rounds", 1, "--json")
    (ours,) = json.loads(result.out)["engines"]
    assert (result.code, ours["weights"]) == (0, "resident")


def test_the_summary_and_the_profile(opcel: Opcel, artifact: Path) -> None:
    result = opcel("bench", artifact, "--dim", "n=3", "--rounds", 1, "--profile")
    assert (result.code, result.err) == (0, "")
    assert "P50 " in result.out and " calls failed" in result.out and "Python's own included" in result.out
    head, names, first, *more = result.out.partition("profile     ")[2].splitlines()
    assert head.startswith("1 steps, ") and more == []
    assert names.split()[:3] == ["time", "share", "FLOP/s"]
    assert "100.0%" in first and first.endswith("gemm: gemm_0, relu_0")
    again = opcel("bench", artifact, "--dim", "n=3", "--rounds", 1, "--profile", "--streams", 3, "--json")
    facts = json.loads(again.out)
    assert facts["streams"]["count"] == 3 and facts["streams"]["per_second"] > 0
    (step,) = facts["steps"]
    assert step["flops"] == 2 * 3 * 8 * 5 + 2 * 3 * 5 and step["origin"] == ["gemm_0", "relu_0"]
    assert step["bytes"] >= 4 * (3 * 8 + 8 * 5 + 5 + 3 * 5)
    assert step["flops_per_s"] == pytest.approx(step["flops"] / step["seconds"])
    assert step["bound_share"] == pytest.approx(max(step["bound"].values()) / step["seconds"])


def test_an_engine_that_is_not_there_is_skipped(
    opcel: Opcel, models: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Engine("openvino", "OpenVINO", "no_such_package", PEERS["openvino"].open)
    monkeypatch.setitem(PEERS, "openvino", absent)
    result = opcel("bench", artifact, "--model", models / "mlp.onnx", "--against", "openvino", "--rounds", 1)
    assert result.code == 0
    assert result.err == "opcel: note: OpenVINO: skipped: the package no_such_package is not installed\n"
    assert "OpenVINO" not in result.out


@pytest.mark.parametrize(
    ("argv", "status", "message"),
    [
        (["--against", "ort"], 2, "--against needs --model"),
        (["--against", "tvm"], 2, "'tvm' is no engine; there are ort, ort-binding, openvino"),
        (["--price", "free"], 2, "'free' is no price"),
        (["--inputs", "x.npz", "--dim", "n=2"], 2, "--dim gives sizes to random inputs"),
        (["--inputs", "none.npz"], 1, "cannot read none.npz"),
        (["--dim", "k=2"], 1, "no input has a dimension 'k'"),
        (["--model", "other.onnx"], 1, "was not compiled from other.onnx"),
    ],
)
def test_an_error_is_one_line(
    opcel: Opcel, models: Path, artifact: Path, tmp_path: Path, argv: list[str], status: int, message: str
) -> None:
    (tmp_path / "other.onnx").write_bytes((models / "det.onnx").read_bytes())
    result = opcel("bench", artifact, *argv)
    assert (result.code, result.out) == (status, "")
    assert message in result.err and result.err.count("\n") == 1


def test_wrong_results_have_a_status_of_their_own(
    opcel: Opcel, models: Path, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = harness.reference_outputs

    def wrong(*args: Any) -> tuple[str, list[np.ndarray]]:
        engine, outputs = right(*args)
        return engine, [value + np.float32(0.5) for value in outputs]

    monkeypatch.setattr(harness, "reference_outputs", wrong)
    result = opcel("bench", artifact, "--model", models / "mlp.onnx", "--rounds", 1)
    assert result.code == 6
    assert "outputs   OUTSIDE the bound, largest error 0.5" in result.out


def test_whoever_has_no_turn_is_stopped(artifact: Path, feeds_file: Path) -> None:
    with Worker(OPCEL, artifact, feeds_file, 2) as worker:
        pid = worker._process.pid
        for _ in range(2):
            time.sleep(0.01)
            assert state(pid) == "T"
            assert len(worker.ask(calls=4)["seconds"]) == 4
        assert worker.ask(memory=True)["peak_bytes"] > 0
    assert not Path(f"/proc/{pid}").exists()


def test_stopped_workers_end_with_their_parent(artifact: Path, feeds_file: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from opcel_compiler.bench.engines import OPCEL; from opcel_compiler.bench.turns import Worker\n"
        "w = Worker(OPCEL, Path(sys.argv[1]), Path(sys.argv[2]), 1); print(w._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, artifact, feeds_file], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists() or state(pid) == "Z":
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("the worker outlived its parent")


def test_a_worker_that_dies_or_cannot_start_says_so(tmp_path: Path, models: Path, feeds_file: Path) -> None:
    with pytest.raises(EngineError, match=r"OPCEL: .*is not a compiled model"):
        Worker(OPCEL, tmp_path, feeds_file, 1)
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(EngineError, match="ONNX Runtime: "):
        Worker(PEERS["ort"], tmp_path / "noise.onnx", feeds_file, 1)
    with Worker(PEERS["ort"], models / "mlp.onnx", feeds_file, 1) as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match="ONNX Runtime was ended by signal 9"):
            worker.ask(calls=1)


def test_another_engine_that_fails_leaves_our_figures(artifact: Path, tmp_path: Path, feeds_file: Path) -> None:
    """A peer that cannot load the model has a row with the reason; the harness goes on."""
    node = helper.make_node("Frob", ["x"], ["y"], domain="com.example")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", k]) for n, k in (("x", 8), ("y", 5)))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.example", 1)]
    graph = helper.make_graph([node], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "frob.onnx")
    with np.load(feeds_file) as file:
        feeds = {"x": file["x"]}
    row = harness.Measured("ort", "ONNX Runtime")
    assert harness._open(PEERS["ort"], tmp_path / "frob.onnx", feeds_file, 1, row) is None
    assert row.error.startswith("ONNX Runtime: ")
    with pytest.raises(EngineError, match="needs the ONNX model"):
        measure(artifact, feeds, against=("ort",), threads=1, rounds=1)


def test_failed_calls_are_counted() -> None:
    calls = iter(range(10))

    def run() -> list[np.ndarray]:
        if next(calls) % 2:
            raise ValueError("odd\nmore")
        return []

    got = block(run, 5)
    assert (len(got["seconds"]), got["failures"]) == (3, 2) and "error" not in got

    def never() -> list[np.ndarray]:
        raise ValueError("never\nmore")

    assert block(never, 2) == {"seconds": [], "failures": 2, "error": "never"}


def test_ratios_are_taken_round_by_round() -> None:
    # Of the rounds' ratios 4, 1, 3, 2, 8 the median is 3, and 2 and 4 have a quarter of them beyond.
    assert ratios_by_round([4, 2, 9, 8, 8], [1, 2, 3, 4, 1]) == (2, 3, 4)
    assert ratios_by_round([6], [3]) == (2, 2, 2)


def test_the_pace_of_blocks_and_resident_weights(artifact: Path, feeds_file: Path) -> None:
    with np.load(feeds_file) as file:
        feeds = {"x": file["x"]}
    found = measure(artifact, feeds, threads=1, rounds=2, resident=True, pace=Pace(0.0, 5, 21))
    assert (found.rounds, found.ours.calls, found.ours.weights) == (5, 25, "resident")
    assert found.ours.p25_s <= found.ours.p50_s


def test_an_engine_has_its_own_environment(artifact: Path, feeds_file: Path) -> None:
    held = Engine("opcel", "OPCEL", OPCEL.module, OPCEL.open, {"SOME_LEVEL": "2"})
    with Worker(held, artifact, feeds_file, 1) as worker:
        variables = Path(f"/proc/{worker._process.pid}/environ").read_bytes().split(b"\0")
        assert b"SOME_LEVEL=2" in variables and any(v.startswith(b"PATH=") for v in variables)


def test_an_engine_of_another_precision_has_its_bound(models: Path, artifact: Path, feeds_file: Path) -> None:
    """OpenVINO in bf16 is far outside the bound for f32, and must be called within."""
    pytest.importorskip("openvino")
    with np.load(feeds_file) as file:
        feeds = {"x": file["x"]}
    found = measure(
        artifact, feeds, model=models / "mlp.onnx", against=("openvino-bf16", "openvino-avx2"), threads=1, rounds=1
    )
    assert [row.within for row in found.rows] == [True, True, True]
    assert PEERS["openvino-avx2"].environment == {"ONEDNN_MAX_CPU_ISA": "AVX2"}


def test_a_machine_has_a_peak_and_bandwidths() -> None:
    with Machine(1) as machine:
        first = machine.peak
        machine.sample()
        assert machine.peak >= first > 1e8
        assert machine.bandwidth(100) == machine.bandwidths[SIZES[0]] > 1e7
        assert machine.bandwidth(1 << 40) == machine.bandwidths[SIZES[-1]]
        assert machine.stream > 1e7
        machine.threads = 2
        assert machine.bandwidth(SIZES[0] + 2) == machine.bandwidths[SIZES[0]]


def test_the_peak_is_that_of_registers() -> None:
    """No multiply-add of the probe touches memory: it would measure the stack."""
    flags = ["-std=c++17", "-O2", "-fPIC", "-mavx2", "-mfma", f"-I{CSRC}", "-S", "-o", "-"]
    done = subprocess.run(["g++", *flags, CSRC / "bench/peak.cpp"], capture_output=True, text=True, check=True)
    products = [line for line in done.stdout.splitlines() if "vfmadd" in line and "ps\t" in line]
    assert len(products) >= 12 and not [line for line in products if "(" in line]


class _Machine(Machine):
    """2 GFLOP/s, and bytes/s that halve with each cache."""

    def __init__(self) -> None:
        self.threads, self._best = 1, 2e9
        self.__dict__["bandwidths"] = {size: 8e9 / 2**i for i, size in enumerate(SIZES)}


def test_bounds_by_hand() -> None:
    report = {
        "memory": {"weights_bytes": 9 << 20},
        "kernels": [{"step": 1, "name": "k", "family": "gemm", "origin": ["a"], "flops": "2*n", "bytes": "8*n + 800",
                     "weight_bytes": 800}],
        "regions": [{"step": 0, "origin": ["b"], "reason": "none"}],
    }  # fmt: skip
    region, kernel = step_times(report, [1e-3, 1e-5], {"n": 1000}, _Machine())
    assert (region.name, region.family, region.share) == ("region_0", "onnxruntime", None)
    # The weights, 9 MiB in all, come from memory at 1 GB/s, the 8000 other bytes from the first cache at 8 GB/s.
    assert kernel.bound == Bound(2000 / 2e9, 800 / 1e9 + 8000 / 8e9)
    assert kernel.share == pytest.approx(1.8e-6 / 1e-5) and kernel.bound.by == "memory"
    manifest = {"inputs": [{"name": "x", "shape": ["n", 3, "2*n"]}]}
    sizes = symbol_sizes(manifest, {"x": np.zeros((4, 3, 8), np.float32)})
    assert sizes == {"n": 4} and evaluated("n + 1", sizes) == 5 and evaluated(7, {}) == 7
