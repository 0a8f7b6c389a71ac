"""Runs the parts of a model that have no native kernel, in ONNX Runtime."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opcel_compiler.runtime.errors import ArtifactError, RunError
from opcel_compiler.runtime.integrity import check_file
from opcel_compiler.runtime.ort_values import run_session


@dataclass(frozen=True, slots=True)
class Region:
    """One region of an artifact: an ONNX file, and the order in which its tensors are passed."""

    file: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reason: str
    sha256: str = ""


class Fallback:
    """The region callback of a model. Sessions are made when a region first runs; safe from several threads."""

    def __init__(self, regions: Sequence[Region], threads: int) -> None:
        self._regions = tuple(regions)
        self._threads = threads
        self._sessions: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, index: int, inputs: Sequence[Any]) -> list[Any]:
        """The outputs of region `index`. The arrays in `inputs` are only valid during the call.

        Raises RunError when the artifact has no such region or ONNX Runtime fails.
        """
        if not 0 <= index < len(self._regions):
            raise RunError(f"the artifact has no region {index}; its manifest names {len(self._regions)}")
        region = self._regions[index]
        session = self._session(index)
        try:
            return run_session(session, region.outputs, dict(zip(region.inputs, inputs, strict=True)))
        except Exception as error:
            raise RunError(f"ONNX Runtime failed on {region.file.name}: {error}") from error

    def _session(self, index: int) -> Any:
        with self._lock:
            if index not in self._sessions:
                self._sessions[index] = self._open(self._regions[index])
            return self._sessions[index]

    def _open(self, region: Region) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise RunError(
                f"{region.file.name} needs ONNX Runtime ({region.reason}); install the package onnxruntime"
            ) from error
        if region.sha256:
            check_file(region.file, region.sha256)
        options = _options()
        options.intra_op_num_threads = self._threads
        # Its threads would otherwise keep spinning beside the model's own between two regions.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return onnxruntime.InferenceSession(str(region.file), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ArtifactError(f"ONNX Runtime cannot load {region.file}: {error}") from error


def _options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return options


def refusal(model: bytes) -> str | None:
    """Why the installed ONNX Runtime does not load a model, in one line; None when it does, or there is none."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = _options()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        return re.sub(r"/onnxruntime_src/\S+ |^\[ONNXRuntimeError\][\s:\d]*", "", " ".join(str(error).split()))
    return None
