"""Arrays and files that the commands read and write."""

from __future__ import annotations

import contextlib
import os
import secrets
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING

from opcel_compiler.cli.console import CommandError

if TYPE_CHECKING:
    import numpy as np


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends; when it fails, nothing is left.

    Raises CommandError when `path` cannot be written.
    """
    if path.is_dir():
        raise CommandError(f"cannot write {path}: it is a folder")
    work = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with work.open("xb") as file:
            yield file
        os.replace(work, path)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        work.unlink(missing_ok=True)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an .npz file. Raises CommandError when it cannot be written."""
    import numpy as np

    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                plain = array.astype(str) if array.dtype == object else array
                np.lib.format.write_array(member, np.asanyarray(plain), allow_pickle=False)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name. Raises CommandError when it is none."""
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
        if isinstance(found, np.ndarray):
            raise CommandError(f"{path} holds one array without a name; save the inputs with numpy.savez(name=array)")
        with found:
            return {name: found[name] for name in found.files}
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path} is no .npz file of plain arrays: {error}") from error


def select(arrays: Mapping[str, np.ndarray], names: tuple[str, ...], path: Path) -> dict[str, np.ndarray]:
    """`arrays` in the order of `names`. Raises CommandError, naming the file, when one is missing or unknown."""
    missing = [name for name in names if name not in arrays]
    unknown = [name for name in arrays if name not in names]
    wants = f"the model takes {', '.join(names) or 'no input'}"
    if missing:
        raise CommandError(f"{path} lacks {', '.join(missing)}; {wants}, the file has {', '.join(arrays) or 'nothing'}")
    if unknown:
        raise CommandError(f"{path} has {', '.join(unknown)}, which is no input; {wants}")
    return {name: arrays[name] for name in names}
