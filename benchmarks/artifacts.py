"""Artifacts of the benchmark networks, each compiled once for all that is measured of it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import opcel_compiler
from benchmarks.networks import feeds_of
from opcel_compiler.driver import FallbackError
from opcel_compiler.runtime import load
from opcel_compiler.runtime.model import read_manifest


class Skipped(Exception):
    """Why something is not measured."""


@dataclass(frozen=True)
class Network:
    """A model with its feeds, and how it is compiled: `options` of `opcel_compiler.compile`, by name."""

    folder: Path
    name: str
    target: str = "host"
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def model(self) -> Path:
        return self.folder / f"{self.name}.onnx"

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        with np.load(feeds_of(self.folder, self.name)) as file:
            return {key: file[key] for key in file.files}


@dataclass
class Artifacts:
    """A folder of artifacts. One that an earlier run left is used again when the compiler has not changed since."""

    folder: Path
    reports: dict[Network, dict[str, Any]] = field(default_factory=dict)

    def path(self, network: Network) -> Path:
        options = [f"{key}={value}" for key, value in network.options]
        spelled = "-".join([network.folder.name, network.name, network.target, *options])
        return self.folder / f"{re.sub('[^A-Za-z0-9_=.-]+', '', spelled)}-{compiler_digest()}.opcel"

    def compiled(self, network: Network) -> tuple[Path, dict[str, Any]]:
        """The artifact and its report. Raises Skipped when the compiler has no such option, OpcelError when the network
        cannot be compiled or its artifact is outside the bound."""
        path = self.path(network)
        if network not in self.reports:
            if path.exists():
                read_manifest(path)
                with opcel_compiler.load(path) as model:
                    self.reports[network] = model.report
            else:
                self.reports[network] = self._compile(network, path)
        return path, self.reports[network]

    def _compile(self, network: Network, path: Path) -> dict[str, Any]:
        known = inspect.signature(opcel_compiler.compile).parameters
        if unknown := [key for key, _ in network.options if key not in known]:
            raise Skipped(f"this compiler has no option {', '.join(unknown)}")
        self.folder.mkdir(parents=True, exist_ok=True)
        given = {"inputs": feeds_of(network.folder, network.name), **dict(network.options)}
        try:
            opened = opcel_compiler.compile(network.model, network.target, path, fallback="error", **given)
        except FallbackError:
            opened = opcel_compiler.compile(network.model, network.target, path, fallback="allow", **given)
        with opened as model:
            return model.report


@functools.cache
def compiler_digest() -> str:
    """A hash of everything that decides what an artifact holds: the package's sources, headers and descriptions."""
    root = Path(opcel_compiler.__file__).parent
    h = hashlib.sha256()
    for folder in (root, root / "passes", root / "targets", root / "csrc"):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".h", ".cpp", ".yaml")):
            h.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return h.hexdigest()[:12]


def written_bytes(artifact: Path, feeds: Mapping[str, np.ndarray]) -> int:
    """What a step writes: its outputs, of caches that grow in place only the places that are new."""
    with load(artifact) as model:
        states = model.manifest.get("states") or ()
        grown = sum(feeds[s["input"]].nbytes // feeds[s["input"]].shape[s["axis"]] for s in states)
        return grown + sum(value.nbytes for value in model.run(dict(feeds)).values())
