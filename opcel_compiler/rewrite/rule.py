"""Rules: a pattern, a check that gives a reason when it refuses, and a rewrite; each of a numerics class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.types import DType
from opcel_compiler.rewrite.pattern import Match, Pattern


class Numerics(Enum):
    """How far a rewrite may change results.

    exact: every element compares equal, or is NaN in both; the sign of a zero may differ.
    reassociates: equal in exact arithmetic; rounding differs by a few units in the last place of the largest
        intermediate value; an intermediate overflow may vanish or appear, and so may a NaN or infinity on which the
        result does not depend in exact arithmetic (a score that a mask hides).
    approximate: not equal even in exact arithmetic.
    """

    EXACT = "exact"
    REASSOCIATES = "reassociates"
    APPROXIMATE = "approximate"

    def __str__(self) -> str:
        return self.value


Replacement = Value | Sequence[Value]
CheckFn = Callable[[Match], str | None]
RewriteFn = Callable[[Match, "Builder"], Replacement]


@dataclass(frozen=True)
class Rule:
    """`rewrite(match, build)` gives the values that replace the results of the matched root.

    `check(match)` gives the reason to refuse, or None. Neither may change the nodes there are: the driver puts the
    replacement in, merges the origins and removes what became unused. A `quiet` rule expects its check to refuse most
    matches; its refusals are recorded only when partial matches are.
    """

    name: str
    summary: str
    pattern: Pattern
    rewrite: RewriteFn
    check: CheckFn | None = None
    numerics: Numerics = Numerics.EXACT
    quiet: bool = False


def rule(
    pattern: Pattern, check: CheckFn | None = None, numerics: Numerics = Numerics.EXACT, *, quiet: bool = False
) -> Callable[[RewriteFn], Rule]:
    """Make a Rule of the decorated rewrite function; its name and docstring become the rule's."""

    def make(rewrite: RewriteFn) -> Rule:
        name = rewrite.__name__.strip("_").replace("_", "-")
        doc = (rewrite.__doc__ or "").strip().splitlines()
        if not doc:
            raise TypeError(f"rule {name} needs a docstring: what it rewrites into what")
        return Rule(name, doc[0].rstrip("."), pattern, rewrite, check, numerics, quiet)

    return make


class Builder:
    """Adds nodes before the node being replaced. `made` lists them, so that the driver can take them back."""

    def __init__(self, root: Node, origin: tuple[str, ...]) -> None:
        assert root.graph is not None
        self.graph = root.graph
        self.root = root
        self.origin = origin
        self.made: list[Node] = []

    def node(self, op: str, operands: Sequence[Value | None], **attrs: Any) -> Node:
        """Add a node. Raises InferenceError when operands or attributes break the operator's definition."""
        added = self.graph.add(op, operands, attrs, before=self.root, origin=self.origin)
        self.made.append(added)
        return added

    def __call__(self, op: str, *operands: Value | None, **attrs: Any) -> Value:
        """Add a node with one result and give that result."""
        return self.node(op, operands, **attrs).result

    def constant(self, array: Any, dtype: DType) -> Value:
        """A constant of `array` converted to `dtype`."""
        data = Constant(np.asarray(array).astype(dtype.numpy), dtype)
        return self.node("constant", (), value=data).result
