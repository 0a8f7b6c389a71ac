"""Accuracy in 8 bits: python -m benchmarks.accuracy DIR --peers DIR [--json FILE] [--markdown FILE] [NAME ...]

DIR holds trained networks with real data (benchmarks.int8.networks), --peers their models by NNCF and ONNX Runtime
(benchmarks.int8.peers). Each network is compiled in 8 bits by the default recipe; that artifact is judged on data it
was not calibrated on, and timed beside the peers'. --speed adds a table of benchmarks.int8 to the page.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.int8 import judge, page, peers
from benchmarks.int8.cases import Case, cases_in
from benchmarks.int8.evaluate import outputs
from benchmarks.int8.metrics import METRICS
from benchmarks.int8.ours import artifact, integer_share
from benchmarks.int8.rows import Row, guarded, kept, timed
from benchmarks.networks import machine_facts

RUNS = {"nncf": "openvino-int8", "ort-minmax": "ort-int8", "ort-percentile": "ort-int8"}
"""The engine that a peer's file runs in."""

SAME = {"nncf": ("openvino-int8", "openvino-int8-bf16"), "ort-minmax": ("ort-int8",)}
"""The engines whose times count for a peer: of one form, a network is as fast with any ranges."""


def row_of(case: Case, folder: Path, work: Path, timing: argparse.Namespace | None) -> Row:
    facts, samples, labels = case.facts, case.evaluation, case.labels
    metric = METRICS[facts["metric"]]
    want = kept_outputs(case, work)
    own = metric(want, want, labels)
    row: Row = {
        "network": case.name, **facts, "samples": len(want), "figure": next(iter(own)), "float": own, "engines": {},
    }  # fmt: skip

    def made() -> Row:
        path, report = artifact(case, work, "int8")
        engines: dict[str, Any] = {"opcel": {"figures": metric(want, outputs("opcel", path, samples), labels)}}
        files = peers.paths(folder, case.name)
        for way, file in files.items():
            engines[way] = {"figures": metric(want, outputs(RUNS[way], file, samples), labels)}
        found: Row = {"engines": engines, "integer_share": integer_share(report)}
        if timing is not None:
            add_times(found, case, path, files | {"f32": artifact(case, work, "f32")[0]}, timing)
        return found

    row = guarded(row, made)
    return row | {"short": judge.shortcomings(row)}


def kept_outputs(case: Case, work: Path) -> np.ndarray:
    """The float network's outputs, by ONNX Runtime; computed once."""
    file = work / f"{case.name}.float.npy"
    if file.exists() and file.stat().st_mtime > case.model.stat().st_mtime:
        return np.load(file)
    want = outputs("ort", case.model, case.evaluation)
    work.mkdir(parents=True, exist_ok=True)
    np.save(file, want)
    return want


def add_times(row: Row, case: Case, path: Path, files: dict[str, Path], timing: argparse.Namespace) -> None:
    """Milliseconds of a call, and how many times our time each engine takes."""
    times = timed(case, path, files, threads=timing.threads, rounds=timing.rounds, block_s=timing.block)
    found = {engine["engine"]: engine for engine in times["engines"]}
    row["engines"]["opcel"]["p50_s"] = found["opcel"]["p50_s"]
    row |= {key: times[key] for key in ("over_f32", "best", "ratio") if key in times}
    for way, names in SAME.items():
        known = [found[name] for name in names if "speedup" in found.get(name, {})]
        if way in row["engines"] and known:
            best = min(known, key=lambda engine: engine["speedup"])
            row["engines"][way] |= {"p50_s": best["p50_s"], "speedup": best["speedup"]}


def line(row: Row) -> str:
    """A row as text."""
    if "error" in row:
        return f"{row['network']:24} {row['error']}"
    parts = [f"float {page.figure(row, row['float'])}"]
    for way, engine in row["engines"].items():
        took = f" in {1e3 * engine['p50_s']:.3f} ms" if "p50_s" in engine else ""
        parts.append(f"{way} {page.figure(row, engine['figures'])}{took}")
    short = f"; SHORT: {', '.join(row['short'])}" if row["short"] else ""
    return f"{row['network']:24} {row['figure']}: {'; '.join(parts)}; {row['integer_share']:.0%} in integers{short}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="default: all of the folder")
    parser.add_argument("--peers", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows of networks judged before are kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--speed", type=Path, metavar="FILE", help="what benchmarks.int8 wrote, for the page")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=float, default=0.05, metavar="SECONDS")
    parser.add_argument("--no-times", action="store_true", help="judge, and measure no latency")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where artifacts are kept (default: nowhere)")
    args = parser.parse_args()
    _, rows = kept(args.json)
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases_in(args.folder):
            if args.names and case.name not in args.names:
                continue
            rows[case.name] = row_of(case, args.peers, args.work or Path(scratch), None if args.no_times else args)
            print(line(rows[case.name]), flush=True)
    facts = {"rows": list(rows.values()), "machine": machine_facts(), "date": time.strftime("%Y-%m-%d %H:%M")}
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    if args.markdown:
        speed = json.loads(args.speed.read_text()) if args.speed else None
        args.markdown.write_text(page.page(facts, speed))
    sys.exit(1 if any("error" in row for row in rows.values()) else 0)


if __name__ == "__main__":
    main()
