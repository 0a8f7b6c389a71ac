"""Predicates that say which nodes a target can run, and explain themselves.

A constraint's text, its check's docstring with the limit filled in, is the row of the support table, and begins the
message that a user gets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.types import TensorType
from opcel_compiler.targets.schema import Target


@dataclass(frozen=True, slots=True)
class Constraint:
    """`check` returns the reason why a node breaks the constraint, or None. Its docstring may name `{limit}`."""

    name: str
    check: Callable[[Node], str | None]
    limit: object = None

    @property
    def text(self) -> str:
        """What the constraint asks for, in one sentence."""
        limit = ", ".join(map(str, self.limit)) if isinstance(self.limit, tuple) else str(self.limit)
        return " ".join((inspect.getdoc(self.check) or self.name).replace("{limit}", limit).split())


def violations(node: Node, constraints: Iterable[Constraint]) -> tuple[str, ...]:
    """One message for each constraint that `node` breaks: the constraint's text and what the node has instead."""
    found = ((constraint, constraint.check(node)) for constraint in constraints)
    return tuple(f"{constraint.text.rstrip('.')}: {reason}" for constraint, reason in found if reason is not None)


def constraints_of(target: Target) -> tuple[Constraint, ...]:
    """The constraints that every kernel of `target` keeps to."""
    common = (tensors_only(), static_rank(), max_rank(target.limits.max_rank), supported_dtypes(target.dtypes))
    return (*common, static_shapes()) if target.limits.static_shapes else common


def tensors_only() -> Constraint:
    def check(node: Node) -> str | None:
        """Operands and results are tensors."""
        return _first(node, lambda value: None if isinstance(value.type, TensorType) else str(value.type))

    return Constraint("tensors-only", check)


def static_rank() -> Constraint:
    def check(node: Node) -> str | None:
        """The rank of each tensor is known."""
        return _first(node, lambda value: "of unknown rank" if _tensor(value) and value.tensor.rank is None else None)

    return Constraint("static-rank", check)


def max_rank(limit: int) -> Constraint:
    def check(node: Node) -> str | None:
        """Tensors have a rank of at most {limit}."""

        def reason(value: Value) -> str | None:
            rank = value.tensor.rank if _tensor(value) else None
            return f"of rank {rank}" if rank is not None and rank > limit else None

        return _first(node, reason)

    return Constraint("max-rank", check, limit)


def static_shapes() -> Constraint:
    def check(node: Node) -> str | None:
        """The shape of each tensor is constant."""
        return _first(node, lambda value: str(value.type) if _tensor(value) and not value.tensor.is_static else None)

    return Constraint("static-shapes", check)


def supported_dtypes(limit: tuple[str, ...]) -> Constraint:
    """The element types are among `limit`, as the IR names them."""

    def check(node: Node) -> str | None:
        """Element types are among {limit}."""

        def reason(value: Value) -> str | None:
            return f"of {value.tensor.dtype}" if _tensor(value) and value.tensor.dtype.name not in limit else None

        return _first(node, reason)

    return Constraint("supported-dtypes", check, limit)


def _tensor(value: Value) -> bool:
    return isinstance(value.type, TensorType)


def _values(node: Node) -> Iterator[Value]:
    yield from (value for value in node.operands if value is not None)
    yield from node.results


def _first(node: Node, reason: Callable[[Value], str | None]) -> str | None:
    """The reason for the first operand or result that has one, with the value's name and the node's origin."""
    for value in _values(node):
        found = reason(value)
        if found is not None:
            origin = f" (from {', '.join(node.origin)})" if node.origin else ""
            return f"%{value.name} of {node.op}{origin} is {found}"
    return None
