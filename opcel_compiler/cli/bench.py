"""`opcel bench`: measures an artifact, alone and beside other engines."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opcel_compiler.cli import options
from opcel_compiler.cli.console import CommandError, UsageError, bytes_text, count_text, note, seconds_text, write_rows

if TYPE_CHECKING:
    import numpy as np

    from opcel_compiler.bench.bounds import StepTime
    from opcel_compiler.bench.measure import Bench, Measured

NAME = "bench"
SUMMARY = "measure an artifact, alone and beside other engines"
DESCRIPTION = """\
Measures an artifact: latency percentiles, throughput, cost, load time, peak memory, failures. With --against the same
for other engines at their best settings. Each engine has its own process; they take turns while the others are
stopped, and a ratio is our time over theirs, taken round by round. With --model what each engine computes is compared
with the model's unoptimized reference. Exit status 6 when our outputs are outside the bound."""

SHOWN_STEPS = 20


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="the folder that `opcel compile` made")
    parser.add_argument("--against", metavar="ENGINES", type=engines, default=(), help="of ort,openvino; needs --model")
    parser.add_argument("--model", metavar="MODEL", type=Path, help="the ONNX model that the artifact was made from")
    options.add_inputs(parser, "the inputs by name (default: random ones)")
    options.add_random_dims(parser)
    options.add_threads(parser)
    parser.add_argument("--rounds", type=options.positive, default=15, metavar="N", help="turns of each (default: 15)")
    parser.add_argument(
        "--weights", choices=("map", "resident"), default="map",
        help="read the artifact's weights from the mapped file, or copied into huge pages (default: map)",
    )  # fmt: skip
    parser.add_argument("--price", type=price, metavar="USD", help="the machine's price an hour, for cost a million")
    parser.add_argument("--profile", action="store_true", help="show what each kernel takes, and of its bound")
    parser.add_argument("--streams", type=options.positive, metavar="N", help="measure the rate of N runs at once too")
    options.add_json(parser, "the figures")


def engines(text: str) -> tuple[str, ...]:
    """Names of engines, separated by commas, each once."""
    from opcel_compiler.bench.engines import PEERS

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in PEERS:
            raise argparse.ArgumentTypeError(f"{name!r} is no engine; there are {', '.join(PEERS)}")
    return names


def price(text: str) -> float:
    """US dollars an hour."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no price in US dollars an hour")
    return value


def execute(args: argparse.Namespace) -> int:
    from opcel_compiler import runtime
    from opcel_compiler.bench.bounds import step_times, symbol_sizes
    from opcel_compiler.bench.machine import Machine
    from opcel_compiler.bench.measure import as_dict, measure
    from opcel_compiler.proof import ProofError
    from opcel_compiler.runtime._runtime import usable_cpus

    if args.against and not args.model:
        raise UsageError("--against needs --model, the ONNX model that the others run")
    if args.inputs and args.dim:
        raise UsageError("--dim gives sizes to random inputs; with --inputs the arrays have their own")
    manifest = runtime.read_manifest(args.artifact)
    if args.model:
        _same_model(args.artifact, args.model, manifest)
    feeds = _feeds(args, manifest)
    threads = args.threads or usable_cpus()
    with contextlib.ExitStack() as stack:
        machine = stack.enter_context(Machine(threads)) if args.profile else None
        result = measure(
            args.artifact, feeds, model=args.model, against=args.against, threads=threads, rounds=args.rounds,
            price=args.price, profile=args.profile, idle=machine.sample if machine else lambda: None,
            streams=args.streams or 0, resident=args.weights == "resident",
        )  # fmt: skip
        steps: list[StepTime] = []
        if machine is not None:
            with runtime.load(args.artifact) as model:
                report = model.report
            steps = step_times(report, result.step_seconds, symbol_sizes(manifest, feeds), machine)
    for row in result.rows:
        if row.error:
            note(f"{row.title}: {row.error}" if not row.error.startswith(row.title) else row.error)
    if args.json:
        facts = as_dict(result)
        if args.profile:
            facts["steps"] = [step_facts(step) for step in steps]
        print(json.dumps(facts, indent=1))
    else:
        write_rows(rows(args.artifact, result))
        if args.profile:
            write_rows(step_rows(steps, result))
    return ProofError.exit_code if result.ours.within is False else 1 if result.ours.failures else 0


def _same_model(artifact: Path, model: Path, manifest: Mapping[str, Any]) -> None:
    from opcel_compiler.frontend.importer import import_model

    if import_model(model).model_hash != manifest.get("model_sha256"):
        raise CommandError(f"{artifact} was not compiled from {model}: the hash of the model file differs")


def _feeds(args: argparse.Namespace, manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    from opcel_compiler.cli.files import read_arrays, select
    from opcel_compiler.cli.run import random_inputs

    if not args.inputs:
        return random_inputs(manifest["inputs"], dict(args.dim))
    return select(read_arrays(args.inputs), tuple(str(v["name"]) for v in manifest["inputs"]), args.inputs)


# -- for people --------------------------------------------------------------------------------------------------------


def rows(artifact: Path, result: Bench) -> Iterator[tuple[str, str]]:
    """The figures of all engines, ours first."""
    threads = f"{result.threads} thread{'s' * (result.threads != 1)}"
    yield "measured", f"{artifact}, {threads}, {result.rounds} rounds"
    for row in result.rows:
        if not row.error:
            yield from _engine_rows(row)
    if result.streams:
        yield "streams", f"{result.streams_per_second:.4g} a second, {result.streams} of our runs at a time"
    if result.reference:
        yield "reference", f"{result.reference} (bound: {result.bound})"


def _engine_rows(row: Measured) -> Iterator[tuple[str, str]]:
    cost = f", ${row.cost_per_million:.4g} a million" if row.cost_per_million is not None else ""
    yield row.engine, f"{row.title} {row.version}"
    yield "  latency", f"P50 {seconds_text(row.p50_s)}, P95 {seconds_text(row.p95_s)}, P99 {seconds_text(row.p99_s)}"
    yield "  rate", f"{row.per_second:.4g} a second{cost}; {row.failures} of {row.calls} calls failed"
    yield "  start", f"{seconds_text(row.load_s)} to load, {seconds_text(row.first_s)} for the first call"
    yield "  memory", f"{bytes_text(row.peak_bytes)} at most, Python's own included"
    if row.ratio is not None:
        yield "  ratio", f"we take {row.ratio:.3f} of its time (quartiles {row.ratio_low:.3f} to {row.ratio_high:.3f})"
    if row.outputs is not None:
        worst = max((o.max_abs for o in row.outputs), default=0.0)
        yield "  outputs", f"{'within' if row.within else 'OUTSIDE'} the bound, largest error {worst:.2g}"


def step_rows(steps: list[StepTime], result: Bench) -> Iterator[tuple[str, str]]:
    """The steps that take the most time."""
    total = sum(step.seconds for step in steps)
    yield "profile", f"{len(steps)} steps, {seconds_text(total)} in all; P50 of a run {seconds_text(result.ours.p50_s)}"
    yield "", f"{'time':>10} {'share':>6} {'FLOP/s':>8} {'B/s':>8} {'bound':>6} {'by':<8} kernel: nodes"
    order = sorted(steps, key=lambda step: -step.seconds)
    for step in order[:SHOWN_STEPS]:
        spent = max(step.seconds, 1e-12)
        known = step.bound is not None
        rates = f"{count_text(step.flops / spent):>8} {count_text(step.bytes / spent):>8}" if known else f"{'':>17}"
        bound = f"{step.share:>6.0%} {step.bound.by:<8}" if step.share is not None and step.bound else f"{'':>6} {'':8}"
        nodes = ", ".join(step.origin[:3]) + (f" and {len(step.origin) - 3} more" if len(step.origin) > 3 else "")
        share = step.seconds / total if total else 0.0
        yield "", f"{seconds_text(step.seconds):>10} {share:>6.1%} {rates} {bound} {step.family}: {nodes}"
    if len(order) > SHOWN_STEPS:
        rest = sum(step.seconds for step in order[SHOWN_STEPS:])
        yield "", f"{seconds_text(rest):>10} {rest / total:>6.1%} in {len(order) - SHOWN_STEPS} more; --json has all"


def step_facts(step: StepTime) -> dict[str, Any]:
    """A step for JSON."""
    spent = max(step.seconds, 1e-12)
    return {
        **dataclasses.asdict(step), "flops_per_s": step.flops / spent, "bytes_per_s": step.bytes / spent,
        "bound_share": step.share,
    }  # fmt: skip
