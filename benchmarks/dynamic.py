"""One artifact for many sizes: python -m benchmarks.dynamic MODEL.onnx ... [--sizes NAME=1,3,17 ...] [--json F]

Each model is compiled once with its symbolic sizes and compared with ONNX Runtime (optimizations off) at every
combination of the sizes given. Exit status 1 when a result is outside the proof's bound.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import opcel_compiler
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.analysis import graph_symbols
from opcel_compiler.proof import Bound, compare, sample_inputs
from opcel_compiler.references import reference_outputs

DEFAULT = ("batch=1,3,17", "length=1,7,128")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--sizes", nargs="*", default=DEFAULT)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sizes = {name: [int(v) for v in values.split(",")] for name, _, values in (s.partition("=") for s in args.sizes)}
    rows = []
    for path in args.models:
        imported = import_model(path)
        names = [n for n in sizes if n in graph_symbols(imported.graph)]
        with opcel_compiler.compile(path, fallback="error") as model:
            for values in itertools.product(*(sizes[n] for n in names)):
                chosen = dict(zip(names, values, strict=True))
                feeds = sample_inputs(imported.graph, imported.input_names, sizes=chosen)
                _, want = reference_outputs(
                    path, imported.graph, imported.input_names, imported.output_names, feeds
                )  # fmt: skip
                got = model.run(feeds)
                errors = [
                    compare(n, got[n], w, Bound()) for n, w in zip(imported.output_names, want, strict=True)
                ]  # fmt: skip
                row = {
                    "network": path.stem, **chosen, "max_abs": max(e.max_abs for e in errors),
                    "relative_l2": max(e.relative_l2 for e in errors), "within": all(e.within for e in errors),
                }  # fmt: skip
                rows.append(row)
                print(json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(not all(r["within"] for r in rows))


if __name__ == "__main__":
    main()
