"""A sample of ONNX's backend test suite, and the judge that the whole run relies on."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.conformance.__main__ import verdict_of
from benchmarks.conformance.cases import Case, load_cases, operator_of
from benchmarks.conformance.engines import run_ort
from benchmarks.conformance.judge import wrong
from benchmarks.conformance.table import Row, Verdict, markdown, read_rows, write_rows
from benchmarks.conformance.workers import run_jobs

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "conformance.json"
SAMPLE = 40


def small_case(op: str = "Relu", want: float = 2.0, dtype: int = TensorProto.FLOAT) -> Case:
    x, y = (helper.make_tensor_value_info(n, dtype, [3]) for n in "xy")
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], "small", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    given = np.full(3, 2.0).astype(helper.tensor_dtype_to_np_dtype(dtype))
    return Case("small", "node", 1e-3, 1e-7, None, (model, [([given], [np.full(3, want).astype(given.dtype)])]))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (np.full(3, 2.001, np.float32), None),
        (np.full(3, 2.1, np.float32), "Not equal to tolerance"),
        (np.full((1, 3), 2.0, np.float32), "incorrect shape"),
        (np.full(3, 2.0), "float32"),
        (np.full(3, np.nan, np.float32), "nan"),
    ],
)
def test_outputs_are_judged_by_the_suites_rules(value: np.ndarray, why: str | None) -> None:
    case = small_case()
    inputs, want = case.data_sets[0]
    found = wrong(case, inputs, want, [value])
    assert found is None if why is None else why in (found or "")


def test_a_random_operator_is_judged_by_its_distribution() -> None:
    case = next(iter(load_cases(lambda name: name == "test_training_dropout_mask")))
    inputs, want = case.data_sets[0]
    rng = np.random.default_rng(3)
    kept = rng.random(want[1].shape) >= float(inputs[1])
    scaled = np.where(kept, inputs[0] / (1 - inputs[1]), 0).astype(np.float32)
    assert wrong(case, inputs, want, [scaled, kept]) is None
    assert wrong(case, inputs, want, [scaled * 2, kept]) is not None
    everything = np.ones_like(kept)
    assert "standard deviations" in (
        wrong(case, inputs, want, [(inputs[0] / (1 - inputs[1])).astype(np.float32), everything]) or ""
    )


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.BFLOAT16])
def test_other_engines_are_judged_too(dtype: int) -> None:
    assert run_ort(small_case("Identity", dtype=dtype)).status == "pass"
    assert run_ort(small_case("Identity", want=3.0, dtype=dtype)).status == "wrong"
    assert run_ort(small_case("NoSuchOperator")).status == "refused"


def work(job: str) -> str:
    if job == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "hang":
        time.sleep(60)
    return job.upper()


def test_crashes_and_hangs_end_only_their_case() -> None:
    jobs = ["a", "crash", "b", "hang", "c"]
    ended = {job: (result, failure) for job, result, failure in run_jobs(jobs, work, 2, 1.0)}
    assert {job: ended[job] for job in "abc"} == {"a": ("A", ""), "b": ("B", ""), "c": ("C", "")}
    assert ended["crash"] == (None, "the process ended: SIGKILL")
    assert ended["hang"] == (None, "not done after 1 seconds")


def test_rows_and_page(tmp_path: Path) -> None:
    rows = [
        Row("test_a", "node", "Relu", {"opcel": Verdict("native"), "ort": Verdict("pass")}),
        Row("test_b", "node", "Split", {"opcel": Verdict("refused", "x: 'y' has none"), "ort": Verdict("wrong")}),
    ]
    write_rows(tmp_path / "rows.json", rows)
    again = read_rows(tmp_path / "rows.json")
    assert [(r.status, r.why, r.verdicts["ort"].status) for r in again.values()] == [
        ("native", "", "pass"),
        ("refused", "x: 'y' has none", "wrong"),
    ]
    page = markdown(list(again.values()))
    assert "| all | 2 | 1 | 0 | 0 | 1 | 0 | 1 |" in page and "| 1 | … has none | Split |" in page


def test_the_suite_is_whole() -> None:
    cases = load_cases()
    assert len(cases) >= 2000 and len({c.name for c in cases}) == len(cases)
    operators = operator_of(cases)
    assert operators["test_averagepool_1d_default"] == "AveragePool"
    assert operators["test_sce_mean_expanded"] == operators["test_sce_mean"] == "SoftmaxCrossEntropyLoss"
    assert all(isinstance(c.model, onnx.ModelProto) for c in cases[:3])


@pytest.mark.skipif(not RESULTS.exists(), reason="no results are stored")
def test_a_sample_is_as_good_as_stored() -> None:
    native = sorted(name for name, row in read_rows(RESULTS).items() if row.status == "native")
    names = set(random.Random(7).sample(native, min(SAMPLE, len(native))))
    cases = load_cases(lambda name: name in names)
    found = {case.name: verdict_of((case, "opcel")) for case in cases}
    assert {name: verdict for name, verdict in found.items() if verdict.status != "native"} == {}
