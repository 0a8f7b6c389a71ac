"""Tuning: the kernels of a Program measured one after another, those first that take the most time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from opcel_compiler.codegen.cpu.toolchain import ToolchainError
from opcel_compiler.ir.program import Kernel, Program
from opcel_compiler.runtime import _runtime
from opcel_compiler.schedule.choice.candidates import Params, is_static, kernel_text, settable
from opcel_compiler.schedule.choice.context import Choosing
from opcel_compiler.schedule.choice.variants import Choice, choices
from opcel_compiler.schedule.cost import kernel_cost
from opcel_compiler.search.lock import Entry
from opcel_compiler.search.trial import open_trial
from opcel_compiler.targets.schema import Target

SCREEN, CONFIRM = 12, 24
"""Blocks in which all candidates are measured, and then the chosen and the best, whose figures are from these alone."""

GAIN = 1.02
"""What a candidate must gain to replace the choice: less is within what one run differs from the next."""

Measure = Callable[[list[Choice]], "tuple[float, float, int] | None"]


@dataclass(frozen=True)
class Found:
    """One kernel: how often the Program has it, the seconds of its own choice and of the best candidate, which is
    `family` with `params`, and how many candidates there were."""

    kernel: Kernel
    text: str
    count: int
    chosen_s: float
    best_s: float
    family: str
    params: Params
    candidates: int

    @property
    def gain(self) -> float:
        return self.chosen_s / self.best_s

    def entry(self, machine: str, sources: str) -> Entry | None:
        """What the lock file says; None when the compiler's own choice is as good."""
        if self.gain < GAIN:
            return None
        return Entry(self.text, machine, sources, self.family, self.params, self.gain)


def distinct(program: Program, target: Target) -> list[tuple[Kernel, str, int]]:
    """The kernels with text and number, of those that may have candidates; those with the most modelled time first."""
    counts: dict[str, int] = {}
    first: dict[str, Kernel] = {}
    for kernel in program.kernels:
        if is_static(kernel):
            text = kernel_text(kernel)
            counts[text] = counts.get(text, 0) + 1
            first.setdefault(text, kernel)
    rows = [(kernel, text, counts[text]) for text, kernel in first.items() if settable(kernel)]
    return sorted(rows, key=lambda row: -row[2] * kernel_cost(row[0], target).seconds)


def measure(target: Target, threads: int) -> Measure:
    """Candidates on `threads` threads of this machine: (seconds of the first, seconds of the best, its index)."""
    pool = _runtime.pool(threads) if threads > 1 else None

    def run(each: list[Choice]) -> tuple[float, float, int] | None:
        try:
            trial = open_trial(each, target, pool)
        except ToolchainError:
            return None  # a register tile that the compiler refuses
        try:
            screened = [statistics.median(block) for block in trial.blocks(SCREEN)]
            best = min(range(len(screened)), key=lambda i: screened[i])
            again = trial.blocks(CONFIRM)
        finally:
            trial.model.close()
        return statistics.median(again[0]), statistics.median(again[best]), best

    return run


def tune(
    program: Program, target: Target, threads: int, seconds: float | None = None, measured: Measure | None = None
) -> Iterator[Found]:
    """Measure the kernels of a Program as its passes left it, until `seconds` are over; what was begun is finished."""
    run = measured or measure(target, threads)
    end = time.monotonic() + (float("inf") if seconds is None else seconds)
    choosing = Choosing(program, target)
    for kernel, text, count in distinct(program, target):
        if time.monotonic() >= end:
            return
        each = choices(kernel, choosing)
        got = run(each) if each else None
        if got is not None:
            chosen, best, which = got
            if best >= chosen:
                which, best = 0, chosen
            one, params = each[which]
            yield Found(kernel, text, count, chosen, best, one.family, params, len(each))
