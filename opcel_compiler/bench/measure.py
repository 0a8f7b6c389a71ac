"""Latencies of an artifact and of other engines on its model, measured by turns."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from opcel_compiler.bench.engines import OPCEL, OPCEL_RESIDENT, PEERS, Engine
from opcel_compiler.bench.turns import EngineError, Worker
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.proof import Bound, OutputError_, compare, given_inputs, manifest_bound
from opcel_compiler.references import reference_outputs
from opcel_compiler.runtime import read_manifest

BLOCK_S = 0.15
MIN_CALLS, MAX_CALLS = 3, 2000
Idle = Callable[[], None]
"""Called once a round while every engine is stopped."""


@dataclass
class Measured:
    """One engine. Times in seconds: of opening the model, of the first call, and the percentiles of the measured ones.

    `ratio` is our time over this engine's, the median over rounds of the ratio of the blocks' medians; `ratio_low` and
    `ratio_high` are its quartiles. `speedup` is the other way round and of the blocks' 25th percentiles: how many times
    our time it takes. `weights` is the mode that ours were opened in. `error` says why an engine has no figures.
    """

    engine: str
    title: str
    version: str = ""
    weights: str = ""
    load_s: float = 0.0
    first_s: float = 0.0
    p25_s: float = 0.0
    p50_s: float = 0.0
    p95_s: float = 0.0
    p99_s: float = 0.0
    per_second: float = 0.0
    peak_bytes: int = 0
    calls: int = 0
    failures: int = 0
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    cost_per_million: float | None = None
    outputs: list[OutputError_] | None = None
    error: str = ""

    @property
    def within(self) -> bool | None:
        """Whether all outputs are inside the bound; None when there was nothing to compare with."""
        return None if self.outputs is None else all(o.within for o in self.outputs)


@dataclass
class Bench:
    """What one run of the harness found; `rows` begins with the artifact."""

    threads: int
    rounds: int
    rows: list[Measured]
    reference: str = ""
    bound: str = ""
    step_seconds: list[float] = field(default_factory=list)
    streams: int = 0
    streams_per_second: float = 0.0

    @property
    def ours(self) -> Measured:
        return self.rows[0]


@dataclass(eq=False)
class _Turn:
    worker: Worker
    row: Measured
    calls: int = MIN_CALLS
    seconds: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    quarters: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Pace:
    """How long a block lasts in seconds, its least calls, and the least calls of each engine in all its blocks, for
    which rounds are added."""

    block_s: float | None = None
    calls: int = MIN_CALLS
    total: int = 0


def measure(
    artifact: Path, feeds: Mapping[str, np.ndarray], *, model: Path | None = None, against: Sequence[str] = (),
    threads: int, rounds: int = 15, price: float | None = None, profile: bool = False, idle: Idle = lambda: None,
    resident: bool = False, pace: Pace = Pace(), streams: int = 0, models: Mapping[str, Path] = MappingProxyType({}),
    sources: Mapping[str, Path] = MappingProxyType({}),
) -> Bench:  # fmt: skip
    """Measure an artifact on `feeds`, beside the engines `against` (names of PEERS) on the ONNX file `model`.

    Each engine has a process of its own. They take turns in blocks of calls, in an order that alternates; whoever has
    no turn is stopped. With `model` each engine's outputs are compared with the unoptimized reference. `price` is the
    machine's in US dollars an hour. `models` are the files of engines that have one of their own, `sources` the models
    that those are compared with in place of `model`. `resident` copies our weights into huge pages at loading. With
    `streams` the rate of so many of our runs at a time is measured too. Raises EngineError when the artifact cannot be
    run; another engine that cannot run the model has a row that says so.
    """
    with tempfile.TemporaryDirectory(prefix="opcel-bench-") as folder, contextlib.ExitStack() as stack:
        file = Path(folder) / "feeds.npz"
        np.savez(file, **dict(feeds))  # type: ignore[arg-type]
        turns: list[_Turn] = []
        rows: list[Measured] = []
        ours = OPCEL_RESIDENT if resident else OPCEL
        for engine, path in ((ours, artifact), *((PEERS[name], models.get(name, model)) for name in against)):
            row = Measured(OPCEL.name if engine is ours else engine.name, engine.title)
            row.weights = ("resident" if resident else "map") if engine is ours else ""
            rows.append(row)
            worker = _open(engine, path, file, threads, row)
            if worker is not None:
                turns.append(_Turn(stack.enter_context(worker), row))
        turns = [turn for turn in turns if _try(turn, lambda turn: _calibrate(turn, pace))]
        rounds = max(rounds, *(math.ceil(pace.total / turn.calls) for turn in turns))
        result = Bench(threads, rounds, rows)
        for i in range(rounds):
            order = turns if i % 2 == 0 else turns[::-1]
            lost = [turn for turn in order if not _try(turn, _block)]
            turns = [turn for turn in turns if turn not in lost]
            idle()
        for turn in turns:
            _summarize(turn, turns[0], price)
        if profile:
            _profile(turns[0], result)
        if streams:
            count = max(turns[0].calls, 4 * streams)
            rates = [count / turns[0].worker.ask(many=count, streams=streams)["seconds"] for _ in range(5)]
            result.streams, result.streams_per_second = streams, statistics.median(rates)
        if model is not None:
            bound = manifest_bound(read_manifest(artifact))
            for source in dict.fromkeys((model, *sources.values())):
                judged = [turn for turn in turns if sources.get(turn.row.engine, model) == source]
                _check(judged, source, feeds, Path(folder), result, bound)
        return result


def _try(turn: _Turn, step: Callable[[_Turn], None]) -> bool:
    """Whether an engine is still in; what ends ours ends the measurement."""
    try:
        step(turn)
    except EngineError as error:
        if turn.row.engine == OPCEL.name:
            raise
        turn.row.error = str(error)
        return False
    return True


def _open(engine: Engine, path: Path | None, feeds: Path, threads: int, row: Measured) -> Worker | None:
    """None, with the reason in `row`, when another engine cannot be had."""
    if path is None:
        raise EngineError(f"{engine.title} needs the ONNX model that the artifact was made from")
    if engine.name in PEERS and not engine.is_installed:
        row.error = f"skipped: the package {engine.module} is not installed"
        return None
    try:
        worker = Worker(engine, path, feeds, threads)
    except EngineError as error:
        if engine.name not in PEERS:
            raise
        row.error = str(error)
        return None
    start = worker.start
    row.version, row.load_s, row.first_s = start["version"], start["load_s"], start["first_s"]
    return worker


def _calibrate(turn: _Turn, pace: Pace) -> None:
    """Choose how many calls make a block, and warm up with one."""
    once = min(turn.worker.ask(calls=MIN_CALLS)["seconds"])
    length = BLOCK_S if pace.block_s is None else pace.block_s
    turn.calls = max(pace.calls, min(MAX_CALLS, int(length / max(once, 1e-7))))
    turn.worker.ask(calls=turn.calls)


def _block(turn: _Turn) -> None:
    """One turn. The first call finds the caches as the others left them, and is not counted."""
    got = turn.worker.ask(calls=turn.calls + 1)
    seconds = got["seconds"][1:] or got["seconds"]
    turn.row.failures += got["failures"]
    turn.seconds += seconds
    turn.medians.append(statistics.median(seconds))
    turn.quarters.append(float(np.percentile(seconds, 25)))


def _summarize(turn: _Turn, ours: _Turn, price: float | None) -> None:
    row = turn.row
    row.p25_s, row.p50_s, row.p95_s, row.p99_s = (float(v) for v in np.percentile(turn.seconds, (25, 50, 95, 99)))
    mean = statistics.fmean(turn.seconds)
    row.calls, row.per_second = len(turn.seconds) + row.failures, 1 / mean
    row.peak_bytes = turn.worker.ask(memory=True)["peak_bytes"]
    if price is not None:
        row.cost_per_million = price / 3600 * mean * 1e6
    if turn is not ours:
        row.ratio_low, row.ratio, row.ratio_high = ratios_by_round(ours.medians, turn.medians)
        row.speedup_low, row.speedup, row.speedup_high = ratios_by_round(turn.quarters, ours.quarters)


def ratios_by_round(above: Sequence[float], below: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median and the upper quartile of the ratio round by round."""
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    quarter = len(ratios) // 4
    return ratios[quarter], statistics.median(ratios), ratios[-1 - quarter]


def _profile(turn: _Turn, result: Bench) -> None:
    """Per step, the median over five blocks of the mean over a block."""
    blocks = [turn.worker.ask(profile=turn.calls)["seconds"] for _ in range(5)]
    result.step_seconds = [statistics.median(steps) / turn.calls for steps in zip(*blocks, strict=True)]


def _check(
    turns: Sequence[_Turn], model: Path, feeds: Mapping[str, np.ndarray], folder: Path, result: Bench, bound: Bound
) -> None:
    """Compare what each engine computes with the reference that the proof takes, in the artifact's bound, or in that of
    the engine's own precision."""
    imported = import_model(model)
    names, outputs = imported.input_names, imported.output_names
    given = given_inputs(feeds, imported.graph, names)
    result.reference, want = reference_outputs(model, imported.graph, names, outputs, given)
    result.bound = str(bound)
    for turn in turns:
        path = folder / f"{turn.row.engine}.npz"
        turn.worker.ask(save=str(path))
        with np.load(path) as got:
            precision = turn.worker.engine.precision
            own = bound if precision == "f32" else Bound.of(precision, quantized=precision == "int8")
            rows = [compare(n, got[str(i)], w, own) for i, (n, w) in enumerate(zip(outputs, want, strict=True))]
        turn.row.outputs = rows


def as_dict(result: Bench) -> dict[str, Any]:
    """For JSON: the figures of each engine that has some, ready to be read by a program."""
    rows = []
    for row in result.rows:
        known = {k: v for k, v in dataclasses.asdict(row).items() if v is not None and v != ""}
        rows.append({**known, **({"within": row.within} if row.outputs is not None else {})})
    facts: dict[str, Any] = {"threads": result.threads, "rounds": result.rounds, "engines": rows}
    if result.streams:
        facts["streams"] = {"count": result.streams, "per_second": result.streams_per_second}
    return {**facts, "reference": result.reference, "bound": result.bound} if result.reference else facts
