"""Instruments: what watches a run of passes. One protocol serves checking, timing, dumps, counting and bisection."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.text import print_graph
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pass_ import Pass, check_members

if TYPE_CHECKING:
    from opcel_compiler.rewrite.pipeline import Pipeline

Printer = Callable[[Any], str]
Checker = Callable[[Any], None]


@dataclass(frozen=True)
class Step:
    """One pass about to run or just run: its index, the pass, the subject, and the pipeline from here on."""

    index: int
    current: Pass
    subject: Any
    rest: Pipeline
    ctx: PassContext


class Instrument:
    """Base of instruments; a hook left out does nothing, a misspelt one raises TypeError at class creation.

    Public attributes other than the hooks are annotated in the class body.
    """

    _hooks = frozenset({"should_run", "before", "after", "failed", "notes"})

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        fields = {a for base in cls.__mro__ for a in getattr(base, "__annotations__", {})}
        check_members(cls, Instrument._hooks | fields, "an instrument")

    def should_run(self, step: Step) -> bool:
        """Whether the pass may run; it runs when every instrument says so."""
        return True

    def before(self, step: Step) -> None:
        """Called before the pass runs."""

    def after(self, step: Step) -> None:
        """Called after the pass has run; an error raised here counts as the pass's."""

    def failed(self, step: Step, error: Exception) -> None:
        """Called when the pass, or an instrument after it, raised."""

    def notes(self) -> Sequence[str]:
        """Sentences to add to the message about a failed pass."""
        return ()


@dataclass
class Verify(Instrument):
    """Checks the subject before the first pass and after each."""

    check: Checker

    def before(self, step: Step) -> None:
        if step.index == 0:
            self.check(step.subject)

    def after(self, step: Step) -> None:
        self.check(step.subject)


@dataclass
class Timing(Instrument):
    """Seconds of each pass and, below it, of each of its rules. `str` gives the tree."""

    seconds: list[tuple[str, float, dict[str, float]]] = field(default_factory=list)
    _start: float = 0.0
    _rules: dict[tuple[str, str], float] = field(default_factory=dict)

    def before(self, step: Step) -> None:
        self._rules = dict(step.ctx.report.seconds)
        self._start = time.perf_counter()

    def after(self, step: Step) -> None:
        total = time.perf_counter() - self._start
        name = step.current.name
        rules = {r: s - self._rules.get((p, r), 0.0) for (p, r), s in step.ctx.report.seconds.items() if p == name}
        self.seconds.append((name, total, rules))

    def __str__(self) -> str:
        lines = [f"{sum(s for _, s, _ in self.seconds):9.4f} s  pipeline"]
        for name, total, rules in self.seconds:
            lines.append(f"{total:9.4f} s    {name}")
            for r, seconds in sorted(rules.items(), key=lambda item: -item[1]):
                if seconds >= 0.05 * total:
                    lines.append(f"{seconds:9.4f} s      {r}")
        return "\n".join(lines)


@dataclass
class Dumps(Instrument):
    """Writes the subject to numbered files in `folder`: 00-input.txt, then NN-pass.txt after each pass."""

    folder: Path
    print: Printer = print_graph
    suffix: str = ".txt"

    def before(self, step: Step) -> None:
        if step.index == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(0, "input", step)

    def after(self, step: Step) -> None:
        self._write(step.index + 1, step.current.name, step)

    def _write(self, number: int, name: str, step: Step) -> None:
        (self.folder / f"{number:02d}-{name}{self.suffix}").write_text(self.print(step.subject), encoding="utf-8")


@dataclass
class PrintChanges(Instrument):
    """Prints the subject after each pass that changed its text."""

    print: Printer = print_graph
    stream: IO[str] = field(default_factory=lambda: sys.stderr)
    _last: str = ""

    def before(self, step: Step) -> None:
        self._last = self.print(step.subject)

    def after(self, step: Step) -> None:
        text = self.print(step.subject)
        if text == self._last:
            self.stream.write(f"; {step.current} changed nothing\n")
        else:
            self.stream.write(f"; after {step.current}\n{text}\n")


@dataclass
class Counters(Instrument):
    """Changes by pass and rule, of the passes run under it."""

    changes: Counter[tuple[str, str]] = field(default_factory=Counter)
    _before: Counter[tuple[str, str]] = field(default_factory=Counter)

    def before(self, step: Step) -> None:
        self._before = step.ctx.report.changes.copy()

    def after(self, step: Step) -> None:
        self.changes += step.ctx.report.changes - self._before

    def __str__(self) -> str:
        return "\n".join(f"{n:6d}  {p}: {r}" for (p, r), n in sorted(self.changes.items()))


@dataclass
class Skip(Instrument):
    """Leaves out passes: those named in `names`, and those from index `stop` on."""

    names: frozenset[str] = frozenset()
    stop: int | None = None

    def should_run(self, step: Step) -> bool:
        return step.current.name not in self.names and (self.stop is None or step.index < self.stop)


@dataclass
class Reproducer(Instrument):
    """When a pass fails, writes `path`: the text of the subject before the pass, below a comment with the rest of the
    pipeline. `copy` must give a copy that later changes to the subject do not reach. `read_reproducer` reads it."""

    path: Path
    copy: Callable[[Any], Any] = clone
    print: Printer = print_graph
    written: bool = False
    _before: Any = None

    def before(self, step: Step) -> None:
        self._before = self.copy(step.subject)

    def failed(self, step: Step, error: Exception) -> None:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        head = f"; pipeline: {step.rest}\n; failure: {message}\n"
        self.path.write_text(head + self.print(self._before), encoding="utf-8")
        self.written = True

    def notes(self) -> Sequence[str]:
        return [f"A reproducer is in {self.path}"] if self.written else []
