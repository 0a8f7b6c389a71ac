"""Samples: what one run of a model takes, and whether it is fit to be calibrated with."""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from opcel_compiler.calibrate.errors import CalibrationError
from opcel_compiler.ir.dims import Dim, as_symbol
from opcel_compiler.ir.types import TensorType
from opcel_compiler.runtime import _runtime

if TYPE_CHECKING:
    from opcel_compiler.ir.graph import Graph

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Input:
    """An input of the model, by the name that the user gave it."""

    name: str
    type: TensorType

    @property
    def dims(self) -> tuple[Dim, ...]:
        return self.type.dims

    @property
    def rank(self) -> int:
        return len(self.type.dims)

    def __str__(self) -> str:
        return f"{self.name}: {self.type}"


def inputs_of(graph: Graph, names: Sequence[str]) -> tuple[Input, ...]:
    """The inputs of a graph under the user's names."""
    return tuple(Input(name, value.tensor) for name, value in zip(names, graph.inputs, strict=False))


@dataclass(frozen=True)
class Sample:
    """`where` says which file or which item of the data it comes from."""

    index: int
    where: str
    feeds: Feeds

    def __str__(self) -> str:
        return f"sample {self.index} ({self.where})"

    @cached_property
    def reaches(self) -> dict[str, tuple[float, float]]:
        """By array of floats that has elements the least and the largest, both NaN if one is."""
        floats = {n: a for n, a in self.feeds.items() if a.dtype.kind == "f" and a.size}
        return {name: (float(array.min()), float(array.max())) for name, array in floats.items()}

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of names, types, shapes and 64 bits of the elements: a stronger hash of those would take a tenth of a
        small network's run."""
        found = hashlib.sha256()
        for name in sorted(self.feeds):
            array = np.ascontiguousarray(self.feeds[name])
            found.update(f"{name}\0{array.dtype.str}\0{array.shape}\0".encode())
            found.update(_runtime.digest(array.reshape(-1).view(np.uint8)).to_bytes(8, "little"))
        return found.digest()


def first_bad(array: np.ndarray) -> tuple[int, ...] | None:
    """The coordinate of the first NaN or infinity, None where there is none."""
    if array.dtype.kind not in "fV":
        return None
    finite = np.isfinite(array if array.dtype.kind == "f" else array.astype(np.float32))
    return None if finite.all() else tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))


def checked(sample: Sample, inputs: Sequence[Input]) -> Sample:
    """The sample with the model's inputs alone, in their order.

    Raises CalibrationError for a missing input, another dtype, rank or size, and for NaN or infinite elements.
    """
    feeds: Feeds = {}
    sizes: dict[str, int] = {}
    for want in inputs:
        if want.name not in sample.feeds:
            raise CalibrationError(
                f"{sample} has no array {want.name!r}; the model takes {', '.join(map(str, inputs))}, the sample has "
                f"{', '.join(map(repr, sample.feeds)) or 'nothing'}", sample=sample.index, tensor=want.name,
            )  # fmt: skip
        array = feeds[want.name] = np.asarray(sample.feeds[want.name])
        if array.dtype != want.type.dtype.numpy:
            raise CalibrationError(
                f"{sample}: input {want.name!r} is {_type_of(array)} and the model takes {want.type}; convert the data "
                f"to {want.type.dtype.numpy}", sample=sample.index, tensor=want.name,
            )  # fmt: skip
        if array.ndim != want.rank:
            raise CalibrationError(
                f"{sample}: input {want.name!r} is {_type_of(array)}, of rank {array.ndim}, and the model takes "
                f"{want.type}, of rank {want.rank}", sample=sample.index, tensor=want.name,
            )  # fmt: skip
        for axis, (dim, size) in enumerate(zip(want.dims, array.shape, strict=True)):
            _check_size(sample, want, axis, dim, size, sizes)
    found = Sample(sample.index, sample.where, feeds)
    for name, array in feeds.items():
        finite = name in found.reaches and all(map(math.isfinite, found.reaches[name]))
        if not finite and (at := first_bad(array)) is not None:
            raise CalibrationError(
                f"{sample}: input {name!r} is {array[at]} at {list(at)}; leave the sample out, or use "
                "--on-bad-sample=skip", sample=sample.index, tensor=name, coordinate=at,
            )  # fmt: skip
    _ = found.digest  # while the elements are in the caches
    return found


def _type_of(array: np.ndarray) -> str:
    return f"{array.dtype}{list(array.shape)}"


def _check_size(sample: Sample, want: Input, axis: int, dim: Dim, size: int, sizes: dict[str, int]) -> None:
    symbol = as_symbol(dim)
    expected: Dim = dim
    if symbol is not None:
        expected = sizes.setdefault(symbol.name, size)
        low, high = symbol.lo, symbol.hi
        if size < low or (high is not None and size > high):
            span = f"at least {low}" if high is None else f"{low} to {high}"
            raise CalibrationError(
                f"{sample}: input {want.name!r} is {size} along axis {axis}, where {symbol.name} is {span}",
                sample=sample.index, tensor=want.name,
            )  # fmt: skip
    if isinstance(expected, int) and size != expected:
        known = f" ({symbol.name}, as in another input)" if symbol is not None else ""
        raise CalibrationError(
            f"{sample}: input {want.name!r} is {size} along axis {axis} and the model takes {expected}{known} there: "
            f"{want.type}", sample=sample.index, tensor=want.name,
        )  # fmt: skip


@dataclass
class Journal:
    """What is noted of all samples together: their hash, twins, and inputs unlike the others'."""

    total: int = 0
    skipped: list[str] = field(default_factory=list)
    reaches: dict[str, array[float]] = field(default_factory=dict)
    """By input, one after another: a sample's number, its least and its largest element."""
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)
    _first: dict[bytes, int] = field(default_factory=dict)
    _twins: list[tuple[int, int]] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        digest = sample.digest
        self._hash.update(digest)
        if digest in self._first:
            self._twins.append((sample.index, self._first[digest]))
        else:
            self._first[digest] = sample.index
        self.total += 1
        for name, reach in sample.reaches.items():
            self.reaches.setdefault(name, array("d")).extend((sample.index, *reach))

    @property
    def data_hash(self) -> str:
        return self._hash.hexdigest()

    def check_count(self, data: str) -> None:
        """Raises CalibrationError where the good samples of `data` are too few."""
        if not self.total:
            skipped = f": all {len(self.skipped)} are bad, the first: {self.skipped[0]}" if self.skipped else ""
            raise CalibrationError(f"the calibration data {data} holds no samples{skipped}")
        if self.total < LEAST_SAMPLES:
            skipped = f" ({len(self.skipped)} bad ones were left out)" if self.skipped else ""
            raise CalibrationError(
                f"the calibration data {data} holds {self.total} samples{skipped}, and at least {LEAST_SAMPLES} are "
                "needed; 100 to 300 that are like what the model will see are good"
            )

    def warnings(self, declared: Mapping[str, tuple[float, float]]) -> list[str]:
        """`declared` gives the range of inputs' elements that the user stated."""
        out = []
        if self.total < FEW_SAMPLES:
            out.append(f"{self.total} samples are few: ranges are the surer the more there are; {FEW_SAMPLES} or more")
        if self._twins:
            shown = ", ".join(f"{a} like {b}" for a, b in self._twins[:4])
            more = f" and {len(self._twins) - 4} more" if len(self._twins) > 4 else ""
            out.append(f"{len(self._twins)} samples are the same as earlier ones: {shown}{more}")
        for name, flat in self.reaches.items():
            rows = [(int(flat[i]), flat[i + 1], flat[i + 2]) for i in range(0, len(flat), 3)]
            out += _outside(name, rows, declared.get(name))
        if self.skipped:
            shown = "; ".join(self.skipped[:3])
            more = f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            out.append(f"{len(self.skipped)} bad samples were left out: {shown}{more}")
        return out


LEAST_SAMPLES, FEW_SAMPLES = 8, 32
UNLIKE = 16.0
"""How much larger a sample's elements may be than those of the median sample."""


def _outside(name: str, rows: list[tuple[int, float, float]], declared: tuple[float, float] | None) -> list[str]:
    if declared is not None:
        low, high = declared
        found = [r for r in rows if r[1] < low or r[2] > high]
        stated = f"the range {low:g} to {high:g} that is stated for it"
    else:
        reach = [max(-low, high, 0.0) for _, low, high in rows]
        usual = float(np.median(reach))
        found = [r for r, top in zip(rows, reach, strict=True) if usual > 0 and top > UNLIKE * usual]
        stated = f"what the others hold (median of their largest magnitudes: {usual:g})"
    if not found:
        return []
    i, low, high = found[0]
    count = f"{len(found)} samples have" if len(found) > 1 else "a sample has"
    return [
        f"{count} elements of input {name!r} outside {stated}, first sample {i}: {low:g} to {high:g}; is it "
        "scaled as the model expects?"
    ]  # fmt: skip
