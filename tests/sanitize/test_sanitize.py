"""A few kernels between guard pages and under sanitizers, run by eight threads."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def has(library: str) -> bool:
    if shutil.which("gcc") is None:
        return False
    found = subprocess.run(["gcc", f"-print-file-name={library}"], capture_output=True, text=True).stdout.strip()
    return os.path.isabs(found)


@pytest.mark.parametrize(("mode", "library"), [("plain", ""), ("address", "libasan.so"), ("thread", "libtsan.so")])
def test_runtime_and_kernels(mode: str, library: str) -> None:
    if library and not has(library):
        pytest.skip(f"gcc has no {library} here")
    command = [sys.executable, "-m", "tests.sanitize", mode, "--seconds", "1", "--graphs", "5", "--networks", "mlp"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("runs") == 2
