"""Algebra on elementwise operators: identities, constants that combine, and the cheaper spelling of the same thing.

Numerics: exact, but for the rules that combine constants or replace division and powers, which reassociate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.dims import product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import DType
from opcel_compiler.rewrite.facts import all_of, dtype_of, is_float, keeps_type, numbers, same_dims, same_type, shape_of
from opcel_compiler.rewrite.pass_ import RulePass
from opcel_compiler.rewrite.pattern import Match, Pattern, const, one_of, op, uniform, value
from opcel_compiler.rewrite.rule import Builder, Numerics, rule


def _fits_root(m: Match) -> str | None:
    if dtype_of(m["x"]) != dtype_of(m.root) or shape_of(m.root) is None:
        return "the shape of the result is unknown"
    return None


def _as_root(m: Match, build: Builder) -> Value:
    """x, in the shape of the root."""
    return m["x"] if same_type(m["x"], m.root) else build("expand", m["x"], shape=m.root.tensor.dims)


@rule(one_of(op("add", value("x"), const(0)), op("sub", value("x"), const(0))), _fits_root)
def plus_zero(m: Match, build: Builder) -> Value:
    """x + 0 and x - 0 are x"""
    return _as_root(m, build)


@rule(one_of(op("mul", value("x"), const(1)), op("div|pow", value("x"), const(1))), _fits_root)
def times_one(m: Match, build: Builder) -> Value:
    """1 x, x / 1 and x to the 1 are x"""
    return _as_root(m, build)


@rule(one_of(op("and", value("x"), const(1)), op("or", value("x"), const(0))), _fits_root)
def neutral_condition(m: Match, build: Builder) -> Value:
    """x and true, x or false are x"""
    return _as_root(m, build)


@rule(op("mul", value("x"), const(-1)), keeps_type("x"))
def multiply_by_minus_one(m: Match, build: Builder) -> Value:
    """-1 x is -x"""
    return build("neg", m["x"])


@rule(op("sub", const(0), value("x")), keeps_type("x"))
def subtract_from_zero(m: Match, build: Builder) -> Value:
    """0 - x is -x"""
    return build("neg", m["x"])


@rule(op("div", const(1), value("x")), all_of(keeps_type("x"), lambda m: None if is_float(m["x"]) else "x is no float"))
def one_over(m: Match, build: Builder) -> Value:
    """1 / x is reciprocal(x)"""
    return build("reciprocal", m["x"])


@rule(one_of(op("neg", op("neg", value("x"))), op("not", op("not", value("x")))))
def inverse_twice(m: Match, build: Builder) -> Value:
    """-(-x) is x, not(not(x)) is x"""
    return m["x"]


@rule(op("add", value("x"), op("neg", value("y"))))
def add_negative(m: Match, build: Builder) -> Value:
    """x + (-y) is x - y"""
    return build("sub", m["x"], m["y"])


@rule(op("sub", value("x"), op("neg", value("y"))))
def subtract_negative(m: Match, build: Builder) -> Value:
    """x - (-y) is x + y"""
    return build("add", m["x"], m["y"])


@rule(op("sub", value("x"), const("c")), lambda m: None if is_float(m["x"]) else "x is no float")
def subtract_constant(m: Match, build: Builder) -> Value:
    """x - c is x + (-c)"""
    return build("add", m["x"], build.constant(-m.array("c"), m["c"].tensor.dtype))


@rule(op("cast", value("x")), keeps_type("x"), quiet=True)
def cast_to_same(m: Match, build: Builder) -> Value:
    """A cast to the dtype that x has is x"""
    return m["x"]


def _lossless(m: Match) -> str | None:
    before, between = dtype_of(m["x"]), dtype_of(m["inner"])
    if before is not None and between is not None and holds_all(between, before):
        return None
    return f"{between} does not hold every {before}"


@rule(op("cast", op("cast", value("x"), name="inner")), _lossless, quiet=True)
def cast_twice(m: Match, build: Builder) -> Value:
    """A cast to a wider dtype and on is one cast"""
    return build("cast", m["x"], **m.node.attrs)


def holds_all(wide: DType, narrow: DType) -> bool:
    """Whether every value of `narrow` is a value of `wide`; false where that takes more than a look at the sizes."""
    if wide == narrow:
        return True
    if wide.is_float and wide.bits >= 32:
        mantissa = 24 if wide.bits == 32 else 53
        return narrow.bits < wide.bits if narrow.is_float else narrow.kind in "iub" and narrow.bits <= mantissa
    if wide.is_integer:
        signed_fits = narrow.kind == wide.kind or (wide.kind == "i" and narrow.kind in "ub")
        return signed_fits and narrow.bits < wide.bits
    return False


@rule(op("where", const(1), value("x"), value()), _fits_root)
def choose_first(m: Match, build: Builder) -> Value:
    """where(true, x, y) is x"""
    return _as_root(m, build)


@rule(op("where", const(0), value(), value("x")), _fits_root)
def choose_second(m: Match, build: Builder) -> Value:
    """where(false, y, x) is x"""
    return _as_root(m, build)


@rule(op("where", value(), value("x"), value("x")), _fits_root)
def choose_equal(m: Match, build: Builder) -> Value:
    """where(c, x, x) is x"""
    return _as_root(m, build)


@rule(op("where", op("not", value("c")), value("x"), value("y")))
def choose_opposite(m: Match, build: Builder) -> Value:
    """where(not(c), x, y) is where(c, y, x)"""
    return build("where", m["c"], m["y"], m["x"])


def _tells_branches(m: Match) -> str | None:
    if shape_of(m["c"]) is None or not same_dims(shape_of(m["c"]), shape_of(m.root)):
        return "the condition has another shape"
    a, b, k = (None if (data := m[n].constant) is None else uniform(data) for n in "abk")
    return None if (a == k) != (b == k) and None not in (a, b, k) else "the constants do not tell the branches apart"


@rule(op("equal", op("where", value("c"), const("a"), const("b")), const("k")), _tells_branches)
def equal_branch(m: Match, build: Builder) -> Value:
    """where(c, a, b) == a is c, and == b is not(c)"""
    return m["c"] if m.array("a").flat[0] == m.array("k").flat[0] else build("not", m["c"])


@rule(op("max", value("x"), const(0)), keeps_type("x"))
def to_relu(m: Match, build: Builder) -> Value:
    """max(x, 0) is relu(x)"""
    return build("relu", m["x"])


@rule(op("relu|abs", op("relu|abs", value("x"), name="inner")))
def not_negative_twice(m: Match, build: Builder) -> Value:
    """relu or abs of what is not negative is that"""
    return m["inner"]


def _nested(operator: str) -> Pattern:
    return op(operator, op(operator, value("x"), const("c"), single_use=True), const("d"))


def _combines(m: Match) -> str | None:
    c, d = m.array("c"), m.array("d")
    size = math.prod(np.broadcast_shapes(c.shape, d.shape))
    return None if size <= max(c.size, d.size) else "the combined constant is larger than either"


@rule(one_of(_nested("max"), _nested("min")), _combines)
def clamp_twice(m: Match, build: Builder) -> Value:
    """max(max(x, c), d) is max(x, max(c, d)), and so for min"""
    pick = np.maximum if m.node.op == "max" else np.minimum
    return build(m.node.op, m["x"], build.constant(pick(m.array("c"), m.array("d")), m["c"].tensor.dtype))


@rule(
    one_of(_nested("mul"), _nested("add")),
    all_of(_combines, lambda m: None if is_float(m.root) else "x is no float"),
    Numerics.REASSOCIATES,
)
def combine_constants(m: Match, build: Builder) -> Value:
    """(x c) d is x (c d), and (x + c) + d is x + (c + d)"""
    c, d = numbers(m.array("c")), numbers(m.array("d"))
    return build(m.node.op, m["x"], build.constant(c * d if m.node.op == "mul" else c + d, m["c"].tensor.dtype))


def _invertible(m: Match) -> str | None:
    if not is_float(m.root):
        return "x is no float"
    data = m.array("c")
    if data.size > 65536:
        return "the constant is large"
    with np.errstate(all="ignore"):
        inverse = (1 / numbers(data)).astype(data.dtype)
    tiny = float(np.finfo(np.float32 if data.dtype.itemsize > 2 else np.float16).tiny)
    good = np.isfinite(inverse.astype(np.float64)) & (np.abs(inverse.astype(np.float64)) >= tiny)
    return None if bool(np.all(good)) else "1 / c leaves the normal range"


def _exactly_invertible(m: Match) -> str | None:
    if reason := _invertible(m):
        return reason
    mantissa, _ = np.frexp(numbers(m.array("c")))
    return None if bool(np.all(np.abs(mantissa) == 0.5)) else "c is not a power of 2"


def _times_inverse(m: Match, build: Builder) -> Value:
    return build("mul", m["x"], build.constant(1 / numbers(m.array("c")), m["c"].tensor.dtype))


@rule(op("div", value("x"), const("c")), _exactly_invertible, quiet=True)
def divide_by_power_of_two(m: Match, build: Builder) -> Value:
    """x / c is x (1 / c), exactly"""
    return _times_inverse(m, build)


def _many_invertible(m: Match) -> str | None:
    shape = shape_of(m.root)
    return "it is one division" if shape is not None and product(shape) == 1 else _invertible(m)


@rule(op("div", value("x"), const("c")), _many_invertible, Numerics.REASSOCIATES)
def multiply_by_inverse(m: Match, build: Builder) -> Value:
    """x / c is x (1 / c)"""
    return _times_inverse(m, build)


@rule(op("mul", value("x"), op("reciprocal", value("y"), single_use=True)), None, Numerics.REASSOCIATES)
def multiply_by_reciprocal(m: Match, build: Builder) -> Value:
    """x (1 / y) is x / y"""
    return build("div", m["x"], m["y"])


_FLOAT_POWER = all_of(keeps_type("x"), lambda m: None if is_float(m["x"]) else "x is no float")


@rule(op("pow", value("x"), const(2)), _FLOAT_POWER, Numerics.REASSOCIATES)
def square(m: Match, build: Builder) -> Value:
    """x to the 2 is x x"""
    return build("mul", m["x"], m["x"])


@rule(op("pow", value("x"), const(3)), _FLOAT_POWER, Numerics.REASSOCIATES)
def cube(m: Match, build: Builder) -> Value:
    """x to the 3 is (x x) x"""
    return build("mul", build("mul", m["x"], m["x"]), m["x"])


@rule(op("pow", value("x"), const(-1)), _FLOAT_POWER, Numerics.REASSOCIATES)
def inverse_power(m: Match, build: Builder) -> Value:
    """x to the -1 is reciprocal(x)"""
    return build("reciprocal", m["x"])


@rule(op("and|or|max|min", value("x"), value("x")), keeps_type("x"))
def idempotent(m: Match, build: Builder) -> Value:
    """and, or, max and min of x with itself are x"""
    return m["x"]


@dataclass(frozen=True)
class Simplify(RulePass):
    """Elementwise algebra."""

    name: ClassVar[str] = "simplify"
    summary: ClassVar[str] = "remove and combine elementwise operators by algebra"

    rules = (
        plus_zero, times_one, neutral_condition, multiply_by_minus_one, subtract_from_zero, one_over,
        inverse_twice, add_negative, subtract_negative, subtract_constant, cast_to_same, cast_twice,
        choose_first, choose_second, choose_equal, choose_opposite, equal_branch, to_relu, not_negative_twice,
        clamp_twice, combine_constants, divide_by_power_of_two, multiply_by_inverse, multiply_by_reciprocal,
        square, cube, inverse_power, idempotent,
    )  # fmt: skip
