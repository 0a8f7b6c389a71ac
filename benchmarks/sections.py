"""The sections of benchmarks.performance: what each measures, and its rows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks import compile_time, figures
from benchmarks import tiny as small_calls
from benchmarks.artifacts import Artifacts, Network, Skipped, written_bytes
from opcel_compiler.bench.bounds import Bound, program_bound
from opcel_compiler.bench.machine import Machine
from opcel_compiler.bench.measure import Bench, Pace, as_dict, measure
from opcel_compiler.errors import OpcelError
from opcel_compiler.targets import load_target

Row = dict[str, Any]
Rows = Iterator[Row]

SHORT_S = 0.05
"""Networks whose median is below have their P99 compared."""

POOLED = 2000
"""The least calls that a P99 is taken of."""

POOLED_BLOCK_S = 0.5
"""The length of their blocks: the first call of a block does not count, so long ones waste less."""

BATCHED = ("resnet50", "mobilenet_v2", "minilm")
BATCHES = (8, 32)
DECODERS = ("gpt2_decode", "llama_160m_decode")
STATE: dict[str, Any] = {"state": ("past_*:1024",)}
TINY = ("mlp",)
SMALLER = ("resnet50", "bert_base")
"""Networks that are compiled without transformed weights too."""
TINY_CALLS = 2000
"""The calls of a block."""


@dataclass
class Run:
    """The settings of one run, and what its sections share."""

    networks: Path
    names: Sequence[str]
    artifacts: Artifacts
    rounds: int = 30
    block_s: float = 0.1
    weights: str = "resident"
    medians: dict[str, float] = field(default_factory=dict)
    best: dict[str, str] = field(default_factory=dict)
    """Ours and the best peer's name, of networks that an earlier section measured in f32 with two threads."""

    def network(self, name: str, target: str = "host", **options: Any) -> Network:
        return Network(self.networks, name, target, tuple(sorted(options.items())))

    def chosen(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.names]

    def row(self, network: Network, machine: Machine, against: Sequence[str], total: int = 0, **extra: Any) -> Row:
        """One network beside `against`; a row that says why where it cannot be measured."""
        row: Row = {"network": network.name, **extra}
        try:
            path, report = self.artifacts.compiled(network)
            result = self.measured(network, path, machine, against, total)
        except OpcelError as error:
            return {**row, "error": str(error), "engines": []}
        bound = bound_of(report, machine, str(report.get("precision", "f32")))
        row |= as_dict(result)
        row |= {"floor_s": bound.seconds, "floor_by": bound.by, "floor_share": bound.seconds / result.ours.p50_s}
        row |= {"fallback_nodes": len(report["fallback"]), "weights": self.weights}
        if best := figures.best_peer(row):
            row |= {"best": best["engine"]}
            row |= {key.replace("speedup", "ratio"): best[key] for key in ("speedup", "speedup_low", "speedup_high")}
        return row

    def measured(self, network: Network, path: Path, machine: Machine, against: Sequence[str], total: int = 0) -> Bench:
        rounds = iter(range(1 << 30))

        def idle() -> None:
            if next(rounds) % 5 == 0:
                machine.sample()

        pace = Pace(self.block_s if not total else max(self.block_s, POOLED_BLOCK_S), 2, total)
        time.sleep(0.5)  # what a compile left running
        return measure(
            path, network.feeds, model=network.model, against=against, threads=machine.threads, rounds=self.rounds,
            idle=idle, resident=self.weights == "resident", pace=pace,
        )  # fmt: skip


def bound_of(report: Mapping[str, Any], machine: Machine, precision: str = "f32") -> Bound:
    """The floor of a run; at the rate that the target's description gives a precision over f32."""
    bound = program_bound(report, {}, machine)
    if precision == "f32":
        return bound
    rates = {r.dtype: r.ops_per_cycle for unit in load_target(report["target"]["id"]).units for r in unit.rates}
    return Bound(bound.compute_s * rates["f32"] / rates[precision], bound.memory_s)


def fp32(run: Run, threads: int) -> Rows:
    """Batch 1 in f32, beside ONNX Runtime and OpenVINO."""
    with Machine(threads) as machine:
        for name in run.names:
            row = run.row(run.network(name), machine, ("ort", "openvino"))
            if threads == 2 and "best" in row:
                run.medians[name], run.best[name] = figures.ours(row)["p50_s"], row["best"]
            yield row


def bf16(run: Run) -> Rows:
    """Products in bf16, beside the faster of OpenVINO in bf16 and f32 and ONNX Runtime in f32."""
    if "bf16" not in {rate.dtype for unit in load_target("host").units for rate in unit.rates}:
        raise Skipped(f"{load_target('host').name} has no bf16 products")
    with Machine(2) as machine:
        for name in run.names:
            yield run.row(run.network(name, precision="bf16"), machine, ("openvino-bf16", "openvino", "ort"))


def batch(run: Run) -> Rows:
    """Several samples a call: DIR/bN holds the networks at batch N."""
    if missing := [f"b{n}" for n in BATCHES if not (run.networks / f"b{n}").is_dir()]:
        raise Skipped(f"{run.networks} does not hold {', '.join(missing)}: python -m benchmarks.export --batch N")
    with Machine(2) as machine:
        for n in BATCHES:
            for name in run.chosen(BATCHED):
                row = run.row(replace(run.network(name), folder=run.networks / f"b{n}"), machine, ("ort", "openvino"))
                for engine in row["engines"]:
                    engine["items_per_second"] = n * engine.get("per_second", 0.0)
                yield {**row, "batch": n}


def decode(run: Run) -> Rows:
    """One token: the share of the bandwidth of reading huge pages, for the bytes that a step must move."""
    with Machine(2) as machine:
        for name in run.chosen(DECODERS):
            for options in ({}, STATE, {"precision": "bf16"}, {**STATE, "precision": "bf16"}):
                network = run.network(name, **options)
                try:
                    half = ("openvino-bf16",) if "precision" in options else ()
                    row = run.row(network, machine, ("ort", "openvino", *half))
                except Skipped as reason:
                    yield {"network": name, **options, "error": f"skipped: {reason}", "engines": []}
                    continue
                if row["engines"]:
                    report, feeds = run.artifacts.reports[network], network.feeds
                    fetches = written_bytes(run.artifacts.path(network), feeds)
                    moved = figures.decode_bytes(report, sum(v.nbytes for v in feeds.values()), fetches)
                    row |= {"bytes": moved, "bandwidth": machine.stream}
                    for engine in row["engines"]:
                        if engine.get("p50_s") and (engine["engine"] == "opcel" or not half):
                            engine["bandwidth_share"] = moved / engine["p50_s"] / machine.stream
                yield {**row, **options}


def tiny(run: Run) -> Rows:
    """What a call of the smallest network costs, from Python and from C: benchmarks.tiny."""
    for name in run.chosen(TINY):
        network = run.network(name)
        for threads in (2, 1):
            facts = small_calls.measure(network.model, network.feeds, threads, run.rounds, calls=TINY_CALLS)
            outside = [engine for engine, row in facts["engines"].items() if not row.get("within", True)]
            wrong = {"error": "outside the bound: " + ", ".join(outside)} if "opcel" in " ".join(outside) else {}
            yield {"network": name, "threads": threads, "tiny": facts, "engines": [], **wrong}


def p99(run: Run) -> Rows:
    """The slowest in a hundred of short networks' calls, beside the best peer."""
    with Machine(2) as machine:
        for name in run.names:
            network = run.network(name)
            if name not in run.medians:
                path, _ = run.artifacts.compiled(network)
                quick = replace(run, rounds=1).measured(network, path, machine, ())
                run.medians[name] = quick.ours.p50_s
            if run.medians[name] < SHORT_S:
                against = (run.best[name],) if name in run.best else ("ort", "openvino")
                row = run.row(network, machine, against, total=POOLED)
                yield {**row, "p99_ratio": figures.tail_ratio(row)}


def avx2(run: Run) -> Rows:
    """At the AVX2 level. OpenVINO's kernels of oneDNN can be held to it; ONNX Runtime has no switch and is left out."""
    with Machine(2) as machine:
        for name in run.names:
            yield run.row(run.network(name, "x86-64-avx2"), machine, ("openvino-avx2",))


def compiling(run: Run) -> Rows:
    """The time of a first compile and of one with all objects in the cache, and the artifact's size."""
    for name in run.names:
        for options in ({}, {"small": True}) if name in SMALLER else ({},):
            network = run.network(name, **options)
            try:
                path, report = run.artifacts.compiled(network)
            except Skipped as reason:
                yield {"network": name, **options, "error": f"skipped: {reason}", "engines": []}
                continue
            with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
                argv = [f"--{key}" for key in options]
                cold = compile_time.once(network.model, folder, cache, argv)
                warm = min(compile_time.once(network.model, folder, cache, argv)["seconds"] for _ in range(2))
            yield {
                "network": name, **options, "cold_s": cold["seconds"], "warm_s": warm, "engines": [],
                "artifact_bytes": sum(file.stat().st_size for file in path.iterdir()),
                "weights_bytes": report["memory"]["weights_bytes"],
                "transformed_bytes": report["memory"]["transformed_bytes"],
                "model_bytes": 4 * report["model"]["parameters"],
            }  # fmt: skip


SECTIONS: dict[str, Callable[[Run], Rows]] = {
    "fp32-2t": lambda run: fp32(run, 2),
    "fp32-1t": lambda run: fp32(run, 1),
    "bf16-2t": bf16,
    "batch": batch,
    "decode": decode,
    "tiny": tiny,
    "p99": p99,
    "avx2": avx2,
    "compile": compiling,
}
