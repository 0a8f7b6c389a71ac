"""Merge transposes, and move them towards each other through elementwise operators where that removes one.

Numerics: exact. A transpose moves down past an elementwise operator only when the operators below it lead, each used
once, to another transpose, or when all operands come transposed in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.dims import product
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.opdef import all_ops
from opcel_compiler.rewrite.facts import keeps_type, same_dims, shape_of, trailing
from opcel_compiler.rewrite.pass_ import RulePass
from opcel_compiler.rewrite.pattern import Match, one_of, op, value
from opcel_compiler.rewrite.rule import Builder, rule

Perm = tuple[int, ...]


def _is_identity(perm: Sequence[int]) -> bool:
    return list(perm) == sorted(perm)


@rule(op("transpose", value("x"), perm=_is_identity), keeps_type("x"))
def transpose_nothing(m: Match, build: Builder) -> Value:
    """A transpose that keeps the order is x"""
    return m["x"]


@rule(op("transpose", op("transpose", value("x"), name="inner")))
def transpose_twice(m: Match, build: Builder) -> Value:
    """transpose of transpose is one transpose"""
    inner: Perm = m.maker("inner").attrs["perm"]
    return build("transpose", m["x"], perm=tuple(inner[p] for p in m.node.attrs["perm"]))


def _perm_of(v: Value) -> Perm | None:
    if v.producer is not None and v.producer.op == "transpose":
        perm: Perm = v.producer.attrs["perm"]
        return perm
    return None


def _movable(node: Node, perm: Perm, through: Value | None) -> bool:
    """Whether a transpose by `perm` of all operands may be taken after `node` instead: each operand is `through`, is
    transposed by `perm`, is a constant, or has one element."""
    if "elementwise" not in node.definition.traits or len(node.results) != 1:
        return False
    result = shape_of(node.result)
    if result is None or len(result) != len(perm):
        return False
    for v in node.operands:
        shape = None if v is None else shape_of(v)
        if v is None or shape is None:
            return False
        fine = v is through or _perm_of(v) == perm or v.constant is not None or all(d == 1 for d in shape)
        if not fine or (v is through and len(shape) != len(perm)):
            return False
    return True


def _meets_transpose(v: Value, perm: Perm) -> bool:
    """Whether operators that `perm` can move past lead from `v` to a transpose."""
    while len(v.uses) == 1 and len(v.users) == 1:
        user = v.users[0]
        if user.op == "transpose":
            return True
        if not _movable(user, perm, v):
            return False
        v = user.result
    return False


def _worth_moving(m: Match) -> str | None:
    transposed = [v for v in dict.fromkeys(m.node.operands) if v is not None and _perm_of(v) is not None]
    perm = _perm_of(transposed[0]) if transposed else None
    if perm is None:
        return "no operand is transposed"
    if not _movable(m.node, perm, None):
        return "an operand is neither transposed in the same way nor a constant"
    single = [v for v in transposed if len(v.users) == 1]
    if len(single) > 1 or (len(single) == len(transposed) and _meets_transpose(m.root, perm)):
        return None
    return "no transpose would go"


_ELEMENTWISE = "|".join(name for name, d in all_ops().items() if "elementwise" in d.traits and d.operands)


_TRANSPOSED = op("transpose", value())


@rule(
    one_of(
        op(_ELEMENTWISE, _TRANSPOSED, rest=True),
        op(_ELEMENTWISE, value(), _TRANSPOSED, rest=True),
        op("where", value(), value(), _TRANSPOSED),
    ),
    _worth_moving,
)
def sink_transpose(m: Match, build: Builder) -> Value:
    """An elementwise operator on transposed operands is that operator, transposed"""
    perm = next(p for v in m.node.operands if v is not None and (p := _perm_of(v)) is not None)
    inverse = tuple(perm.index(i) for i in range(len(perm)))
    operands: list[Value] = []
    for v in m.node.operands:
        assert v is not None
        if _perm_of(v) is not None and v.producer is not None:
            operands.append(v.producer.operand(0))
        elif all(d == 1 for d in v.tensor.dims):
            operands.append(v)
        else:
            full = build("reshape", v, shape=trailing(v.tensor.dims, len(perm)))
            operands.append(build("transpose", full, perm=inverse))
    return build("transpose", build(m.node.op, *operands, **m.node.attrs), perm=perm)


def _splits_lead(m: Match) -> str | None:
    flat, split = shape_of(m["flat"]), shape_of(m.root)
    if flat is None or split is None or len(split) < 3:
        return "a rank is unknown"
    if not same_dims((product(split[:-2]), *split[-2:]), (flat[0], flat[2], flat[1])):
        return "the reshape does more than split the first axis"
    return None


@rule(
    op("reshape", op("transpose", op("reshape", value("x"), name="flat", single_use=True), perm=(0, 2, 1))),
    _splits_lead,
)
def transpose_split(m: Match, build: Builder) -> Value:
    """Lead axes that are joined, for a transpose of the last two, and split again may stay as they are"""
    shape = m.root.tensor.dims
    rank = len(shape)
    x = build("reshape", m["x"], shape=(*shape[:-2], shape[-1], shape[-2]))
    return build("transpose", x, perm=(*range(rank - 2), rank - 1, rank - 2))


def _keeps_order(m: Match) -> str | None:
    perm = m.maker("t").attrs["perm"]
    axes = m.node.attrs["axes"]
    kept = [p for i, p in enumerate(perm) if i not in axes]
    if m.node.attrs["keepdims"]:
        return "the axes are kept"
    return None if kept == sorted(kept) else "the axes that remain change their order"


@rule(
    op("reduce_sum|reduce_mean|reduce_max|reduce_min|reduce_prod", op("transpose", value("x"), name="t")), _keeps_order
)
def reduce_transposed(m: Match, build: Builder) -> Value:
    """A reduction that leaves nothing of a transpose reduces the axes where they were"""
    perm = m.maker("t").attrs["perm"]
    axes = tuple(sorted(perm[a] for a in m.node.attrs["axes"]))
    return build(m.node.op, m["x"], axes=axes, keepdims=False)


@dataclass(frozen=True)
class MoveTransposes(RulePass):
    """Transposes."""

    name: ClassVar[str] = "move-transposes"
    summary: ClassVar[str] = "merge transposes and cancel them across elementwise operators"

    rules = (transpose_nothing, transpose_twice, transpose_split, sink_transpose, reduce_transposed)
