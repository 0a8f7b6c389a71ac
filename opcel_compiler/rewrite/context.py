"""What a run of passes knows and records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.nbits import WeightScheme
from opcel_compiler.ir.quantization import Plan
from opcel_compiler.rewrite.report import Refusal, Report
from opcel_compiler.rewrite.rule import Numerics


@dataclass
class PassContext:
    """`target`: the description compiled for, or None. `forbidden`: numerics classes that no rule may use.
    `limit`: after so many changes nothing changes any more (bisection). `explain`: also record partial matches, and of
    the rule `focus` every mismatch.

    `precision` is what products may be computed in: "f32", or "bf16" with sums in f32. `small` forgoes
    weights that take more memory to be faster to compute with. `approximate` is forbidden
    unless the caller asks for it.

    `tuned` are measured choices of kernels by the kernels' texts, which replace the compiler's own; `overridden` counts
    those that did. `quantization` says which layers compute in 8 bits, None that all stay float;
    `weights` how weights get fewer bits, None that they keep theirs.
    """

    target: Any = None
    forbidden: frozenset[Numerics] = frozenset({Numerics.APPROXIMATE})
    limit: int | None = None
    explain: bool = False
    focus: str = ""
    report: Report = field(default_factory=Report)
    current: str = ""
    """The name of the pass that runs."""
    precision: str = "f32"
    tuned: Mapping[str, Any] = field(default_factory=dict)
    overridden: int = 0
    small: bool = False
    quantization: Plan | None = None
    weights: WeightScheme | None = None

    def allows(self, rule: str, node: Node, numerics: Numerics = Numerics.EXACT) -> bool:
        """Whether a change of `numerics` at `node` may be made now; a class that is forbidden is reported."""
        if numerics in self.forbidden:
            self.refuse(rule, node, f"it {_CLASS[numerics]}, and the pipeline forbids that")
            return False
        return self.limit is None or self.report.total < self.limit

    def changed(self, rule: str, node: Node, origin: tuple[str, ...] | None = None) -> None:
        """Record one change at `node`; `origin` names all the ONNX nodes behind it, when they are more than its own."""
        name = node.results[0].name if node.results else node.op
        self.report.changed(self.current, rule, name, node.origin if origin is None else origin)

    def refuse(self, rule: str, node: Node, reason: str, near_miss: bool = False) -> None:
        """Record why `rule` was not applied at `node`."""
        name = node.results[0].name if node.results else node.op
        self.report.refuse(Refusal(self.current, rule, name, node.origin, reason, near_miss))


_CLASS = {
    Numerics.EXACT: "is exact",
    Numerics.REASSOCIATES: "reassociates",
    Numerics.APPROXIMATE: "approximates",
}
