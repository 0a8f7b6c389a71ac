"""Instruments that only the command line needs."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from opcel_compiler.rewrite.instruments import PrintChanges, Printer, Reproducer, Step


class PrintAfter(PrintChanges):
    """PrintChanges for the passes in `names`, or for all when that holds `all`."""

    names: frozenset[str]

    def __init__(self, names: frozenset[str], printer: Printer) -> None:
        super().__init__(printer, sys.stderr)
        self.names = names

    def before(self, step: Step) -> None:
        if self._wanted(step):
            super().before(step)

    def after(self, step: Step) -> None:
        if self._wanted(step):
            super().after(step)

    def _wanted(self, step: Step) -> bool:
        return "all" in self.names or step.current.name in self.names


@dataclass
class LeaveReproducer(Reproducer):
    """A Reproducer that says in `failure` which pass failed and what was left."""

    failure: str = ""

    def failed(self, step: Step, error: Exception) -> None:
        try:
            super().failed(step, error)
            left = f"{self.path} holds what it was given and the rest of the pipeline"
        except OSError as fault:
            left = f"no reproducer: cannot write {self.path}: {fault.strerror or fault}"
        self.failure = f"pass {step.current.name} failed; {left}"
