"""The thread pool alone: several callers, pools of one to five threads, on all CPUs and on one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .conftest import CSRC, HERE


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    result = tmp_path_factory.mktemp("pool") / "pool"
    flags = [
        "-std=c++17",
        "-O2",
        "-fno-exceptions",
        "-fno-rtti",
        "-Wall",
        "-Wextra",
        "-Werror",
        f"-I{CSRC}",
        "-pthread",
    ]
    source = tmp_path_factory.mktemp("pool") / "pool.o"
    subprocess.run(["g++", *flags, "-c", str(HERE / "pool.cpp"), "-o", str(source)], check=True)
    subprocess.run(["gcc", str(source), "-o", str(result), "-pthread"], check=True)
    return result


@pytest.mark.parametrize("cpus", ["all", "one"])
def test_every_task_is_done_once(program: Path, cpus: str) -> None:
    one_cpu = {min(os.sched_getaffinity(0))}
    result = subprocess.run(
        [str(program)],
        preexec_fn=(lambda: os.sched_setaffinity(0, one_cpu)) if cpus == "one" else None,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.splitlines() == [f"threads {threads} wrong 0" for threads in range(1, 6)]
