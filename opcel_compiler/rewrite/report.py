"""What passes did, and why they did not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Refusal:
    """A place where a rule was considered and not applied.

    `near_miss`: the pattern matched in part only; otherwise it matched and the rule's check refused.
    """

    pass_name: str
    rule: str
    value: str
    origin: tuple[str, ...]
    reason: str
    near_miss: bool = False

    def __str__(self) -> str:
        where = f" (from {', '.join(self.origin)})" if self.origin else ""
        return f"{self.pass_name}: {self.rule} at %{self.value}{where}: {self.reason}"


class Change(NamedTuple):
    """A change that was made: by which pass and rule, at which value, made from which ONNX nodes."""

    pass_name: str
    rule: str
    value: str
    origin: tuple[str, ...] = ()


@dataclass
class Report:
    """Changes and seconds by (pass, rule), and the last refusal by (pass, rule, value)."""

    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)
    log: list[Change] = field(default_factory=list)
    """Every change in order."""
    _refusals: dict[tuple[str, str, str], Refusal] = field(default_factory=dict)

    def changed(self, pass_name: str, rule: str, value: str, origin: tuple[str, ...] = ()) -> None:
        self.changes[pass_name, rule] += 1
        self.log.append(Change(pass_name, rule, value, origin))
        self._refusals.pop((pass_name, rule, value), None)

    def refuse(self, refusal: Refusal) -> None:
        self._refusals[refusal.pass_name, refusal.rule, refusal.value] = refusal

    def spent(self, pass_name: str, rule: str, seconds: float) -> None:
        key = pass_name, rule
        self.seconds[key] = self.seconds.get(key, 0.0) + seconds

    @property
    def total(self) -> int:
        """The number of changes."""
        return len(self.log)

    def refusals(self, near_misses: bool = False) -> Iterator[Refusal]:
        """The refusals, with partial matches only when asked for."""
        return (r for r in self._refusals.values() if near_misses or not r.near_miss)
