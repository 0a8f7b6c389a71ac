"""The C interface: a program that knows only opcel.h, and what model.so depends on and exports."""

from __future__ import annotations

import subprocess
from pathlib import Path

from .conftest import CSRC, HERE, MakeArtifact


def test_a_c_program_runs_two_artifacts_on_one_pool(make_artifact: MakeArtifact, tmp_path: Path) -> None:
    program = tmp_path / "host"
    flags = ["-std=c99", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Werror", "-D_GNU_SOURCE"]
    subprocess.run(
        ["gcc", *flags, f"-I{CSRC / 'runtime'}", str(HERE / "host.c"), "-o", str(program), "-ldl"], check=True
    )
    artifacts = [str(make_artifact()), str(make_artifact("WEIGHTS=0"))]
    result = subprocess.run([str(program), *artifacts], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines() == [
        "allocations 2",
        "output 'd': no data given",
        "input 'a': element type int64 given, float32 expected",
        "symbols 1 N",
    ], result.stdout + result.stderr
    assert result.returncode == 0


def test_the_library_needs_only_the_c_library(make_artifact: MakeArtifact) -> None:
    library = str(make_artifact() / "model.so")
    lines = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout.splitlines()
    needed = {line.split("[")[1].rstrip("]").split(".so")[0] for line in lines if "(NEEDED)" in line}
    assert needed <= {"libc", "libm", "libpthread", "libgcc_s"}


def test_the_library_exports_one_symbol(make_artifact: MakeArtifact) -> None:
    library = str(make_artifact() / "model.so")
    names = subprocess.run(["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in names.splitlines()] == ["opcel_artifact_api"]
