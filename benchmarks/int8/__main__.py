"""Speed in 8 bits: python -m benchmarks.int8 DIR --peers DIR --json FILE [NAME ...]

DIR holds networks with data (benchmarks.int8.synthetic for the benchmark networks), --peers their models by NNCF and
ONNX Runtime (benchmarks.int8.peers). Batch 1; each engine in its own process, taking turns; outputs are compared with
the float network's in the same run. The ratio is the best peer's time over ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import figures
from benchmarks.int8 import peers
from benchmarks.int8.cases import Case, cases_in
from benchmarks.int8.ours import artifact, integer_share
from benchmarks.int8.rows import Row, guarded, kept, timed
from benchmarks.networks import machine_facts


def row_of(case: Case, args: argparse.Namespace, work: Path) -> Row:
    """Our two artifacts beside the peers' models."""

    def made() -> Row:
        quantized, report = artifact(case, work, "int8")
        files = peers.paths(args.peers, case.name) | {"f32": artifact(case, work, "f32")[0]}
        files.pop("ort-percentile", None)
        row = timed(case, quantized, files, threads=args.threads, rounds=args.rounds, block_s=args.block)
        return row | {"integer_share": integer_share(report)}

    return guarded({"network": case.name}, made)


def lines(row: Row) -> list[str]:
    """A row as text."""
    if "error" in row:
        return [f"{row['network']:24} {row['error']}"]
    ratio = (
        f"{row['ratio']:.3f} ({row['ratio_low']:.3f}-{row['ratio_high']:.3f}) to {row['best']}"
        if "best" in row
        else "-"
    )
    out = [
        f"{row['network']:24} {ratio}; {row.get('over_f32', 0):.2f} x our f32; "
        f"{row['integer_share']:.1%} of the MACs in integers"
    ]
    for engine in row["engines"]:
        if engine.get("error"):
            out.append(f"  {engine['title']:26} {engine['error']}")
            continue
        error = max((o["relative_l2"] for o in engine.get("outputs", ())), default=float("nan"))
        out.append(f"  {engine['title']:26} {figures.milliseconds(engine['p50_s'])} ms, relative L2 {error:.2g}")
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="default: all of the folder")
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows of networks measured before are kept")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=float, default=0.1, metavar="SECONDS")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where artifacts are kept (default: nowhere)")
    parser.add_argument("--compile-only", action="store_true", help="fill --work, and measure nothing")
    args = parser.parse_args()
    cases = [case for case in cases_in(args.folder) if not args.names or case.name in args.names]
    facts, rows = kept(args.json)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        for case in cases:
            if args.compile_only:
                for precision in ("int8", "f32"):
                    guarded({}, lambda case=case, precision=precision: {"path": artifact(case, work, precision)})
                continue
            rows[case.name] = row_of(case, args, work)
            print("\n".join(lines(rows[case.name])), flush=True)
    ratios = {name: float(row["ratio"]) for name, row in rows.items() if "ratio" in row}
    facts = {**facts, **figures.overall(ratios), "rows": list(rows.values()), "threads": args.threads}
    facts |= {"machine": machine_facts(), "date": time.strftime("%Y-%m-%d %H:%M")}
    if "geomean" in facts:
        print(
            f"mean {facts['geomean']:.3f} of {facts['of']} networks; worst {facts['worst']} {facts['worst_ratio']:.3f}"
        )
    if args.json and not args.compile_only:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    sys.exit(1 if any("error" in row for row in rows.values()) else 0)


if __name__ == "__main__":
    main()
