"""`opcel compile`: an ONNX model becomes an artifact."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opcel_compiler.cli import options
from opcel_compiler.cli.console import (
    Progress,
    UsageError,
    bytes_text,
    count_text,
    note,
    seconds_text,
    value_text,
    write_rows,
)

if TYPE_CHECKING:
    from opcel_compiler.runtime.model import CompiledModel

NAME = "compile"
SUMMARY = "compile an ONNX model into an artifact"
DESCRIPTION = """\
Compiles an ONNX model into an artifact, a folder with native code and packed weights. Before the artifact is put in
place it runs on sample inputs and is compared with the model; outside the error bound the command fails."""

MAX_REASONS = 10


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    options.add_target(parser, "host", "what to compile for: host, a name of `opcel info --targets`, or a description")
    parser.add_argument("--output", "-o", type=Path, metavar="OUT", help="the artifact (default: ./<model>.opcel)")
    options.add_threads(parser)
    options.add_pipeline(parser, "the target's own")
    parser.add_argument(
        "--fallback", choices=("allow", "warn", "error"), default="warn",
        help="what to do with operators that only ONNX Runtime can run (default: warn)",
    )  # fmt: skip
    options.add_precision(parser)
    options.add_quantization(parser)
    options.add_budget(parser)
    options.add_weights(parser)
    parser.add_argument(
        "--export-qdq", type=Path, metavar="FILE", help="write the quantized model, as ONNX of opset 21"
    )
    options.add_max_error(parser)
    parser.add_argument("--tune", type=Path, metavar="FILE", help="take measured choices from what `opcel tune` wrote")
    parser.add_argument(
        "--small", action="store_true", help="forgo what makes weights larger to be faster (Winograd, Strassen)"
    )
    options.add_dims(parser)
    options.add_limits(parser)
    parser.add_argument(
        "--state", action="append", default=[], metavar="IN=OUT:CAPACITY",
        help="caches that grow in place, such as 'past_*=present_*:1024' (* is any text); may be given again",
    )  # fmt: skip
    options.add_min_coverage(parser)
    options.add_inputs(parser, "sample inputs for the proof (default: random ones)")
    parser.add_argument("--no-proof", action="store_true", help="do not run and compare; the artifact says unproved")
    options.add_json(parser, "the report")
    options.add_quiet(parser)


def execute(args: argparse.Namespace) -> int:
    from opcel_compiler import driver
    from opcel_compiler.cli.files import read_arrays
    from opcel_compiler.codegen.artifact import check_output
    from opcel_compiler.frontend.limits import LIMITS, Limits
    from opcel_compiler.search.lock import StaleWarning

    LIMITS.set(Limits.of(dict(args.limit)))
    output = args.output or Path(f"{args.model.stem}.opcel")
    check_output(output)
    start = time.perf_counter()
    with warnings.catch_warnings(), Progress(not args.quiet, live_only=args.json) as progress:
        warnings.simplefilter("ignore", driver.FallbackWarning)  # the summary tells the same
        warnings.simplefilter("always", StaleWarning)
        warnings.showwarning = lambda message, *_: note(str(message))
        common: dict[str, Any] = dict(
            pipeline=args.pipeline, fallback=args.fallback,
            inputs=read_arrays(args.inputs) if args.inputs else None, proof=not args.no_proof, dims=dict(args.dim),
            min_coverage=args.min_coverage, max_error=args.max_error, tune=args.tune, state=args.state,
            small=args.small, progress=progress, recipe=options.recipe_of(args), export_qdq=args.export_qdq,
        )  # fmt: skip
        made = (args.model, args.target, output, args.threads)
        if args.max_drop is None:
            opened = driver.compile(*made, precision=args.precision, **common)
        else:
            opened = _within_budget(args, made, common)
        with opened as model:
            report = model.report
            signature = [(label, model.manifest[label]) for label in ("inputs", "outputs")]
    if args.json:
        print(json.dumps(report, indent=1))
    elif not args.quiet:
        target = report["target"]
        write_rows([("compiled", f"{args.model} for {target['name']} ({target['id']})")])
        write_rows((label, ", ".join(map(value_text, values))) for label, values in signature)
        write_rows(report_rows(report, args.fallback == "warn"))
        size = bytes_text(report["artifact"]["bytes"])
        write_rows([("artifact", f"{output}, {size}"), ("time", seconds_text(time.perf_counter() - start))])
    return 0


def _within_budget(args: argparse.Namespace, made: tuple[Any, ...], common: dict[str, Any]) -> CompiledModel:
    from opcel_compiler.budget import Budget, compile_within

    if args.precision != "int8":
        raise UsageError("--max-drop is a budget of --precision int8")
    budget = Budget(args.max_drop, args.metric, args.max_latency, args.sensitivity, args.search_seconds)
    model, target, output, threads = made
    return compile_within(model, budget, target, output, threads, **common)


def budget_rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a report says of the search for a plan within a budget."""
    drop = "not measured" if found["drop"] is None else f"{found['drop']:.3g}"
    ended = f"; {found['ended']}, this is the best so far" if found["ended"] else ""
    met = "met" if found["met"] else "NOT met"
    yield (
        "budget",
        f"{found['metric']} {drop} of {found['max_drop']:g}, {met}; {len(found['reverted'])} layers reverted{ended}",
    )
    for row in found["reverted"]:
        yield "", f"{row['name']}: loses {row['loss']:.3g} alone, saves {row['seconds_saved'] * 1e6:.1f} µs"
    if "max_latency" in found:
        took = "not measured" if found["latency"] is None else f"takes {seconds_text(found['latency'])}"
        met = "met" if found["latency_met"] else "NOT met"
        yield "", f"a run {took} of {seconds_text(found['max_latency'])}: {met}"


def report_rows(report: Mapping[str, Any], reasons: bool = True) -> Iterator[tuple[str, str]]:
    """What a report says of coverage, proof and memory; with `reasons` also why each node is not native."""
    coverage, fallback = report["coverage"], report["fallback"]
    if report["precision"] != "f32":
        sums = "f32" if report["precision"] == "bf16" else "s32"
        yield "precision", f"products in {report['precision']}, sums in {sums}"
    quantization = report.get("quantization", {})
    if "budget" in quantization:
        yield from budget_rows(quantization["budget"])
    yield "nodes", coverage_text(coverage)
    for entry in fallback[:MAX_REASONS] if reasons else ():
        yield "", f"{entry['op']} ({', '.join(entry['origin'][:3]) or 'unnamed'}): {entry['reason']}"
    if reasons and len(fallback) > MAX_REASONS:
        yield "", f"and {len(fallback) - MAX_REASONS} more"
    if "imported" in quantization:
        yield from quantized_rows(quantization["imported"])
    yield "proof", proof_text(report["proof"])
    memory = report["memory"]
    arena = memory["arena_bytes"]
    arena_text = "an arena that depends on the shapes" if arena is None else f"{bytes_text(arena)} arena"
    added = memory["transformed_bytes"]
    added_text = f" ({bytes_text(added)} of it because they are transformed, see --small)" if added else ""
    yield "memory", f"{bytes_text(memory['weights_bytes'])} weights{added_text}, {arena_text}"


def quantized_rows(quantized: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How many quantized layers are computed in integers, and why the others are not."""
    floats = quantized["in_floats"]
    yield "quantized", f"{quantized['layers']} layers, {quantized['layers'] - len(floats)} of them computed in integers"
    for entry in floats[:MAX_REASONS]:
        yield "in floats", f"{', '.join(entry['origin'][:1]) or 'unnamed'} ({entry['op']}): {entry['reason']}"
    if len(floats) > MAX_REASONS:
        yield "", f"and {len(floats) - MAX_REASONS} more"


def coverage_text(coverage: Mapping[str, Any]) -> str:
    """Nodes, multiply-adds and modelled time, native and not, in one line."""
    text = f"{coverage['native_nodes']} native"
    if coverage["fallback_nodes"]:
        text += f", {coverage['fallback_nodes']} in ONNX Runtime"
    native, other = (coverage[f"{part}_macs"] for part in ("native", "fallback"))
    seconds, others = (coverage[f"{part}_seconds_modelled"] for part in ("native", "fallback"))
    text += f"; {count_text(native + other)} multiply-adds"
    if native + other:
        text += f", {native / (native + other):.1%} native"
    text += f"; {seconds_text(seconds + others)} modelled"
    return text + (f", {seconds / (seconds + others):.1%} native" if seconds + others else "")


def proof_text(proof: Mapping[str, Any]) -> str:
    """One line about the proof: its status, the largest errors, the bound and the reference, or why there is none."""
    if proof["status"] != "proved":
        return f"{proof['status']}: {proof.get('reason') or 'no reason given'}"
    worst = max((output["max_abs"] for output in proof["outputs"]), default=0.0)
    norm = max((output["relative_l2"] for output in proof["outputs"]), default=0.0)
    errors = f"largest error {worst:.2g}, relative L2 {norm:.2g}"
    return f"proved against {proof['reference']}: {errors} (bound: {proof['bound']})"
