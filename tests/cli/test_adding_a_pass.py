"""docs/adding-a-pass.md, done literally: its files, its commands, what they print."""

from __future__ import annotations

import configparser
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOC = (ROOT / "docs/adding-a-pass.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
STATUS = {"--bisect": 6}
"""Commands with these options end with this status."""


def _tool(folder: Path, name: str, module: str) -> None:
    path = folder / name
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
    path.chmod(0o755)


def _install(folder: Path) -> None:
    """What `pip install -e .` leaves on the path: the metadata of the distribution, with its entry points."""
    config = configparser.ConfigParser(delimiters="=")
    config.read_string((folder / "pyproject.toml").read_text())
    project = config["project"]
    info = folder / f"{project['name'].strip(chr(34)).replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name'].strip(chr(34))}\nVersion: 0.1\n")
    points = config['project.entry-points."opcel_compiler.passes"']
    lines = [f"{name} = {module.strip(chr(34))}" for name, module in points.items()]
    (info / "entry_points.txt").write_text("[opcel_compiler.passes]\n" + "\n".join(lines) + "\n")


def _like(shown: list[str], printed: str) -> bool:
    """Whether `printed` is what is shown, in which `...` stands for anything."""
    pattern = re.escape("\n".join(shown).rstrip("\n")).replace(re.escape("..."), ".*")
    return re.fullmatch(pattern + r"\s*", printed, re.DOTALL) is not None


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for _, name, body in BLOCK.findall(DOC):
        if name:
            (tmp_path / name).write_text(body)
    (tmp_path / "bin").mkdir()
    _tool(tmp_path / "bin", "opcel", "opcel_compiler.cli")
    _tool(tmp_path / "bin", "pytest", "pytest")
    return tmp_path


def test_the_page_does_what_it_says(package: Path) -> None:
    paths = os.pathsep.join([str(package), str(ROOT)])
    env = {**os.environ, "PYTHONPATH": paths, "PATH": f"{package / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    env |= {"PYTEST_ADDOPTS": "-p no:cacheprovider", "PYTHONDONTWRITEBYTECODE": "1"}
    commands = 0
    for language, _, body in BLOCK.findall(DOC):
        if language != "console":
            continue
        for step in body.split("$ ")[1:]:
            command, *shown = step.splitlines()
            commands += 1
            if command.startswith("pip install"):
                _install(package)
                continue
            shell, out = ["bash", "-c", command], subprocess.PIPE
            done = subprocess.run(shell, cwd=package, env=env, stdout=out, stderr=subprocess.STDOUT, text=True)
            wanted = next((status for option, status in STATUS.items() if option in command), 0)
            assert done.returncode == wanted, f"{command}\n{done.stdout}"
            assert _like(shown, done.stdout), f"{command}\n{done.stdout}"
    assert commands >= 7


def test_a_broken_package_is_named(package: Path) -> None:
    _install(package)
    (package / "abs_of_square.py").write_text("import nothing_like_this\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), str(ROOT)])}
    command = [sys.executable, "-m", "opcel_compiler.cli", "opt", "example.txt", "--pipeline", "dead-code"]
    done = subprocess.run(command, cwd=package, env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "cannot load pass 'abs-of-square' of abs-of-square: No module named 'nothing_like_this'" in done.stderr
