"""Facts about signs."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.graph import Value

POSITIVE = frozenset({"relu", "sigmoid", "softmax", "abs", "exp", "hard_sigmoid"})
"""Operators whose results are never negative."""

AMONG = frozenset({"max_pool", "avg_pool", "reduce_mean", "reduce_max", "reduce_min", "reduce_sum", "reshape",
                   "transpose", "slice", "expand", "gather"})  # fmt: skip
"""Operators whose results are not negative where operand 0 is not."""

DEEPEST = 16
"""How many operators are looked through."""


def never_negative(v: Value | None, depth: int = DEEPEST) -> bool:
    """Whether no element of `v` is provably below 0, NaNs aside."""
    if v is None:
        return False
    if v.constant is not None:
        return bool(np.all(v.constant.array >= 0))
    node = v.producer
    if node is None or depth == 0:
        return False
    if node.op in POSITIVE:
        return True
    if node.op in AMONG:
        return never_negative(node.operand(0), depth - 1)
    of = any if node.op == "max" else all if node.op in ("min", "add", "mul", "concat") else None
    return of is not None and of(never_negative(o, depth - 1) for o in node.operands)
