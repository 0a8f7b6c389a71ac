"""Facts about values that rules ask for; what cannot be proved counts as false."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opcel_compiler.ir.dims import Dim, equal
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import DType, TensorType
from opcel_compiler.rewrite.pattern import Match
from opcel_compiler.rewrite.rule import CheckFn


def shape_of(v: Value) -> tuple[Dim, ...] | None:
    """The shape of a tensor of known rank, else None."""
    return v.type.shape if isinstance(v.type, TensorType) else None


def dtype_of(v: Value) -> DType | None:
    """The dtype of a tensor, else None."""
    return v.type.dtype if isinstance(v.type, TensorType) else None


def is_float(v: Value) -> bool:
    """Whether a value is a tensor of floats."""
    dtype = dtype_of(v)
    return dtype is not None and dtype.is_float


def same_dims(a: Sequence[Dim] | None, b: Sequence[Dim] | None) -> bool:
    """Whether two shapes are known and provably equal."""
    return (
        a is not None
        and b is not None
        and len(a) == len(b)
        and all(equal(x, y) is True for x, y in zip(a, b, strict=True))
    )


def same_type(a: Value, b: Value) -> bool:
    """Whether two values have provably the same type."""
    return a.type == b.type or (dtype_of(a) == dtype_of(b) and same_dims(shape_of(a), shape_of(b)))


def keeps_type(name: str) -> CheckFn:
    """A check that the value bound to `name` has the type of the root, so that it may stand for it."""

    def check(m: Match) -> str | None:
        if same_type(m[name], m.root):
            return None
        return f"%{m[name].name} is {m[name].type}, the result is {m.root.type}"

    return check


def all_of(*checks: Callable[[Match], str | None]) -> CheckFn:
    """A check that refuses with the first reason of `checks`."""

    def check(m: Match) -> str | None:
        return next((reason for c in checks if (reason := c(m)) is not None), None)

    return check


def numbers(array: np.ndarray) -> np.ndarray:
    """A float constant's data in float64, in which constants are combined before they are rounded once."""
    return array.astype(np.float64)


def trailing(shape: Sequence[Dim], rank: int) -> tuple[Dim, ...]:
    """`shape` with ones in front, up to `rank` dims."""
    return (1,) * (rank - len(shape)) + tuple(shape)
