"""Operators on bits."""

from __future__ import annotations

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, lowers
from opcel_compiler.ir.graph import Value

_BINARY = {"BitwiseAnd": "bit_and", "BitwiseOr": "bit_or", "BitwiseXor": "bit_xor"}


@lowers(*_BINARY)
def bitwise(c: Lowering) -> Value:
    return c.emit(_BINARY[c.op_type], c.x(0), c.x(1))


@lowers("BitwiseNot")
def bitwise_not(c: Lowering) -> Value:
    return c.emit("bit_not", c.x())


@lowers("BitShift")
def shift(c: Lowering) -> Value:
    direction = c.attr_str("direction")
    if direction not in ("LEFT", "RIGHT"):
        raise ModelError(f"node {c.origin!r} (BitShift): direction is LEFT or RIGHT, not {direction!r}")
    return c.emit(f"shift_{direction.lower()}", c.x(0), c.x(1))


@lowers("BitCast")
def bit_cast(c: Lowering) -> Value:
    x, dtype = c.x(), c.attr_dtype("to")
    return x if c.dtype(x) == dtype else c.emit("bit_cast", x, dtype=dtype)
