"""Our own artifacts of a network with data, in f32 and in 8 bits by the default recipe, and what their reports say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import opcel_compiler
from benchmarks.artifacts import compiler_digest
from benchmarks.int8.cases import Case, arrays, feeds
from opcel_compiler.quantization.recipe import Recipe

PRODUCTS = frozenset("attention conv conv_transpose gemm gru linear_attention lstm matmul recurrent rnn vector".split())
"""The families of kernels, up to the dot, whose work is counted in multiply-adds."""


def artifact(case: Case, work: Path, precision: str) -> tuple[Path, dict[str, Any]]:
    """The artifact in the folder `work` and its report; compiled unless an earlier run of the same compiler left it.
    It is not proved: how far it is off is for the tables to say.

    Raises OpcelError when the network cannot be compiled.
    """
    data = hashlib.sha256(case.model.read_bytes() + case.calibration.read_bytes()).hexdigest()[:12]
    path = work / f"{case.name}-{precision}-{data}-{compiler_digest()}.opcel"
    if path.exists():
        with opcel_compiler.load(path) as model:
            return path, dict(model.report)
    work.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(feeds(arrays(case.calibration))) if precision == "int8" else None
    first = feeds(case.evaluation)[0]
    with opcel_compiler.compile(
        case.model, "host", path, fallback="allow", inputs=first, precision=precision, recipe=recipe,
        proof=False,
    ) as model:  # fmt: skip
        return path, dict(model.report)


def integer_share(report: Mapping[str, Any]) -> float:
    """The share of multiply-adds that is done in integers."""
    products = [k for k in report["kernels"] if k["family"].split(".")[0] in PRODUCTS and k["flops"]]
    total = sum(k["flops"] for k in products)
    return sum(k["flops"] for k in products if k.get("integers")) / total if total else 0.0
