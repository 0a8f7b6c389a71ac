"""The tuning lock file: measured choices of kernels as text to review, one entry a kernel and machine.

An entry replaces the compiler's own choice on the machine it was measured on, as long as the kernels' C++ is the same;
another one is stale and left alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from opcel_compiler.codegen.cpu.includes import headers_digest
from opcel_compiler.errors import OpcelError
from opcel_compiler.schedule.choice.variants import Override
from opcel_compiler.targets.schema import Target

FORMAT = 1
HEAD = """\
# Measured choices of kernels, made by `opcel tune` and read by `opcel compile --tune`. `gain` is the time of the
# compiler's own choice over that of this one. An entry may be removed, and its own choice is made again.
"""
FIELDS = {"kernel": str, "machine": str, "sources": str, "family": str, "params": dict, "gain": (int, float)}


class LockError(OpcelError):
    """A tuning lock file that cannot be read."""


class StaleWarning(UserWarning):
    """Entries that were measured on another machine, or of kernels that have changed since."""


@dataclass(frozen=True)
class Entry:
    """The best candidate of one kernel (by its text) on one machine; `sources` is the digest of the kernels' C++."""

    kernel: str
    machine: str
    sources: str
    family: str
    params: dict[str, Any]
    gain: float


def machine_text(target: Target, threads: int) -> str:
    """What measured times depend on: the CPU's model, the level of its instruction set that is used, and threads."""
    return f"{cpu_model()}, {target.id}, {threads} thread{'s' * (threads != 1)}"


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The first CPU's model, as the system names it."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "unknown CPU"
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, "unknown CPU")


def sources_digest() -> str:
    """The digest of the kernels' C++, of whatever kernel: a header may be included by any."""
    return headers_digest()[:16]


def read_lock(path: str | Path) -> list[Entry]:
    """The entries of a lock file. Raises LockError that names the file and the entry."""
    try:
        value = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).replace("\n", " ")
        raise LockError(f"cannot read the tuning lock file {path}: {reason}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT or not isinstance(value.get("entries"), list):
        raise LockError(f"{path} is no tuning lock file of format {FORMAT}")
    return [_entry(path, i, item) for i, item in enumerate(value["entries"])]


def _entry(path: str | Path, i: int, item: Any) -> Entry:
    where = f"{path}: entry {i + 1}"
    if not isinstance(item, dict) or set(item) != set(FIELDS):
        raise LockError(f"{where} has not exactly the fields {', '.join(FIELDS)}")
    for field, kind in FIELDS.items():
        if not isinstance(item[field], kind) or isinstance(item[field], bool):  # type: ignore[arg-type]
            raise LockError(f"{where}: {field} cannot be {item[field]!r}")
    params = {str(key): tuple(v) if isinstance(v, list) else v for key, v in item["params"].items()}
    return Entry(**{**item, "params": params, "gain": float(item["gain"])})


def write_lock(path: str | Path, entries: Iterable[Entry]) -> None:
    """Write entries in their canonical order. Raises OSError."""
    items = [
        {
            "kernel": e.kernel, "machine": e.machine, "sources": e.sources, "family": e.family,
            "params": {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(e.params.items())},
            "gain": round(e.gain, 3),
        }
        for e in sorted(entries, key=lambda e: (e.kernel, e.machine))
    ]  # fmt: skip
    options: dict[str, Any] = {"sort_keys": False, "width": 1 << 30, "allow_unicode": True, "default_flow_style": None}
    text = yaml.safe_dump({"format": FORMAT, "entries": items}, **options)
    Path(path).write_text(HEAD + text, encoding="utf-8")


def merged(old: Iterable[Entry], new: Iterable[Entry], tried: Iterable[str], machine: str) -> list[Entry]:
    """`old` with what was found on `machine`: of a kernel that was tried the new entry is left, if there is one."""
    tried = set(tried)
    return [*(e for e in old if e.machine != machine or e.kernel not in tried), *new]


def usable(entries: Sequence[Entry], machine: str, sources: str) -> tuple[dict[str, Override], str]:
    """The entries that hold here, and a sentence about those that do not, or ""."""
    elsewhere = sum(e.machine != machine for e in entries)
    changed = sum(e.machine == machine and e.sources != sources for e in entries)
    why = [f"{elsewhere} for another machine than {machine}"] * bool(elsewhere)
    why += [f"{changed} of kernels that have changed since"] * bool(changed)
    found = {e.kernel: Override(e.family, e.params) for e in entries if (e.machine, e.sources) == (machine, sources)}
    if not why:
        return found, ""
    return found, f"{elsewhere + changed} of {len(entries)} entries are stale and left alone: {', '.join(why)}"
