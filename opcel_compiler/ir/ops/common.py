"""What the operator definitions share: reading operand types, unifying dims, precision of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps

import numpy as np

from opcel_compiler.ir.dims import Dim, bounds, equal
from opcel_compiler.ir.opdef import Arrays, Attrs, InferenceError, Operands
from opcel_compiler.ir.types import DType, TensorType, Type, dtype_of

Shape = tuple[Dim, ...]


def tensor_of(operands: Operands, i: int, kinds: str | None = None) -> TensorType:
    """The type of operand `i`, a tensor whose dtype is of one of `kinds` (letters of DType.kind)."""
    t = operands[i]
    if not isinstance(t, TensorType):
        raise InferenceError(f"operand {i} must be a tensor, not {t}")
    if kinds is not None and t.dtype.kind not in kinds:
        raise InferenceError(f"operand {i} has dtype {t.dtype}, which the operator does not take")
    return t


def optional_tensor(operands: Operands, i: int) -> TensorType | None:
    """The type of operand `i`, or None when it is absent."""
    if i >= len(operands) or operands[i] is None:
        return None
    return tensor_of(operands, i)


def optional_array(arrays: Arrays, i: int) -> np.ndarray | None:
    return arrays[i] if i < len(arrays) else None


def present(arrays: Arrays) -> list[np.ndarray]:
    """The arrays, none of which may be absent."""
    out = [a for a in arrays if a is not None]
    if len(out) != len(arrays):
        raise ValueError("an operand is absent")
    return out


def array_at(arrays: Arrays, i: int) -> np.ndarray:
    a = arrays[i]
    if a is None:
        raise ValueError(f"operand {i} is absent")
    return a


def same_dtype(types: Sequence[TensorType]) -> DType:
    """The dtype that all `types` have."""
    for t in types[1:]:
        if t.dtype != types[0].dtype:
            raise InferenceError(f"the operands' dtypes differ: {', '.join(str(t.dtype) for t in types)}")
    return types[0].dtype


@dataclass(frozen=True)
class Assumption:
    """What inference took for granted of sizes that it could not compare: `left` equals `right` where `exact`, else is
    at least `right`."""

    left: Dim
    right: Dim
    exact: bool


_assumptions: ContextVar[list[Assumption] | None] = ContextVar("assumptions", default=None)


@contextmanager
def assumptions() -> Iterator[list[Assumption]]:
    """The list that gathers what inference assumes meanwhile."""
    out: list[Assumption] = []
    token = _assumptions.set(out)
    try:
        yield out
    finally:
        _assumptions.reset(token)


def may_equal(a: Dim, b: Dim) -> bool:
    """Whether `a` and `b` are not provably different; that they are the same is then assumed."""
    answer = equal(a, b)
    known = _assumptions.get()
    if answer is None and known is not None:
        known.append(Assumption(a, b, True))
    return answer is not False


def unify(a: Dim, b: Dim, what: str) -> Dim:
    """The dim that `a` and `b` both are; the constant one if there is one. Provably different dims are an error."""
    if not may_equal(a, b):
        raise InferenceError(f"{what}: {a} is not {b}")
    return b if isinstance(b, int) else a


def _may_be_one(d: Dim) -> bool:
    lo, hi = bounds(d)
    return (lo is None or lo <= 1) and (hi is None or hi >= 1)


def broadcast_dims(a: Dim, b: Dim) -> Dim:
    """The dim that `a` and `b` broadcast to. Of two symbolic dims that may be equal, `a`."""
    if isinstance(a, int) and a == 1:
        return b
    if isinstance(b, int) and b == 1:
        return a
    if equal(a, b) is False:
        if _may_be_one(a) != _may_be_one(b):
            return b if _may_be_one(a) else a
        raise InferenceError(f"sizes {a} and {b} do not broadcast")
    may_equal(a, b)
    return b if isinstance(b, int) else a


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """The shape that all `shapes` broadcast to, as NumPy does."""
    out: list[Dim] = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for i in range(1, len(shape) + 1):
            out[-i] = broadcast_dims(out[-i], shape[-i])
    return tuple(out)


def broadcasts_to(shape: Shape, target: Shape, what: str) -> None:
    """Raises InferenceError when `shape` provably does not broadcast to exactly `target`."""
    if len(shape) > len(target):
        raise InferenceError(f"{what}: rank {len(shape)} does not broadcast to rank {len(target)}")
    for a, b in zip(reversed(shape), reversed(target), strict=False):
        known = _assumptions.get()
        if not _may_be_one(a):
            unify(a, b, what)
        elif known is not None and equal(a, 1) is None and equal(a, b) is not True:
            known.append(Assumption((a - 1) * (a - b), 0, True))


def check_axis(axis: int, rank: int) -> None:
    if not 0 <= axis < rank:
        raise InferenceError(f"axis {axis} is not in 0..{rank - 1}")


def at_least(d: Dim, low: int, what: str) -> None:
    """Raises InferenceError when `d` is provably below `low`; otherwise it is assumed not to be."""
    lo, hi = bounds(d)
    if hi is not None and hi < low:
        raise InferenceError(f"{what} is {d}, below {low}")
    known = _assumptions.get()
    if known is not None and (lo is None or lo < low):
        known.append(Assumption(d, low, False))


def ints(attrs: Attrs, name: str) -> tuple[int, ...]:
    """An attribute of dims whose symbols are bound. Raises ValueError otherwise."""
    dims: Shape = attrs[name]
    out = tuple(d for d in dims if isinstance(d, int))
    if len(out) != len(dims):
        raise ValueError(f"{name}={dims} has unbound symbols")
    return out


def widen(x: np.ndarray) -> np.ndarray:
    """`x`, with floats under 32 bits as float32 and integers under 8 bits as int32."""
    d = dtype_of(x)
    if d.kind == "f" and d.bits < 32:
        return x.astype(np.float32)
    if d.kind in "iu" and d.bits < 8:
        return x.astype(np.int32)
    return x


def accumulator(dtype: np.dtype) -> np.dtype:
    """The dtype in which sums of `dtype` are taken: float64 for floats, `dtype` itself for all else."""
    d = dtype_of(np.empty(0, dtype))
    return np.dtype(np.float64) if d.kind == "f" else dtype


Evaluate = Callable[[Arrays, Attrs], tuple[np.ndarray, ...]]


def quiet(fn: Evaluate) -> Evaluate:
    """`fn` without NumPy's floating-point warnings: NaN and Inf are values like others."""

    @wraps(fn)
    def run(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
        with np.errstate(all="ignore"):
            return fn(arrays, attrs)

    return run


def unknown_rank(dtype: DType) -> tuple[Type, ...]:
    return (TensorType(dtype, None),)
