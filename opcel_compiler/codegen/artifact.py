"""The artifact's folder: written under a temporary name beside its place, put there by renaming."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from opcel_compiler.errors import OpcelError

FORMAT = 1
MANIFEST, REPORT, BUILD, PAGE = "manifest.json", "report.json", "build.json", "report.html"


class OutputError(OpcelError):
    """The place for an artifact cannot be written, or holds something that is not an artifact."""

    exit_code = 4


def check_output(output: Path) -> None:
    """Raise OutputError when an artifact cannot be put at `output`; a folder that is no artifact is never replaced."""
    if output.exists() and not (output / MANIFEST).is_file() and not _is_empty(output):
        raise OutputError(f"{output} exists and is not a compiled model; remove it or choose another output")
    parent = output.resolve().parent
    if not parent.is_dir():
        raise OutputError(f"the folder {parent} does not exist; make it or choose another output")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"the folder {parent} cannot be written; choose another output")


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


@contextlib.contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A folder to write an artifact into; on success it takes the place of `output`, on failure nothing is left."""
    check_output(output)
    final = output.resolve()
    work = final.parent / f".{final.name}.{secrets.token_hex(4)}.tmp"
    try:
        work.mkdir(mode=0o755)
        yield work
        put_in_place(work, final)
    except OSError as error:
        raise OutputError(f"cannot write {output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def put_in_place(work: Path, final: Path) -> None:
    """Move the folder `work` to `final`, in the place of what is there: in one step where the system can do that."""
    if not final.exists():
        os.rename(work, final)
    elif _exchange(work, final):
        shutil.rmtree(work, ignore_errors=True)
    else:
        old = final.parent / f".{final.name}.{secrets.token_hex(4)}.old"
        try:
            os.rename(final, old)
            os.rename(work, final)
        except BaseException:
            if not final.exists():
                os.rename(old, final)
            raise
        finally:
            shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders by renameat2(2); False where there is none, or the file system has no exchange."""
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON with a stable form."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def update_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a JSON file in one step."""
    _replace(path, lambda work: write_json(work, value))


def write_page(path: Path, text: str) -> None:
    """Put an HTML page in place in one step. Raises OutputError."""
    _replace(path, lambda work: work.write_bytes(text.encode("utf-8")))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    work = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        write(work)
        os.replace(work, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        work.unlink(missing_ok=True)
