"""Compare compiled models with ONNX Runtime: python -m benchmarks.compare NETWORKS_DIR [NAME ...]

NETWORKS_DIR holds NAME.onnx with NAME.npz (feeds by input name). The harness is that of `opcel bench`
(docs/measuring.md): a process an engine, turns, the ratio round by round. What both engines compute is compared, in the
same run, with ONNX Runtime's unoptimized results.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.networks import machine_facts, measure_network, names_in
from opcel_compiler.bench.measure import Bench, Measured


@dataclass
class Row:
    """Times in milliseconds, medians. ratio = ours / theirs. Errors are the largest ones against the reference."""

    network: str
    ours: float
    onnxruntime: float
    ratio: float
    ratio_low: float
    ratio_high: float
    max_abs: float
    within: bool
    their_max_abs: float
    they_are_within: bool


def row(name: str, result: Bench) -> Row:
    ours, theirs = result.rows
    if theirs.ratio is None or theirs.ratio_low is None or theirs.ratio_high is None:
        raise SystemExit(f"{name}: {theirs.title}: {theirs.error}")
    return Row(
        name, 1e3 * ours.p50_s, 1e3 * theirs.p50_s, theirs.ratio, theirs.ratio_low, theirs.ratio_high,
        worst(ours), bool(ours.within), worst(theirs), bool(theirs.within),
    )  # fmt: skip


def worst(measured: Measured) -> float:
    """The largest absolute error of an engine's outputs."""
    return max((o.max_abs for o in measured.outputs or ()), default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--target", default="host")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    args = parser.parse_args()
    rows = []
    print(f"{args.threads} threads, {args.rounds} rounds; ratio = ours / ONNX Runtime, below 1 is faster")
    print(f"{'network':20} {'ours ms':>9} {'ORT ms':>9} {'ratio':>7} {'quartiles':>13}  outputs")
    for name in names_in(args.folder, args.names):
        with tempfile.TemporaryDirectory() as folder:
            result, _ = measure_network(
                args.folder, name, Path(folder), ("ort",), target=args.target, threads=args.threads, rounds=args.rounds
            )
        r = row(name, result)
        rows.append(r)
        state = f"largest error {r.max_abs:.2g}" if r.within else f"OUTSIDE THE BOUND by {r.max_abs:.2g}"
        their = f"theirs {r.their_max_abs:.2g}" + ("" if r.they_are_within else ", OUTSIDE")
        print(
            f"{name:20} {r.ours:9.3f} {r.onnxruntime:9.3f} {r.ratio:7.3f} {r.ratio_low:6.3f}-{r.ratio_high:.3f}  "
            f"{state}, {their}", flush=True,
        )  # fmt: skip
    if args.json:
        facts = {"threads": args.threads, "rounds": args.rounds, "machine": machine_facts()}
        args.json.write_text(json.dumps({**facts, "rows": [asdict(r) for r in rows]}, indent=1) + "\n")
    if not all(r.within for r in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
