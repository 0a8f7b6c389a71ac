"""Compiled objects kept between compiles, by the hash of all that they depend on.

A folder of mode 0700 that only this user may write, shared by any number of processes: an object is written under a
name of its own and put in place by one rename, and readers copy it out before they use it. Each object is followed by
its own hash, so that a damaged one counts as missing. Above the cap the least recently used ones are removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import stat
import tempfile
from pathlib import Path

from opcel_compiler.errors import OpcelError

DEFAULT_SIZE = 1 << 30
"""Bytes that the cache may take when OPCEL_CACHE_SIZE does not say."""

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_DIGEST = hashlib.sha256().digest_size


class CacheError(OpcelError):
    """OPCEL_CACHE_SIZE is no size."""


def cache_size() -> int:
    """The cap in bytes: OPCEL_CACHE_SIZE, digits and an optional unit K, M, G or T, else DEFAULT_SIZE; 0 keeps nothing.

    Raises CacheError.
    """
    text = os.environ.get("OPCEL_CACHE_SIZE", "").strip()
    if not text:
        return DEFAULT_SIZE
    match = re.fullmatch(r"(\d{1,15})\s*([KMGT]?)(i?B)?", text, re.IGNORECASE)
    if match is None:
        raise CacheError(f"OPCEL_CACHE_SIZE is {text!r}, not a size such as 500M or 2G")
    return int(match[1]) << _UNITS[match[2].upper()]


def cache_folder() -> Path:
    """Where objects are kept: OPCEL_CACHE, else opcel/ in XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("OPCEL_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "opcel"
    )
    return Path(base) / "objects"


class ObjectCache:
    """The cache, and for the time of one build a private folder with copies of the objects to link.

    A cache folder that cannot be made, is another user's or is open to others is not used; the build then works
    without one. Use as a context manager.
    """

    def __init__(self) -> None:
        self.limit = cache_size()
        self.folder = _private(cache_folder()) if self.limit else None

    def __enter__(self) -> ObjectCache:
        self._work = tempfile.TemporaryDirectory(prefix="opcel-build-")
        self.work = Path(self._work.name)
        return self

    def __exit__(self, *error: object) -> None:
        self._work.cleanup()
        if self.folder is not None:
            _shrink(self.folder, self.limit)

    def object(self, key: str) -> Path:
        """Where the object of `key` lies for the linker, once `fetch` or a compiler has put it there."""
        return self.work / f"{key}.o"

    def fetch(self, key: str) -> bool:
        """Copy the object of `key` out of the cache; False when it is not there, or is damaged, and then removed."""
        if self.folder is None:
            return False
        path = self.folder / f"{key}.o"
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return False
        body = data[:-_DIGEST]
        if not body or hashlib.sha256(key.encode() + body).digest() != data[-_DIGEST:]:
            with contextlib.suppress(OSError):
                path.unlink()
            return False
        self.object(key).write_bytes(body)
        return True

    def store(self, key: str) -> None:
        """Put the object of `key`, which a compiler has made, into the cache. A full or read-only disk is no error."""
        if self.folder is None:
            return
        body = self.object(key).read_bytes()
        made = self.folder / f".{key}.{secrets.token_hex(4)}.tmp"
        try:
            with open(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(body + hashlib.sha256(key.encode() + body).digest())
            os.replace(made, self.folder / f"{key}.o")
        except OSError:
            with contextlib.suppress(OSError):
                made.unlink()


def _private(folder: Path) -> Path | None:
    """`folder`, made with mode 0700 when it is missing; None when it cannot be written, or others can write it."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        facts = os.lstat(folder)
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
            return None
        if facts.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None


def _shrink(folder: Path, limit: int) -> None:
    """Remove the least recently used objects until the rest takes at most nine tenths of `limit` bytes.

    Another process may do the same at the same time; what is gone already is no error.
    """
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                facts = entry.stat(follow_symlinks=False)
                found.append((facts.st_mtime_ns, facts.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    if total <= limit:
        return
    for _, size, path in sorted(found):
        if total <= limit * 9 // 10:
            break
        with contextlib.suppress(OSError):
            os.unlink(path)
            total -= size
