"""Decode steps whose caches grow in place: the caches of one sequence, and how far they are filled."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from opcel_compiler.runtime.errors import FeedError
from opcel_compiler.runtime.mapped import MappedModel
from opcel_compiler.runtime.model import CompiledModel, TensorSpec, WeightsMode, read_manifest
from opcel_compiler.runtime.whole import WholeModel

Arrays = Mapping[str, np.ndarray]


def load(
    path: str | os.PathLike[str], threads: int | None = None, weights: WeightsMode = "map", pin: bool = False
) -> CompiledModel:
    """Opens the artifact in the folder `path`; one that was compiled with `state` as a `Decoder`,
    one that runs whole in ONNX Runtime as a `WholeModel`, one whose outputs are maps as a `MappedModel`.

    `threads` counts the caller; None is one per CPU that this process may use. Models of one thread count share
    their threads. `weights`: "map" reads the file as its pages are used, and opens in milliseconds; "resident"
    copies it into huge pages first, and runs fastest. `pin` keeps each thread but the caller's on one CPU, for
    machines that do nothing else.

    Raises ArtifactError when the folder is no artifact, is damaged, or was compiled for another CPU.
    """
    manifest = read_manifest(path)
    whole = any(module.get("whole") for module in manifest["modules"] if isinstance(module, dict))
    kind: type[CompiledModel] = WholeModel if whole else Decoder if manifest.get("states") else CompiledModel
    if manifest.get("maps") and kind is CompiledModel:
        kind = MappedModel
    return kind(path, threads=threads, weights=weights, pin=pin)


class Decoder(CompiledModel):
    """A compiled decode step and the caches of one sequence, which `run` appends to.

    `length` places of each cache are filled, 0 at first. One thread at a time may use it; open the artifact again for
    another sequence: mapped weights are in memory once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._states: list[dict[str, Any]] = self.manifest["states"]
        inputs, outputs = ({s.name: s for s in side} for side in (self.inputs, self.outputs))
        self._past: list[TensorSpec] = [inputs[s["input"]] for s in self._states]
        self._present: list[TensorSpec] = [outputs[s["output"]] for s in self._states]
        self._names = {s["input"] for s in self._states}
        self._fed = [s for s in self.inputs if s.name not in self._names]
        self._caches: list[np.ndarray] = []
        self._length = 0

    @property
    def capacity(self) -> int:
        """How many places the smallest cache has."""
        return min(int(s["capacity"]) for s in self._states)

    @property
    def length(self) -> int:
        """How many places are filled. May be set, to go back, or after writing to what `cache` gives.

        Raises FeedError for a length that is negative or above `capacity`.
        """
        return self._length

    @length.setter
    def length(self, value: int) -> None:
        if not 0 <= value <= self.capacity:
            raise FeedError(f"a length of {value} given; the caches have {self.capacity} places")
        self._length = value

    def reset(self) -> None:
        """Begin another sequence."""
        self._length = 0

    def cache(self, name: str) -> np.ndarray:
        """What the cache of this input or output holds: a view of `length` places, not a copy.

        Raises FeedError for a name that is no cache, or before the first run.
        """
        for state, array in zip(self._states, self._caches, strict=bool(self._caches)):
            if name in (state["input"], state["output"]):
                return _first(array, state["axis"], self._length)
        known = ", ".join(repr(s["input"]) for s in self._states)
        raise FeedError(f"there is no cache {name!r} yet; once `run` was called there are {known}")

    def run(self, feeds: Arrays, outputs: Arrays | None = None) -> dict[str, np.ndarray]:
        """One step: computes the outputs that are no caches and appends to the caches.

        `feeds` may hold caches, all of them or none; the sequence then begins with these. Raises FeedError when an
        array does not fit the signature or the caches are full, RunError when the model fails.
        """
        given, present, length = self._step(feeds)
        result = super().run(given, {**(outputs or {}), **present})
        self._length = length
        return {name: value for name, value in result.items() if name not in present}

    def profile(self, feeds: Arrays, runs: int = 1, outputs: Arrays | None = None) -> list[float]:
        """As `CompiledModel.profile`, for the same step again and again; appends nothing."""
        given, present, _ = self._step(feeds)
        return super().profile(given, runs, {**(outputs or {}), **present})

    def _step(self, feeds: Arrays) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], int]:
        """The inputs of a step, the caches as its outputs, and their length after it."""
        given = dict(feeds)
        start = {name: given.pop(name) for name in self._names if name in given}
        if start and len(start) != len(self._names):
            missing = ", ".join(sorted(self._names - set(start)))
            raise FeedError(f"caches are given all together or not at all; {missing} are missing")
        sizes = _sizes(self._fed, given)
        if start:
            self._begin(start, sizes)
        elif not self._caches or self._length == 0:
            self._allocate(sizes)
        lengths = [self._length + int(sizes.get(s["appended"], s["appended"])) for s in self._states]
        if max(lengths) > self.capacity:
            raise FeedError(f"the caches hold {self._length} of {self.capacity} places, and a step needs {lengths[0]}")
        pairs = list(zip(self._states, self._caches, lengths, strict=True))
        past = {s["input"]: _first(array, s["axis"], self._length) for s, array, _ in pairs}
        present = {s["output"]: _first(array, s["axis"], length) for s, array, length in pairs}
        return given | past, present, lengths[0]

    def _begin(self, start: Arrays, sizes: Mapping[str, int]) -> None:
        lengths = {start[s["input"]].shape[s["axis"]] for s in self._states if start[s["input"]].ndim > s["axis"]}
        if len(lengths) != 1:
            raise FeedError(f"the caches given have different lengths: {', '.join(map(str, sorted(lengths)))}")
        self.length = lengths.pop()
        self._allocate({**sizes, **_sizes(self._past, start)})
        for state, array in zip(self._states, self._caches, strict=True):
            into, value = _first(array, state["axis"], self._length), start[state["input"]]
            if into.shape != value.shape or into.dtype != value.dtype:
                raise FeedError(
                    f"input {state['input']!r}: {value.dtype} {value.shape} given, {into.dtype} {into.shape} expected"
                )
            into[...] = value

    def _allocate(self, sizes: Mapping[str, int]) -> None:
        """Caches for these sizes, all in one piece of memory, which are kept while the sizes are the same."""
        shapes = []
        for spec, state in zip(self._past, self._states, strict=True):
            dims = [sizes.get(d, 0) if isinstance(d, str) else d for d in spec.shape]
            dims[state["axis"]] = state["capacity"]
            shapes.append(tuple(dims))
        if [array.shape for array in self._caches] == shapes:
            return
        bytes_of = [-(-math.prod(s) * v.dtype.itemsize // 64) * 64 for s, v in zip(shapes, self._past, strict=True)]
        memory = np.zeros(sum(bytes_of) + 64, np.uint8)
        at = -memory.ctypes.data % 64
        self._caches = []
        for shape, spec, size in zip(shapes, self._past, bytes_of, strict=True):
            whole = memory[at : at + math.prod(shape) * spec.dtype.itemsize]
            self._caches.append(whole.view(spec.dtype).reshape(shape))
            at += size


def run_whole(model: CompiledModel, feeds: Arrays) -> dict[str, np.ndarray]:
    """All the outputs of the model for all its inputs, in order, caches included, as views."""
    if isinstance(model, MappedModel):
        return model.run_tensors(dict(feeds))
    if not isinstance(model, Decoder):
        return model.run(dict(feeds))
    result = model.run(feeds)
    return {s.name: result[s.name] if s.name in result else model.cache(s.name) for s in model.outputs}


def _first(array: np.ndarray, axis: int, count: int) -> np.ndarray:
    return array[(slice(None),) * axis + (slice(0, count),)]


def _sizes(specs: list[TensorSpec], arrays: Arrays) -> dict[str, int]:
    """The values of the symbols in the shapes of these inputs; what does not fit is for the runtime to refuse."""
    out: dict[str, int] = {}
    for spec in specs:
        array = arrays.get(spec.name)
        if isinstance(array, np.ndarray) and array.ndim == len(spec.shape):
            out |= {d: n for d, n in zip(spec.shape, array.shape, strict=True) if isinstance(d, str)}
    return out
