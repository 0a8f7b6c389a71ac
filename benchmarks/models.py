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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import opcel_compiler
from opcel_compiler.check import check
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.importer import Imported, import_model
from opcel_compiler.ir.dims import as_symbol
from opcel_compiler.ir.types import SequenceType, TensorType
from opcel_compiler.proof import Bound, Feeds, compare, sample_inputs
from opcel_compiler.references import reference_outputs

LOOSE = 4.0
"""How many times the change by ONNX Runtime's own optimizations an error may be."""


def feeds_of(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Seeded inputs; the entry of the index may give shapes (`run_shapes`), and in `override` shapes, values and the
    integers' limit (`int_hi`)."""
    imported = import_model(path)
    override = entry.get("override") or {}
    shapes = {**(entry.get("run_shapes") or {}), **override.get("shapes", {})}
    sizes: dict[str, int] = {}
    for name, value in zip(imported.input_names, imported.graph.inputs, strict=True):
        known = isinstance(value.type, TensorType) and value.type.shape is not None
        for dim, size in zip(value.tensor.dims if known else (), shapes.get(name, ()), strict=False):
            if (found := as_symbol(dim)) is not None:
                sizes.setdefault(found.name, size)
    if not all(isinstance(v.type, TensorType) and v.type.shape is not None for v in imported.graph.inputs):
        return _untyped(imported, shapes)
    feeds = sample_inputs(imported.graph, imported.input_names, sizes=sizes)
    rng = np.random.default_rng(0)
    for name, array in feeds.items():
        if name in override.get("values", {}):
            feeds[name] = np.asarray(override["values"][name], array.dtype).reshape(array.shape)
        elif "int_hi" in override and array.dtype.kind in "iu":
            feeds[name] = rng.integers(0, override["int_hi"], array.shape).astype(array.dtype)
    return feeds


def _untyped(imported: Imported, shapes: Mapping[str, list[int]]) -> dict[str, Any]:
    """Floats for tensors of open rank, and two of them for a sequence."""
    rng = np.random.default_rng(0)
    feeds: dict[str, Any] = {}
    for name, value in zip(imported.input_names, imported.graph.inputs, strict=True):
        t = value.type.element if isinstance(value.type, SequenceType) else value.type
        dtype = t.dtype.numpy if isinstance(t, TensorType) else np.dtype(np.float32)
        made = [rng.standard_normal(shapes.get(name, [2, 3])).astype(dtype) for _ in range(2)]
        feeds[name] = made if isinstance(value.type, SequenceType) else made[0]
    return feeds


def optimized(path: Path, outputs: tuple[str, ...], feeds: Feeds) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in session.run(list(outputs), dict(feeds))]


def examine(path: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The row of one model."""
    try:
        imported = import_model(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = opcel_compiler.compile(path, fallback="allow", proof=False)
        feeds = feeds_of(path, entry)
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
    if any(np.asarray(w).dtype == object for w in want):
        same = all(np.array_equal(np.asarray(got[n], object), w) for n, w in zip(names, want, strict=True))
        return {**row, "status": "within" if same else "unchecked", "why": "its values are no numbers", "max_abs": 0.0}
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
        if (
            not entry.get("valid", True)
            or not entry["file"].endswith(".onnx")
            or (args.group and entry.get("group") != args.group)
        ):
            continue
        try:
            row = {"file": entry["file"], **examine(folder / entry["file"], entry)}
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
