"""How much of a model the target runs itself: nodes, multiply-adds and modelled time.

The model is the roofline of `schedule.cost` on single nodes: the longer of the arithmetic at the target's peak and of
the bytes of operands and results at the bandwidth of its outermost memory. Symbols take their nominal sizes. It serves
for shares, of native and other nodes alike, and says nothing of what another engine really takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opcel_compiler.ir.dims import Dim, evaluate, product
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.ops.control import BRANCHING, trip_count
from opcel_compiler.ir.types import TensorType
from opcel_compiler.schedule.cost import GATHERS, nominal, peak
from opcel_compiler.targets.schema import Target

FREE = frozenset({"constant", "dims", "reshape", "transpose", "expand", "slice"})
"""Operators that compute nothing: constants, sizes, and what is a view."""


@dataclass(frozen=True)
class Work:
    """`nodes`: nodes of the model; `macs`: multiply-adds of contractions; `seconds`: modelled."""

    nodes: int = 0
    macs: int = 0
    seconds: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.nodes + other.nodes, self.macs + other.macs, self.seconds + other.seconds)

    def times(self, count: int) -> Work:
        """The same nodes, run `count` times."""
        return Work(self.nodes, self.macs * count, self.seconds * count)


NOTHING = Work()


@dataclass(frozen=True)
class Coverage:
    """What runs natively and what in another engine."""

    native: Work = NOTHING
    fallback: Work = NOTHING

    @property
    def macs_share(self) -> float:
        """The native part of the multiply-adds, 0 to 1; 1 where there are none."""
        return _share(self.native.macs, self.fallback.macs)

    @property
    def seconds_share(self) -> float:
        """The native part of the modelled time, 0 to 1."""
        return _share(self.native.seconds, self.fallback.seconds)

    @property
    def share(self) -> float:
        """The lower of the two shares: what `--min-coverage` asks for."""
        return min(self.macs_share, self.seconds_share)


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest else 1.0


def native_work(graph: Graph, target: Target) -> Work:
    """The sum over the nodes of a placed graph that are not in regions of another engine."""
    nodes = (n for n in graph.nodes if n.op not in ("constant", "external"))
    return sum((node_work(n, target) for n in nodes), NOTHING)


def node_work(node: Node, target: Target) -> Work:
    """One node, a fused one included, or control flow: all branches, and a loop without a limit once. What has no known
    shape counts as nothing."""
    if node.op in BRANCHING:
        trip = trip_count(node) if node.op == "loop" else None
        inside = sum((node_work(n, target) for g in node.regions for n in g.nodes if n.op != "constant"), NOTHING)
        return inside.times(_size(trip)) if trip is not None else inside
    inner = list(node.regions[0].nodes) if node.op == "fused" else [node]
    macs = sum(node_macs(n) for n in inner)
    operations = 2 * macs + sum(_size(_flops(n)) for n in inner if "contraction" not in n.definition.traits)
    first = next((v.type.dtype for n in inner for v in n.results if isinstance(v.type, TensorType)), None)
    moved = 0 if all(n.op in FREE for n in inner) else _bytes(node)
    seconds = max(operations / peak(first, target), moved / target.memories[0].bandwidth)
    return Work(max(1, len(node.origin)), macs, seconds)


def node_macs(node: Node) -> int:
    """The multiply-adds of a contraction, half its FLOPs; of an opaque operator those that its shapes tell."""
    if "contraction" in node.definition.traits:
        return _size(_flops(node)) // 2
    if node.op != "foreign":
        return 0
    count = OPAQUE.get(str(node.attrs["op_type"]))
    shapes = [() if v is None else _shape(v) for v in (*node.operands, *node.results[:1])]
    known = [shape for shape in shapes if shape is not None]
    if count is None or len(known) < len(shapes):
        return 0
    try:
        return _size(count(known[:-1], known[-1]))
    except IndexError:  # an operand that the operator needs is absent
        return 0


def _flops(node: Node) -> Dim:
    types = [None if v is None else v.type for v in node.operands]
    return node.definition.flops(types, [r.type for r in node.results], node.attrs)


Shape = tuple[Dim, ...]


def _shape(value: Value) -> Shape | None:
    return value.type.shape if isinstance(value.type, TensorType) else None


def _recurrent(operands: Sequence[Shape], _: Shape) -> Dim:
    """X [t, n, i], W [d, gates·h, i], R [d, gates·h, h]: each weight once a step and sequence."""
    return product(operands[0][:2]) * (product(operands[1]) + product(operands[2]))


def _convolved(weights: int) -> Callable[[Sequence[Shape], Shape], Dim]:
    return lambda operands, y: product(y) * product(operands[weights][1:])


def _scattered(operands: Sequence[Shape], _: Shape) -> Dim:
    """X [n, c, spatial...], W [c, o / groups, kernel...]: each element of X meets one filter."""
    return product(operands[0]) * product(operands[1][1:])


def _multiplied(operands: Sequence[Shape], y: Shape) -> Dim:
    return product(y) * operands[0][-1]


OPAQUE: dict[str, Callable[[Sequence[Shape], Shape], Dim]] = {
    "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent, "Conv": _convolved(1), "ConvInteger": _convolved(1),
    "DeformConv": _convolved(1), "FusedConv": _convolved(1), "QLinearConv": _convolved(3), "ConvTranspose": _scattered,
    "MatMul": _multiplied, "MatMulInteger": _multiplied, "QLinearMatMul": _multiplied, "FusedMatMul": _multiplied,
}  # fmt: skip
"""Multiply-adds of operators that stay opaque, from the shapes of operands and first result."""


def _size(dim: Dim) -> int:
    return evaluate(dim, nominal(dim))


def _bytes(node: Node) -> int:
    """Operands and results once each; of a table that is only gathered from, as much as the gathers take."""
    total = sum(map(_value_bytes, node.results))
    seen: set[Value] = set()
    for i, value in enumerate(node.operands):
        if value is None or value in seen:
            continue
        seen.add(value)
        count = _value_bytes(value)
        body = node.regions[0].inputs[i] if node.op == "fused" else None
        uses = body.uses if body is not None else value.uses if node.op in GATHERS else ()
        gathers = [u for u, at in uses if isinstance(u, Node) and u.op in GATHERS and at == 0]
        if gathers and len(gathers) == len(uses):
            count = min(count, sum(_value_bytes(v) for user in gathers for v in user.results))
        total += count
    return total


def _value_bytes(value: Value) -> int:
    if not isinstance(value.type, TensorType) or value.type.shape is None:
        return 0
    return _size(product(value.type.shape)) * value.type.dtype.bits // 8
