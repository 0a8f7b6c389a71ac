"""One product in 4 bits and in f32, at row counts from 1 to 512.

    python -m benchmarks.int4_rows --work WORK --build                    # artifacts, nothing is timed
    python -m benchmarks.int4_rows --work WORK [--counts 1,2,4] [--json FILE] [--markdown FILE]

Both are ours, weights resident, by turns. Exit status 1 where 4 bits are slower.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import opcel_compiler as oc
from benchmarks import figures
from benchmarks.networks import keep
from opcel_compiler.bench.measure import Pace, as_dict, measure

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 13, 16, 17, 24, 31, 32, 48, 64, 100, 128, 197, 256, 384, 512)
PRECISIONS = ("int4", "f32")
Row = dict[str, Any]


def product(rows: int, k: int, n: int) -> onnx.ModelProto:
    """x [rows, k] times weights of f32."""
    weights = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32) / np.float32(k**0.5)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])], "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, n])], [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def path(work: Path, precision: str, rows: int, k: int, n: int) -> Path:
    return work / f"rows_{rows}_{k}x{n}.{precision}.opcel"


def build(work: Path, counts: list[int], k: int, n: int) -> None:
    """The artifacts that are missing in `work`."""
    for rows in counts:
        for precision in PRECISIONS:
            if not path(work, precision, rows, k, n).exists():
                made = path(work, precision, rows, k, n)
                oc.compile(product(rows, k, n), output=made, precision=precision, proof=False).close()


def row(args: argparse.Namespace, rows: int, threads: int, k: int, n: int) -> Row:
    """`ratio`: how many times the time of 4 bits f32 takes."""
    ours, other = (path(args.work, precision, rows, k, n) for precision in PRECISIONS)
    x = np.random.default_rng(rows).standard_normal((rows, k)).astype(np.float32)
    result = measure(
        ours, {"x": x}, against=("opcel-f32",), models={"opcel-f32": other}, threads=threads, rounds=args.rounds,
        resident=True, pace=Pace(args.block),
    )  # fmt: skip
    found = as_dict(result)
    own, theirs = found["engines"]
    return {
        "rows": rows, "shape": [k, n], "threads": threads, "p50_s": own["p50_s"], "f32_p50_s": theirs["p50_s"],
        "ratio": theirs["speedup"],
    }  # fmt: skip


def table(found: list[Row]) -> str:
    """Markdown: a line for each row count."""
    threads = sorted({each["threads"] for each in found}, reverse=True)
    lines = [f"| rows |{'|'.join(f' 4 bits, threads: {t} | f32 / 4 bits ' for t in threads)}|"]
    lines.append("|---" * (1 + 2 * len(threads)) + "|")
    for rows in sorted({each["rows"] for each in found}):
        cells = [str(rows)]
        for t in threads:
            here = [each for each in found if (each["rows"], each["threads"]) == (rows, t)]
            cells += [f"{figures.milliseconds(e['p50_s'])} ms | {e['ratio']:.2f}" for e in here] or ["- | -"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--shape", default="2048x2048", metavar="KxN")
    parser.add_argument("--counts", default=",".join(map(str, COUNTS)))
    parser.add_argument("--threads", default="2,1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=float, default=0.03, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows measured before and not now are kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    counts, (k, n) = [int(c) for c in args.counts.split(",")], (int(s) for s in args.shape.split("x"))
    if args.build:
        build(args.work, counts, k, n)
        return
    facts = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"rows": []}
    known = {(each["threads"], each["rows"], *each["shape"]): each for each in facts["rows"]}
    for threads in map(int, args.threads.split(",")):
        for rows in counts:
            made = known[threads, rows, k, n] = row(args, rows, threads, k, n)
            keep(args.json, known.values())
            print(f"{threads} threads, {rows} rows: {1e3 * made['p50_s']:.3f} ms, f32 {made['ratio']:.2f}", flush=True)
    found = list(known.values())
    if args.markdown:
        args.markdown.write_text(table([each for each in found if each["shape"] == [k, n]]))
    sys.exit(1 if any(each["ratio"] < 1 for each in found) else 0)


if __name__ == "__main__":
    main()
