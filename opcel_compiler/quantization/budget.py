"""Which layers to leave in 8 bits within a budget: a knapsack by loss and microseconds, checked as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

VALIDATIONS = 3
"""The most times that the whole network is checked on all data."""
MARGINS = (0.8, 0.3)
"""The shares of the allowed loss that the second and the third check aim at: layers' losses do not just add up."""
PARTS = 4096
"""The knapsack's capacity, in parts to which weights are rounded up."""


@dataclass(frozen=True)
class Priced:
    """A quantized layer: what it alone loses, and the seconds that 8 bits save; not positive where they are slower."""

    name: str
    loss: float
    saved: float


@dataclass
class Found:
    """One choice: the layers that go back to float, the measured drop, the seconds that it saves over float, and where
    a latency is asked for what a run takes, measured."""

    reverted: dict[str, str] = field(default_factory=dict)
    drop: float = float("inf")
    seconds: float = 0.0
    saved: float = 0.0


@dataclass(frozen=True)
class Limits:
    """The most that the drop may be, and the seconds that a run may take. The drop is the stricter of the two: where
    nothing keeps both, a slower choice that keeps the drop is better than a faster one that does not."""

    drop: float
    seconds: float = float("inf")

    def kept(self, found: Found) -> bool:
        return found.drop <= self.drop and found.seconds <= self.seconds

    def better(self, one: Found, other: Found) -> bool:
        """Whether `one` is better than `other`."""
        ranks = [(f.drop > self.drop, f.seconds > self.seconds, f.drop) for f in (one, other)]
        return ranks[0] < ranks[1]


def knapsack(values: Sequence[float], weights: Sequence[float], capacity: float) -> set[int]:
    """The items of the most value together whose weights, none negative, sum to at most `capacity`: 0/1, exact for
    weights in 4096ths of the capacity, rounded up. Items without weight are always among them."""
    free = {i for i, w in enumerate(weights) if w <= 0}
    if capacity <= 0:
        return free
    items = [i for i, w in enumerate(weights) if 0 < w <= capacity]
    sizes = [int(np.ceil(weights[i] / capacity * PARTS)) for i in items]
    most = np.zeros(PARTS + 1)
    taken = np.zeros((len(items), PARTS + 1), bool)
    for row, (i, size) in enumerate(zip(items, sizes, strict=True)):
        other = most[: PARTS + 1 - size] + values[i]
        taken[row, size:] = other > most[size:]
        most[size:] = np.maximum(most[size:], other)
    left, out = PARTS, free
    for row in reversed(range(len(items))):
        if taken[row, left]:
            out.add(items[row])
            left -= sizes[row]
    return out


def to_revert(layers: Sequence[Priced], measured: float, allowed: float) -> list[Priced]:
    """The layers to give up so that the rest is expected to lose at most `allowed` and saves the most seconds; those
    with the most loss for each second first. Losses are scaled so that all together lose what was `measured`."""
    if measured <= allowed:
        return []
    total = sum(p.loss for p in layers)
    scale = measured / total if total > 0 else 0.0
    stay = knapsack([max(p.saved, LEAST_S) for p in layers], [p.loss * scale for p in layers], allowed)
    return _by_rate(p for i, p in enumerate(layers) if i not in stay)


def within_latency(layers: Sequence[Priced], spare: float) -> list[Priced]:
    """The layers to give up that lose the most together and save at most `spare` seconds, those that save nothing among
    them."""
    goes = knapsack([p.loss for p in layers], [max(p.saved, 0.0) for p in layers], spare)
    return _by_rate(layers[i] for i in goes)


LEAST_S = 1e-9


def _by_rate(layers: Iterable[Priced]) -> list[Priced]:
    return sorted(layers, key=lambda p: (-p.loss / max(p.saved, LEAST_S), p.name))


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
    layers: Sequence[Priced], base: Found, limits: Limits, metric: str,
    validate: Callable[[Mapping[str, str]], tuple[float, float]], better: Callable[[Found], None],
    slow: Mapping[str, str] = MappingProxyType({}),
) -> Found:  # fmt: skip
    """The best choice found within `limits`, all in float where every other drops too much.

    `base`, with all layers in 8 bits, was validated already; what `slow` names goes back in all others.
    `validate` gives the drop with layers reverted, and the seconds of a run; `better` is told of each new best. With a
    latency the first choice is that which is expected to lose the least among those that are fast enough; the others
    are those that are expected to save the most seconds among those that lose little enough.
    """
    if limits.kept(base):
        return base
    best = tried = base
    quantized = [p for p in layers if p.name not in slow]
    spare = limits.seconds - base.seconds - sum(p.saved for p in layers if p.name in slow)
    in_time = base.drop > limits.drop and 0 < spare < float("inf")
    for attempt, margin in enumerate(MARGINS[: VALIDATIONS - 1]):
        start, goes = base, list[Priced]()
        if base.drop <= limits.drop:  # too slow, which only the layers that 8 bits make slower can change
            if attempt or not slow:
                break
        elif in_time and attempt == 0:
            goes = within_latency(quantized, spare)
        else:
            start = base if in_time and attempt == 1 else tried
            goes = to_revert([p for p in quantized if p.name not in start.reverted], start.drop, margin * limits.drop)
            if not goes:
                break
        reverted = {**slow, **start.reverted, **{p.name: reason(p, metric) for p in goes}}
        drop, seconds = validate(reverted)
        tried = Found(reverted, drop, seconds, sum(p.saved for p in layers if p.name not in reverted))
        if limits.better(tried, best):
            best = tried
            better(best)
        if limits.kept(tried):
            return best
    if best.drop <= limits.drop:
        return best
    everything = {p.name: slow.get(p.name, reason(p, metric)) for p in layers}
    best = Found(everything, 0.0)
    better(best)
    return best
