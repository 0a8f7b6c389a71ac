"""How a model is quantized: what the caller chooses, and the plan that follows from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.quantization import Plan
from opcel_compiler.ir.statistics import Statistics, TensorStatistics
from opcel_compiler.ir.thresholds import THRESHOLDS
from opcel_compiler.quantization.observe import Feeds, interpreted
from opcel_compiler.quantization.plan import Range, make_plan, observed_values
from opcel_compiler.targets.schema import Target

ACTIVATIONS = ("static", "dynamic")


class QuantizationError(OpcelError):
    """A model that cannot be quantized as it was asked for."""

    exit_code = 2


@dataclass(frozen=True)
class Recipe:
    """`calibrate`: the data, a path or samples by the names of the model's inputs; `statistics`: what was seen of data
    before, a file or the statistics. `threshold` chooses ranges from them. `activations`: "static" grids or, for
    matrix products, "dynamic" ones, a scale for each row that is computed as the model runs.
    """

    calibrate: Any = None
    statistics: Statistics | str | os.PathLike[str] | None = None
    threshold: str = "mse"
    activations: str = "static"
    kept: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raises QuantizationError for what is missing or unknown."""
        if self.calibrate is None and self.statistics is None:
            raise QuantizationError(
                "precision int8 needs to see data: give samples with --calibrate DATA (`calibrate` in Python), or the "
                "statistics of earlier ones with --statistics FILE"
            )
        for what, value, known in (
            ("the threshold", self.threshold, tuple(THRESHOLDS)), ("activations", self.activations, ACTIVATIONS),
        ):  # fmt: skip
            if value not in known:
                raise QuantizationError(f"{what} can be {', '.join(known)}, not {value!r}")


def plan_of(recipe: Recipe, graph: Graph, names: Iterable[str], target: Target, model_hash: str) -> Plan:
    """The plan for `graph`, whose inputs are called `names` in the model, as it stands before the pass `equalize`."""
    seen = tensors(recipe, graph, list(names), target, model_hash)
    threshold = THRESHOLDS[recipe.threshold]
    ranges: dict[str, Range] = {name: threshold(t, False) for name, t in seen.items()}
    dynamic = frozenset(n.results[0].name for n in graph.nodes if n.op == "matmul" and n.results)
    return make_plan(graph, ranges, target, recipe.kept, dynamic if recipe.activations == "dynamic" else frozenset())


def tensors(
    recipe: Recipe, graph: Graph, names: list[str], target: Target, model_hash: str
) -> Mapping[str, TensorStatistics]:
    """The statistics of the values that are quantized. Raises StatisticsError for those of another model."""
    if recipe.statistics is not None:
        given = recipe.statistics
        path = "the statistics" if isinstance(given, Statistics) else os.fspath(given)
        statistics = given if isinstance(given, Statistics) else Statistics.read(given)
        statistics.check_model(model_hash, path)
        return statistics.tensors
    samples = list(renamed(read_samples(recipe.calibrate), names, graph))
    return interpreted(graph, samples, observed_values(graph, target))


def first_sample(recipe: Recipe) -> dict[str, np.ndarray] | None:
    """A sample to compare the quantized model with the float model on; None where there are statistics alone."""
    data = () if recipe.calibrate is None else read_samples(recipe.calibrate)
    return next(({n: np.asarray(v) for n, v in feeds.items()} for feeds in data), None)


def renamed(samples: Iterable[Feeds], names: list[str], graph: Graph) -> Iterable[Feeds]:
    """Samples by the names of the graph's inputs, which can differ from the model's."""
    for feeds in samples:
        if missing := [n for n in names if n not in feeds]:
            raise QuantizationError(f"a calibration sample lacks {', '.join(missing)}; it holds {', '.join(feeds)}")
        yield {v.name: np.asarray(feeds[n]) for n, v in zip(names, graph.inputs, strict=True)}


def read_samples(data: Any) -> Iterable[Feeds]:
    """The samples of a path: an .npz file is one, a folder of them many; other data are samples as they are."""
    if isinstance(data, (str, os.PathLike)):
        path = Path(data)
        files = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        for file in files:
            with np.load(file, allow_pickle=False) as arrays:
                yield {name: arrays[name] for name in arrays.files}
    elif isinstance(data, Mapping):
        yield data
    else:
        yield from data
