"""Patterns over the graph as data, and the matcher that says how far it came when one does not match.

A pattern describes a value by the node that makes it: `op("add", value("x"), const("eps"))`. Matching only reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Node, Value

Check = Callable[[Any], bool]
"""A predicate; its name, or the first line of its docstring, is what a failed match prints."""


@dataclass(frozen=True)
class AnyValue:
    """Any value for which `where` holds; bound to `name`. A name that occurs twice must bind the same value."""

    name: str | None = None
    where: Check | None = None


@dataclass(frozen=True)
class Const:
    """A constant, bound to `name`. With `equals`, every element is that number to the precision of its dtype."""

    name: str | None = None
    equals: float | None = None
    where: Check | None = None


@dataclass(frozen=True)
class Op:
    """The result of a node with one of `ops`.

    Operands that are `commutative` by the operator's definition match in both orders; `rest` allows operands beyond
    those given; `attrs` maps a name to the wanted value or to a predicate on it. With `single_use` nothing else may
    use the value. `name` binds the value itself.
    """

    ops: tuple[str, ...]
    operands: tuple[Pattern | None, ...] = ()
    attrs: tuple[tuple[str, Any], ...] = ()
    name: str | None = None
    single_use: bool = False
    rest: bool = False


@dataclass(frozen=True)
class Flat:
    """A tree of the associative and commutative `op`, in any association, whose leaves are exactly `leaves` in any
    order. Inner nodes of the tree must be used once."""

    op: str
    leaves: tuple[Pattern, ...]
    name: str | None = None


@dataclass(frozen=True)
class OneOf:
    """The first of `choices` that lets the whole pattern match."""

    choices: tuple[Pattern, ...]


Pattern = AnyValue | Const | Op | Flat | OneOf


def value(name: str | None = None, where: Check | None = None) -> AnyValue:
    """Any value; see `AnyValue`."""
    return AnyValue(name, where)


def const(name: str | float | None = None, where: Check | None = None) -> Const:
    """`const("c")` binds a constant, `const(0.5)` matches that number."""
    if name is None or isinstance(name, str):
        return Const(name, None, where)
    return Const(None, float(name), where)


def op(
    ops: str,
    *operands: Pattern | None,
    name: str | None = None,
    single_use: bool = False,
    rest: bool = False,
    **attrs: Any,
) -> Op:
    """A node; `ops` may list several operators separated by `|`; an operand None stands for an absent one."""
    return Op(tuple(ops.split("|")), operands, tuple(attrs.items()), name, single_use, rest)


def flat(operator: str, *leaves: Pattern, name: str | None = None) -> Flat:
    """A product or sum in any association; see `Flat`."""
    return Flat(operator, leaves, name)


def one_of(*choices: Pattern) -> OneOf:
    """Alternatives, tried in order."""
    return OneOf(choices)


@dataclass(frozen=True)
class Match:
    """A pattern found: the value matched, the values bound, and the nodes taken part, root first."""

    root: Value
    values: Mapping[str, Value]
    nodes: tuple[Node, ...]

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    def __contains__(self, name: str) -> bool:
        return name in self.values

    @property
    def node(self) -> Node:
        """The node that makes the root."""
        assert self.root.producer is not None
        return self.root.producer

    def maker(self, name: str) -> Node:
        """The node that makes the value bound to `name`. Raises ValueError for a graph input."""
        node = self.values[name].producer
        if node is None:
            raise ValueError(f"%{name} is an input of the graph")
        return node

    def array(self, name: str) -> np.ndarray:
        """The data of the constant bound to `name`. Raises ValueError when it is none."""
        data = self.values[name].constant
        if data is None:
            raise ValueError(f"%{self.values[name].name} is not a constant")
        array: np.ndarray = data.array
        return array


@dataclass(frozen=True)
class Mismatch:
    """Why no match was found: at the deepest partial match (`nodes`, root first), the first check that failed."""

    nodes: tuple[Node, ...]
    reason: str

    def __str__(self) -> str:
        matched = " <- ".join(n.op for n in self.nodes)
        return f"matched {matched}; then {self.reason}" if matched else self.reason


def root_ops(pattern: Pattern) -> tuple[str, ...]:
    """The operators a matched root may have, to index patterns by. Raises TypeError when it could be any."""
    if isinstance(pattern, Op):
        return pattern.ops
    if isinstance(pattern, Flat):
        return (pattern.op,)
    if isinstance(pattern, OneOf):
        return tuple(dict.fromkeys(o for c in pattern.choices for o in root_ops(c)))
    raise TypeError("a rule's pattern must start at an operator")


def match(pattern: Pattern, root: Value) -> Match | Mismatch:
    """Match `pattern` with `root` as the value it describes."""
    search = _Search()
    for found in search.go(pattern, root, _EMPTY):
        return Match(root, found.values, found.nodes)
    return Mismatch(search.nodes, search.reason)


@dataclass(frozen=True)
class _State:
    values: Mapping[str, Value] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()

    def bind(self, name: str | None, v: Value) -> _State | None:
        """This state with `name` bound to `v`, or None when it is bound to another value."""
        if name is None:
            return self
        old = self.values.get(name)
        if old is not None:
            return self if _same(old, v) else None
        return _State({**self.values, name: v}, self.nodes)

    def enter(self, node: Node) -> _State:
        return self if node in self.nodes else _State(self.values, (*self.nodes, node))


_EMPTY = _State()


def _same(a: Value, b: Value) -> bool:
    return a is b or (a.constant is not None and a.constant == b.constant)


class _Search:
    """Backtracking over the alternatives; remembers the deepest failure, then one at a constant where a constant was
    wanted, the first among equals."""

    def __init__(self) -> None:
        self.nodes: tuple[Node, ...] = ()
        self.reason = ""
        self.rank = (-1, False)

    def fail(self, state: _State, reason: str, close: bool = False) -> None:
        rank = len(state.nodes), close
        if rank > self.rank:
            self.nodes, self.reason, self.rank = state.nodes, reason, rank

    def bind(self, state: _State, name: str | None, v: Value) -> Iterator[_State]:
        bound = state.bind(name, v)
        if bound is None:
            self.fail(state, f"%{v.name} is not %{state.values[name or ''].name}, which {name!r} already stands for")
        else:
            yield bound

    def go(self, pattern: Pattern, v: Value, state: _State) -> Iterator[_State]:
        if isinstance(pattern, OneOf):
            for choice in pattern.choices:
                yield from self.go(choice, v, state)
        elif isinstance(pattern, AnyValue):
            if pattern.where is not None and not pattern.where(v):
                self.fail(state, f"%{v.name} fails: {_describe(pattern.where)}")
            else:
                yield from self.bind(state, pattern.name, v)
        elif isinstance(pattern, Const):
            if reason := _not_const(pattern, v):
                self.fail(state, reason, close=v.constant is not None)
            else:
                yield from self.bind(state, pattern.name, v)
        elif isinstance(pattern, Flat):
            yield from self.flat(pattern, v, state)
        else:
            yield from self.op(pattern, v, state)

    def op(self, pattern: Op, v: Value, state: _State) -> Iterator[_State]:
        node = v.producer
        wanted = " or ".join(pattern.ops)
        if node is None or node.op not in pattern.ops:
            self.fail(state, f"%{v.name} is made by {'nothing (an input)' if node is None else node.op}, not {wanted}")
            return
        inside = state.enter(node)
        if pattern.single_use and len(v.uses) != 1:
            self.fail(inside, f"%{v.name} has {len(v.uses)} uses, not one")
            return
        for name, test in pattern.attrs:
            have = node.attrs.get(name)
            if not (test(have) if callable(test) else have == test):
                what = _describe(test) if callable(test) else repr(test)
                self.fail(inside, f"{node.op} %{v.name} has {name}={have!r}, not {what}")
                return
        for bound in self.bind(inside, pattern.name, v):
            yield from self.operands(pattern, node, bound)

    def operands(self, pattern: Op, node: Node, state: _State) -> Iterator[_State]:
        have: Sequence[Value | None] = node.operands
        wanted: Sequence[Pattern | None] = pattern.operands
        if not wanted and pattern.rest:
            yield state
            return
        if len(have) > len(wanted) and not pattern.rest and any(x is not None for x in have[len(wanted) :]):
            self.fail(state, f"{node!r} has {len(have)} operands, not {len(wanted)}")
            return
        yield from self.in_order(wanted, have, node, state)
        if len(wanted) == 2 and len(have) == 2 and "commutative" in node.definition.traits:
            yield from self.in_order(wanted, have[::-1], node, state)

    def in_order(
        self, wanted: Sequence[Pattern | None], have: Sequence[Value | None], node: Node, state: _State
    ) -> Iterator[_State]:
        if not wanted:
            yield state
            return
        pattern, operand = wanted[0], have[0] if have else None
        if (pattern is None) != (operand is None):
            self.fail(state, f"{node!r} {'has' if operand is not None else 'lacks'} an optional operand")
        elif pattern is None or operand is None:
            yield from self.in_order(wanted[1:], have[1:], node, state)
        else:
            for bound in self.go(pattern, operand, state):
                yield from self.in_order(wanted[1:], have[1:], node, bound)

    def flat(self, pattern: Flat, v: Value, state: _State) -> Iterator[_State]:
        if v.producer is None or v.producer.op != pattern.op:
            maker = "nothing (an input)" if v.producer is None else v.producer.op
            self.fail(state, f"%{v.name} is made by {maker}, not {pattern.op}")
            return
        best = 0
        for leaves, nodes in _trees([v], [], pattern.op, len(pattern.leaves), 0):
            best = max(best, len(leaves))
            if len(leaves) == len(pattern.leaves):
                entered = state
                for node in nodes:
                    entered = entered.enter(node)
                for bound in self.bind(entered, pattern.name, v):
                    yield from self.any_order(pattern.leaves, leaves, bound)
        if best < len(pattern.leaves):
            self.fail(state, f"%{v.name} is a {pattern.op} of {best} terms, not {len(pattern.leaves)}")

    def any_order(self, wanted: Sequence[Pattern], leaves: Sequence[Value], state: _State) -> Iterator[_State]:
        if not wanted:
            yield state
            return
        for i, leaf in enumerate(leaves):
            for bound in self.go(wanted[0], leaf, state):
                yield from self.any_order(wanted[1:], [*leaves[:i], *leaves[i + 1 :]], bound)


def _trees(
    leaves: list[Value], nodes: list[Node], operator: str, limit: int, start: int
) -> Iterator[tuple[list[Value], list[Node]]]:
    """The ways to open single-use nodes of `operator` among `leaves`, up to `limit` leaves; the root opens always."""
    if nodes:
        yield leaves, nodes
    if len(leaves) >= limit:
        return
    for i in range(start, len(leaves)):
        node = leaves[i].producer
        if node is not None and node.op == operator and (not nodes or len(leaves[i].uses) == 1):
            operands = [x for x in node.operands if x is not None]
            yield from _trees([*leaves[:i], *operands, *leaves[i + 1 :]], [*nodes, node], operator, limit, i)


def uniform(data: Constant) -> float | None:
    """The number that every element of a dense numeric constant equals, or None (also for no elements)."""
    array = data.array
    if array.size == 0 or data.dtype.kind in "sc" or str(data.encoding) != "dense":
        return None
    first = array.flat[0]
    if array.size > 1 and (array.flat[array.size - 1] != first or not bool((array == first).all())):
        return None
    return float(first)


def _not_const(pattern: Const, v: Value) -> str | None:
    data = v.constant
    if data is None:
        return f"%{v.name} is not a constant"
    if pattern.equals is not None:
        have = uniform(data)
        if have is None:
            return f"constant %{v.name} is not {pattern.equals:g} throughout"
        if have != pattern.equals:
            # Exporters compute such numbers in different precisions; 4 units in the last place cover that.
            eps = (
                float(np.finfo(np.float32 if data.dtype.bits >= 32 else np.float16).eps) if data.dtype.is_float else 0.0
            )
            if not abs(have - pattern.equals) <= 4 * eps * abs(pattern.equals):
                return f"constant %{v.name} is {have:g}, not {pattern.equals:g}"
    if pattern.where is not None and not pattern.where(data):
        return f"constant %{v.name} fails: {_describe(pattern.where)}"
    return None


def _describe(test: Check) -> str:
    doc = (getattr(test, "__doc__", None) or "").strip().splitlines()
    return doc[0].rstrip(".") if doc else str(getattr(test, "__name__", test)).replace("_", " ")
