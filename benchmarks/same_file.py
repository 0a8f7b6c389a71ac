"""The same quantized file in ONNX Runtime and in ours: python -m benchmarks.same_file FOLDER --json FILE [NAME ...]

FOLDER holds NAME.onnx with NAME.npz, as benchmarks.quantized_files writes them. Each engine has a process of its own,
they take turns (docs/measuring.md), and a ratio is ONNX Runtime's time over ours: above 1 we are faster.

The distance of an engine's outputs from the unfused evaluation in float64 is relative L2 over all outputs. A value that
lies between two steps of a grid may be rounded to either and moves all that follows, in both engines, so a network is
judged on several inputs: the median of our distance over ONNX Runtime's shall be at most 1.2, distances as small as
those of f32 being equal. A row also counts our kernels of products by family. --only takes `speed` or `distance`; rows
that FILE has already stay unless they are measured again. --markdown writes them as a section of a page.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import opcel_compiler
from benchmarks import figures, unfused
from benchmarks.artifacts import Artifacts, Network
from benchmarks.networks import machine_facts, names_in
from benchmarks.quantized_files import variations
from benchmarks.tables import table
from opcel_compiler.bench.engines import ENGINES
from opcel_compiler.bench.measure import Pace, measure
from opcel_compiler.errors import OpcelError

ALLOWED = 1.2
FLOATS = 1e-6
"""A distance that two orders of summation in f32 make."""


def speed(network: Network, artifact: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Both engines' medians in seconds, and the ratio with its quartiles over the rounds."""
    found = measure(
        artifact, network.feeds, against=("ort",), models={"ort": network.model}, threads=threads, rounds=rounds,
        resident=True, pace=Pace(0.1),
    )  # fmt: skip
    ours, theirs = found.rows
    if theirs.error:
        return {"ours_s": ours.p50_s, "ort_error": theirs.error}
    return {
        "ours_s": ours.p50_s, "ort_s": theirs.p50_s, "ratio": theirs.speedup,
        "ratio_low": theirs.speedup_low, "ratio_high": theirs.speedup_high,
    }  # fmt: skip


def distance(network: Network, artifact: Path, threads: int, inputs: int) -> dict[str, Any]:
    """How far each engine's outputs are from the unfused evaluation in float64, on the feeds and others like them."""
    feeds = network.feeds
    row: dict[str, Any] = {"opcel": [], "ort": []}
    engines = [(ENGINES["opcel"], artifact), (ENGINES["ort"], network.model)]
    calls = [e.open(importlib.import_module(e.module), path, feeds, threads) for e, path in engines]
    for given in variations(feeds, inputs):
        want = unfused.outputs(network.model, given)
        for (engine, _), call in zip(engines, calls, strict=True):
            row[engine.name].append(relative(call(given), want))
    ratios = [max(ours, FLOATS) / max(theirs, FLOATS) for ours, theirs in zip(row["opcel"], row["ort"], strict=True)]
    return {**row, "ratio": statistics.median(ratios), "near": statistics.median(ratios) <= ALLOWED}


def relative(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The L2 norm of the differences over that of what is wanted, all outputs together."""
    off = sum(float(np.square(g.astype(np.float64) - w).sum()) for g, w in zip(got, want, strict=True))
    size = sum(float(np.square(w.astype(np.float64)).sum()) for w in want)
    return math.sqrt(off / size) if size else math.sqrt(off)


def line(name: str, row: Mapping[str, Any]) -> str:
    """A row as text."""
    out = [f"{name:32}"]
    if "error" in row:
        return f"{out[0]} {row['error']}"
    for threads, found in row.get("speed", {}).items():
        if "ratio" in found:
            spans = f"{found['ours_s'] * 1e3:8.3f} ms, ONNX Runtime {found['ort_s'] * 1e3:8.3f} ms"
            out.append(
                f"{found['ratio']:6.2f} ({found['ratio_low']:.2f}-{found['ratio_high']:.2f}) on {threads}: {spans}"
            )
        else:
            out.append(f"{found['ours_s'] * 1e3:.3f} ms on {threads}; ONNX Runtime: {found['ort_error']}")
    if found := row.get("distance"):
        if "error" in found:
            out.append(found["error"])
        else:
            ours, theirs = (statistics.median(found[engine]) for engine in ("opcel", "ort"))
            verdict = "near" if found["near"] else "FAR"
            out.append(f"{ours:.2g} off, ONNX Runtime {theirs:.2g}: {found['ratio']:.2f}, {verdict}")
    return "; ".join(out)


def section(facts: Mapping[str, Any]) -> str:
    """Markdown: a heading, what was measured, a table."""
    rows = {name: row for name, row in facts["networks"].items() if "error" not in row}
    counts = sorted({threads for row in rows.values() for threads in row.get("speed", {})}, reverse=True)
    spelled = {threads: f"{threads} thread{'s' * (threads != '1')}" for threads in counts}
    words = [WORDS]
    for threads in counts:
        ratios = ratios_of(rows.values(), threads)
        mean = statistics.geometric_mean(ratios) if ratios else math.nan
        least = f"the least is {min(ratios, default=math.nan):.2f}, the geometric mean {mean:.2f}"
        words.append(f"With {spelled[threads]} {sum(r > 1 for r in ratios)} of {len(ratios)} are faster: {least}.")
    head = ["file"]
    for threads in counts:
        head += [f"ours, ms, {spelled[threads]}", "ONNX Runtime, ms", "ratio"]
    lines = [[name, *_times(row, counts), *_distances(row)] for name, row in rows.items()]
    return "\n\n".join(["## The same file", " ".join(words), table([*head, *DISTANCES], lines)]) + "\n"


WORDS = """Files that ONNX Runtime's tools quantized, and quantized ones of other makers, in both engines. The ratio is
ONNX Runtime's time over ours. The distance is relative L2 from the unfused evaluation in float64, the median over the
inputs, and its ratio ours over ONNX Runtime's."""
DISTANCES = ("distance, ours", "ONNX Runtime's", "ratio")


def ratios_of(rows: Iterable[Mapping[str, Any]], threads: str) -> list[float]:
    found = [row.get("speed", {}).get(threads, {}) for row in rows]
    return [speed["ratio"] for speed in found if "ratio" in speed]


def _times(row: Mapping[str, Any], counts: Sequence[str]) -> list[str]:
    out = []
    for threads in counts:
        found = row.get("speed", {}).get(threads, {})
        out += [figures.milliseconds(found[key]) if key in found else "-" for key in ("ours_s", "ort_s")]
        out.append(f"{found['ratio']:.2f}" if "ratio" in found else "-")
    return out


def _distances(row: Mapping[str, Any]) -> list[str]:
    found = row.get("distance", {})
    if "ratio" not in found:
        return ["-"] * 3
    return [*(f"{statistics.median(found[engine]):.2g}" for engine in ("opcel", "ort")), f"{found['ratio']:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the quantized networks lie")
    parser.add_argument("names", nargs="*", help="networks (default: all of the folder)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the rows go")
    parser.add_argument("--only", choices=("speed", "distance"), help="default: both")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each engine (default: 15)")
    parser.add_argument("--threads", default="2,1", metavar="N,...", help="numbers of threads (default: 2,1)")
    parser.add_argument("--inputs", type=int, default=9, metavar="N", help="of a distance (default: 9)")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where artifacts are kept")
    parser.add_argument("--compile-only", action="store_true", help="make the artifacts and measure nothing")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write all rows of the JSON file as a section")
    args = parser.parse_intermixed_args()
    facts: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {"networks": {}}
    artifacts = Artifacts(args.work)
    for name in names_in(args.folder, args.names):
        network = Network(args.folder, name, options=(("proof", False),))
        row = facts["networks"].setdefault(name, {})
        row.pop("error", None)
        try:
            artifact, report = artifacts.compiled(network)
            row["families"] = families(report)
            if not args.compile_only and args.only != "distance":
                for threads in args.threads.split(","):
                    row.setdefault("speed", {})[threads] = speed(network, artifact, args.rounds, int(threads))
            if not args.compile_only and args.only != "speed":
                row["distance"] = _distance_or_error(network, artifact, args)
        except OpcelError as error:
            row["error"] = str(error).splitlines()[0]
        print(line(name, row), flush=True)
        facts |= {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine_facts()}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    rows = facts["networks"].values()
    for threads in args.threads.split(","):
        if ratios := ratios_of(rows, threads):
            mean = statistics.geometric_mean(ratios)
            print(f"{len(ratios)} files on {threads}: {sum(r > 1 for r in ratios)} faster, geometric mean {mean:.2f}")
    near = [r["distance"]["near"] for r in rows if "near" in r.get("distance", {})]
    print(f"{len(near)} files: near the unfused evaluation on {sum(near)}; OPCEL {opcel_compiler.__version__}")
    if args.markdown:
        args.markdown.write_text(section(facts))


def _distance_or_error(network: Network, artifact: Path, args: argparse.Namespace) -> dict[str, Any]:
    try:
        return distance(network, artifact, 2, args.inputs)
    except OpcelError as error:
        return {"error": str(error).splitlines()[0]}


def families(report: Mapping[str, Any]) -> dict[str, int]:
    """How many kernels of each family compute products."""
    out: dict[str, int] = {}
    for kernel in report["kernels"]:
        if kernel["family"].split(".")[0] in ("gemm", "conv", "vector", "matmul", "conv_transpose", "attention"):
            out[kernel["family"]] = out.get(kernel["family"], 0) + 1
    return out


if __name__ == "__main__":
    main()
