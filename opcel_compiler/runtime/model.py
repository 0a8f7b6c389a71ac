"""Opens a compiled artifact and runs it."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from opcel_compiler.runtime import _runtime
from opcel_compiler.runtime.errors import ArtifactError
from opcel_compiler.runtime.fallback import Fallback, Region
from opcel_compiler.runtime.integrity import check_file, check_manifest

WeightsMode = Literal["map", "resident"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output. A dim is an int, the name of a symbol, or "?" for an expression of symbols."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of the artifact in the folder `path`. Loads no code of it.

    Raises ArtifactError when there is none, it is damaged, or of another format.
    """
    file = Path(path) / "manifest.json"
    manifest = _read_json(file)
    check_manifest(manifest, file)
    return manifest


def verify(path: str | os.PathLike[str]) -> None:
    """Read the whole artifact and compare each file with its hash; `load` does that for its code alone.

    Raises ArtifactError, naming the first file that is missing or damaged.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    _check_files(manifest, folder)
    weights = manifest.get("weights") or {}
    for entry in (*manifest["modules"], *([weights] if weights.get("bytes") else [])):
        if entry.get("sha256"):
            check_file(folder / str(entry["file"]), str(entry["sha256"]))


class CompiledModel(_runtime.Model):
    """An open artifact. `run`, inherited from the bindings, may be called by several threads at once."""

    def __init__(
        self, path: str | os.PathLike[str], threads: int | None = None, weights: WeightsMode = "map", pin: bool = False
    ) -> None:
        if weights not in ("map", "resident"):
            raise ValueError(f"weights is 'map' or 'resident', not {weights!r}")
        if threads is not None and threads < 1:
            raise ValueError(f"threads is at least 1, not {threads}")
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        _check_cpu(self.manifest, self.path)
        regions = _regions(self.manifest, self.path)
        _check_files(self.manifest, self.path)
        count = threads if threads is not None else _runtime.usable_cpus()
        self._fallback = Fallback(regions, count) if regions else None
        pool = _runtime.pool(count, pin) if count > 1 else None
        super().__init__(os.fspath(self.path), weights == "resident", pool, self._fallback)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `run` takes."""
        return tuple(TensorSpec(*value) for value in self.input_values)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `run` returns."""
        return tuple(TensorSpec(*value) for value in self.output_values)

    @property
    def report(self) -> dict[str, Any]:
        """What the compiler did: the artifact's report.json. Raises ArtifactError when it is missing or damaged."""
        return _read_json(self.path / "report.json")

    def run_many(
        self, feeds: Sequence[dict[str, np.ndarray]], streams: int | None = None
    ) -> list[dict[str, np.ndarray]]:
        """The outputs for each of `feeds`, in their order, `streams` runs at a time.

        None is as many as the model has threads: each run then stays on one thread, which gives the most results a
        second, each of them later. A stream has working memory of its own; the weights are shared. Raises what `run`
        raises, and begins no further run then.
        """
        if streams is not None and streams < 1:
            raise ValueError(f"streams is at least 1, not {streams}")
        results: list[dict[str, np.ndarray]] = [{} for _ in feeds]
        errors: list[Exception] = []
        pending = iter(range(len(feeds)))

        def work() -> None:
            for index in pending:
                if errors:
                    return
                try:
                    results[index] = self.run(feeds[index])
                except Exception as error:
                    errors.append(error)

        count = min(len(feeds), streams or self.threads)
        helpers = [threading.Thread(target=work) for _ in range(count - 1)]
        for helper in helpers:
            helper.start()
        work()
        for helper in helpers:
            helper.join()
        if errors:
            raise errors[0]
        return results

    def __enter__(self) -> CompiledModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"CompiledModel({os.fspath(self.path)!r}{', closed' if self.closed else ''})"


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            f"{file.parent} is not a compiled model: cannot read {file.name}: {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"{file} is damaged: an object expected, found a {type(value).__name__}")
    return value


def _modules(manifest: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    return [module for module in manifest["modules"] if module.get("kind") == kind]


def _regions(manifest: Mapping[str, Any], path: Path) -> list[Region]:
    return [
        Region(
            file=path / module["file"],
            inputs=tuple(module.get("inputs", ())),
            outputs=tuple(module.get("outputs", ())),
            reason=str(module.get("reason", "an operator without a native kernel")),
            sha256=str(module.get("sha256", "")),
        )
        for module in _modules(manifest, "onnxruntime")
    ]


def _check_files(manifest: Mapping[str, Any], path: Path) -> None:
    if [module["file"] for module in _modules(manifest, "cpu")] != ["model.so"]:
        raise ArtifactError(f"{path} holds no program for a CPU; this runtime runs only those")
    weights = manifest.get("weights") or {}
    expected: dict[str, int | None] = {module["file"]: None for module in manifest["modules"]}
    if weights.get("bytes"):
        expected[str(weights.get("file", "weights.bin"))] = int(weights["bytes"])
    for name, size in expected.items():
        try:
            found = (path / name).stat().st_size
        except OSError as error:
            raise ArtifactError(f"{path} is incomplete: cannot read {name}: {error.strerror}") from error
        if size is not None and found != size:
            raise ArtifactError(f"{path / name} has {found} bytes, the manifest says {size}; copy the artifact again")
    for module in _modules(manifest, "cpu"):
        if module.get("sha256"):
            check_file(path / module["file"], str(module["sha256"]))


def _check_cpu(manifest: Mapping[str, Any], path: Path) -> None:
    target = manifest.get("target") or {}
    missing = sorted(set(target.get("features", ())) - _cpu_features())
    if missing:
        raise ArtifactError(
            f"{path} was compiled for {target.get('name', 'another CPU')}, this CPU lacks {', '.join(missing)}; "
            "compile the model for a target that this CPU supports"
        )


@functools.cache
def _cpu_features() -> frozenset[str]:
    """The features of this CPU, as the first entry of /proc/cpuinfo names them."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            key, _, value = line.partition(":")
            if key.strip() in ("flags", "Features"):
                return frozenset(value.split())
    return frozenset()
