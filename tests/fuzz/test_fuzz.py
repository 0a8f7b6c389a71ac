"""Every fuzz target for a few executions; failures are kept, and blocks are counted."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest

from tests.fuzz import targets
from tests.fuzz.__main__ import NAMES
from tests.fuzz.loop import MAX_BYTES, Loop
from tests.fuzz.seeds import SEEDS
from tests.fuzz.tally import PAGE, RUNS, page

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", NAMES)
def test_strangers_input_is_refused_with_an_error_of_ours(name: str, tmp_path: Path) -> None:
    loop = Loop(name, 7, tmp_path, timeout=60)
    assert sum(len(data) <= MAX_BYTES[name] for data in islice(loop.steps(list(SEEDS[name]())), 400)) > 350
    assert loop.result.executions == 399
    assert not loop.result.failures


def test_a_failure_is_kept_once_for_each_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes) -> bool:
        if b"b" in data:
            raise IndexError("past the end")
        return True

    monkeypatch.setitem(targets.TARGETS, "text", broken)
    loop = Loop("text", 1, tmp_path)
    for _ in islice(loop.steps([b"a", b"b", b"ab"]), 50):
        pass
    assert list(loop.result.failures) == ["IndexError at elsewhere"]
    assert sorted(file.suffix for file in tmp_path.iterdir()) == ["", ".txt"]


def test_an_endless_execution_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(data: bytes) -> bool:
        while data:
            try:
                sum(range(1000))
            except Exception:
                pass
        return True

    monkeypatch.setitem(targets.TARGETS, "text", endless)
    loop = Loop("text", 1, tmp_path, timeout=0.1)
    assert not loop.execute(b"")
    loop.steps([b"a"]).__next__()
    loop.execute(b"a")
    assert [where.partition(" ")[0] for where in loop.result.failures] == ["Hang"]


def test_blocks_guide_the_search(tmp_path: Path) -> None:
    """A process of its own: the package is imported with its blocks marked."""
    command = [sys.executable, "-m", "tests.fuzz", "target", "--runs", "300", "--seed", "3", "--corpus", str(tmp_path)]
    command += ["--save", str(tmp_path / "found"), "--record", str(tmp_path / "runs.jsonl")]
    subprocess.run(command, cwd=ROOT, check=True)
    run = json.loads((tmp_path / "runs.jsonl").read_text())
    assert run["executions"] == 300
    assert not run["deaths"] and not run["failures"]
    assert 100 < run["blocks"] < run["of"]
    assert list((tmp_path / "target").iterdir())


def test_the_page_has_the_table_of_the_runs() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page(text, json.loads(RUNS.read_text(encoding="utf-8"))) == text
