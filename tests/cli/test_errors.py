"""docs/errors.md against the exceptions that there are."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import opcel_compiler
from opcel_compiler.cli import EXIT_CODES, console
from opcel_compiler.errors import OpcelError

DOC = Path(__file__).resolve().parents[2] / "docs" / "errors.md"


def errors(of: type[OpcelError] = OpcelError) -> set[type[OpcelError]]:
    return {of}.union(*(errors(c) for c in of.__subclasses__() if c.__module__.startswith("opcel_compiler.")))


def table() -> dict[int, str]:
    rows = re.findall(r"^\| (\d+) \| .* \| (.*?) ?\|$", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    return {int(status): names for status, names in rows}


def test_every_exit_status_is_documented() -> None:
    for module in pkgutil.walk_packages(opcel_compiler.__path__, "opcel_compiler."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    rows, found = table(), errors()
    assert len(found) > 10
    for error in found:
        names = re.findall(r"`(\w+)`", rows[error.exit_code])
        assert error.__name__ in names or error.exit_code == OpcelError.exit_code, error
    listed = {name for status, names in rows.items() if 1 < status < 70 for name in re.findall(r"`(\w+)`", names)}
    assert listed <= {error.__name__ for error in found}
    own = {console.INTERNAL, console.INTERRUPTED, console.BROKEN_PIPE, console.TERMINATED}
    assert set(rows) == {0, 2, *(error.exit_code for error in found), *own}


def test_the_help_lists_the_same() -> None:
    assert {int(n) for n in re.findall(r"(?:^|[:,]) (\d+) ", EXIT_CODES.replace("\n", " "))} == set(table())
