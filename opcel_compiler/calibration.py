"""Calibration: a model's values, observed while our own code runs it on samples of the user's data."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from opcel_compiler.calibrate.accumulate import NonfiniteError, Observed
from opcel_compiler.calibrate.apart import apart
from opcel_compiler.calibrate.data import Data
from opcel_compiler.calibrate.errors import CalibrationError, CalibrationWarning
from opcel_compiler.calibrate.gather import KEPT_SAMPLES, Calibrated, Observation, gather
from opcel_compiler.calibrate.origin import first_maker
from opcel_compiler.calibrate.samples import Sample, inputs_of
from opcel_compiler.calibrate.worker import Job
from opcel_compiler.codegen.artifact import MANIFEST, write_json
from opcel_compiler.codegen.cpu.build import build
from opcel_compiler.compilation import PLANNED, Compilation, Progress, check_bound, prepare
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.maps import without_maps
from opcel_compiler.frontend.proto_types import DimValue
from opcel_compiler.ir.calibration import CHANNELS, COUNTS, SEEN, WINDOWS, observable
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.statistics import Statistics
from opcel_compiler.proof import Bound, Proof, sample_inputs
from opcel_compiler.quantization.plan import observed_values
from opcel_compiler.quantization.recipe import Recipe
from opcel_compiler.regions import region_models
from opcel_compiler.report import facts
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.runtime.model import CompiledModel
from opcel_compiler.targets import load_target
from opcel_compiler.targets.host import missing_features
from opcel_compiler.targets.schema import Target

RANDOM_SAMPLES = 32


def collect(
    model: Any, data: Any, target: str = "host", *, dims: Mapping[str, DimValue] | None = None,
    pipeline: str | None = None, threads: int | None = None, progress: Progress | None = None,
) -> Calibrated:  # fmt: skip
    """The statistics of `model` (a path, bytes or a ModelProto) over `data`, a `calibrate.data.Data` or its source.

    The model is compiled for `target`, which this machine must run, as it stands before quantization, with counters at
    the values that a quantization rounds; one sample is in memory at a time, beside the first few.

    Warns with CalibrationWarning of what the statistics' `warnings` hold. Raises CalibrationError for data that the
    model cannot be calibrated with, and what `compile` raises for the model.
    """
    made = _collected(model, data, target, dims, pipeline, threads, progress)
    _warn(made.statistics, stacklevel=3)
    return made


def _warn(statistics: Statistics, stacklevel: int) -> None:
    for text in statistics.warnings:
        warnings.warn(text, CalibrationWarning, stacklevel)


def _collected(
    model: Any, data: Any, target: str, dims: Mapping[str, DimValue] | None, pipeline: str | None,
    threads: int | None, progress: Progress | None,
) -> Calibrated:  # fmt: skip
    given = Data.of(data)
    given.check()
    with observing(model, target, dims, pipeline, threads, progress) as run:
        return over(run, given, progress)


def over(run: Observing, data: Any, progress: Progress | None = None) -> Calibrated:
    """What `collect` does with a model that observes; it does not warn. Data that are read from a path are read in a
    process of their own, whose memory is that of inference."""
    given = Data.of(data)
    given.check()
    told = progress or (lambda what, done, of: None)

    def report(count: int) -> None:
        told("calibrating", count, 0)

    def explain(error: NonfiniteError, sample: Sample) -> CalibrationError:
        graph = run.graph()
        feeds = {v.name: sample.feeds[i.name] for i, v in zip(run.about.inputs, graph.inputs, strict=True)}
        return first_maker(error, graph, feeds)

    if isinstance(given.source, (str, os.PathLike)):
        return apart(Job(run.folder, run.threads, run.about, given), report, explain)
    with CompiledModel(run.folder, threads=run.threads) as model:
        return gather(model, run.about, given, report, partial(_random, run), explain)()


def _random(run: Observing) -> Iterator[Sample]:
    graph, names = run.graph(), [i.name for i in run.about.inputs]
    for i in range(RANDOM_SAMPLES):
        yield Sample(i, f"random, seed {i}", sample_inputs(graph, names, seed=i))


def with_statistics(
    recipe: Recipe, model: Any, target: str = "host", pipeline: str | None = None,
    dims: Mapping[str, DimValue] | None = None, threads: int | None = None, progress: Progress | None = None,
) -> Recipe:  # fmt: skip
    """The recipe with statistics, which are collected from its data, and written to its file, unless they are there
    already; the first samples then stand in the data's place. Data that are a statistics file are taken as such.

    Warns, in the name of its caller's caller, and raises as `collect` does; QuantizationError for a recipe that has
    neither data nor statistics.
    """
    recipe.check()
    data, given = recipe.calibrate, recipe.statistics
    if isinstance(data, (str, os.PathLike)) and Path(data).suffix == ".json":
        return dataclasses.replace(recipe, calibrate=None, statistics=given or data)
    if isinstance(given, Statistics) or (given is not None and os.path.exists(given)):
        if isinstance(data, Iterator):
            recipe = dataclasses.replace(recipe, calibrate=list(itertools.islice(data, KEPT_SAMPLES)))
        return recipe
    if given is not None and data is None and not recipe.allow_random:
        Statistics.read(given)  # says that there is no such file
    description = load_target(target)
    runs = "host" if missing_features(description) else target
    whole = (
        data if isinstance(data, Data) else Data(data, recipe.preprocess, {}, recipe.on_bad_sample, recipe.allow_random)
    )
    made = _collected(model, whole, runs, dims, pipeline or description.pipeline, threads, progress)
    _warn(made.statistics, stacklevel=4)
    if given is not None:
        made.statistics.write(given)
    return dataclasses.replace(recipe, statistics=made.statistics, calibrate=list(made.samples), preprocess=None)


# -- the observing model -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Observing:
    """A compiled model that observes, in `folder`; `graph` makes the one that it observes, as it stands before
    quantization: held, it would take the memory of its weights."""

    folder: str
    threads: int | None
    graph: Callable[[], Graph]
    about: Observation


def observed_graph(
    model: Any, target: Target, pipeline: str | None = None, dims: Mapping[str, DimValue] | None = None
) -> tuple[Graph, tuple[str, ...], tuple[str, ...]]:
    """(the graph as it stands before quantization, the names of its inputs, those of the values to observe)."""
    imported = import_model(model, dims=dims)
    without_maps(imported.graph, imported.output_names)
    before, _ = _around_plan(target, pipeline)
    PassManager.run(imported.graph, before.at("graph"), PassContext(target=target))
    found = observable(imported.graph, observed_values(imported.graph, target))
    return imported.graph, imported.input_names, tuple(v.name for v in found)


def observing_pipeline(target: Target, pipeline: str | None = None, names: Iterable[str] = ()) -> str:
    """The target's pipeline, or `pipeline`, with a pass that observes the values `names` where a plan would be made."""
    before, after = _around_plan(target, pipeline)
    return f"{before},observe{{also=[{','.join(names)}]}},{after}"


def _around_plan(target: Target, pipeline: str | None) -> tuple[Pipeline, Pipeline]:
    passes = Pipeline.parse(pipeline or target.pipeline).passes
    at = next((i for i, p in enumerate(passes) if p.name in PLANNED), None)
    if at is None:
        raise CalibrationError(
            f"the pipeline has no pass {' or '.join(sorted(PLANNED))}, so nothing would be quantized"
        )
    return Pipeline(passes[:at]), Pipeline(passes[at:])


@contextmanager
def observing(
    model: Any, target: str = "host", dims: Mapping[str, DimValue] | None = None, pipeline: str | None = None,
    threads: int | None = None, progress: Progress | None = None,
) -> Iterator[Observing]:  # fmt: skip
    """Compile `model` with counters at the values that a quantization rounds.

    Raises CalibrationError where there are none, or the model has no native code.
    """
    description = load_target(target)
    graph, names, values = observed_graph(model, description, pipeline, dims)
    if not values:
        raise CalibrationError(
            "the model has no convolution or matrix product with constant weights outside of loops and branches, so "
            "there is nothing to calibrate"
        )
    text = observing_pipeline(description, pipeline, values)
    work = prepare(model, target, pipeline=text, dims=dims, progress=progress)
    if work.whole:
        raise CalibrationError(f"the whole model would run in ONNX Runtime, as {work.whole}; it cannot be quantized")
    check_bound(work.graph)
    hash_ = work.imported.model_hash
    work.imported = dataclasses.replace(
        work.imported, input_names=(*work.imported.input_names, WINDOWS),
        output_names=(*work.imported.output_names, COUNTS, SEEN, CHANNELS),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="opcel-") as name:
        write_unproved(work, Path(name), progress)
        observed = tuple(_observed(graph, v) for v in values)
        inputs = inputs_of(graph, names)
        del work, graph
        gc.collect()  # graphs are cycles
        again = partial(_graph, model, description, pipeline, dims)
        yield Observing(name, threads, again, Observation(inputs, observed, hash_))


def _graph(model: Any, target: Target, pipeline: str | None, dims: Mapping[str, DimValue] | None) -> Graph:
    return observed_graph(model, target, pipeline, dims)[0]


def write_unproved(work: Compilation, folder: Path, progress: Progress | None) -> None:
    assert work.program is not None
    for i, region in enumerate(region_models(work)):
        (folder / f"region_{i}.onnx").write_bytes(region)
    names = (work.imported.input_names, work.imported.output_names)
    build(work.program, work.target, folder, names, progress, work.imported.release)
    write_json(folder / MANIFEST, facts.manifest(work, None, folder, Proof("unproved"), Bound()))
    work.imported.release()


def _observed(graph: Graph, name: str) -> Observed:
    value, axis = next((v, axis) for v, axis in observable(graph, [name]).items() if v.name == name)
    dims = value.tensor.dims
    size = dims[axis] if axis >= 0 else 1
    assert isinstance(size, int)
    return Observed(name, axis - len(dims) if axis >= 0 else None, size)
