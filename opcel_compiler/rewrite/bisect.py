"""Find the pass, and then the single change, that spoils a result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.errors import PassError
from opcel_compiler.rewrite.instruments import Skip
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.rewrite.report import Report


@dataclass(frozen=True)
class Culprit:
    """The first bad pass (`index` in the pipeline) and, when it counts its changes, the first bad change: `change` is
    its number, `rule` at the value `at`."""

    index: int
    pass_name: str
    change: int | None
    rule: str = ""
    at: str = ""

    def __str__(self) -> str:
        where = f"pass {self.pass_name} (number {self.index + 1} of the pipeline)"
        return where if self.change is None else f"{where}, change {self.change}: {self.rule} at %{self.at}"


def find_culprit(
    make: Callable[[], Any], pipeline: Pipeline, good: Callable[[Any], bool], ctx: PassContext | None = None
) -> Culprit | None:
    """Run prefixes of `pipeline` on fresh subjects of `make` until the first change is found after which `good` is
    false; None when the whole pipeline is good. Takes about log2(passes) + log2(changes) runs.

    Raises PassError when the subject is bad before the first pass.
    """
    base = ctx or PassContext()

    def run(stop: int, limit: int | None) -> tuple[bool, Report]:
        subject = make()
        mine = replace(base, limit=limit, report=Report())
        PassManager.run(subject, pipeline, mine, [Skip(stop=stop)])
        return good(subject), mine.report

    def first_bad(low: int, high: int, is_good: Callable[[int], bool]) -> int:
        """The smallest n in (low, high] that is bad, given that low is good and high is bad."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if is_good(middle) else (low, middle)
        return high

    fine, report = run(len(pipeline), None)
    if fine:
        return None
    if not run(0, None)[0]:
        raise PassError("the result is wrong before any pass has run; look at the import, not at the passes")
    stop = first_bad(0, len(pipeline), lambda n: run(n, None)[0])
    name = pipeline.passes[stop - 1].name
    before = run(stop - 1, None)[1].total
    report = run(stop, None)[1]
    if report.total == before or not run(stop, before)[0]:
        return Culprit(stop - 1, name, None)
    change = first_bad(before, report.total, lambda n: run(stop, n)[0])
    _, rule, at = report.log[change - 1]
    return Culprit(stop - 1, name, change, rule, at)
