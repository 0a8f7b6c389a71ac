"""What a translation unit includes, and hashes of it."""

from __future__ import annotations

import functools
import hashlib
import re
from pathlib import Path

CSRC = Path(__file__).resolve().parents[2] / "csrc"
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)


@functools.cache
def headers_digest() -> str:
    """A hash of every header that generated code can include."""
    h = hashlib.sha256()
    for path in sorted(CSRC.rglob("*.h")):
        h.update(path.relative_to(CSRC).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()


def included_digest(source: str) -> str:
    """A hash of the headers that `source` includes, under any condition and by way of each other."""
    top = CSRC.resolve()
    found: dict[str, str] = {}
    pending = [(name, top) for name in _INCLUDE.findall(source)]
    while pending:
        name, beside = pending.pop()
        path = next((p for p in ((beside / name).resolve(), top / name) if p.is_file()), None)
        if path is None or (key := path.relative_to(top).as_posix()) in found:
            continue
        found[key], names = _header(path)
        pending += [(n, path.parent) for n in names]
    return hashlib.sha256("".join(f"{key} {found[key]}\n" for key in sorted(found)).encode()).hexdigest()


@functools.cache
def _header(path: Path) -> tuple[str, list[str]]:
    """The hash of a header, and what it includes."""
    data = path.read_bytes()
    return hashlib.sha256(data).hexdigest(), _INCLUDE.findall(data.decode(errors="replace"))
