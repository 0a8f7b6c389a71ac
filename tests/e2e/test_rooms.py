"""The import rules reach every room: one that no contract names would be free to import anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[2]
ABOVE_ALL = {
    "backend",
    "regions",
    "report",
    "proof",
    "references",
    "locate",
    "compilation",
    "calibration",
    "budget",
    "weights",
    "driver",
    "check",
    "cli",
}
IMPORTED_BY_ALL = {"errors", "version"}


def test_every_room_has_its_import_rule() -> None:
    package = ROOT / "opcel_compiler"
    rooms = {path.parent.name for path in package.glob("*/__init__.py")} | {
        path.stem for path in package.glob("*.py") if path.stem not in ("__init__", "__main__")
    }
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = {contract["id"] for contract in config["tool"]["importlinter"]["contracts"]}
    assert rooms - ABOVE_ALL - IMPORTED_BY_ALL <= contracts, "state in pyproject.toml what the new room may import"
    assert not contracts & ABOVE_ALL
