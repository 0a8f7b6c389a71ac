"""Resampling, and operators of old exporters that left the standard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.movement import slice_axis
from opcel_compiler.ir.dims import Dim, product
from opcel_compiler.ir.graph import Value

_REPEATS = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
"""With a whole factor, these choices of coordinates and rounding repeat each element."""


_MAX_LENGTH = 1 << 20


def coordinates(mode: str, length: int, out: int, scale: np.float32) -> Any:
    """For each position of the result, its coordinate in an input axis of `length`; in float32, as runtimes do it."""
    x = np.arange(out, dtype=np.float32)
    half = np.float32(0.5)
    if mode == "asymmetric":
        return x / scale
    if mode == "align_corners":
        return x * np.float32(length - 1) / np.float32(out - 1) if out > 1 else np.zeros_like(x)
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros_like(x)
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return (x + half) / scale - half
    if mode == "half_pixel_symmetric":
        adjustment = np.float32(out) / (scale * np.float32(length))
        offset = np.float32(length) / np.float32(2) * (np.float32(1) - adjustment)
        return offset + (x + half) / scale - half
    raise Unsupported(f"coordinate_transformation_mode={mode!r} has no lowering")


def nearest(at: np.ndarray, rounding: str) -> Any:
    half = np.float32(0.5)
    if rounding == "round_prefer_floor":
        return np.ceil(at - half)
    if rounding == "round_prefer_ceil":
        return np.floor(at + half)
    if rounding in ("floor", "ceil"):
        return np.floor(at) if rounding == "floor" else np.ceil(at)
    raise Unsupported(f"nearest_mode={rounding!r} has no lowering")


def repeat(c: Lowering, x: Value, factors: Sequence[int]) -> Value:
    """Each element of axis i `factors[i]` times, next to one another."""
    dims = c.shape(x)
    split: list[Dim] = []
    spread: list[Dim] = []
    for d, r in zip(dims, factors, strict=True):
        split += [d] if r == 1 else [d, 1]
        spread += [d] if r == 1 else [d, r]
    y = c.emit("expand", c.reshape(x, split), shape=tuple(spread))
    return c.reshape(y, tuple(d * r for d, r in zip(dims, factors, strict=True)))


def resample(c: Lowering, x: Value, axis: int, at: np.ndarray, length: int, linear: bool, rounding: str) -> Value:
    """One axis of `x` read at the coordinates `at`."""
    if not linear:
        index = np.clip(nearest(at, rounding), 0, length - 1).astype(np.int64)
        return c.emit("gather", x, c.constant(index), axis=axis)
    at = np.clip(at, 0, length - 1)
    low = np.floor(at).astype(np.int64)
    shape = (len(at), *[1] * (c.rank(x) - axis - 1))
    weight = (at - low).astype(np.float32).reshape(shape)
    dtype = c.dtype(x)
    below = c.emit("gather", x, c.constant(low), axis=axis)
    above = c.emit("gather", x, c.constant(np.minimum(low + 1, length - 1)), axis=axis)
    below = c.emit("mul", below, c.constant((np.float32(1) - weight).astype(dtype.numpy), dtype))
    return c.emit("add", below, c.emit("mul", above, c.constant(weight.astype(dtype.numpy), dtype)))


def _scales(c: Lowering, rank: int) -> tuple[list[float] | None, Value | None]:
    """(factor of each axis, target sizes): one of the two is given."""
    if c.op_type == "Upsample" and c.opset < 9:
        return list(c.attr_floats("scales")), None
    operand = c.opt(1) if c.opset < 11 else c.opt(2)
    sizes = None if c.opset < 11 else c.opt(3)
    if sizes is not None and c.shape(sizes) != (0,):
        return None, sizes
    data = None if operand is None else operand.constant
    if data is None:
        raise Unsupported("the factors are computed from data")
    return [float(v) for v in data.array.reshape(-1)], None


@lowers("Resize", "Upsample")
def resize(c: Lowering) -> Value:
    x = c.x()
    dims = c.shape(x)
    rank = len(dims)
    mode = c.attr_str("mode", "nearest")
    old = c.op_type == "Upsample" or c.opset < 11
    how = "asymmetric" if old else c.attr_str("coordinate_transformation_mode", "half_pixel")
    rounding = "floor" if old else c.attr_str("nearest_mode", "round_prefer_floor")
    if mode not in ("nearest", "linear", "bilinear") or c.attr_int("antialias", 0) or not c.dtype(x).is_float:
        raise Unsupported(f"mode {mode!r} of {c.dtype(x)} has no lowering")
    if c.attr_str("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("only the stretch policy has a lowering")
    scales, target = _scales(c, rank)
    axes = [c.axis(a, rank) for a in c.attr_ints("axes", tuple(range(rank)))]
    sizes: list[int | None] = [None] * rank
    factors = [1.0] * rank
    given = scales if target is None else c.known_ints(target, "the sizes")
    assert given is not None
    if len(given) != len(axes):
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {len(given)} factors or sizes for {len(axes)} axes")
    for a, v in zip(axes, given, strict=True):
        if target is None:
            factors[a] = float(v)
        else:
            sizes[a] = int(v)
            d = dims[a]
            factors[a] = int(v) / d if isinstance(d, int) and d else 0.0
    whole = all(f >= 1 and f == int(f) for f in factors)
    if mode == "nearest" and (how, rounding) in _REPEATS and whole:
        return repeat(c, x, [int(f) for f in factors])
    for a, d in enumerate(dims):
        if factors[a] == 1.0:
            continue
        if not isinstance(d, int) or d == 0:
            raise Unsupported(f"resizing axis {a} of symbolic size {d} has no lowering")
        scale = np.float32(factors[a])
        out = sizes[a]
        if d * float(scale) > _MAX_LENGTH or (out or 0) > _MAX_LENGTH:
            raise Unsupported(f"a resized axis of more than {_MAX_LENGTH} elements is left to the fallback")
        length = int(np.floor(np.float32(d) * scale)) if out is None else out
        x = resample(c, x, a, coordinates(how, d, length, scale), d, mode != "nearest", rounding)
    return x


@lowers("LRN")
def lrn(c: Lowering) -> Value:
    x, size = c.x(), c.attr_int("size")
    dims = c.shape(x)
    if len(dims) < 3 or size < 1:
        raise Unsupported(f"LRN of size {size} over rank {len(dims)} has no lowering")
    squares = c.reshape(c.emit("mul", x, x), (dims[0], 1, dims[1], product(dims[2:])))
    pads = ((size - 1) // 2, 0, size - 1 - (size - 1) // 2, 0)
    window = {"kernel": (size, 1), "strides": (1, 1), "pads": pads, "dilations": (1, 1)}
    mean = c.reshape(c.emit("avg_pool", squares, **window, count_include_pad=True), dims)
    base = c.emit("mul", mean, c.number(c.attr_float("alpha", 1e-4), x))
    base = c.emit("add", base, c.number(c.attr_float("bias", 1.0), x))
    return c.emit("div", x, c.emit("pow", base, c.number(c.attr_float("beta", 0.75), x)))


@lowers("ImageScaler")
def image_scaler(c: Lowering) -> Value:
    x = c.x()
    bias = c.constant(np.array(c.attr_floats("bias"), np.float32))
    scaled = c.emit("mul", x, c.number(c.attr_float("scale", 1.0), x))
    return c.emit("add", scaled, c.channels(c.cast(bias, c.dtype(x)), c.rank(x)))


@lowers("Affine")
def affine(c: Lowering) -> Value:
    x = c.x()
    scaled = c.emit("mul", x, c.number(c.attr_float("alpha", 1.0), x))
    return c.emit("add", scaled, c.number(c.attr_float("beta", 0.0), x))


@lowers("Crop")
def crop(c: Lowering) -> Value:
    x = c.x()
    left, top, right, bottom = c.attr_ints("border")
    scale = c.attr_ints("scale", ())
    for axis, before, after in ((2, top, bottom), (3, left, right)):
        size = c.shape(x)[axis]
        end: Dim = before + scale[axis - 2] if scale else size - after
        x = c.slice(x, axis, *slice_axis(size, before, end, 1))
    return x
