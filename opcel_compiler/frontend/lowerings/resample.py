"""Tables of places and weights for `resample`, and images put through them.

All arithmetic is in float32, as runtimes do it. What is known is computed here, by the operators' own definitions; what
depends on sizes or data at run time becomes nodes of the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, floordiv, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.opdef import op_def
from opcel_compiler.ir.types import F32, I32, I64

Number = "np.ndarray | Value"
MAX_LENGTH = 1 << 20
"""Longest axis whose tables are written into the model."""


class Numbers:
    """Operators on arrays, computed at once while all operands are known, else in the graph."""

    def __init__(self, c: Lowering) -> None:
        self.c = c

    def __call__(self, op: str, *operands: Any, **attrs: Any) -> Any:
        arrays = [np.float32(v) if isinstance(v, (int, float)) else v for v in operands]
        if not any(isinstance(v, Value) for v in arrays):
            d = op_def(op)
            assert d.evaluate is not None
            return d.evaluate([np.asarray(v) for v in arrays], d.complete(attrs))[0]
        return self.c.emit(op, *map(self.value, arrays), **attrs)

    def value(self, x: Any) -> Value:
        return x if isinstance(x, Value) else self.c.constant(np.asarray(x))

    def of(self, d: Dim) -> Any:
        """A size as a float32 scalar."""
        return np.float32(d) if isinstance(d, int) else self.c.cast(self.c.of_dims([d], scalar=True), F32)

    def integer(self, d: Dim) -> Any:
        """A size as an int64 scalar."""
        return np.int64(d) if isinstance(d, int) else self.c.of_dims([d], scalar=True)

    def range(self, size: Dim, start: Dim = 0) -> Any:
        """start, start + 1, … as int32."""
        if isinstance(size, int) and isinstance(start, int):
            if size > MAX_LENGTH:
                raise Unsupported(f"an axis of {size} elements, more than {MAX_LENGTH}, is left to the fallback")
            return np.arange(start, start + size, dtype=np.int32)
        return self.c.emit("range_", start=(start,), size=(size,), step=1, dtype=I32)

    def shaped(self, x: Any, *shape: Dim) -> Any:
        return self("reshape", x, shape=shape)


@dataclass(frozen=True)
class Axis:
    """How one axis is resampled: its new extent, i32 places and f32 weights [taps, size] (None: one tap of weight 1),
    and where the result is an extrapolation (bool [size])."""

    size: Dim
    places: Any
    weights: Any = None
    outside: Any = None


@dataclass(frozen=True)
class Interpolation:
    """The attributes of a Resize that say how values are made from neighbours."""

    mode: str
    rounding: str = "round_prefer_floor"
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False


def coordinates(
    k: Numbers, how: str, length: Dim, out: Dim, scale: Any, exact: bool, roi: tuple[Any, Any] | None
) -> Any:
    """For each position of the result, its coordinate in an axis of `length`, as float32 [out]. `scale` is the new
    extent by the old one: of the stated one with `exact`, else before it is cut to an integer. `roi`: the first and
    last coordinate as parts of the axis."""
    x = k("cast", k.range(out), dtype=F32)
    old, cut = k.of(length), k.of(out)
    new = cut if exact else k("mul", scale, old)
    several: Any = np.float32(out > 1) if isinstance(out, int) else k("min", k("sub", cut, 1.0), 1.0)
    if how == "asymmetric":
        return k("div", x, scale)
    if how == "align_corners":
        return k("mul", x, _steps(k, old, new))
    if how == "tf_crop_and_resize":
        if roi is None:
            raise ModelError(f"node {k.c.origin!r} ({k.c.op_type}) needs a roi for {how}")
        start, end = roi
        first = k("mul", start, k("sub", old, 1.0))
        span = k("sub", end, start)
        middle = k("mul", k("mul", k("mul", span, k("sub", old, 1.0)), 0.5), k("sub", 1.0, several))
        return k("add", k("add", first, middle), k("mul", x, k("mul", span, _steps(k, old, new))))
    at = k("sub", k("div", k("add", x, 0.5), scale), 0.5)
    if how == "half_pixel":
        return at
    if how == "pytorch_half_pixel":
        return k("mul", at, several)
    if how == "half_pixel_symmetric":
        adjustment = k("div", cut, k("mul", scale, old))
        return k("add", at, k("mul", k("mul", old, 0.5), k("sub", 1.0, adjustment)))
    raise ModelError(f"node {k.c.origin!r} ({k.c.op_type}): coordinate_transformation_mode {how!r} is unknown")


def _steps(k: Numbers, old: Any, new: Any) -> Any:
    """(old - 1) / (new - 1), finite where the new extent is at most 1."""
    return k("div", k("sub", old, 1.0), k("where", k("less", 1.0, new), k("sub", new, 1.0), np.float32(1)))


def interpolated(k: Numbers, at: Any, length: Dim, size: Dim, scale: Any, ratio: Any, how: Interpolation) -> Axis:
    """The table of an axis of `length` read at the coordinates `at`. `ratio` is the least that `scale` may be, as a
    Fraction or a pair of sizes (new, old); antialiasing alone needs it."""
    if how.mode == "nearest":
        return Axis(size, k.shaped(_cut(k, _rounded(k, at, how.rounding), length), 1, size))
    if how.mode == "linear" and not how.antialias:
        at = k("min", k("max", at, 0.0), k("sub", k.of(length), 1.0))
    low = k("floor", at)
    t = k("sub", at, low)
    if how.antialias:
        support = 1 if how.mode == "linear" else 2
        new, old = ratio
        reach = dim_max(support, ceildiv(support * old, new))
        offsets = k("sub", k("cast", k.range(2 * reach), dtype=F32), k("sub", k.of(reach), 1.0))
        offsets = k.shaped(offsets, 2 * reach, 1)
        narrow = k("min", scale, 1.0)
        distance = k("abs", k("mul", k("sub", offsets, t), narrow))
        weights = _cubic(k, distance, how.cubic) if support == 2 else k("max", k("sub", 1.0, distance), 0.0)
        taps: Dim = 2 * reach
        weights = _normalized(k, weights)
    else:
        taps = 2 if how.mode == "linear" else 4
        offsets = np.arange(-(taps // 2) + 1, taps // 2 + 1, dtype=np.float32).reshape(-1, 1)
        distance = k("abs", k("sub", offsets, t))
        weights = _cubic(k, distance, how.cubic) if taps == 4 else k("sub", 1.0, distance)
    places = k("add", low, offsets)
    if how.exclude_outside:
        last = k("sub", k.of(length), 1.0)
        kept = k("and", k("less_equal", 0.0, places), k("less_equal", places, last))
        weights = _normalized(k, k("where", kept, weights, np.zeros((), np.float32)))
    return Axis(size, k.shaped(_cut(k, places, length), taps, size), k.shaped(weights, taps, size))


def _rounded(k: Numbers, at: Any, rounding: str) -> Any:
    if rounding == "round_prefer_floor":
        return k("ceil", k("sub", at, 0.5))
    if rounding == "round_prefer_ceil":
        return k("floor", k("add", at, 0.5))
    if rounding in ("floor", "ceil"):
        return k(rounding, at)
    raise ModelError(f"node {k.c.origin!r} ({k.c.op_type}): nearest_mode {rounding!r} is unknown")


def _cut(k: Numbers, places: Any, length: Dim) -> Any:
    cut = k("min", k("max", places, 0.0), k("sub", k.of(length), 1.0))
    return k("cast", cut, dtype=I32)


def _normalized(k: Numbers, weights: Any) -> Any:
    return k("div", weights, k("reduce_sum", weights, axes=(0,), keepdims=True))


def _cubic(k: Numbers, d: Any, a: float) -> Any:
    """Keys' kernel at distances d >= 0: 0 from 2 on."""
    near = k("add", k("mul", k("mul", k("sub", k("mul", a + 2, d), a + 3), d), d), 1.0)
    far = k("sub", k("mul", k("add", k("mul", k("sub", k("mul", a, d), 5 * a), d), 8 * a), d), 4 * a)
    tail = k("where", k("less", d, 2.0), far, np.zeros((), np.float32))
    return k("where", k("less_equal", d, 1.0), near, tail)


def fraction(scale: float) -> Fraction | None:
    """A float32 factor as a small fraction, where it is one."""
    found = Fraction(float(np.float32(scale)))
    return found if 0 < found.denominator <= 64 else None


def resampled(c: Lowering, x: Value, axes: dict[int, Axis]) -> Value:
    """`x`, f32, with the named axes read by their tables."""
    k, dims = Numbers(c), c.shape(x)
    rank = len(dims)
    left = sorted(axes, reverse=True)
    while left:
        a = left.pop(0)
        dims = c.shape(x)
        if a == rank - 1:
            columns = axes[a]
            rows = axes[left.pop(0)] if left and left[0] == rank - 2 else None
            height = dims[-2] if rank > 1 else 1
            images: tuple[Dim, ...] = dims if rank == 4 else (1, product(dims[:-2]), height, dims[-1])
            out = (*dims[:-2], *([] if rank == 1 else [height if rows is None else rows.size]), columns.size)
        else:
            rows, columns = axes[a], None
            keeps = rank == 4 and a == 2
            images = dims if keeps else (1, product(dims[:a]), dims[a], product(dims[a + 1 :]))
            out = (*dims[:a], rows.size, *dims[a + 1 :])
        tables = [
            None if t is None else k.value(t)
            for axis in (rows, columns)
            for t in ((None, None) if axis is None else (axis.places, axis.weights))
        ]
        while tables and tables[-1] is None:
            tables.pop()
        x = c.reshape(c.emit("resample", c.reshape(x, images), *tables), out)
    return x


def gathered(c: Lowering, x: Value, axes: dict[int, Axis]) -> Value:
    """`resampled` for any element type: weights only of constant tables, in x's own type."""
    k = Numbers(c)
    for a, axis in axes.items():
        taps = 1 if axis.weights is None else axis.places.shape[0]
        if isinstance(axis.weights, Value):
            raise Unsupported(f"an interpolation of {c.dtype(x)} by sizes known at run time has no lowering")
        shape = (-1, *[1] * (c.rank(x) - a - 1))
        total: Value | None = None
        for t in range(taps):
            at = k("reshape", axis.places[t] if taps > 1 else axis.places, shape=(axis.size,))
            part = c.emit("gather", x, k.value(at), axis=a)
            if axis.weights is not None:
                factor = np.asarray(axis.weights[t]).reshape(shape)
                part = c.emit("mul", part, c.constant(factor.astype(c.dtype(x).numpy), c.dtype(x)))
            total = part if total is None else c.emit("add", total, part)
        assert total is not None
        x = total
    return x


def scaled(d: Dim, scale: float) -> Dim | None:
    """⌊d · scale⌋ in float32; of a symbolic size None where `scale` is no small fraction."""
    if isinstance(d, int):
        return int(np.float32(d) * np.float32(scale))
    part = fraction(scale)
    return None if part is None else floordiv(d * part.numerator, part.denominator)


def read_sizes(c: Lowering, sizes: Any, what: str) -> Sequence[Dim]:
    """Float32 sizes as dims, cut to integers."""
    return c.sizes(Numbers(c)("cast", sizes, dtype=I64), what) if isinstance(sizes, Value) else [int(v) for v in sizes]
