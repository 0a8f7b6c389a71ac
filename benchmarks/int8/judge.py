"""Whether a quantized network is good enough: its own bounds, and NNCF's network on the same data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.int8.metrics import LOWER_IS_BETTER

DROP = 0.005
"""What a share of right answers may lose to the float network."""

DIVERGENCE = 1e-3
"""The largest mean KL of a language model, in nats."""

INTEGERS = 0.9
"""The least share of multiply-adds in integers."""

BEHIND, BEHIND_SAMPLES = 0.003, 2
"""How far behind NNCF's a share may be: so much, or so many samples."""


def shortcomings(row: Mapping[str, Any]) -> list[str]:
    """In words, what a row of the accuracy table falls short of."""
    engines, first = row["engines"], row["figure"]
    if row.get("error"):
        return [str(row["error"])]
    ours = engines["opcel"]["figures"]
    out = []
    if "accuracy" in ours:
        lost = row["float"]["accuracy"] - ours["accuracy"]
        if lost > DROP:
            out.append(f"{100 * lost:.2f} points under float")
    if row["metric"] == "kl" and ours["kl"] > DIVERGENCE:
        out.append(f"KL {ours['kl']:.2g}")
    if row["integer_share"] < INTEGERS:
        out.append(f"{row['integer_share']:.0%} of the MACs in integers")
    theirs = engines.get("nncf", {}).get("figures")
    if theirs:
        out += behind(first, ours[first], theirs[first], row["samples"])
    slower = engines.get("nncf", {}).get("speedup")
    if slower and slower < 1:
        out.append(f"{1 / slower:.2f} times NNCF's time")
    return out


def behind(figure: str, ours: float, theirs: float, samples: int) -> list[str]:
    if figure in LOWER_IS_BETTER:
        return [f"{figure} {ours:.2g}, NNCF {theirs:.2g}"] if ours > max(theirs, DIVERGENCE) else []
    lost = theirs - ours
    if lost <= max(BEHIND, BEHIND_SAMPLES / samples) + 1e-9:
        return []
    return [f"{100 * lost:.2f} points behind NNCF"]
