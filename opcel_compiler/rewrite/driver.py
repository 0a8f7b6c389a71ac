"""Apply rules until none applies; bounded, and rules that undo each other are named."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from opcel_compiler.ir.dims import equal
from opcel_compiler.ir.graph import Graph, InferenceError, Node, Value
from opcel_compiler.ir.types import TensorType, Type
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.errors import RewriteError
from opcel_compiler.rewrite.pattern import Mismatch, match, root_ops
from opcel_compiler.rewrite.rule import Builder, Rule


def apply_rules(graph: Graph, rules: Sequence[Rule], ctx: PassContext) -> int:
    """Apply `rules` in `graph` and the regions of its control flow until none applies; gives the number of changes.

    Rules are tried in their order at each node, nodes in graph order; a change puts its neighbourhood back in line.
    Raises RewriteError when a rule breaks its contract or when rules keep undoing each other.
    """
    return _Driver(graph, rules, ctx).run()


def erase_unused(nodes: Iterable[Node]) -> list[Node]:
    """Erase those of `nodes` without uses, then what they alone used. Gives the nodes erased and those that lost a
    user; an erased node has `graph` None."""
    touched: list[Node] = []
    stack = list(nodes)
    while stack:
        node = stack.pop()
        touched.append(node)
        if node.graph is None or any(v.uses for v in node.results):
            continue
        makers = [v.producer for v in node.operands if v is not None and v.producer is not None]
        node.graph.erase(node)
        stack.extend(makers)
    return touched


def optimizable(graph: Graph) -> Iterable[Node]:
    """The nodes of `graph` and of the regions of control flow, not those inside `fused` nodes."""
    for node in graph.nodes:
        yield node
        if "control" in node.definition.traits and node.op != "fused":
            for region in node.regions:
                yield from optimizable(region)


class _Driver:
    def __init__(self, graph: Graph, rules: Sequence[Rule], ctx: PassContext) -> None:
        self.ctx = ctx
        self.by_op: dict[str, list[Rule]] = {}
        for r in rules:
            for operator in root_ops(r.pattern):
                self.by_op.setdefault(operator, []).append(r)
        self.queue: deque[Node] = deque()
        self.queued: set[Node] = set()
        for node in optimizable(graph):
            self.push(node)
        self.bound = 100 + 20 * len(self.queue)
        self.recent: deque[tuple[str, str]] = deque(maxlen=64)

    def push(self, node: Node | None) -> None:
        if node is not None and node not in self.queued and node.graph is not None and node.op in self.by_op:
            self.queued.add(node)
            self.queue.append(node)

    def run(self) -> int:
        changes = 0
        while self.queue:
            node = self.queue.popleft()
            self.queued.discard(node)
            if node.graph is not None and self.step(node):
                changes += 1
                if changes > self.bound:
                    raise self.cycle()
        return changes

    def step(self, node: Node) -> bool:
        for r in self.by_op.get(node.op, ()):
            start = time.perf_counter()
            done = self.attempt(r, node)
            self.ctx.report.spent(self.ctx.current, r.name, time.perf_counter() - start)
            if done:
                return True
        return False

    def attempt(self, r: Rule, node: Node) -> bool:
        found = match(r.pattern, node.results[0])
        if isinstance(found, Mismatch):
            if self.ctx.explain and (len(found.nodes) > 1 or r.name == self.ctx.focus):
                self.ctx.refuse(r.name, node, str(found), near_miss=True)
            return False
        if r.check is not None and (reason := r.check(found)) is not None:
            if self.ctx.explain or not r.quiet:
                self.ctx.refuse(r.name, node, reason, near_miss=r.quiet)
            return False
        if not self.ctx.allows(r.name, node, r.numerics):
            return False
        build = Builder(node, tuple(dict.fromkeys(o for n in found.nodes for o in n.origin)))
        try:
            given = r.rewrite(found, build)
        except InferenceError as error:
            _undo(build)
            raise RewriteError(f"rule {r.name} at {_where(node)}: its replacement is not valid: {error}") from error
        values = (given,) if isinstance(given, Value) else tuple(given)
        if len(values) != len(node.results) or any(v.producer is node for v in values):
            _undo(build)
            raise RewriteError(
                f"rule {r.name} at {_where(node)} does not replace each of the node's results by another"
            )
        for old, new in zip(node.results, values, strict=True):
            fits = _fits(old.type, new.type)
            if not fits:
                _undo(build)
                if fits is None:
                    self.ctx.refuse(r.name, node, f"cannot tell whether {new.type} is the same as {old.type}")
                    return False
                raise RewriteError(f"rule {r.name} at {_where(node)} replaces {old.type} by {new.type}")
        self.commit(r, node, values, build, found.nodes)
        return True

    def commit(self, r: Rule, node: Node, values: tuple[Value, ...], build: Builder, matched: tuple[Node, ...]) -> None:
        assert node.graph is not None
        self.ctx.changed(r.name, node, build.origin)
        self.recent.append((r.name, node.results[0].name))
        users = [u for v in node.results for u in v.users]
        neighbours = [v.producer for v in node.operands if v is not None and v.producer is not None]
        for old, new in zip(node.results, values, strict=True):
            if new.producer in build.made:
                old.name, new.name = new.name, old.name
        node.graph.replace(node, values)
        for n in erase_unused([*neighbours, *matched[1:], *build.made[::-1]]):
            self.push(n)
            for v in n.results:
                if len(v.uses) == 1:
                    users.extend(v.users)
        for n in (*build.made, *users):
            self.push(n)
        for v in values:
            self.push(v.producer)

    def cycle(self) -> RewriteError:
        names = list(dict.fromkeys(name for name, _ in self.recent))
        values = list(dict.fromkeys(v for _, v in self.recent))
        who = f"rules {', '.join(names)} undo each other" if len(names) > 1 else f"rule {names[0]} never ends"
        return RewriteError(
            f"{self.ctx.current or 'rewriting'}: {who} "
            f"(over {self.bound} changes; the last at %{', %'.join(values[-3:])}). Leave the pass out of the "
            "pipeline, or make one rule's check refuse what another produces"
        )


def _undo(build: Builder) -> None:
    for node in reversed(build.made):
        build.graph.erase(node)


def _fits(old: Type, new: Type) -> bool | None:
    """Whether `new` may stand for `old`: yes, no, or (None) unknown."""
    if not isinstance(old, TensorType) or not isinstance(new, TensorType):
        return old == new
    if old.dtype != new.dtype:
        return False
    if old.shape is None:
        return True
    if new.shape is None:
        return None
    if len(old.shape) != len(new.shape):
        return False
    answers = [equal(a, b) for a, b in zip(old.shape, new.shape, strict=True)]
    return False if False in answers else None if None in answers else True


def _where(node: Node) -> str:
    origin = f" (from {', '.join(node.origin)})" if node.origin else ""
    return f"{node!r}{origin}"
