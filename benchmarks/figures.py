"""Figures made of measured rows: whole networks' ratios, and what a table shows of them. No measuring here.

A row is an entry of `opcel_compiler.bench.measure.as_dict` with the network's name and what a section adds. Its `ratio`
is that to the best peer: how many times our time it takes, so that a larger one is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

CAP = 2.0
"""What one network may contribute to a mean at most."""

APART = ("mlp",)
"""Networks that a mean leaves out: a call of theirs is shorter than that of a Python function."""


def ours(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """Our engine's figures."""
    return next(engine for engine in row["engines"] if engine["engine"] == "opcel")


def peers(row: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The figures of the other engines that have some."""
    return [engine for engine in row["engines"] if not engine["engine"].startswith("opcel") and "speedup" in engine]


def best_peer(row: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The fastest of the other engines; None when none could be measured."""
    return min(peers(row), key=lambda engine: engine["speedup"], default=None)


def ratio(row: Mapping[str, Any]) -> float | None:
    """How many times our time the best peer takes."""
    best = best_peer(row)
    return None if best is None else float(best["speedup"])


def tail_ratio(row: Mapping[str, Any]) -> float | None:
    """The least P99 of the other engines over ours."""
    found = [engine["p99_s"] for engine in peers(row)]
    return min(found) / ours(row)["p99_s"] if found else None


def geometric_mean(values: Sequence[float]) -> float:
    """Raises ValueError when there is none."""
    if not values:
        raise ValueError("the mean of no values")
    return math.exp(math.fsum(math.log(v) for v in values) / len(values))


def overall(ratios: Mapping[str, float]) -> dict[str, Any]:
    """The mean over networks, each capped, and the worst; of those that are not apart, if there are any."""
    counted = {name: value for name, value in ratios.items() if name not in APART} or dict(ratios)
    if not counted:
        return {}
    worst = min(counted, key=lambda name: counted[name])
    mean = geometric_mean([min(CAP, value) for value in counted.values()])
    return {"geomean": mean, "of": len(counted), "worst": worst, "worst_ratio": counted[worst]}


def decode_bytes(report: Mapping[str, Any], feeds: int, fetches: int) -> int:
    """The bytes of one step: the weights that its kernels read, and its inputs read and its outputs written."""
    return sum(int(kernel["weight_bytes"]) for kernel in report["kernels"]) + feeds + fetches


def label(row: Mapping[str, Any]) -> str:
    """The row's network and how it differs from others of the network."""
    words = [str(row["network"]), f"batch {row['batch']}" if "batch" in row else "", str(row.get("precision", ""))]
    words += [flag for flag in ("state", "small") if row.get(flag)]
    return " ".join(word for word in words if word)


def milliseconds(seconds: float) -> str:
    """Three or four digits that count."""
    value = 1e3 * seconds
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 10 else f"{value:.3f}"
