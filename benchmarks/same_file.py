"""The same quantized file in ONNX Runtime and in ours: python -m benchmarks.same_file FOLDER --json FILE [NAME ...]

FOLDER holds NAME.onnx with NAME.npz, as benchmarks.quantized_files writes them. Each engine has a process of its own,
they take turns (docs/measuring.md), and a ratio is ONNX Runtime's time over ours: above 1 we are faster. The distance
of each engine's outputs from the unfused evaluation in float64 is relative L2 over all outputs; ours shall be at most
1.2 times ONNX Runtime's, or as small as f32 itself. A row also counts our kernels of products by family. --only takes
`speed` or `distance`; rows that FILE has already stay unless they are measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import opcel_compiler
from benchmarks import unfused
from benchmarks.artifacts import Artifacts, Network
from benchmarks.networks import machine_facts, names_in
from opcel_compiler.bench.engines import ENGINES
from opcel_compiler.bench.measure import Pace, measure
from opcel_compiler.errors import OpcelError

ALLOWED = 1.2
FLOATS = 1e-6
"""A distance that two orders of summation in f32 make."""


def speed(network: Network, artifact: Path, rounds: int, threads: int) -> dict[str, Any]:
    """Both engines' percentiles in seconds, and the ratio."""
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


def distance(network: Network, artifact: Path, threads: int) -> dict[str, Any]:
    """How far each engine's outputs are from the unfused evaluation in float64."""
    feeds = network.feeds
    want = unfused.outputs(network.model, feeds)
    row: dict[str, Any] = {}
    for name, path in (("opcel", artifact), ("ort", network.model)):
        engine = ENGINES[name]
        call = engine.open(__import__(engine.module, fromlist=["_"]), path, feeds, threads)
        row[name] = relative(call(feeds), want)
    row["near"] = row["opcel"] <= max(ALLOWED * row["ort"], FLOATS)
    return row


def relative(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    """The L2 norm of the differences over that of what is wanted, all outputs together."""
    off = sum(float(np.square(g.astype(np.float64) - w).sum()) for g, w in zip(got, want, strict=True))
    size = sum(float(np.square(w.astype(np.float64)).sum()) for w in want)
    return math.sqrt(off / size) if size else math.sqrt(off)


def line(name: str, row: Mapping[str, Any]) -> str:
    out = [f"{name:32}"]
    if "error" in row:
        return f"{out[0]} {row['error']}"
    if found := row.get("speed"):
        if "ratio" in found:
            spans = f"{found['ours_s'] * 1e3:8.3f} ms, ONNX Runtime {found['ort_s'] * 1e3:8.3f} ms"
            out.append(f"{found['ratio']:6.2f} ({found['ratio_low']:.2f}-{found['ratio_high']:.2f}); {spans}")
        else:
            out.append(f"{found['ours_s'] * 1e3:.3f} ms; ONNX Runtime: {found['ort_error']}")
    if found := row.get("distance"):
        verdict = "near" if found.get("near") else "FAR"
        out.append(found.get("error") or f"{found['opcel']:.3g} off, ONNX Runtime {found['ort']:.3g}: {verdict}")
    return "; ".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the quantized networks lie")
    parser.add_argument("names", nargs="*", help="networks (default: all of the folder)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the rows go")
    parser.add_argument("--only", choices=("speed", "distance"), help="default: both")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="turns of each engine (default: 15)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default: 2")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="where artifacts are kept")
    parser.add_argument("--compile-only", action="store_true", help="make the artifacts and measure nothing")
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
                row["speed"] = speed(network, artifact, args.rounds, args.threads)
            if not args.compile_only and args.only != "speed":
                row["distance"] = distance(network, artifact, args.threads)
        except OpcelError as error:
            row["error"] = str(error).splitlines()[0]
        print(line(name, row), flush=True)
        facts |= {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine_facts(), "threads": args.threads}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    rows = facts["networks"].values()
    ratios = [r["speed"]["ratio"] for r in rows if "ratio" in r.get("speed", {})]
    near = [r["distance"]["near"] for r in rows if "near" in r.get("distance", {})]
    if ratios:
        mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
        print(f"{len(ratios)} files: faster on {sum(r > 1 for r in ratios)}, geometric mean {mean:.2f}")
    print(f"{len(near)} files: near the unfused evaluation on {sum(near)}; OPCEL {opcel_compiler.__version__}")


def families(report: Mapping[str, Any]) -> dict[str, int]:
    """How many kernels of each family compute products."""
    out: dict[str, int] = {}
    for kernel in report["kernels"]:
        if kernel["family"].split(".")[0] in ("gemm", "conv", "vector", "matmul", "conv_transpose", "attention"):
            out[kernel["family"]] = out.get(kernel["family"], 0) + 1
    return out


if __name__ == "__main__":
    main()
