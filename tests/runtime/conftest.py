"""Artifacts built by hand around tests/runtime/program.cpp."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opcel_compiler.runtime.integrity import stamped

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
CXX = ["g++", "-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti"]
CXX += ["-Wall", "-Wextra", "-Werror", f"-I{CSRC}", "-c"]

MakeArtifact = Callable[..., Path]


@pytest.fixture(scope="session")
def make_artifact(tmp_path_factory: pytest.TempPathFactory) -> MakeArtifact:
    """make_artifact(*defines, weights=b"", **manifest): the folder of a new artifact; libraries are built once."""
    runtime = tmp_path_factory.mktemp("runtime") / "runtime.o"
    subprocess.run([*CXX, str(CSRC / "runtime/runtime.cpp"), "-o", str(runtime)], check=True)
    built: dict[tuple[str, ...], Path] = {}

    def build(defines: tuple[str, ...]) -> Path:
        if defines not in built:
            folder = tmp_path_factory.mktemp("build")
            program, library = folder / "program.o", folder / "model.so"
            flags = [f"-D{define}" for define in defines]
            subprocess.run([*CXX, *flags, str(HERE / "program.cpp"), "-o", str(program)], check=True)
            objects = [str(program), str(runtime)]
            subprocess.run(["gcc", "-shared", "-Wl,--no-undefined", *objects, "-o", str(library), "-lm"], check=True)
            built[defines] = library
        return built[defines]

    def make(*defines: str, weights: bytes = b"", **manifest: Any) -> Path:
        folder = tmp_path_factory.mktemp("artifact")
        if weights:
            defines = (*defines, f"WEIGHTS={len(weights)}")
            (folder / "weights.bin").write_bytes(weights)
            manifest["weights"] = {"file": "weights.bin", "bytes": len(weights)}
        shutil.copy(build(defines), folder / "model.so")
        facts = {
            "format": 1,
            "name": "add",
            "inputs": [],
            "outputs": [],
            "modules": [{"kind": "cpu", "file": "model.so"}],
        }
        (folder / "manifest.json").write_text(json.dumps(stamped(facts | manifest)))
        (folder / "report.json").write_text('{"kernels": 2}')
        return folder

    return make
