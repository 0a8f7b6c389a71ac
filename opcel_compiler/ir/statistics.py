"""What calibration learns of a model's values: histograms and channel extremes by value name, and their file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from opcel_compiler.errors import OpcelError

BINS = 2048
LEAST_EXPONENT = -126
FORMAT = 1


class StatisticsError(OpcelError):
    """A statistics file that cannot be read, or that belongs to another model."""


def _frozen(array: np.ndarray) -> np.ndarray:
    out: np.ndarray = np.ascontiguousarray(array).copy()
    out.flags.writeable = False
    return out


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of finite f32 values x in bins of width w = 2^exponent: bin b holds start + b <= x / w < start + b + 1.

    The 2048 bins cover zero and the width is the least power of two at which they also cover every value, so that a
    histogram is a function of the values counted, whatever their order or the parts in which they were counted.
    """

    exponent: int
    start: int
    counts: np.ndarray
    """int64[2048]."""

    @staticmethod
    def fitting(low: float, high: float) -> tuple[int, int]:
        """(exponent, start) of the histogram of values from `low` to `high`."""
        low, high = min(low, 0.0), max(high, 0.0)
        reach = max(-low, high)
        exponent = max(LEAST_EXPONENT, math.frexp(reach / BINS)[1] - 1) if reach else LEAST_EXPONENT
        while math.floor(math.ldexp(high, -exponent)) - math.floor(math.ldexp(low, -exponent)) >= BINS:
            exponent += 1
        return exponent, math.floor(math.ldexp(low, -exponent))

    @staticmethod
    def of(values: np.ndarray) -> Histogram:
        """The histogram of an array's finite values."""
        x = np.asarray(values, np.float32).reshape(-1)
        x = x[np.isfinite(x)]
        low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)
        exponent, start = Histogram.fitting(low, high)
        bins = np.floor(np.ldexp(x.astype(np.float64), -exponent)).astype(np.int64) - start
        return Histogram(exponent, start, _frozen(np.bincount(bins, minlength=BINS)))

    @property
    def width(self) -> float:
        return math.ldexp(1.0, self.exponent)

    @property
    def low(self) -> float:
        return self.start * self.width

    @property
    def high(self) -> float:
        return (self.start + BINS) * self.width

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @property
    def edges(self) -> np.ndarray:
        """f64[2049]: the bins' borders, from `low` to `high`."""
        return np.ldexp((self.start + np.arange(BINS + 1)).astype(np.float64), self.exponent)

    def at(self, exponent: int, start: int) -> Histogram:
        """The same counts in bins of 2^exponent, no narrower than these, from `start` on: bins merge in pairs.

        Raises ValueError where the new bins are narrower or do not cover the values.
        """
        if (exponent, start) == (self.exponent, self.start):
            return self
        used = np.flatnonzero(self.counts)
        place = ((self.start + used) >> max(0, min(63, exponent - self.exponent))) - start
        if exponent < self.exponent or (place.size and (place.min() < 0 or place.max() >= BINS)):
            raise ValueError(
                f"bins of 2^{self.exponent} from {self.start} do not go into those of 2^{exponent} from {start}"
            )
        counts = np.zeros(BINS, np.int64)
        np.add.at(counts, place, self.counts[used])
        return Histogram(exponent, start, _frozen(counts))

    def merged(self, other: Histogram, low: float, high: float) -> Histogram:
        """The histogram of both together, whose values lie from `low` to `high`."""
        place = Histogram.fitting(low, high)
        return Histogram(*place, _frozen(self.at(*place).counts + other.at(*place).counts))

    def magnitudes(self) -> np.ndarray:
        """int64[n]: the counts of |x| in bins of the same width from zero on, up to the last that holds a value."""
        up = self.counts[max(0, -self.start) :]
        down = self.counts[: max(0, -self.start)][::-1]
        out = np.zeros(max(up.size, down.size), np.int64)
        out[: up.size] += up
        out[: down.size] += down
        used = np.flatnonzero(out)
        return out[: used[-1] + 1 if used.size else 1]


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What was seen of one value in all samples."""

    name: str
    histogram: Histogram
    minimum: float
    maximum: float
    samples: int
    """The samples in which the value was made."""
    nonfinite: int = 0
    """How many elements were NaN or infinite; they are counted nowhere else."""
    mean_minimum: float = 0.0
    mean_maximum: float = 0.0
    """The means of the samples' own minima and maxima."""
    axis: int | None = None
    """The axis that `absmax` and `mean` are along, counted from the value's last axis (-1), else None."""
    absmax: np.ndarray | None = None
    """f32[channels]: the largest magnitude of each channel."""
    mean: np.ndarray | None = None
    """f32[channels]: the mean of each channel over all elements of all samples."""

    @property
    def count(self) -> int:
        """The finite elements in the histogram: of large images a part (see the operator `observe`)."""
        return self.histogram.total

    @property
    def constant(self) -> bool:
        """Whether all elements are one number."""
        return self.minimum == self.maximum

    @property
    def dead_channels(self) -> tuple[int, ...]:
        """The channels that were zero in all samples."""
        return () if self.absmax is None else tuple(int(i) for i in np.flatnonzero(self.absmax == 0))


@dataclass(frozen=True, eq=False)
class Statistics:
    """The statistics of a model's values over calibration data, independent of any scheme of quantization."""

    model_hash: str
    data_hash: str
    samples: int
    random: bool = False
    """Whether the samples were random numbers and not data."""
    skipped: int = 0
    """Bad samples that were left out."""
    warnings: tuple[str, ...] = ()
    tensors: Mapping[str, TensorStatistics] = field(default_factory=dict)
    """By the name of the value in the Graph that stands before quantization."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))

    def __getitem__(self, name: str) -> TensorStatistics:
        """Raises StatisticsError for a value that was not observed."""
        try:
            return self.tensors[name]
        except KeyError:
            raise StatisticsError(f"the statistics have no value {name!r}; calibrate again with this version") from None

    def check_model(self, model_hash: str, path: str = "the statistics") -> None:
        """Raises StatisticsError unless these are of the model with this hash."""
        if model_hash != self.model_hash:
            raise StatisticsError(
                f"{path}: made from another model (its SHA-256 begins {self.model_hash[:12]}, this model's "
                f"{model_hash[:12]}); calibrate this model with `opcel calibrate`"
            )

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file: the same statistics give the same bytes."""
        replace_text(Path(path), statistics_text(self))

    @staticmethod
    def read(path: str | os.PathLike[str]) -> Statistics:
        """Raises StatisticsError for a file that is none of ours or is damaged."""
        try:
            return parse_statistics(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise StatisticsError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise StatisticsError(
                f"{os.fspath(path)} is not a statistics file of `opcel calibrate` ({error}); make it again"
            ) from error


def replace_text(path: Path, text: str) -> None:
    """Write a file in one step: whatever interrupts it, what was there before stays or the whole text is there."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


# -- the file ----------------------------------------------------------------------------------------------------------


def _floats(values: np.ndarray | None) -> list[float] | None:
    """As numbers of the fewest digits that give the same f32 again."""
    return None if values is None else [float(str(v)) for v in values.astype(np.float32)]


def _tensor_text(t: TensorStatistics) -> str:
    h = t.histogram
    used = np.flatnonzero(h.counts)
    first, last = (int(used[0]), int(used[-1])) if used.size else (0, -1)
    fields: dict[str, Any] = {
        "name": t.name, "minimum": t.minimum, "maximum": t.maximum, "samples": t.samples, "nonfinite": t.nonfinite,
        "mean_minimum": t.mean_minimum, "mean_maximum": t.mean_maximum, "exponent": h.exponent, "start": h.start,
        "first": first, "counts": h.counts[first : last + 1].tolist(),
        "axis": t.axis, "absmax": _floats(t.absmax), "mean": _floats(t.mean),
    }  # fmt: skip
    return json.dumps(fields, separators=(",", ":"), allow_nan=False)


def statistics_text(statistics: Statistics) -> str:
    """JSON, a line for each tensor, sorted by name."""
    s = statistics
    head: dict[str, Any] = {
        "format": FORMAT, "model_sha256": s.model_hash, "data_sha256": s.data_hash, "samples": s.samples,
        "random": s.random, "skipped": s.skipped, "warnings": list(s.warnings),
    }  # fmt: skip
    rows = ",\n".join(_tensor_text(s.tensors[name]) for name in sorted(s.tensors))
    return json.dumps(head, indent=0)[:-2] + f',\n"tensors": [\n{rows}\n]\n}}\n'


def parse_statistics(text: str) -> Statistics:
    """The inverse of `statistics_text`. Raises ValueError, KeyError or TypeError for other text."""
    data = json.loads(text)
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']} and this version reads {FORMAT}")
    tensors = [_parse_tensor(row) for row in data["tensors"]]
    return Statistics(
        data["model_sha256"], data["data_sha256"], int(data["samples"]), bool(data["random"]), int(data["skipped"]),
        tuple(map(str, data["warnings"])), {t.name: t for t in tensors},
    )  # fmt: skip


def _parse_tensor(row: Mapping[str, Any]) -> TensorStatistics:
    found = np.array(row["counts"], np.int64)
    first = int(row["first"])
    if found.ndim != 1 or first < 0 or first + found.size > BINS or (found < 0).any():
        raise ValueError(f"the counts of {row['name']} do not go into {BINS} bins")
    counts = np.zeros(BINS, np.int64)
    counts[first : first + found.size] = found
    exponent, start = int(row["exponent"]), int(row["start"])
    if not (LEAST_EXPONENT <= exponent <= 128 and -BINS <= start <= 0):
        raise ValueError(f"the bins of {row['name']} lie nowhere")
    low, high, low_mean, high_mean = (float(row[k]) for k in ("minimum", "maximum", "mean_minimum", "mean_maximum"))
    if not all(map(math.isfinite, (low, high, low_mean, high_mean))):
        raise ValueError(f"an extreme of {row['name']} is not finite")
    channels = [None if row[k] is None else _frozen(np.array(row[k], np.float32)) for k in ("absmax", "mean")]
    return TensorStatistics(
        str(row["name"]), Histogram(exponent, start, _frozen(counts)),
        low, high, int(row["samples"]), int(row["nonfinite"]), low_mean, high_mean,
        None if row["axis"] is None else int(row["axis"]), *channels,
    )  # fmt: skip
