"""A few kernels between guard pages and under sanitizers, run by eight threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .__main__ import FLAGS

ROOT = Path(__file__).resolve().parents[2]


def why_not(mode: str, folder: Path) -> str:
    """Why no program with the sanitizers of `mode` runs on this machine, or ""."""
    (folder / "empty.c").write_text("int main(void) { return 0; }\n")
    command = ["gcc", *FLAGS[mode].split(), str(folder / "empty.c"), "-o", str(folder / "empty")]
    for step in (command, [str(folder / "empty")]):
        try:
            done = subprocess.run(step, capture_output=True, text=True)
        except OSError as error:
            return str(error)
        if done.returncode != 0:
            return f"{Path(step[0]).name}: {(done.stderr.strip() or f'status {done.returncode}').splitlines()[0]}"
    return ""


@pytest.mark.parametrize("mode", FLAGS)
def test_runtime_and_kernels(mode: str, tmp_path: Path) -> None:
    if reason := why_not(mode, tmp_path):
        pytest.skip(f"{mode}: {reason}")
    command = [sys.executable, "-m", "tests.sanitize", mode, "--seconds", "1", "--graphs", "5", "--networks", "mlp"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("runs") == 2


def test_a_planted_overflow_is_caught(tmp_path: Path) -> None:
    if reason := why_not("address", tmp_path):
        pytest.skip(f"address: {reason}")
    (tmp_path / "bad.c").write_text("int main(int n, char **v) { int a[2] = {0}; (void)v; return a[n + 1]; }\n")
    command = ["gcc", *FLAGS["address"].split(), str(tmp_path / "bad.c"), "-o", str(tmp_path / "bad")]
    subprocess.run(command, check=True)
    assert subprocess.run([str(tmp_path / "bad")], capture_output=True).returncode != 0
