"""A budget search that a real SIGINT ends, sent to the process group as a terminal sends it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from opcel_compiler.runtime import load, verify

DIGITS = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    with np.load(DIGITS / "digits.npz") as file:
        np.savez(path, image=file["image"][:32, None])
    return path


def interrupted(folder: Path, data: Path, step: str, occurrence: int, cache: bool) -> tuple[int, list[str]]:
    """The exit status and the lines on the standard error of a search that is interrupted when `step` is told.

    A process that a shell started in the background ignores SIGINT, and so do its children unless they are told."""
    command = [sys.executable, "-m", "opcel_compiler.cli", "compile", DIGITS / "digits.onnx", "-o", folder / "a.opcel"]
    command += ["--precision", "int8", "--calibrate", data, "--max-drop", "1e-9", "--metric", "sqnr"]
    (folder / "tmp").mkdir()
    env = {**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONUNBUFFERED": "1"}
    if not cache:
        env["OPCEL_CACHE"] = str(folder / "tmp" / "cache")
    lines: list[str] = []
    with subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env,
        start_new_session=True, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as child:  # fmt: skip
        assert child.stderr is not None
        for line in child.stderr:
            lines.append(line.rstrip("\n"))
            if step in line and sum(step in told for told in lines) == occurrence:
                os.killpg(child.pid, signal.SIGINT)
    return child.returncode, lines


def left(folder: Path) -> list[str]:
    """What the search left, but for what the kernel cache and ONNX Runtime keep in the folder for temporary files."""
    kept = [p.name for p in (folder / "tmp").iterdir() if p.name.startswith("opcel")]
    return sorted(p.name for p in folder.iterdir() if p.name != "tmp") + kept


@pytest.mark.parametrize(
    ("step", "cache"), [("compiling kernels 0/", False), ("] calibrating", True), ("] planning", True)]
)
def test_before_there_is_an_artifact_nothing_is_left(step: str, cache: bool, data: Path, tmp_path: Path) -> None:
    status, lines = interrupted(tmp_path, data, step, 1, cache)
    # Python kills itself by the signal, which shells show as 130, where it met it in code that was made from text.
    assert status in (130, -signal.SIGINT) and lines[-1] == "opcel: error: interrupted"
    assert step in lines[-2] and all(line.startswith("[") or "note" in line for line in lines[:-1])
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("step", "occurrence"), [("] compiling in f32", 1), ("] measuring layers", 1), ("] planning", 2)]
)
def test_a_search_leaves_the_best_so_far(step: str, occurrence: int, data: Path, tmp_path: Path) -> None:
    status, lines = interrupted(tmp_path, data, step, occurrence, True)
    assert status == 0 and not any("error" in line for line in lines)
    assert left(tmp_path) == ["a.opcel"]
    verify(tmp_path / "a.opcel")
    budget = json.loads((tmp_path / "a.opcel" / "report.json").read_text())["quantization"]["budget"]
    assert budget["ended"] == "interrupted" and not budget["met"] and not budget["reverted"]
    with load(tmp_path / "a.opcel") as model, np.load(DIGITS / "digits.npz") as file:
        assert next(iter(model.run({"image": file["image"][:1]}).values())).shape == (1, 10)
