"""Accuracy in 4 bits: python -m benchmarks.int4_accuracy DIR [--json FILE] [--markdown FILE] [--limit 0.6] [NAME ...]

DIR holds trained networks with real data (benchmarks.int8.networks). Each is compiled with weights of 4 bits, rounded
to nearest, with clipped ranges, and by GPTQ on its calibration data, and judged by the float network on other data.
Exit status 1 where GPTQ's KL is above the limit, a share of that of rounding to nearest.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import opcel_compiler as oc
from benchmarks.int8.cases import Case, arrays, cases_in, feeds
from benchmarks.int8.evaluate import outputs
from benchmarks.int8.metrics import METRICS
from benchmarks.networks import keep
from opcel_compiler.ir.nbits import WeightScheme
from opcel_compiler.quantization.recipe import Recipe

Row = dict[str, Any]
WAYS = ("nearest", "clipped", "gptq")
TITLES = {"nearest": "round to nearest", "clipped": "clipped ranges", "gptq": "GPTQ"}
LANGUAGE_MODELS = ("char_lm",)
KINDS = ("zero points", "symmetric")


def rows_of(case: Case, group: int, kinds: Iterable[str]) -> Iterator[Row]:
    """One a kind of grid: KL and other figures by way, and GPTQ's KL over that of the nearest."""
    want = outputs("ort", case.model, case.evaluation)
    for kind in kinds:
        ways = {way: judged(case, way, want, group, kind == "symmetric") for way in WAYS}
        ratio = ways["gptq"]["kl"] / ways["nearest"]["kl"]
        yield {"network": case.name, "group": group, "kind": kind, "ways": ways, "ratio": ratio}


def judged(case: Case, way: str, want: Any, group: int, symmetric: bool) -> Row:
    """The figures of the network's metric, those of agreement at least; `dropped` are the warnings of layers."""
    samples = feeds(arrays(case.calibration)) if way == "gptq" else None
    recipe = Recipe(calibrate=samples, weights=WeightScheme(group, symmetric, clip=way != "nearest"))
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        path = Path(folder) / "int4"
        oc.compile(case.model, output=path, precision="int4", recipe=recipe, proof=False).close()
        figures = METRICS[case.facts["metric"]](want, outputs("opcel", path, case.evaluation), case.labels)
    dropped = [str(each.message) for each in said if " is dropped" in str(each.message)]
    return {**figures, "dropped": dropped, "seconds": time.perf_counter() - started}


def table(rows: list[Row]) -> str:
    """Markdown: KL in nats, and the share of places where the same token is the likeliest."""
    heads = [f"{TITLES[way]}: KL, same token" for way in WAYS]
    lines = [f"| | {' | '.join(heads)} | GPTQ / nearest |", f"|---{'|---' * (len(WAYS) + 1)}|"]
    for row in rows:
        cells = [f"{row['ways'][way]['kl']:.2g}, {row['ways'][way]['agreement']:.1%}" for way in WAYS]
        what = f"{row['network']}, groups of {row['group']}, {row['kind']}"
        lines.append(f"| {what} | {' | '.join(cells)} | {row['ratio']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=LANGUAGE_MODELS, help=f"default: {', '.join(LANGUAGE_MODELS)}")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--limit", type=float, default=0.6)
    parser.add_argument("--kind", choices=KINDS, action="append", help="of grids; default: both")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows judged before and not now are kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args()
    cases = {case.name: case for case in cases_in(args.folder)}
    if missing := [name for name in args.names if name not in cases]:
        parser.error(f"{args.folder} does not hold {', '.join(missing)}; it has {', '.join(cases)}")
    facts = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"rows": []}
    known = {(row["network"], row["group"], row["kind"]): row for row in facts["rows"]}
    for name in args.names:
        for row in rows_of(cases[name], args.group, args.kind or KINDS):
            known[name, args.group, row["kind"]] = row
            keep(args.json, known.values())
            print(table([row]).splitlines()[-1], flush=True)
    rows = list(known.values())
    if args.markdown:
        args.markdown.write_text(table(rows))
    sys.exit(1 if any(row["ratio"] > args.limit for row in rows) else 0)


if __name__ == "__main__":
    main()
