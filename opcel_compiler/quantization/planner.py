"""The plan of one model's quantization, in two steps between the passes that carry it out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from opcel_compiler.calibrate.errors import CalibrationError
from opcel_compiler.calibrate.readers import read_samples
from opcel_compiler.calibrate.samples import checked, inputs_of
from opcel_compiler.ir.analysis import flops
from opcel_compiler.ir.dims import evaluate
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.quantization import CONVOLUTIONS, Plan
from opcel_compiler.ir.recurrent import RECURRENT
from opcel_compiler.ir.statistics import Statistics, TensorStatistics
from opcel_compiler.ir.thresholds import THRESHOLDS
from opcel_compiler.quantization.divide import divisions
from opcel_compiler.quantization.explain import layer_facts
from opcel_compiler.quantization.layers import candidates
from opcel_compiler.quantization.observe import Feeds, interpreted
from opcel_compiler.quantization.plan import Range, make_plan, observed_values
from opcel_compiler.quantization.probe import Measured, measure
from opcel_compiler.quantization.recipe import AUTO, Recipe
from opcel_compiler.quantization.trial import ENOUGH, GAIN, Trial, products
from opcel_compiler.schedule.cost import nominal
from opcel_compiler.targets.schema import Target

PROBE_FLOPS = 1e11
TINY = 1e-30
LEAST_PROBED, MOST_PROBED = 4, 12
"""On how many samples layers are measured: as many as take so many operations, within these limits."""


class Planner:
    """Plans for `graph`, whose inputs are called `names` in the model. `samples` are those that layers are
    measured on, `references` the float graph's outputs for them; `measured` holds, by layer, what was seen there, and
    `layers` what is told of them."""

    def __init__(self, recipe: Recipe, graph: Graph, names: Sequence[str], target: Target, model_hash: str) -> None:
        self.recipe, self.graph, self.names, self.target = recipe, graph, list(names), target
        self.model_hash = model_hash
        self.measured: dict[str, Measured] = {}
        self.references: list[dict[str, np.ndarray]] = []
        self.layers: list[dict[str, Any]] = []
        self.plan = Plan()
        self.planned: Callable[[Planner], None] | None = recipe.planned
        self.statistics: Statistics | None = None
        self.seen: dict[str, TensorStatistics] = {}
        self.now: dict[str, TensorStatistics] = {}
        self.divided: Mapping[str, np.ndarray] = {}
        self.samples = list(islice(self._read(), self._probed()))

    def _read(self) -> Iterator[Feeds]:
        """The calibration data that are fit, by the names of the graph's inputs; none where there are statistics alone.

        Raises CalibrationError for data that are not, unless they are to be skipped."""
        if self.recipe.calibrate is None:
            return
        inputs = inputs_of(self.graph, self.names)
        for sample in read_samples(self.recipe.calibrate, inputs, self.recipe.preprocess):
            try:
                feeds = checked(sample, inputs).feeds
            except CalibrationError:
                if self.recipe.on_bad_sample == "error":
                    raise
                continue
            yield {v.name: feeds[n] for n, v in zip(self.names, self.graph.inputs, strict=True)}

    def _probed(self) -> int:
        one = sum(evaluate(f, nominal(f)) for f in map(flops, self.graph.nodes))
        return int(min(MOST_PROBED, max(LEAST_PROBED, PROBE_FLOPS // max(1, one))))

    def before_equalize(self) -> Plan:
        """What the pass `equalize` is to do, of the graph that stands before it."""
        self.seen = dict(self._statistics())
        if self.recipe.equalize and self.recipe.activations != "dynamic":
            layers = candidates(self.graph, self.target)
            self.divided = divisions(self.graph, layers, self.seen, self.samples)
        return Plan(divided=self.divided)

    @property
    def origin(self) -> dict[str, Any]:
        """What the manifest says of the recipe and of the data behind it."""
        out: dict[str, Any] = {"threshold": self.recipe.threshold, "activations": self.recipe.activations}
        if (s := self.statistics) is not None:
            out |= {"samples": s.samples, "data_sha256": s.data_hash, "skipped": s.skipped}
            out |= {"random": True} if s.random else {}
        return out

    def before_quantize(self) -> Plan:
        """What the pass `quantize` is to do, of the graph that stands before it."""
        plan = self.plan = self._measured_plan()
        if self.planned is not None:
            self.planned(self)
        self.layers = layer_facts(self.graph, plan, self.measured, self.target)
        return plan

    def _measured_plan(self) -> Plan:
        kept = dict(self.recipe.kept)
        dynamic: frozenset[str] = frozenset()
        if self.recipe.activations == "dynamic":
            dynamic = frozenset(c.name for c in candidates(self.graph) if c.node.op not in CONVOLUTIONS)
        ranges: Mapping[str, Range] = self._ranges("mse" if self.recipe.threshold == AUTO else self.recipe.threshold)
        plan = self._plan(ranges, kept, dynamic)
        if not self.samples:
            return plan
        chosen = AUTO in (self.recipe.threshold, self.recipe.activations)
        if chosen and (names := products(self.graph, plan)):
            ranges, dynamic = self._tried(ranges, names, plan)
            plan = self._plan(ranges, kept, dynamic)
        self.measured, self.references = measure(self.graph, plan, self.samples)
        corrections, poor = {}, dict(self.recipe.kept)
        recurrent = {n.results[0].name for n in self.graph.nodes if n.op in RECURRENT}
        for name, m in self.measured.items():
            correction = m.correction if self.recipe.correct and name not in recurrent else None
            if correction is not None:
                m.corrected(correction)
                corrections[name] = correction
            if m.sqnr < self.recipe.least_sqnr:
                least = self.recipe.least_sqnr
                poor[name] = f"its result has {m.sqnr:.1f} dB of signal to noise in 8 bits, less than {least:g}"
        if len(poor) > len(self.recipe.kept):
            plan = self._plan(ranges, poor, dynamic)
        plan.corrections = {n: c for n, c in corrections.items() if plan.quantized(n)}
        return plan

    def _tried(
        self, ranges: Mapping[str, Range], names: frozenset[str], plan: Plan
    ) -> tuple[Mapping[str, Range], frozenset[str]]:
        """(ranges, the layers with scales for rows): those that move the outputs least of what the recipe leaves open,
        for a network of the matrix products `names`."""
        kept, trial = dict(self.recipe.kept), Trial(self.graph, plan, self.samples)
        noise = trial.noise(plan)
        if self.recipe.threshold == AUTO:
            whole = self._ranges("minmax")
            if (other := trial.noise(self._plan(whole, kept, frozenset()))) < noise:
                ranges, noise = whole, other
        if self.recipe.activations == AUTO and noise > ENOUGH:
            if trial.noise(self._plan(ranges, kept, names)) < GAIN * noise:
                return ranges, names
        return ranges, frozenset()

    def _plan(self, ranges: Mapping[str, Range], kept: Mapping[str, str], dynamic: frozenset[str]) -> Plan:
        plan = make_plan(self.graph, ranges, self.target, kept, dynamic)
        plan.divided = self.divided
        return plan

    def _statistics(self) -> Mapping[str, TensorStatistics]:
        """Raises StatisticsError for those of another model."""
        given = self.recipe.statistics
        if given is not None:
            path = "the statistics" if isinstance(given, Statistics) else os.fspath(given)
            statistics = given if isinstance(given, Statistics) else Statistics.read(given)
            statistics.check_model(self.model_hash, path)
            self.statistics = statistics
            return statistics.tensors
        return interpreted(self.graph, self._read(), observed_values(self.graph, self.target))

    def _ranges(self, name: str) -> dict[str, Range]:
        """The range of every value that may be quantized, by the threshold `name`; of those that were divided by what
        they are now."""
        threshold = THRESHOLDS[name]
        wanted = observed_values(self.graph, self.target)
        apart = {n for n in wanted if f"{n}.divided" in wanted}  # read as it was too
        changed = {n: a for n, a in wanted.items() if n not in apart and n.removesuffix(".divided") in self.divided}
        out = {n: threshold(t, False) for n, t in self.seen.items() if n in wanted and n not in changed}
        if self.samples and changed and not self.now:
            self.now = interpreted(self.graph, self.samples, changed)
        for name in changed:
            before = self.seen[name.removesuffix(".divided")]
            assert before.absmax is not None
            reach = float((before.absmax / self.divided[before.name]).max())
            if name in self.now:
                t = self.now[name]
                low, high = threshold(t, False)
                wider = max(1.0, reach / max(-t.minimum, t.maximum, TINY))  # what samples not among these reach
                out[name] = low * wider, high * wider
            else:
                out[name] = (-reach if before.minimum < 0 else 0.0), (reach if before.maximum > 0 else 0.0)
        return out
