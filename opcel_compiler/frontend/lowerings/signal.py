"""Fourier transforms as matrix products, and what goes with them: windows and mel filters.

A transform of constant length multiplies by a constant matrix; where the length is known only when the model runs, so
are the matrix's elements.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.late import number
from opcel_compiler.ir.dims import Dim, dim_min, floordiv
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, F64, I64, DType

_LARGEST = 4096
"""The longest transform whose matrix is written down."""


@dataclass(frozen=True)
class _Transform:
    """A discrete Fourier transform of `length` points. `one_sided`: of or to real signals, whose spectra are halves."""

    length: Dim
    inverse: bool
    one_sided: bool

    @property
    def half(self) -> Dim:
        return floordiv(self.length, 2) + 1

    @property
    def taken(self) -> Dim:
        """How many points of the input have a part in it."""
        return self.half if self.inverse and self.one_sided else self.length

    @property
    def given(self) -> Dim:
        """How many points it gives."""
        return self.half if self.one_sided and not self.inverse else self.length

    @property
    def parts(self) -> int:
        """The last axis of the result: 1 for real numbers, 2 for complex ones."""
        return 1 if self.inverse and self.one_sided else 2


def _matrix(c: Lowering, t: _Transform, rows: Dim, parts: int, dtype: DType) -> Value:
    """[rows * parts, given * t.parts]: the first `rows` points of a signal, of numbers of `parts`, to the result."""
    n = t.length
    if isinstance(n, int) and isinstance(rows, int):
        if n > _LARGEST:
            raise Unsupported(f"a transform of {n} points has no lowering; the longest is one of {_LARGEST}")
        assert isinstance(t.given, int)
        points = np.arange(rows)[:, None] * np.arange(t.given) % max(n, 1)
        angle = points * (2 * np.pi / max(n, 1))
        cos, sin = np.cos(angle), np.sin(angle) * (1 if t.inverse else -1)
        if t.inverse:
            weight = np.full((rows, 1), 1 / max(n, 1))
            if t.one_sided:
                weight[1 : (n + 1) // 2] *= 2
            cos, sin = cos * weight, sin * weight
        real, imaginary = np.stack([cos, sin], -1), np.stack([-sin, cos], -1)
        whole = np.stack([real, imaginary][:parts], 1)[..., : t.parts]
        return c.constant(np.ascontiguousarray(whole.reshape(rows * parts, -1)).astype(dtype.numpy), dtype)
    # the angle is taken of exact integers below the length, so that its sine loses nothing
    row, column = (c.reshape(_numbers(c, m, I64), s) for m, s in ((rows, (rows, 1)), (t.given, (1, t.given))))
    length = c.of_dims([n], scalar=True)
    at = c.cast(c.emit("mod", c.emit("mul", row, column), length), F64)
    step = c.emit("div", c.constant(np.array(2 * np.pi)), c.cast(length, F64))
    turn = c.emit("mul", at, step)
    cosine, sine = c.emit("cos", turn), c.emit("sin", turn)
    if not t.inverse:
        sine = c.emit("neg", sine)
    else:
        scale = c.emit("reciprocal", c.cast(length, F64))
        if t.one_sided:
            edge = c.emit("or", c.emit("equal", row, number(c, 0)), c.emit("equal", c.emit("add", row, row), length))
            scale = c.emit("mul", scale, c.emit("where", edge, c.number(1, scale), c.number(2, scale)))
        cosine, sine = c.emit("mul", cosine, scale), c.emit("mul", sine, scale)
    lines = [[cosine, sine], [c.emit("neg", sine), cosine]][:parts]
    shape = (rows, 1, t.given, 1)
    made = [_joined(c, [c.reshape(v, shape) for v in line[: t.parts]], 3) for line in lines]
    return c.cast(c.reshape(_joined(c, made, 1), (rows * parts, t.given * t.parts)), dtype)


def _joined(c: Lowering, parts: list[Value], axis: int) -> Value:
    return parts[0] if len(parts) == 1 else c.emit("concat", *parts, axis=axis)


def _numbers(c: Lowering, count: Dim, dtype: DType) -> Value:
    return c.emit("range_", start=(0,), size=(count,), step=1, dtype=dtype)


def _transformed(c: Lowering, x: Value, t: _Transform) -> Value:
    """[…, n, parts] as […, given, t.parts]."""
    *lead, n, parts = c.shape(x)
    if not isinstance(parts, int):
        raise Unsupported("whether the signal is complex is known only when the model runs")
    rows = n if n == t.taken else dim_min(n, t.taken)
    x = c.reshape(c.slice(x, len(lead), 0, rows), (*lead, rows * parts))
    y = c.emit("matmul", x, _matrix(c, t, rows, parts, c.dtype(x)))
    return c.reshape(y, (*lead, t.given, t.parts))


@lowers("DFT", first=17)
def dft(c: Lowering) -> Value:
    x, rank = c.x(), c.rank(c.x())
    given = c.opt(2) if c.opset >= 20 else None
    if given is None:
        axis = c.axis(c.attr_int("axis", 1) if c.opset < 20 else -2, rank)
    elif c.is_known(given):
        axis = c.axis(c.known_ints(given, "the axis")[0], rank)
    else:
        return _along_late_axis(c, x, given)
    order = [*(i for i in range(rank - 1) if i != axis), axis, rank - 1]
    y = _transformed(c, c.transpose(x, order), _transform_of(c, c.shape(x)[axis]))
    return c.transpose(y, sorted(range(rank), key=order.__getitem__))


def _transform_of(c: Lowering, n: Dim) -> _Transform:
    inverse, one_sided = bool(c.attr_int("inverse", 0)), bool(c.attr_int("onesided", 0))
    length = n if not (inverse and one_sided) else (n - 1) * 2
    if (wanted := c.opt(1)) is not None:
        length = c.size(wanted, "the length of the transform", lo=1)
    return _Transform(length, inverse, one_sided)


def _along_late_axis(c: Lowering, x: Value, given: Value) -> Value:
    """Along an axis that is known only when the model runs: the axes before and behind it are taken as one each."""
    dims, last = c.shape(x), c.rank(x) - 1
    axis = c.reshape(c.cast(given, I64), ())
    axis = c.emit("where", c.emit("less", axis, number(c, 0)), c.emit("add", axis, number(c, last + 1)), axis)
    places, sizes = c.constant(np.arange(last)), c.of_dims(dims[:last])
    here = c.emit("equal", places, axis)

    def over(which: Value) -> Value:
        picked = c.emit("where", which, sizes, number(c, 1))
        return c.emit("reduce_prod", picked, axes=(0,), keepdims=True)

    groups = [over(c.emit("less", places, axis)), over(here), over(c.emit("less", axis, places))]
    outer, n, inner = c.sizes(c.emit("concat", *groups, axis=0), "the sizes around the axis")
    t = _transform_of(c, n)
    y = c.transpose(c.reshape(x, (outer, n, inner, dims[last])), (0, 2, 1, 3))
    y = c.transpose(_transformed(c, y, t), (0, 2, 1, 3))
    shape = c.sizes(c.emit("where", here, c.of_dims([t.given], scalar=True), sizes), "the sizes of the result")
    return c.reshape(y, (*shape, t.parts))


@lowers("STFT", first=17)
def stft(c: Lowering) -> Value:
    x, window = c.x(), c.opt(2)
    _, n, parts = c.shape(x)
    length = n if window is None else c.shape(window)[0]
    if (given := c.opt(3)) is not None:
        length = c.size(given, "the length of a frame", lo=1)
    step = c.size(c.x(1), "the step between frames", lo=1)
    frames = floordiv(n - length, step) + 1
    starts = c.emit("mul", _numbers(c, frames, I64), c.of_dims([step], scalar=True))
    places = c.emit("add", c.reshape(starts, (frames, 1)), c.reshape(_numbers(c, length, I64), (1, length)))
    y = c.emit("gather", x, places, axis=1)
    if window is not None:
        y = c.emit("mul", y, c.reshape(window, (length, 1)))
    one_sided = bool(c.attr_int("onesided", 1)) and parts == 1
    return _transformed(c, y, _Transform(length, False, one_sided))


_WINDOWS = {
    "HannWindow": (0.5, 0.5, 0.0),
    "HammingWindow": (25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": (0.42, 0.5, 0.08),
}
"""a, b and d of a - b cos(t) + d cos(2 t)."""


@lowers(*_WINDOWS, first=17)
def window(c: Lowering) -> Value:
    a, b, d = _WINDOWS[c.op_type]
    size = c.size(c.x(), "the size of the window")
    period = size if c.attr_int("periodic", 1) else size - 1
    dtype = c.attr_dtype("output_datatype", F32)
    step = c.emit("div", c.constant(np.array(2 * np.pi)), c.cast(c.of_dims([period], scalar=True), F64))
    angle = c.emit("mul", _numbers(c, size, F64), step)
    y = c.emit("sub", c.constant(np.array(a)), c.emit("mul", c.emit("cos", angle), c.constant(np.array(b))))
    if d:
        double = c.emit("cos", c.emit("add", angle, angle))
        y = c.emit("add", y, c.emit("mul", double, c.constant(np.array(d))))
    return c.cast(y, dtype)


@lowers("MelWeightMatrix", first=17)
def mel_weight_matrix(c: Lowering) -> Value:
    """Triangles over the bins of a spectrum, whose corners lie evenly on the mel scale."""
    bands, points = c.size(c.x(0), "the number of mel bands"), c.size(c.x(1), "the length of the transform", lo=1)
    rate, low, high = (c.cast(c.reshape(c.x(i), ()), F64) for i in (2, 3, 4))

    def f64(x: float) -> Value:
        return c.constant(np.array(float(x)))

    def mel(hertz: Value) -> Value:
        scaled = c.emit("log", c.emit("add", c.emit("div", hertz, f64(700)), f64(1)))
        return c.emit("mul", scaled, f64(2595 / math.log(10)))

    corners = bands + 2
    first = mel(low)
    step = c.emit("div", c.emit("sub", mel(high), first), c.cast(c.of_dims([corners], scalar=True), F64))
    mels = c.emit("add", c.emit("mul", _numbers(c, corners, F64), step), first)
    hertz = c.emit("mul", c.emit("sub", c.emit("exp", c.emit("mul", mels, f64(math.log(10) / 2595))), f64(1)), f64(700))
    scale = c.cast(c.of_dims([points + 1], scalar=True), F64)
    bins = c.emit("floor", c.emit("div", c.emit("mul", hertz, scale), rate))
    left, centre, right = (c.reshape(c.slice(bins, 0, i, bands), (1, bands)) for i in range(3))
    rows = floordiv(points, 2) + 1
    at = c.reshape(_numbers(c, rows, F64), (rows, 1))
    falling = c.emit("div", c.emit("sub", right, at), c.emit("max", c.emit("sub", right, centre), f64(1)))
    width = c.emit("sub", centre, left)
    rising = c.emit("div", c.emit("sub", at, left), c.emit("max", width, f64(1)))
    peak = c.emit("and", c.emit("equal", width, f64(0)), c.emit("equal", at, centre))
    rising = c.emit("where", peak, f64(1), rising)
    rises = c.emit("and", c.emit("less_equal", left, at), c.emit("less_equal", at, centre))
    falls = c.emit("and", c.emit("less_equal", centre, at), c.emit("less", at, right))
    y = c.emit("where", falls, falling, c.emit("where", rises, rising, f64(0)))
    return c.cast(y, c.attr_dtype("output_datatype", F32))
