"""Accuracy in 8 bits: python -m benchmarks.accuracy DIR --peers DIR [--json FILE] [--markdown FILE] [NAME ...]

DIR holds trained networks with real data (benchmarks.int8.networks), --peers their models by NNCF and ONNX Runtime
(benchmarks.int8.peers). Each network is compiled in 8 bits by the default recipe; that artifact is judged on data it
was not calibrated on, and timed beside the peers'. --speed adds a table of benchmarks.int8 to the page. A run that is
cut goes on where it was, with --json and --work; --no-times does all that may be done on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.artifacts import compiler_digest
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


def row_of(case: Case, folder: Path, work: Path) -> Row:
    """A row without times."""
    facts, samples, labels = case.facts, case.evaluation, case.labels
    metric = METRICS[facts["metric"]]
    want = kept_outputs(case, "ort", case.model, work)
    own = metric(want, want, labels)
    failed = peers.failures(folder, case.name)
    row: Row = {
        "network": case.name, **facts, "key": key_of(case, folder), "samples": len(want), "figure": next(iter(own)),
        "float": own, "engines": {},
    }  # fmt: skip

    def made() -> Row:
        path, report = artifact(case, work, "int8")
        engines: dict[str, Any] = {"opcel": {"figures": metric(want, outputs("opcel", path, samples), labels)}}
        for way, file in peers.paths(folder, case.name).items():
            try:
                got = kept_outputs(case, RUNS[way], file, work)
            except Exception as error:  # a peer's file that its engine refuses is told in the row
                failed[way] = f"{type(error).__name__}: {error}"[:300]
                continue
            engines[way] = {"figures": metric(want, got, labels)}
        return {"engines": engines, "integer_share": integer_share(report), "failed": failed}

    return guarded(row, made)


def key_of(case: Case, folder: Path) -> str:
    """What a row depends on: the compiler, the network, its data and the peers' files."""
    files = [*case.files, *peers.paths(folder, case.name).values()]
    parts = [compiler_digest(), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]


def kept_outputs(case: Case, engine: str, path: Path, work: Path) -> np.ndarray:
    """The outputs of the float network, or of a peer's; computed once."""
    file = work / f"{path.name}.outputs.npy"
    if file.exists() and file.stat().st_mtime > max(p.stat().st_mtime for p in (path, *case.files)):
        return np.load(file)
    found = outputs(engine, path, case.evaluation)
    work.mkdir(parents=True, exist_ok=True)
    np.save(file, found)
    return found


def with_times(row: Row, case: Case, folder: Path, work: Path, pace: argparse.Namespace) -> Row:
    """`row` with the milliseconds of a call, and how many times our time each engine takes."""

    def made() -> Row:
        path, files = artifact(case, work, "int8")[0], peers.paths(folder, case.name)
        files["f32"] = artifact(case, work, "f32")[0]
        times = timed(case, path, files, threads=pace.threads, rounds=pace.rounds, block_s=pace.block)
        found = {engine["engine"]: engine for engine in times["engines"]}
        engines = {way: dict(engine) for way, engine in row["engines"].items()}
        engines["opcel"]["p50_s"] = found["opcel"]["p50_s"]
        for way, names in SAME.items():
            known = [found[name] for name in names if "speedup" in found.get(name, {})]
            if way in engines and known:
                best = min(known, key=lambda engine: engine["speedup"])
                engines[way] |= {"p50_s": best["p50_s"], "speedup": best["speedup"]}
        return {"engines": engines, **{key: times[key] for key in ("over_f32", "best", "ratio") if key in times}}

    return guarded(row, made)


def measured(row: Row | None, case: Case, work: Path, args: argparse.Namespace) -> Iterator[Row]:
    """The row of a network as it comes to be; what an earlier run of the same compiler measured is not again."""
    if row is None or "error" in row or row.get("key") != key_of(case, args.peers):
        row = row_of(case, args.peers, work)
        yield row
        if args.no_times and "error" not in row:
            guarded({}, lambda: {"path": artifact(case, work, "f32")})
    if not args.no_times and "error" not in row and "p50_s" not in row["engines"]["opcel"]:
        yield with_times(row, case, args.peers, work, args)


def written(file: Path | None, rows: Mapping[str, Row]) -> dict[str, Any]:
    """All that is known, also in `file`."""
    facts = {"rows": list(rows.values()), "machine": machine_facts(), "date": time.strftime("%Y-%m-%d %H:%M")}
    if file:
        part = file.with_name(f"{file.name}.part")
        part.write_text(json.dumps(facts, indent=1) + "\n")
        part.replace(file)
    return facts


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
    parser.add_argument("--json", type=Path, metavar="FILE", help="written after each row; read at the start")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--speed", type=Path, metavar="FILE", help="what benchmarks.int8 wrote, for the page")
    parser.add_argument("--same-file", type=Path, metavar="FILE", help="what benchmarks.same_file --markdown wrote")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=float, default=0.05, metavar="SECONDS")
    parser.add_argument("--no-times", action="store_true", help="compile and judge, and measure no latency")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where artifacts are kept (default: nowhere)")
    args = parser.parse_args()
    facts, rows = kept(args.json)
    with tempfile.TemporaryDirectory() as scratch:
        work = args.work or Path(scratch)
        for case in [] if args.page_only else cases_in(args.folder):
            if args.names and case.name not in args.names:
                continue
            for row in measured(rows.get(case.name), case, work, args):
                rows[case.name] = row | {"short": judge.shortcomings(row)}
                facts = written(args.json, rows)
            print(line(rows[case.name]), flush=True)
    facts = facts or written(None, rows)
    if args.markdown:
        speed = json.loads(args.speed.read_text()) if args.speed else None
        same_file = args.same_file.read_text() if args.same_file else ""
        args.markdown.write_text(page.page(facts, speed, same_file))
    sys.exit(1 if any("error" in row for row in rows.values()) else 0)


if __name__ == "__main__":
    main()
