"""Builds the source distribution, from it the wheel, installs that in a fresh environment, and checks there that it
holds what the checkout holds and works without it.

The source distribution comes first, so that neither what it lacks nor what an earlier build left behind can hide.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "opcel_compiler"
# What must travel: for each folder of the checkout the files that the installed compiler reads.
SHIPPED = {"csrc": ("*.h", "*.cpp", "*.c", "*.yaml"), "targets": ("*.py", "*.yaml"), "passes": ("*.py",)}

IMPORT_ALL = f"""
import importlib, pathlib, sys
import {PACKAGE}
home = pathlib.Path({PACKAGE}.__file__).parent
assert home.is_relative_to(sys.prefix), f"imported from {{home}}, not from the wheel"
links = [str(path) for path in home.rglob("*") if path.is_symlink()]
assert not links, links
names = []
for path in sorted([*home.rglob("*.py"), *home.rglob("*.so")]):
    assert (path.parent / "__init__.py").exists(), f"{{path}} lies in no package"
    stem = path.name.partition(".")[0]
    parts = path.parent.relative_to(home.parent).parts
    names.append(".".join(parts if stem == "__init__" else (*parts, stem)))
assert "{PACKAGE}.runtime._runtime" in names, "the extension module is missing"
for name in names:
    if not name.endswith(".__main__"):
        importlib.import_module(name)
from opcel_compiler.targets import list_targets, load_target
for name in list_targets():
    load_target(name)
print(f"imported {{len(names)}} modules and read {{len(list_targets())}} targets from {{home}}")
"""


def run(*command: str | Path, cwd: Path) -> None:
    subprocess.run([str(part) for part in command], cwd=cwd, check=True)


def missing(wheel: Path) -> list[str]:
    """The files of SHIPPED that the wheel lacks."""
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    wanted = [
        f"{PACKAGE}/{path.relative_to(ROOT).as_posix()}"
        for folder, patterns in SHIPPED.items()
        for pattern in patterns
        for path in sorted((ROOT / folder).rglob(pattern))
    ]
    return [name for name in [*wanted, f"{PACKAGE}/py.typed"] if name not in packed]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
        (wheel,) = folder.glob("*.whl")
        lacking = missing(wheel)
        if lacking:
            sys.exit(f"{wheel.name} lacks {', '.join(lacking)}")
        run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
        python = folder / "venv" / "bin" / "python"
        run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel, cwd=folder)
        script = folder / "import_all.py"
        script.write_text(IMPORT_ALL, encoding="utf-8")
        run(python, script, cwd=folder)
        for command in ("opcel", "opcel-compile"):
            run(folder / "venv" / "bin" / command, "--help", cwd=folder)


if __name__ == "__main__":
    main()
