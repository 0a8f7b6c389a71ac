"""A network with real data: files that one command makes, and what is read of them.

NAME.onnx; NAME.npz, the feeds of one call; NAME.calibrate.npz and NAME.evaluate.npz, by input name arrays of shape
[samples, *shape of the input]; NAME.json: {"metric", "about"}; and, where samples have one, NAME.labels.npy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Samples = Mapping[str, np.ndarray]
"""By input name; the first axis counts samples."""


@dataclass(frozen=True)
class Case:
    folder: Path
    name: str

    @property
    def model(self) -> Path:
        return self.folder / f"{self.name}.onnx"

    @property
    def calibration(self) -> Path:
        return self.folder / f"{self.name}.calibrate.npz"

    @property
    def evaluation(self) -> dict[str, np.ndarray]:
        return arrays(self.folder / f"{self.name}.evaluate.npz")

    @property
    def labels(self) -> np.ndarray | None:
        path = self.folder / f"{self.name}.labels.npy"
        return np.load(path) if path.exists() else None

    @property
    def files(self) -> list[Path]:
        """The model and all data that it is judged on."""
        ends = ("onnx", "calibrate.npz", "evaluate.npz", "labels.npy")
        return [p for p in (self.folder / f"{self.name}.{end}" for end in ends) if p.exists()]

    @property
    def facts(self) -> dict[str, Any]:
        """`metric`, a name of `benchmarks.int8.metrics`, and `about`, a line of text."""
        facts: dict[str, Any] = json.loads((self.folder / f"{self.name}.json").read_text())
        return facts


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def feeds(samples: Samples) -> list[dict[str, np.ndarray]]:
    """The feeds of each sample."""
    count = len(next(iter(samples.values())))
    return [{name: np.asarray(values[i]) for name, values in samples.items()} for i in range(count)]


def write(
    folder: Path, name: str, calibrate: Samples, evaluate: Samples, *, metric: str, about: str,
    labels: np.ndarray | None = None,
) -> Case:  # fmt: skip
    """The data beside NAME.onnx, whose inputs get the samples' shapes. Raises ValueError when samples of one set differ
    in number."""
    for samples in (calibrate, evaluate):
        if len({len(values) for values in samples.values()}) != 1:
            raise ValueError(f"{name}: { ({key: len(values) for key, values in samples.items()}) } samples")
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{name}.npz", **feeds(evaluate)[0])
    np.savez(folder / f"{name}.calibrate.npz", **calibrate)
    np.savez(folder / f"{name}.evaluate.npz", **evaluate)
    (folder / f"{name}.json").write_text(json.dumps({"metric": metric, "about": about}, indent=1) + "\n")
    if labels is not None:
        np.save(folder / f"{name}.labels.npy", labels)
    case = Case(folder, name)
    if case.model.exists() and not case.model.is_symlink():
        fix_shapes(case.model, {key: values.shape[1:] for key, values in evaluate.items()})
    return case


def fix_shapes(path: Path, shapes: Mapping[str, Sequence[int]]) -> None:
    """Give inputs of open sizes the `shapes`, for all engines alike."""
    model = onnx.load(path)
    opened = False
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        for dim, size in zip(dims, shapes.get(value.name, ()), strict=False):
            opened |= not dim.HasField("dim_value")
            dim.dim_value = size
    if opened:
        for value in (*model.graph.output, *model.graph.value_info):
            value.type.tensor_type.ClearField("shape")
        onnx.save(onnx.shape_inference.infer_shapes(model), path)


def cases_in(folder: Path) -> list[Case]:
    """Those that are whole, by name."""
    names = sorted(path.name[: -len(".calibrate.npz")] for path in folder.glob("*.calibrate.npz"))
    return [case for case in (Case(folder, name) for name in names) if case.model.exists()]
