"""Which layers to leave in 8 bits within a budget: a knapsack by loss and microseconds, checked as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

VALIDATIONS = 3
"""The most times that the whole network is checked on all data."""
MARGINS = (0.8, 0.3)
"""The shares of the allowed loss that the second and the third check aim at: layers' losses do not just add up."""


@dataclass(frozen=True)
class Priced:
    """A quantized layer: what it alone loses, and the seconds that 8 bits save; not positive where they are slower."""

    name: str
    loss: float
    saved: float


@dataclass
class Found:
    """One choice: the layers that go back to float, the measured drop, and the seconds that it saves over float."""

    reverted: dict[str, str] = field(default_factory=dict)
    drop: float = float("inf")
    saved: float = 0.0


def to_revert(layers: Sequence[Priced], measured: float, allowed: float) -> list[Priced]:
    """The layers to give up so that the rest is expected to lose `allowed`, in the order in which they go: first those
    with the most loss for each second that they save. Losses are scaled so that all together lose what was `measured`.
    """
    total = sum(p.loss for p in layers)
    scale = measured / total if total > 0 else 0.0
    order = sorted(layers, key=lambda p: (-p.loss / max(p.saved, 1e-9), p.name))
    left, out = measured, []
    for p in order:
        if left <= allowed:
            break
        out.append(p)
        left -= p.loss * scale
    return out


def reason(p: Priced, metric: str) -> str:
    """Why a layer that could be in 8 bits is not."""
    return (
        f"in 8 bits it alone moves the outputs by {p.loss:.3g} (KL or relative L2) and saves {p.saved * 1e6:.1f} µs: "
        f"it is given up for the allowed drop in {metric}"
    )


def slower(layers: Sequence[Priced]) -> dict[str, str]:
    """The layers that are no faster in 8 bits, as measured, with the reason."""
    text = "in 8 bits it is {:.1f} µs slower than in f32, as measured"
    return {p.name: text.format(-p.saved * 1e6) for p in layers if p.saved < 0}


def search(
    layers: Sequence[Priced], base: Found, allowed: float, metric: str,
    validate: Callable[[Mapping[str, str]], float], better: Callable[[Found], None],
) -> Found:  # fmt: skip
    """The choice that saves the most seconds among those whose drop, measured by `validate` with the layers reverted,
    is at most `allowed`; all in float where none is. `base` was validated already; `better` is told of each new best.
    """
    best, tried = base, base
    if best.drop <= allowed:
        return best
    for margin in MARGINS[: VALIDATIONS - 1]:
        quantized = [p for p in layers if p.name not in tried.reverted]
        goes = to_revert(quantized, tried.drop, margin * allowed)
        if not goes:
            break
        reverted = {**tried.reverted, **{p.name: reason(p, metric) for p in goes}}
        saved = sum(p.saved for p in layers if p.name not in reverted)
        tried = Found(reverted, validate(reverted), saved)
        if tried.drop < best.drop:
            best = tried
            better(best)
        if tried.drop <= allowed:
            return best
    everything = {p.name: base.reverted.get(p.name, reason(p, metric)) for p in layers}
    best = Found(everything, 0.0, 0.0)
    better(best)
    return best
