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
    its number among all of the pipeline, `rule` at the value `at`, which was made from the ONNX nodes `origin`.
    `before` and `after` are the subject on either side of the change, or of the pass when it counts none."""

    index: int
    pass_name: str
    change: int | None
    rule: str
    at: str
    origin: tuple[str, ...]
    before: Any
    after: Any

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

    def run(stop: int, limit: int | None) -> tuple[Any, Report]:
        subject = make()
        mine = replace(base, limit=limit, report=Report())
        PassManager.run(subject, pipeline, mine, [Skip(stop=stop)])
        return subject, mine.report

    def is_good(stop: int, limit: int | None) -> bool:
        return good(run(stop, limit)[0])

    def first_bad(low: int, high: int, test: Callable[[int], bool]) -> int:
        """The smallest n in (low, high] that is bad, given that low is good and high is bad."""
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if test(middle) else (low, middle)
        return high

    if is_good(len(pipeline), None):
        return None
    if not is_good(0, None):
        raise PassError("the result is wrong before any pass has run; look at the import, not at the passes")
    stop = first_bad(0, len(pipeline), lambda n: is_good(n, None))
    name = pipeline.passes[stop - 1].name
    subject, before = run(stop - 1, None)
    spoilt, report = run(stop, None)
    if report.total == before.total or not is_good(stop, before.total):
        return Culprit(stop - 1, name, None, "", "", (), subject, spoilt)
    number = first_bad(before.total, report.total, lambda n: is_good(stop, n))
    found = report.log[number - 1]
    sides = run(stop, number - 1)[0], run(stop, number)[0]
    return Culprit(stop - 1, name, number, found.rule, found.value, found.origin, *sides)
