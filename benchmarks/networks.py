"""Networks as files to measure: NAME.onnx with NAME.npz beside it, feeds by input name."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def names_in(folder: Path, wanted: Sequence[str]) -> list[str]:
    """`wanted`, or all the networks of a folder. Raises SystemExit that names what is missing."""
    names = list(wanted) or sorted(p.stem for p in folder.glob("*.onnx") if p.with_suffix(".npz").exists())
    missing = [name for name in names if not (folder / f"{name}.onnx").exists() or not feeds_of(folder, name).exists()]
    if missing or not names:
        what = ", ".join(missing) or "any network"
        raise SystemExit(f"{folder} does not hold {what}, as NAME.onnx and NAME.npz; see python -m benchmarks.export")
    return names


def feeds_of(folder: Path, name: str) -> Path:
    return folder / f"{name}.npz"


def machine_facts() -> dict[str, Any]:
    """The CPU, and the versions of what was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    facts: dict[str, Any] = {"cpu": models[0] if models else platform.machine(), "cpus": os.cpu_count() or 0}
    for package in ("onnxruntime", "openvino"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    return facts


def keep(file: Path | None, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows of figures as JSON, with the machine and the date; nothing where no file is given."""
    if file:
        facts = {"rows": list(rows), "machine": machine_facts(), "date": time.strftime("%Y-%m-%d %H:%M")}
        file.write_text(json.dumps(facts, indent=1) + "\n")
