"""Models that run whole in ONNX Runtime, as the C interface has no place for their inputs or outputs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ml_dtypes  # noqa: F401  NumPy knows its types by name then
import numpy as np

from opcel_compiler.runtime.errors import FeedError
from opcel_compiler.runtime.model import CompiledModel, TensorSpec

Values = Mapping[str, Any]
"""Arrays by name; strings are arrays of objects, sequences lists, maps dicts, and an absent optional is None."""


class WholeModel(CompiledModel):
    """An artifact whose one region is the model as it was. `run` takes what ONNX Runtime takes."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return tuple(map(_spec, self.manifest["inputs"]))

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return tuple(map(_spec, self.manifest["outputs"]))

    def run(self, feeds: Values, outputs: Values | None = None) -> dict[str, Any]:
        """The outputs by name; arrays in `outputs` are filled. Raises FeedError and RunError."""
        assert self._fallback is not None
        names = [spec.name for spec in self.inputs]
        if missing := [name for name in names if name not in feeds]:
            raise FeedError(f"input {missing[0]!r} is missing; the model takes {', '.join(names)}")
        if unknown := [name for name in feeds if name not in names]:
            raise FeedError(f"there is no input {unknown[0]!r}; the model takes {', '.join(names) or 'none'}")
        given = [feeds[name] for name in names]
        results = self._fallback(0, [np.asarray(v) if isinstance(v, np.generic) else v for v in given])
        found = dict(zip([spec.name for spec in self.outputs], results, strict=True))
        for name, array in (outputs or {}).items():
            np.copyto(array, found[name])
            found[name] = array
        return found

    def profile(self, feeds: Values, runs: int = 1, outputs: Values | None = None) -> list[float]:
        """The seconds of a run, the least of `runs`."""
        best = float("inf")
        for _ in range(runs):
            begun = time.perf_counter()
            self.run(feeds, outputs)
            best = min(best, time.perf_counter() - begun)
        return [best]


def _spec(value: Mapping[str, Any]) -> TensorSpec:
    try:
        dtype = np.dtype(str(value["numpy"]))
    except TypeError:
        dtype = np.dtype(object)
    return TensorSpec(str(value["name"]), dtype, tuple(value["shape"] or ()))
