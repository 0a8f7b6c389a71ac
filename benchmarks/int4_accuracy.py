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
from pathlib import Path
from typing import Any

import opcel_compiler as oc
from benchmarks.int8.cases import Case, arrays, cases_in, feeds
from benchmarks.int8.evaluate import outputs
from benchmarks.int8.metrics import METRICS
from benchmarks.networks import machine_facts
from opcel_compiler.ir.nbits import WeightScheme
from opcel_compiler.quantization.recipe import Recipe

Row = dict[str, Any]
WAYS = ("nearest", "clipped", "gptq")
TITLES = {"nearest": "round to nearest", "clipped": "clipped ranges", "gptq": "GPTQ"}
LANGUAGE_MODELS = ("char_lm",)


def rows_of(case: Case, group: int) -> list[Row]:
    """One with zero points and one symmetric: KL and other figures by way, and GPTQ's KL over that of the nearest."""
    want = outputs("ort", case.model, case.evaluation)
    found = []
    for symmetric in (False, True):
        ways = {way: judged(case, way, want, group, symmetric) for way in WAYS}
        ratio = ways["gptq"]["kl"] / ways["nearest"]["kl"]
        found.append({"network": case.name, "group": group, "symmetric": symmetric, "ways": ways, "ratio": ratio})
    return found


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
        kind = "symmetric" if row["symmetric"] else "zero points"
        lines.append(
            f"| {row['network']}, groups of {row['group']}, {kind} | {' | '.join(cells)} | {row['ratio']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", default=LANGUAGE_MODELS, help=f"default: {', '.join(LANGUAGE_MODELS)}")
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--limit", type=float, default=0.6)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args()
    cases = {case.name: case for case in cases_in(args.folder)}
    if missing := [name for name in args.names if name not in cases]:
        parser.error(f"{args.folder} does not hold {', '.join(missing)}; it has {', '.join(cases)}")
    rows = [row for name in args.names for row in rows_of(cases[name], args.group)]
    print(table(rows), end="")
    if args.json:
        facts = {"rows": rows, "machine": machine_facts(), "date": time.strftime("%Y-%m-%d %H:%M")}
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(table(rows))
    sys.exit(1 if any(row["ratio"] > args.limit for row in rows) else 0)


if __name__ == "__main__":
    main()
