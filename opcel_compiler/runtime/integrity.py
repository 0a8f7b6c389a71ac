"""Whether an artifact is whole. The hashes detect damage; they are no signatures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opcel_compiler.runtime.errors import ArtifactError

FORMATS = (1,)
"""The formats of artifacts that this version reads."""


def stamped(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """`manifest` with the hash of its other entries as the last, `sha256`."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def check_manifest(manifest: Mapping[str, Any], file: Path) -> None:
    """Raises ArtifactError for a manifest of another format, and for one that is incomplete or was changed."""
    keys = ("format", "inputs", "outputs", "modules", "sha256")
    found = manifest.get("format")
    if isinstance(found, int) and found not in FORMATS:
        raise ArtifactError(
            f"{file} has format {found}, and this version of opcel reads format {', '.join(map(str, FORMATS))}; "
            "compile the model again, or use the version that compiled it"
        )
    if missing := [key for key in keys if key not in manifest]:
        raise ArtifactError(f"{file} lacks {', '.join(missing)}: it is not the manifest of a compiled model")
    if manifest["sha256"] != stamped(manifest)["sha256"]:
        raise ArtifactError(f"{file} is damaged: its hash differs; copy the artifact or compile the model again")


def check_file(path: Path, sha256: str) -> None:
    """Raises ArtifactError when the file's hash is not `sha256`."""
    try:
        found = file_sha256(path)
    except OSError as error:
        raise ArtifactError(f"{path.parent} is incomplete: cannot read {path.name}: {error.strerror}") from error
    if found != sha256:
        raise ArtifactError(
            f"{path} is damaged: its hash differs from the manifest's; copy the artifact or compile the model again"
        )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
