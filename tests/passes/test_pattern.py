"""The matcher: what matches, and what a mismatch says."""

from __future__ import annotations

import pytest

from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.rewrite.pattern import Match, Mismatch, const, flat, match, one_of, op, root_ops, value

GRAPH = """graph main(%x: f32[2, 3], %y: f32[2, 3]) {
  %c = f32[3] 0.1
  %s = f32[] 2.0
  %a = add(%c, %x)
  %b = mul(%a, %y)
  %d = mul(%s, %b)
  %e = sub(%x, %y)
  %f = max(%e, %e)
  %r = reduce_sum(%x){axes=[1], keepdims=true}
  %n = layer_norm(%x, _, %c){axis=1, epsilon=1e-5}
  return %d, %f, %r, %a, %n
}"""
VALUES: dict[str, Value] = {v.name: v for v in parse_graph(GRAPH).values()}


def positive(v: Value) -> bool:
    """a value that is never there"""
    return False


MATCHES = [
    ("a", op("add", value("x"), const(0.1))),
    ("a", op("add|sub", const("c"), value("x"))),
    ("d", flat("mul", op("add", value(), const()), const(2), value("y"))),
    ("d", flat("mul", value("y"), const(2), value("sum"))),
    ("d", op("mul", const(2), one_of(op("add", value(), value()), op("mul", value(), value("y"))))),
    ("f", op("max", value("v"), value("v"))),
    ("r", op("reduce_sum", value(), keepdims=True, axes=lambda axes: len(axes) == 1)),
    ("n", op("layer_norm", value("x"), None, value("bias"))),
    ("n", op("layer_norm", rest=True)),
]


@pytest.mark.parametrize(("name", "pattern"), MATCHES)
def test_matches(name: str, pattern: object) -> None:
    found = match(pattern, VALUES[name])  # type: ignore[arg-type]
    assert isinstance(found, Match) and found.node is VALUES[name].producer
    assert all(VALUES[v.name] is v for v in found.values.values())


MISMATCHES = [
    ("a", op("add", value(), const(0.2)), "matched add; then constant %c is 0.1, not 0.2"),
    ("x", op("add", value(), value()), "%x is made by nothing (an input), not add"),
    ("e", op("sub", value("v"), value("v")), "matched sub; then %y is not %x, which 'v' already stands for"),
    ("d", op("mul", const(2), op("mul", op("add", single_use=True, rest=True), value())),
     "matched mul <- mul <- add; then %a has 2 uses, not one"),
    ("d", flat("mul", value(), value(), value(), value()), "%d is a mul of 3 terms, not 4"),
    ("r", op("reduce_sum", value(), keepdims=False),
     "matched reduce_sum; then reduce_sum %r has keepdims=True, not False"),
    ("n", op("layer_norm", value(), value(), value()),
     "matched layer_norm; then %n = layer_norm lacks an optional operand"),
    ("n", op("layer_norm", value()), "matched layer_norm; then %n = layer_norm has 3 operands, not 1"),
    ("e", op("sub", value("x", positive), value()), "matched sub; then %x fails: a value that is never there"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "pattern", "text"), MISMATCHES)
def test_mismatch_says_where(name: str, pattern: object, text: str) -> None:
    found = match(pattern, VALUES[name])  # type: ignore[arg-type]
    assert isinstance(found, Mismatch) and str(found) == text


def test_roots() -> None:
    assert root_ops(one_of(op("add|sub"), flat("mul", value(), value()))) == ("add", "sub", "mul")
    with pytest.raises(TypeError, match="must start at an operator"):
        root_ops(value("x"))
