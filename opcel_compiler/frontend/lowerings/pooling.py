"""Pools, and what undoes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.nn import padded, per_axis, same_pads
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, dim_min, floordiv, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32


def window_of(c: Lowering, x: Value) -> tuple[dict[str, Any], tuple[Dim, ...]]:
    """(kernel, strides, dilations and ceil_mode of a pool over `x`, its pads)."""
    dims, n = c.shape(x), c.rank(x) - 2
    if n < 1:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): %{x.name} has rank {n + 2}; pools need spatial axes")
    kernel = per_axis(c, "kernel_shape", n) if c.has("kernel_shape") else c.attr_ints("kernel_shape")
    strides, dilations = per_axis(c, "strides", n), per_axis(c, "dilations", n)
    pads = same_pads(c, dims[2:], kernel, strides, dilations)
    window = {"kernel": kernel, "strides": strides, "dilations": dilations}
    return {**window, "ceil_mode": bool(c.attr_int("ceil_mode", 0))}, pads


@lowers("AveragePool")
def average_pool(c: Lowering) -> Value:
    return mean_of_windows(c, c.x())


def mean_of_windows(c: Lowering, image: Value) -> Value:
    """The means of the windows that a node describes, of `image`."""
    window, pads = window_of(c, image)
    if not all(isinstance(p, int) for p in pads):
        raise Unsupported(f"auto_pad of {c.op_type} needs known sizes")
    x, window["pads"] = padded(c, image, pads, 0.0)
    return c.emit("avg_pool", x, **window, count_include_pad=bool(c.attr_int("count_include_pad", 0)))


@lowers("MaxPool")
def max_pool(c: Lowering) -> list[Value]:
    return largest(c, c.x())


@lowers("NhwcMaxPool", domain="com.microsoft", first=1)
def nhwc_max_pool(c: Lowering) -> Value:
    last = c.rank(c.x()) - 1
    (y,) = largest(c, c.transpose(c.x(), (0, last, *range(1, last))))
    return c.transpose(y, (0, *range(2, last + 1), 1))


def largest(c: Lowering, image: Value) -> list[Value]:
    """The largest elements of the windows of `image` and, where they are wanted, their indices. Short integers are
    compared as f32, which holds them all."""
    dtype = c.dtype(image)
    if dtype.is_integer and dtype.bits <= 16:
        image = c.cast(image, F32)
    window, pads = window_of(c, image)
    x, window["pads"] = padded(c, image, pads, -math.inf)
    y = c.cast(c.emit("max_pool", x, **window), dtype)
    if not c.wants(1):
        return [y]
    if c.shape(x) != c.shape(image):
        raise Unsupported("the indices of a MaxPool whose pads are negative or symbolic have no lowering")
    at = c.emit("arg_max_pool", x, **window)
    return [y, _column_major(c, at, c.shape(x)[2:]) if c.attr_int("storage_order", 0) else at]


def _column_major(c: Lowering, at: Value, sizes: tuple[Dim, ...]) -> Value:
    """Row-major indices into planes of `sizes` as indices whose first spatial axis varies fastest."""
    total = product(sizes)

    def by(op: str, x: Value, d: Dim, **attrs: bool) -> Value:
        return c.emit(op, x, c.of_dims([d], scalar=True), **attrs)

    inside = by("mod", at, total, fmod=False)
    out, step = c.emit("sub", at, inside), total
    for i in reversed(range(len(sizes))):
        step = floordiv(step, sizes[i])
        out = c.emit("add", out, by("mul", by("mod", inside, sizes[i], fmod=False), step))
        inside = by("div", inside, sizes[i])
    return out


@lowers("LpPool")
def lp_pool(c: Lowering) -> Value:
    """The p-norm of each window: a mean of p-th powers, times the window's size."""
    x, p = c.x(), c.attr_int("p", 2)
    window, pads = window_of(c, x)
    terms, pads = padded(c, _power(c, x, p), pads, 0.0)
    if window["ceil_mode"]:
        terms, pads = _covered(c, terms, pads, window), (0,) * len(pads)
        window["ceil_mode"] = False
    mean = c.emit("avg_pool", terms, **window, pads=pads, count_include_pad=True)
    return _root(c, c.emit("mul", mean, c.number(math.prod(window["kernel"]), mean)), p)


@lowers("GlobalLpPool")
def global_lp_pool(c: Lowering) -> Value:
    x, p = c.x(), c.attr_int("p", 2)
    axes = tuple(range(2, c.rank(x)))
    return _root(c, c.emit("reduce_sum", _power(c, x, p), axes=axes, keepdims=True), p)


def _power(c: Lowering, x: Value, p: int) -> Value:
    if p == 2:
        return c.emit("mul", x, x)
    x = c.emit("abs", x)
    return x if p == 1 else c.emit("pow", x, c.number(p, x))


def _root(c: Lowering, x: Value, p: int) -> Value:
    if p == 2:
        return c.emit("sqrt", x)
    return x if p == 1 else c.emit("pow", x, c.number(1 / p, x))


def _covered(c: Lowering, x: Value, pads: Sequence[int], window: dict[str, Any]) -> Value:
    """`x` with its pads and with the zeros behind them that windows of a ceil_mode reach."""
    n, sizes = len(pads) // 2, c.shape(x)[2:]
    full: list[Dim] = [0] * (2 * n + 4)
    for i, size in enumerate(sizes):
        stride, extent = window["strides"][i], window["dilations"][i] * (window["kernel"][i] - 1) + 1
        room = size + pads[i] + pads[n + i] - extent
        count = dim_min(ceildiv(room, stride), floordiv(size + pads[i] - 1, stride)) + 1
        full[2 + i] = pads[i]
        full[n + 4 + i] = dim_max((count - 1) * stride + extent - size - pads[i], 0)
    return c.emit("pad", x, pads=tuple(full))
