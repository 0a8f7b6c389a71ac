"""All figures of one run: python -m benchmarks.performance --networks DIR --json FILE [--only SECTION,...] [NAME ...]

A ratio here is the best peer's time over ours, so a larger one is better: the median over the rounds of the ratio of
the blocks' 25th percentiles. Peers are ONNX Runtime and OpenVINO at their best settings, with the same threads and
precision; outputs are checked in the same run. A mean is that over the networks other than the MLP, each capped at 2.
A section that is measured again replaces the one in FILE. How: docs/measuring.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import export, figures
from benchmarks.artifacts import Artifacts, Skipped
from benchmarks.networks import machine_facts, names_in
from benchmarks.sections import SECTIONS, Run
from opcel_compiler.errors import OpcelError

HERE = Path(__file__).parent
TINY_KEYS = ("p10_us", "p50_us", "p99_us")


def lines(row: Mapping[str, Any]) -> list[str]:
    """A row as text: the network and its ratio, then each engine's percentiles."""
    name = figures.label(row)
    if "error" in row:
        return [f"{name:26} {row['error']}"]
    if "cold_s" in row:
        share = row["artifact_bytes"] / row["model_bytes"]
        return [
            f"{name:26} cold {row['cold_s']:.1f} s, warm {row['warm_s']:.2f} s; {row['artifact_bytes'] / 1e6:.1f} MB, "
            f"{share:.2f} of the weights; {row['transformed_bytes'] / 1e6:.1f} MB because weights are transformed"
        ]
    if "tiny" in row:
        found = row["tiny"]["ratios"].items()
        out = [f"{name} {row['threads']}t {pair}: {value:.2f}" for pair, value in found]
        for engine, e in row["tiny"]["engines"].items():
            out.append(f"  {engine:24} " + (e.get("error") or " / ".join(f"{e[k]:.2f}" for k in TINY_KEYS) + " us"))
        return out
    ratio = (
        f"{row['ratio']:.3f} ({row['ratio_low']:.3f}-{row['ratio_high']:.3f}) to {row['best']}"
        if "best" in row
        else "-"
    )
    tail = f", P99 {row['p99_ratio']:.3f}" if row.get("p99_ratio") else ""
    out = [
        f"{name:26} {ratio}{tail}; {row['floor_share']:.1%} of the floor ({row['floor_by']}), weights {row['weights']}"
    ]
    for engine in row["engines"]:
        if engine.get("error"):
            out.append(f"  {engine['title']:24} {engine['error']}")
            continue
        spans = " / ".join(figures.milliseconds(engine[key]) for key in ("p50_s", "p95_s", "p99_s"))
        inside = "" if "within" not in engine else ", within" if engine["within"] else ", OUTSIDE THE BOUND"
        rate = f", {engine['items_per_second']:.1f} items/s" if "items_per_second" in engine else ""
        share = f", {engine['bandwidth_share']:.1%} of the bandwidth" if "bandwidth_share" in engine else ""
        out.append(f"  {engine['title']:24} {spans} ms{rate}{share}{inside}")
    return out


def section(name: str, run: Run) -> dict[str, Any]:
    """Measure a section, printing its rows as they come."""
    print(f"-- {name}", flush=True)
    started, rows, facts = time.perf_counter(), [], {}
    try:
        for row in SECTIONS[name](run):
            rows.append(row)
            print("\n".join(lines(row)), flush=True)
    except Skipped as reason:
        print(f"skipped: {reason}", flush=True)
        facts["skipped"] = str(reason)
    key = "p99_ratio" if name == "p99" else "ratio"
    ratios = {figures.label(row): float(row[key]) for row in rows if row.get(key)}
    facts |= {**figures.overall(ratios), "rows": rows, "seconds": time.perf_counter() - started}
    if "geomean" in facts:
        print(
            f"{'mean':26} {facts['geomean']:.3f} of {facts['of']} networks; worst {facts['worst']} "
            f"{facts['worst_ratio']:.3f}; {facts['seconds']:.0f} s", flush=True,
        )  # fmt: skip
    return facts


def is_good(row: Mapping[str, Any]) -> bool:
    """Whether a row could be measured, with our outputs inside the bound."""
    skipped = str(row.get("error", "")).startswith("skipped: ")
    return skipped or (
        "error" not in row and all(e.get("within", True) for e in row["engines"] if e["engine"] == "opcel")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks (default: all of benchmarks.export)")
    parser.add_argument("--networks", type=Path, default=HERE / "networks", metavar="DIR", help="where they lie")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="performance-RUN.json")
    parser.add_argument("--only", metavar="SECTION,...", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="turns of each engine (default: 30)")
    parser.add_argument(
        "--block", type=float, default=0.1, metavar="SECONDS", help="the length of a turn (default: 0.1)"
    )
    parser.add_argument("--weights", choices=("resident", "map"), default="resident", help="how ours are opened")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where artifacts are kept (default: nowhere)")
    args = parser.parse_args()
    wanted = args.only.split(",") if args.only else list(SECTIONS)
    if unknown := [name for name in wanted if name not in SECTIONS]:
        parser.error(f"no section is called {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    names = names_in(args.networks, args.names or list(export.NETWORKS))
    facts: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {"sections": {}}
    print("ratio = the best peer's time / ours; P50 / P95 / P99; floor = the machine's time / ours")
    good = True
    with tempfile.TemporaryDirectory() as scratch:
        artifacts = Artifacts(args.work or Path(scratch))
        run = Run(args.networks, names, artifacts, args.rounds, args.block, args.weights)
        for name in wanted:
            try:
                found = section(name, run)
            except OpcelError as error:
                print(f"{name}: {error}")
                good = False
                continue
            good &= all(map(is_good, found["rows"]))
            facts |= {"date": time.strftime("%Y-%m-%d %H:%M"), "machine": machine_facts(), "rounds": args.rounds}
            facts["sections"][name] = found
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(facts, indent=1) + "\n")
    print(f"written to {args.json}")
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
