"""Arithmetic on the symbolic content of small integer tensors, so that shape arithmetic leaves no nodes behind.

A content is an object array of dims (ints, symbolic expressions) or bools. Contents of floating-point tensors hold
integral values only. `evaluate` works on our own operators, so every ONNX spelling of them is covered alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from opcel_compiler.frontend.limits import MAX_CONTENT
from opcel_compiler.ir.dims import Dim, Expr, bounds, dim_max, dim_min, equal, floordiv, mod
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.opdef import Attrs
from opcel_compiler.ir.types import DType

Content = np.ndarray


class Unknown(Exception):
    """The content of a result cannot be told."""


def content_of(constant: Constant) -> Content | None:
    """The content of constant data: small, and integral."""
    array = constant.array
    if array.size > MAX_CONTENT or constant.dtype.kind not in "iubf" or constant.dtype.bits < 8:
        return None
    if constant.dtype.kind == "f":
        wide = array.astype(np.float64)
        if not (np.isfinite(wide).all() and (wide == np.rint(wide)).all() and (np.abs(wide) < 2**53).all()):
            return None
        array = wide.astype(np.int64)
    out: Content = array.astype(object)
    return out


def as_array(content: Content, dtype: DType) -> np.ndarray | None:
    """The content as plain data, or None when an element is symbolic or out of range."""
    if any(isinstance(v, Expr) for v in content.flat):
        return None
    try:
        return np.array(content.tolist(), np.int64).reshape(content.shape).astype(dtype.numpy)
    except OverflowError:
        return None


def as_dims(content: Content) -> tuple[Dim, ...]:
    return tuple(int(v) if isinstance(v, (bool, int)) else v for v in content.reshape(-1).tolist())


def _nonnegative(d: Dim) -> bool:
    lo = bounds(d)[0]
    return lo is not None and lo >= 0


def _divide(a: Dim, b: Dim) -> Dim:
    if b == 0:
        raise Unknown
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    if _nonnegative(a) and _nonnegative(b):
        return floordiv(a, b)
    raise Unknown


def _divide_exactly(a: Dim, b: Dim) -> Dim:
    if b == 0:
        raise Unknown
    quotient = floordiv(a, b)
    if quotient * b != a:
        raise Unknown
    return quotient


def _modulo(a: Dim, b: Dim) -> Dim:
    if b == 0 or not (isinstance(b, int) or _nonnegative(b)):
        raise Unknown
    return mod(a, b)


def _equal(a: Dim, b: Dim) -> bool:
    answer = equal(a, b)
    if answer is None:
        raise Unknown
    return answer


def _less(a: Dim, b: Dim) -> bool:
    lo, hi = bounds(a - b)
    if hi is not None and hi < 0:
        return True
    if lo is not None and lo >= 0:
        return False
    raise Unknown


def _choose(c: object, a: Dim, b: Dim) -> Dim:
    return a if c else b


def _absolute(a: Dim) -> Dim:
    if isinstance(a, int):
        return abs(a)
    if _nonnegative(a):
        return a
    raise Unknown


def _same(a: Dim) -> Dim:
    return a


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "mod": _modulo, "min": dim_min,
    "max": dim_max, "equal": _equal, "less": _less, "less_equal": lambda a, b: not _less(b, a), "where": _choose,
    "and": lambda a, b: a and b, "or": lambda a, b: a or b, "xor": lambda a, b: a != b, "not": lambda a: not a,
    "neg": lambda a: 0 - a, "abs": _absolute, "relu": lambda a: dim_max(a, 0),
    "floor": _same, "ceil": _same, "round": _same,
}  # fmt: skip


_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "mod", "neg", "abs"})


def _is_narrow(dtype: DType) -> bool:
    """Whether sizes may be too large for `dtype`, so that arithmetic in it rounds them or wraps around."""
    return dtype.bits < 32 and dtype.kind != "b"


def _holds(dtype: DType, v: Any) -> bool:
    """Whether a cast to `dtype` leaves `v` as it is, as far as sizes go."""
    if not _is_narrow(dtype) or isinstance(v, bool):
        return True
    return isinstance(v, int) and abs(v) < 1 << 16 and int(np.array(v).astype(dtype.numpy).astype(np.float64)) == v


def _cast(x: Content, dtype: DType) -> Content:
    def one(v: Any) -> Any:
        if dtype.kind == "b":
            return bool(v) if isinstance(v, (bool, int)) else not _equal(v, 0)
        return int(v) if isinstance(v, bool) else v

    return np.frompyfunc(one, 1, 1)(x)  # type: ignore[no-any-return]


def _ints(dims: Sequence[Dim]) -> tuple[int, ...]:
    if not all(isinstance(d, int) for d in dims):
        raise Unknown
    return tuple(int(d) for d in dims)  # type: ignore[arg-type]


def _slice(x: Content, attrs: Attrs) -> Content:
    starts, sizes, steps = (_ints(attrs[name]) for name in ("starts", "sizes", "steps"))
    for axis, (start, size, step) in enumerate(zip(starts, sizes, steps, strict=True)):
        x = np.take(x, [start + i * step for i in range(size)], axis)
    return x


_FOLDS: dict[str, Callable[..., Any]] = {
    "reduce_sum": lambda a, b: a + b,
    "reduce_prod": lambda a, b: a * b,
    "reduce_max": dim_max,
    "reduce_min": dim_min,
}


def _reduce(op: str, x: Content, attrs: Attrs) -> Content:
    axes, keep = tuple(attrs["axes"]), attrs["keepdims"]
    moved = np.moveaxis(x, axes, range(len(axes))) if axes else x[None]
    flat = moved.reshape(-1, *moved.shape[len(axes) or 1 :])
    if op in ("reduce_max", "reduce_min") and not len(flat):
        raise Unknown
    combine = np.frompyfunc(_FOLDS[op], 2, 1)
    out = np.asarray(flat[0] if len(flat) else np.full(flat.shape[1:], int(op == "reduce_prod"), object), object)
    for row in flat[1:]:
        out = np.asarray(combine(out, row), object)
    return np.expand_dims(out, axes) if keep else out


def evaluate(op: str, args: Sequence[Content | None], dtype: DType | None, attrs: Attrs) -> Content | None:
    """The content of the only result of operator `op` from its operands' contents, or None when it cannot be told.

    `dtype` is the element type of the first operand.
    """
    try:
        out = _evaluate(op, args, dtype, attrs)
    except (Unknown, IndexError, ValueError):
        return None
    if out is None or out.size > MAX_CONTENT:
        return None
    return out


def _evaluate(op: str, args: Sequence[Content | None], dtype: DType | None, attrs: Attrs) -> Content | None:
    if op == "range_":
        (size,), (start,) = _ints(attrs["size"]), attrs["start"]
        if size > MAX_CONTENT or not attrs["dtype"].is_integer:
            return None
        return _objects([start + i * attrs["step"] for i in range(size)])
    if not args or any(a is None for a in args):
        return None
    known = [a for a in args if a is not None]
    x = known[0]
    if op in _ARITHMETIC and dtype is not None and _is_narrow(dtype):
        return None
    if op == "div":
        return _objects_of(np.frompyfunc(_divide_exactly if dtype and dtype.is_float else _divide, 2, 1)(*known))
    if op == "mod" and attrs["fmod"] and not all(_nonnegative(v) for a in known for v in a.flat):
        return None
    if op in _ELEMENTWISE:
        return _objects_of(np.frompyfunc(_ELEMENTWISE[op], len(known), 1)(*known))
    if op == "cast":
        wanted = attrs["dtype"]
        return _objects_of(_cast(x, wanted)) if all(_holds(wanted, v) for v in x.flat) else None
    if op == "reshape":
        return x.reshape(_ints(attrs["shape"]))
    if op == "transpose":
        return np.transpose(x, attrs["perm"])
    if op == "expand":
        return np.broadcast_to(x, _ints(attrs["shape"])) if math.prod(_ints(attrs["shape"])) <= MAX_CONTENT else None
    if op == "slice":
        return _slice(x, attrs)
    if op == "concat":
        return np.concatenate(known, attrs["axis"])
    if op == "gather":
        at = np.array(_ints(known[1].reshape(-1).tolist()), np.int64).reshape(known[1].shape)
        return _objects_of(np.take(x, at, attrs["axis"]))
    if op in _FOLDS:
        return _reduce(op, x, attrs)
    return None


def _objects(values: list[Any]) -> Content:
    out = np.empty(len(values), object)
    out[:] = values
    return out


def _objects_of(value: Any) -> Content:
    return value if isinstance(value, np.ndarray) else np.array(value, object)
