"""Every stored model, compiled and compared: python -m benchmarks.models [FOLDER] [--group real] [--json F]

FOLDER (default $OPCEL_MODELS) holds index.json: a list of {file, group, valid, run_shapes}. Each valid model is
compiled with fallback allowed and compared on seeded inputs with ONNX Runtime, optimizations off. One row each:

  within    inside the proof's bound
  loose     outside it, but no further than 4 times what ONNX Runtime's own optimizations change
  outside   further than that
  refused   not compiled; the message says why
  unchecked compiled, but no reference runs the model on these inputs
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import opcel_compiler
from opcel_compiler.check import check
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.dims import as_symbol
from opcel_compiler.ir.types import TensorType
from opcel_compiler.proof import Bound, Feeds, compare, sample_inputs
from opcel_compiler.references import reference_outputs

LOOSE = 4.0
"""How many times the change by ONNX Runtime's own optimizations an error may be."""


def feeds_of(path: Path, shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
    imported = import_model(path)
    sizes: dict[str, int] = {}
    for name, value in zip(imported.input_names, imported.graph.inputs, strict=True):
        known = isinstance(value.type, TensorType) and value.type.shape is not None
        for dim, size in zip(value.tensor.dims if known else (), shapes.get(name, ()), strict=False):
            if (found := as_symbol(dim)) is not None:
                sizes.setdefault(found.name, size)
    return sample_inputs(imported.graph, imported.input_names, sizes=sizes)


def optimized(path: Path, outputs: tuple[str, ...], feeds: Feeds) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(list(outputs), dict(feeds))]


def examine(path: Path, shapes: dict[str, list[int]]) -> dict[str, Any]:
    """The row of one model."""
    try:
        imported = import_model(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = opcel_compiler.compile(path, fallback="allow", proof=False)
        feeds = feeds_of(path, shapes)
    except OpcelError as error:
        return {"status": "refused", "why": str(error)}
    with model:
        report = model.report
        row: dict[str, Any] = {
            "native_nodes": report["coverage"]["native_nodes"],
            "fallback": sorted({f"{f['op']}: {f['reason']}" for f in report["fallback"]}),
        }
        names = imported.output_names
        try:
            _, want = reference_outputs(path, imported.graph, imported.input_names, names, feeds)
            got = model.run(dict(feeds))
        except OpcelError as error:
            return {**row, "status": "unchecked", "why": str(error)}
    found = [compare(n, np.asarray(got[n]), w, Bound()) for n, w in zip(names, want, strict=True)]
    row |= {"max_abs": max(e.max_abs for e in found), "relative_l2": max(e.relative_l2 for e in found)}
    if all(e.within for e in found):
        return {**row, "status": "within"}
    theirs = [compare(n, o, w, Bound()) for n, o, w in zip(names, optimized(path, names, feeds), want, strict=True)]
    row["their_max_abs"] = max(e.max_abs for e in theirs)
    row["their_relative_l2"] = max(e.relative_l2 for e in theirs)
    loose = all(
        e.within
        or (np.isfinite(e.max_abs) and e.max_abs <= LOOSE * t.max_abs and e.relative_l2 <= LOOSE * t.relative_l2)
        for e, t in zip(found, theirs, strict=True)
    )
    return {**row, "status": "loose" if loose else "outside"}


def checked(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    """How long `opcel check` takes, and whether it says of the model what the compile then did."""
    start = time.perf_counter()
    try:
        found = check(path, "host")
        refused, falls_back = bool(found.refused), bool(found.fallbacks)
    except OpcelError:
        refused, falls_back = True, False
    agrees = refused == (row["status"] == "refused") and (refused or falls_back == bool(row.get("fallback")))
    return {"check_s": round(time.perf_counter() - start, 3), "check_agrees": agrees}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=os.environ.get("OPCEL_MODELS"))
    parser.add_argument("--group", help="only the models of this group of the index")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.folder is None:
        sys.exit("give the folder of models, or set OPCEL_MODELS")
    folder = Path(args.folder)
    rows = []
    for entry in json.loads((folder / "index.json").read_text()):
        if not entry.get("valid", True) or (args.group and entry.get("group") != args.group):
            continue
        try:
            row = {"file": entry["file"], **examine(folder / entry["file"], entry.get("run_shapes") or {})}
        except Exception as error:  # a model that breaks the compiler is a row of its own
            row = {"file": entry["file"], "status": "BROKEN", "why": f"{type(error).__name__}: {error}"}
        row |= checked(folder / entry["file"], row)
        if "why" in row:
            row["why"] = row["why"].replace(f"{folder}/", "")
        rows.append(row)
        detail = row.get("why") or f"max {row['max_abs']:.2g}, L2 {row['relative_l2']:.2g}"
        print(f"{row['status']:9} {row['file']:60} {detail[:160]}", flush=True)
    print(dict(Counter(r["status"] for r in rows)))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
