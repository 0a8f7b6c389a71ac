"""Whether an artifact is whole. The hashes detect damage; they are no signatures."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opcel_compiler.runtime.errors import ArtifactError

_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")

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
    if reason := _misshapen(manifest):
        raise ArtifactError(f"{file} is damaged: {reason}")
    if manifest["sha256"] != stamped(manifest)["sha256"]:
        raise ArtifactError(f"{file} is damaged: its hash differs; copy the artifact or compile the model again")


def _misshapen(manifest: Mapping[str, Any]) -> str:
    """What entry is not of the kind that is read; "" for none."""
    for key in ("inputs", "outputs", "modules"):
        if not isinstance(manifest[key], list) or not all(isinstance(entry, dict) for entry in manifest[key]):
            return f"{key} is not a list of objects"
    for key in ("weights", "target"):
        if not isinstance(manifest.get(key) or {}, dict):
            return f"{key} is not an object"
    features = (manifest.get("target") or {}).get("features", [])
    if not isinstance(features, list) or not all(isinstance(f, str) for f in features):
        return "the target's features are not a list of names"
    weights = manifest.get("weights") or {}
    if type(weights.get("bytes", 0)) is not int or weights.get("bytes", 0) < 0:
        return "the weights' bytes are no number"
    for entry in (*manifest["modules"], *([weights] if weights else [])):
        name = entry.get("file", "weights.bin" if entry is weights else None)
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            return f"{name!r} is not a file of the artifact"
        for key in ("inputs", "outputs"):
            names = entry.get(key, [])
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                return f"the {key} of {name} are not a list of names"
    return ""


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
