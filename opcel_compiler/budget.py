"""Precision int8 within a budget: layers go back to float until the outputs are near enough, and no more than that."""

from __future__ import annotations

import dataclasses
import os
import signal
import statistics
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.calibrate.readers import read_samples
from opcel_compiler.calibrate.samples import Input
from opcel_compiler.calibration import with_statistics
from opcel_compiler.codegen.artifact import PAGE, REPORT, put_in_place, update_json, write_page
from opcel_compiler.compilation import Progress, prepare
from opcel_compiler.driver import compile
from opcel_compiler.ir.statistics import Statistics
from opcel_compiler.quantization.budget import Found, Limits, Priced, search, slower
from opcel_compiler.quantization.metrics import metric_of
from opcel_compiler.quantization.planner import Planner
from opcel_compiler.quantization.recipe import QuantizationError, Recipe
from opcel_compiler.quantization.sensitivity import Sensitivity, key_of, sensitivities
from opcel_compiler.report.html import page
from opcel_compiler.report.layers import layer_seconds
from opcel_compiler.runtime.decoding import load, run_whole
from opcel_compiler.runtime.model import CompiledModel

MOST_VALIDATED = 512
"""The most samples on which a whole network is checked."""
BLOCKS, BLOCK_S, RUNS = 5, 0.05, 15
SLOWER = 1.05
"""A layer goes back to float where 8 bits take so many times as long, as measured."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """`max_drop` is the most that `metric` may be (see `quantization.metrics`); `max_latency` the most seconds that a
    run may take, as far as that drop allows; `sensitivity` a file in which what is measured is kept; `seconds` ends the
    search with the best so far.
    """

    max_drop: float
    metric: str = "kl"
    max_latency: float | None = None
    sensitivity: str | os.PathLike[str] | None = None
    seconds: float | None = None


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A SIGINT waits until the block is done. Only the main thread can see to that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen: list[object] = []
    before = signal.signal(signal.SIGINT, lambda *_: seen.append(None))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        signal.raise_signal(signal.SIGINT)


class _Ended(Exception):
    """The time for the search is over."""


def compile_within(
    model: Any, budget: Budget, target: str = "host", output: str | os.PathLike[str] | None = None,
    threads: int | None = None, *, recipe: Recipe | None = None, progress: Progress | None = None, **options: Any,
) -> CompiledModel:  # fmt: skip
    """What `compile` does with precision "int8" and `options`, within a budget.

    The default recipe's artifact is put at `output` first, and each better one in its place, so that there is the best
    so far whenever the search is ended, also by KeyboardInterrupt, which ends it early without an error. What
    `export_qdq` names is always the quantized model of the artifact at `output`. The report tells of the search. Raises
    what `compile` raises, and QuantizationError for a metric that fails or without data.
    """
    recipe = recipe or Recipe()
    if recipe.calibrate is None:
        raise QuantizationError("a budget is kept on data: give samples with --calibrate DATA (`calibrate` in Python)")
    keep = tempfile.TemporaryDirectory(prefix="opcel-") if output is None else None
    place = Path(output) if output is not None else Path(keep.name if keep is not None else "") / "model.opcel"
    same = {n: options[n] for n in ("pipeline", "dims") if n in options}
    recipe = with_statistics(recipe, model, target, same.get("pipeline"), same.get("dims"), threads, progress)
    compile(model, target, place, threads, precision="int8", recipe=recipe, progress=progress, **options).close()
    job = _Search(model, budget, target, place, threads, recipe, progress, options)
    with ExitStack() as stack:
        beside = [place.resolve().parent, *([job.export.resolve().parent] if job.export is not None else [])]
        folders = [stack.enter_context(tempfile.TemporaryDirectory(prefix="opcel-", dir=d)) for d in beside]
        try:
            job.run(Path(folders[0]), Path(folders[-1]))
        except (KeyboardInterrupt, _Ended) as error:
            job.ended = "interrupted" if isinstance(error, KeyboardInterrupt) else "out of time"
    with uninterrupted():
        job.tell()
    opened = load(place, threads=threads)
    if keep is not None:
        weakref.finalize(opened, keep.cleanup)
    return opened


class _Search:
    def __init__(
        self, model: Any, budget: Budget, target: str, place: Path, threads: int | None, recipe: Recipe,
        progress: Progress | None, options: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.model, self.budget, self.target, self.place = model, budget, target, place
        self.threads, self.recipe, self.options = threads, recipe, dict(options)
        export = self.options.pop("export_qdq", None)
        self.export = None if export is None else Path(export)
        self.report = progress or (lambda what, done, of: None)
        self.metric = metric_of(budget.metric)
        self.best: Found | None = None
        self.times: Mapping[str, tuple[float, float]] = {}
        self.made: Mapping[str, str] = {}
        self.layers: list[Priced] = []
        self.validations, self.ended = 0, ""
        self.end = float("inf") if budget.seconds is None else time.monotonic() + budget.seconds

    def run(self, folder: Path, beside_export: Path) -> None:
        """Search with candidates in `folder`, and their exports in `beside_export`."""
        self.candidate = folder / "candidate.opcel"
        self.exported = None if self.export is None else beside_export / self.export.name
        plain = {n: v for n, v in self.options.items() if n in ("pipeline", "dims", "tune", "small")}
        self.report("compiling in f32", 0, 0)
        floats = folder / "float.opcel"
        compile(self.model, self.target, floats, self.threads, proof=False, fallback="allow", **plain).close()
        self._check_time()
        with load(floats, threads=self.threads) as model:
            self.inputs = self._inputs(model)
            self.wants = self._outputs(model)
        self.known = self._sensitivity()
        base = self.best = Found({}, self._drop(self.place))
        base.seconds = self._run_seconds(self.place, {})
        limits = Limits(self.budget.max_drop, self.budget.max_latency or float("inf"))
        if limits.kept(base):
            return
        self._price(floats)
        slow = slower([p for p in self.layers if p.saved < 0 and self._much(p)])
        base.saved = sum(p.saved for p in self.layers)
        self.best = search(self.layers, base, limits, self.budget.metric, self._validate, self._put_in_place, slow)

    def _inputs(self, model: CompiledModel) -> list[dict[str, np.ndarray]]:
        """The data that validate, by the names of the model's inputs."""
        work = prepare(self.model, self.target, pipeline="dead-code", dims=self.options.get("dims"))
        pairs = zip(work.imported.input_names, work.graph.inputs, strict=True)
        inputs = [Input(n, v.tensor) for n, v in pairs]
        samples = read_samples(self.recipe.calibrate, inputs, self.recipe.preprocess)
        return [dict(s.feeds) for s in islice(samples, MOST_VALIDATED)]

    def _outputs(self, model: CompiledModel) -> list[dict[str, np.ndarray]]:
        out = []
        for feeds in self.inputs:
            self._check_time()
            out.append({n: np.array(v) for n, v in run_whole(model, feeds).items()})
        return out

    def _drop(self, artifact: Path) -> float:
        """One full validation."""
        self.validations += 1
        with load(artifact, threads=self.threads) as model:
            return self.metric(self.wants, self._outputs(model))

    def _check_time(self) -> None:
        if time.monotonic() > self.end:
            raise _Ended

    def _sensitivity(self) -> Sensitivity:
        recipe, given = self.recipe, self.recipe.statistics
        assert given is not None
        of = given if isinstance(given, Statistics) else Statistics.read(given)
        scheme = (recipe.threshold, recipe.activations, recipe.equalize, self.target)
        path = None if self.budget.sensitivity is None else Path(self.budget.sensitivity)
        return Sensitivity(path, key_of(of.model_hash, of.data_hash, *scheme))

    # -- what layers lose and save -------------------------------------------------------------------------------------

    def _price(self, floats: Path) -> None:
        recipe = self.recipe
        found: list[Priced] = []

        def planned(planner: Planner) -> None:
            known = self.known
            if not known.seconds:
                origins = {n.results[0].name: n.origin for n in planner.graph.nodes if n.results}
                known.add_seconds(self._seconds(floats, {n: origins[n] for n in planner.plan.layers if n in origins}))

            self.times = known.seconds

            def tick(done: int, of: int) -> None:
                self.report("measuring layers", done, of)
                self._check_time()

            for name, loss in sensitivities(planner.graph, planner.plan, planner.samples, known, tick):
                before, after = known.seconds.get(name, (0.0, 0.0))
                found.append(Priced(name, loss, before - after))

        plain = {n: v for n, v in self.options.items() if n in ("pipeline", "dims")}
        prepare(self.model, self.target, precision="int8", recipe=dataclasses.replace(recipe, planned=planned), **plain)
        self.layers = found

    def _much(self, p: Priced) -> bool:
        before, after = self.times.get(p.name, (0.0, 0.0))
        return after > SLOWER * before

    def _seconds(self, floats: Path, origins: Mapping[str, Sequence[str]]) -> dict[str, tuple[float, float]]:
        before, after = (self._profile(a, origins) for a in (floats, self.place))
        return {n: (before[n], after[n]) for n in origins if n in before and n in after}

    def _profile(self, artifact: Path, origins: Mapping[str, Sequence[str]]) -> dict[str, float]:
        with load(artifact, threads=self.threads) as model:
            found = layer_seconds(model, self.inputs[0], origins.values(), BLOCKS, BLOCK_S)
        return {n: seconds for n, seconds in zip(origins, found, strict=True) if seconds is not None}

    # -- candidates ----------------------------------------------------------------------------------------------------

    def _validate(self, reverted: Mapping[str, str]) -> tuple[float, float]:
        self._check_time()
        self._compile(reverted)
        return self._drop(self.candidate), self._run_seconds(self.candidate, reverted)

    def _compile(self, reverted: Mapping[str, str]) -> None:
        recipe = dataclasses.replace(self.recipe, kept={**self.recipe.kept, **reverted})
        compile(
            self.model, self.target, self.candidate, self.threads, precision="int8", recipe=recipe,
            progress=self.report, export_qdq=self.exported, **self.options,
        ).close()  # fmt: skip
        self.made = dict(reverted)

    def _put_in_place(self, found: Found) -> None:
        if found.reverted != self.made:
            self._compile(found.reverted)
        with uninterrupted():
            put_in_place(self.candidate.resolve(), self.place.resolve())
            if self.export is not None and self.exported is not None:
                for made in sorted(self.exported.parent.iterdir(), reverse=True):  # tensors apart, then what names them
                    made.replace(self.export.parent / made.name)
            self.made, self.best = {}, found
        if not found.drop:  # all in float, which no validation has timed
            found.seconds = self._run_seconds(self.place, found.reverted)

    def _run_seconds(self, artifact: Path, reverted: Mapping[str, str]) -> float:
        """What a run takes, measured once for each choice; 0 where no latency is asked for."""
        if self.budget.max_latency is None:
            return 0.0
        choice = key_of(sorted(reverted), self.threads)
        if choice in self.known.runs:
            return self.known.runs[choice]
        seconds = []
        with load(artifact, threads=self.threads) as model:
            for _ in range(RUNS):
                start = time.perf_counter()
                run_whole(model, self.inputs[0])
                seconds.append(time.perf_counter() - start)
        return self.known.add_run(choice, statistics.median(seconds))

    def tell(self) -> None:
        """Add to the report of the artifact in place what was searched for and found."""
        with load(self.place, threads=1) as model:
            told, manifest = dict(model.report), dict(model.manifest)
        best = self.best
        asked, taken = self.budget.max_latency, best.seconds or None if best is not None else None
        told["quantization"] = {**told["quantization"], "budget": {
            "metric": self.budget.metric, "max_drop": self.budget.max_drop, "validations": self.validations,
            "drop": best.drop if best is not None and best.drop < float("inf") else None, "ended": self.ended,
            "met": best is not None and best.drop <= self.budget.max_drop,
            "reverted": [
                {"name": p.name, "loss": p.loss, "seconds_saved": p.saved}
                for p in self.layers if best is not None and p.name in best.reverted
            ],
            **({} if asked is None else {
                "max_latency": asked, "latency": taken, "latency_met": taken is not None and taken <= asked,
            }),
        }}  # fmt: skip
        update_json(self.place / REPORT, told)
        write_page(self.place / PAGE, page(told, manifest))
