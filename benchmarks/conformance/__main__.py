"""ONNX's backend test suite: python -m benchmarks.conformance [-k TEXT] [--engines opcel,ort] [--json F] [--markdown F]

Each case is compiled and run on the suite's own data, within the suite's own tolerances. One row a case:

  native    right, by generated code alone, and the tested operator was computed when the model ran
  folded    right, but the compiler computed everything: no input is read (and the operator would read one)
  fallback  right, with at least one node in ONNX Runtime
  refused   not compiled, or the run ended with an error of ours; the message says why
  wrong     other values, a crash, an error that is none of ours, or no end in sight

Other engines pass, refuse or are wrong. `-k` may be given several times; a case is taken when its name contains one of
the texts. With --json, rows of cases and engines that are not run now are kept from the file.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

from benchmarks.conformance.cases import Case, load_cases, operator_of
from benchmarks.conformance.engines import ENGINES, RUNNERS, Verdict
from benchmarks.conformance.table import Row, markdown, read_rows, totals_text, write_rows
from benchmarks.conformance.workers import run_jobs


def verdict_of(job: tuple[Case, str]) -> Verdict:
    case, engine = job
    try:
        return RUNNERS[engine](case)
    except Exception as error:
        return Verdict("wrong", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conformance", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("-k", action="append", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, the same ones each time")
    parser.add_argument("--only", metavar="STATUS", help="only cases that have this status in the --json file")
    parser.add_argument("--resume", action="store_true", help="only cases and engines with no row in the --json file")
    parser.add_argument("--engines", default="opcel", help="of opcel, ort, openvino; default opcel")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes; default one a CPU")
    parser.add_argument("--timeout", type=float, default=120, help="seconds a case may take; default 120")
    parser.add_argument("--json", type=Path, help="read and write the rows here")
    parser.add_argument("--markdown", type=Path, help="write the tables here")
    parser.add_argument("--quiet", action="store_true", help="no line for each case, only totals")
    args = parser.parse_args()
    engines = [e for e in args.engines.split(",") if e]
    if unknown := set(engines) - set(ENGINES):
        parser.error(f"unknown engine {', '.join(sorted(unknown))}")
    cases = load_cases()
    operators = operator_of(cases)
    rows = {c.name: Row(c.name, c.kind, operators[c.name]) for c in cases}
    if args.json and args.json.exists():
        for name, old in read_rows(args.json).items():
            if name in rows:
                rows[name].verdicts = old.verdicts
    chosen = [c for c in cases if not args.k or any(text in c.name for text in args.k)]
    if args.only:
        chosen = [c for c in chosen if "opcel" in rows[c.name].verdicts and rows[c.name].status == args.only]
    if args.sample:
        chosen = random.Random(0).sample(chosen, min(args.sample, len(chosen)))
    jobs = [(c, e) for c in chosen for e in engines if not (args.resume and e in rows[c.name].verdicts)]
    begun = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        for done, (job, result, failure) in enumerate(run_jobs(jobs, verdict_of, args.jobs, args.timeout), 1):
            case, engine = job
            verdict = result if not failure else Verdict("wrong", failure)
            rows[case.name].verdicts[engine] = verdict
            if not args.quiet:
                who = "" if len(engines) == 1 else f" {engine:8}"
                print(f"{done:5}/{len(jobs)}{who} {verdict.status:8} {case.name:60} {verdict.why[:150]}", flush=True)
            elif sys.stderr.isatty():
                print(f"\r{done}/{len(jobs)} ", end="", file=sys.stderr, flush=True)
    finally:
        shown = list(rows.values()) if args.json else [rows[c.name] for c in chosen]
        if args.json:
            write_rows(args.json, shown)
        if args.markdown:
            args.markdown.write_text(markdown(shown))
        print(totals_text(shown))
        print(f"{time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
