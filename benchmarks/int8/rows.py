"""Latencies of one network in 8 bits beside the peers' models of it, by the project's harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks import figures
from benchmarks.int8.cases import Case, arrays
from opcel_compiler.bench.measure import Pace, as_dict, measure
from opcel_compiler.errors import OpcelError

Row = dict[str, Any]
ENGINES = {
    "nncf": ("openvino-int8", "openvino-int8-bf16"), "ort-minmax": ("ort-int8",), "f32": ("opcel-f32",),
}  # fmt: skip
"""From the kind of a file to the engines that run it. OpenVINO computes in f32, or in bf16, what is not in 8 bits."""


def timed(
    case: Case, artifact: Path, files: Mapping[str, Path], *, threads: int, rounds: int, block_s: float,
    resident: bool = True,
) -> Row:  # fmt: skip
    """One row of `benchmarks.figures`; `files` by kind. Raises OpcelError when the artifact cannot be run."""
    models = {engine: path for kind, path in files.items() for engine in ENGINES.get(kind, ())}
    result = measure(
        artifact, arrays(case.folder / f"{case.name}.npz"), model=case.model, against=tuple(models), threads=threads,
        rounds=rounds, resident=resident, pace=Pace(block_s, 2), models=models,
    )  # fmt: skip
    row = {"network": case.name, **as_dict(result)}
    if best := figures.best_peer(row):
        row |= {"best": best["engine"], "ratio": best["speedup"]}
        row |= {f"ratio_{end}": best[f"speedup_{end}"] for end in ("low", "high")}
    own = next((e for e in row["engines"] if e["engine"] == "opcel-f32"), {})
    if "speedup" in own:
        row["over_f32"] = own["speedup"]
    return row


def kept(file: Path | None) -> tuple[dict[str, Any], dict[str, Row]]:
    """What an earlier run wrote to `file`, and its rows by network; empty where there is no such file."""
    facts: dict[str, Any] = json.loads(file.read_text()) if file and file.exists() else {}
    return facts, {row["network"]: row for row in facts.get("rows", ())}


def guarded(row: Row, make: Any) -> Row:
    """`row` with what `make` gives, or with why it could not be had."""
    try:
        return row | make()
    except OpcelError as error:
        return row | {"error": str(error), "engines": row.get("engines", [])}
