"""Resize and Upsample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from opcel_compiler.frontend.limits import MAX_RANK, ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.resample import (
    Axis,
    Interpolation,
    Numbers,
    coordinates,
    gathered,
    interpolated,
    read_sizes,
    resampled,
    scaled,
)
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32

_REPEATS = {("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"), ("half_pixel", "round_prefer_ceil")}
"""With a whole factor, these choices of coordinates and rounding repeat each element."""


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


def _vector(c: Lowering, i: int) -> Value | None:
    """Input i, a vector of numbers; None where it is absent or empty."""
    value = c.opt(i)
    return None if value is None or c.shape(value) == (0,) else value


def _elements(c: Lowering, k: Numbers, value: Value) -> list[Any]:
    """The elements of a vector as float32 scalars."""
    data = value.constant
    if data is not None:
        return list(np.asarray(data.array, np.float32).reshape(-1))
    (n,) = c.shape(value)
    if not isinstance(n, int):
        raise Unsupported(f"how many factors there are, {n}, is known at run time only")
    if n > 2 * MAX_RANK:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {n} factors, more than any tensor has axes")
    value = c.cast(value, F32)
    return [c.reshape(c.slice(value, 0, i, 1), ()) for i in range(n)]


def _by_scales(c: Lowering, k: Numbers, scales: list[Any], axes: list[int]) -> dict[int, tuple[Dim, Any]]:
    dims, out = c.shape(c.x()), {}
    for a, scale in zip(axes, scales, strict=True):
        size = None if isinstance(scale, Value) else scaled(dims[a], float(scale))
        if size is None:
            (size,) = read_sizes(c, k.shaped(k("floor", k("mul", k.of(dims[a]), scale)), 1), "a resized axis")
        out[a] = size, scale
    return out


def _by_sizes(c: Lowering, k: Numbers, sizes: Sequence[Dim], axes: list[int]) -> dict[int, tuple[Dim, Any]]:
    dims = c.shape(c.x())
    ratios = [k("div", k.of(size), k.of(dims[a])) for a, size in zip(axes, sizes, strict=True)]
    policy = c.attr_str("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return {a: (size, ratio) for a, size, ratio in zip(axes, sizes, ratios, strict=True)}
    if policy not in ("not_larger", "not_smaller"):
        raise ModelError(f"node {c.origin!r} (Resize): keep_aspect_ratio_policy {policy!r} is unknown")
    scale = ratios[0]
    for other in ratios[1:]:
        scale = k("min" if policy == "not_larger" else "max", scale, other)
    out = {}
    for a in axes:
        rounded = k("floor", k("add", k("mul", scale, k.of(dims[a])), 0.5))
        out[a] = read_sizes(c, k.shaped(rounded, 1), "a resized axis")[0], scale
    return out


def _target(c: Lowering, k: Numbers, axes: list[int]) -> dict[int, tuple[Dim, Any]]:
    """For each axis, its new extent and the factor, a float32 or a value."""
    if c.op_type == "Upsample" and c.opset < 9:
        scales: list[Any] = [np.float32(v) for v in c.attr_floats("scales")]
    else:
        sizes = None if c.opset < 11 else _vector(c, 3)
        given = sizes if sizes is not None else _vector(c, 1 if c.opset < 11 else 2)
        if given is None:
            raise ModelError(f"node {c.origin!r} ({c.op_type}) has neither factors nor sizes")
        if sizes is not None:
            extents = c.sizes(sizes, "the sizes")
            _check_count(c, len(extents), axes)
            return _by_sizes(c, k, extents, axes)
        scales = _elements(c, k, given)
    _check_count(c, len(scales), axes)
    return _by_scales(c, k, scales, axes)


def _check_count(c: Lowering, count: int, axes: list[int]) -> None:
    if count != len(axes):
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {count} factors or sizes for {len(axes)} axes")


def _whole_factors(dims: Sequence[Dim], target: dict[int, tuple[Dim, Any]]) -> list[int] | None:
    """The factor of each axis of the input where all are whole numbers."""
    factors = [1] * len(dims)
    for a, (size, scale) in target.items():
        if isinstance(scale, Value) or scale < 1 or scale != int(scale) or size != dims[a] * int(scale):
            return None
        factors[a] = int(scale)
    return factors


@lowers("Resize", "Upsample")
def resize(c: Lowering) -> Value:
    x, k = c.x(), Numbers(c)
    dims, dtype = c.shape(x), c.dtype(x)
    rank = len(dims)
    old = c.op_type == "Upsample" or c.opset < 11
    transform = "asymmetric" if old else c.attr_str("coordinate_transformation_mode", "half_pixel")
    mode = c.attr_str("mode", "nearest").replace("bilinear", "linear")
    if mode not in ("nearest", "linear", "cubic"):
        raise ModelError(f"node {c.origin!r} ({c.op_type}): mode {mode!r} is unknown")
    rounding = "floor" if old else c.attr_str("nearest_mode", "round_prefer_floor")
    how = Interpolation(
        mode, rounding, c.attr_float("cubic_coeff_a", -0.75), bool(c.attr_int("exclude_outside", 0)),
        bool(c.attr_int("antialias", 0)) and mode != "nearest",
    )  # fmt: skip
    axes = [c.axis(a, rank) for a in c.attr_ints("axes", tuple(range(rank)))]
    target = _target(c, k, axes)
    crop = transform == "tf_crop_and_resize"
    roi = _elements(c, k, _roi(c)) if crop else []
    if crop and len(roi) != 2 * len(axes):
        raise ModelError(f"node {c.origin!r} (Resize): a roi of {len(roi)} numbers for {len(axes)} axes")
    factors = _whole_factors(dims, target)
    image = dtype == F32 and rank == 4
    if mode == "nearest" and (transform, rounding) in _REPEATS and factors and not (image and factors[:2] == [1, 1]):
        return repeat(c, x, factors)
    tables: dict[int, Axis] = {}
    for i, a in enumerate(axes):
        size, scale = target[a]
        if not crop and size == dims[a] and not isinstance(scale, Value) and scale == 1:
            continue
        if not crop and size == dims[a] and transform != "half_pixel_symmetric" and _of_sizes(c):
            continue
        region = (roi[i], roi[len(axes) + i]) if crop else None
        at = coordinates(k, transform, dims[a], size, scale, _of_sizes(c), region)
        table = interpolated(k, at, dims[a], size, scale, (size, dims[a]), how)
        outside = None
        if crop:
            last = k("sub", k.of(dims[a]), 1.0)
            outside = k("or", k("less", at, 0.0), k("less", last, at))
        tables[a] = Axis(size, table.places, table.weights, outside)
    if dtype == F32:
        y = resampled(c, x, tables)
    elif mode == "nearest" or dtype.bits > 32:
        y = gathered(c, x, tables)
    else:
        y = c.cast(resampled(c, c.cast(x, F32), tables), dtype)
    return _extrapolated(c, k, y, tables)


def _of_sizes(c: Lowering) -> bool:
    """Whether the new extents are stated and each axis keeps its own ratio."""
    given = c.opset >= 11 and c.op_type == "Resize" and _vector(c, 3) is not None
    return given and c.attr_str("keep_aspect_ratio_policy", "stretch") == "stretch"


def _roi(c: Lowering) -> Value:
    found = _vector(c, 1)
    if found is None:
        raise ModelError(f"node {c.origin!r} (Resize) has no roi")
    return found


def _extrapolated(c: Lowering, k: Numbers, y: Value, tables: dict[int, Axis]) -> Value:
    """`y` with the extrapolation value where a coordinate lies outside."""
    rank, filler = c.rank(y), c.number(c.attr_float("extrapolation_value", 0.0), y)
    for a, table in tables.items():
        if table.outside is None or (not isinstance(table.outside, Value) and not table.outside.any()):
            continue
        mask = k.shaped(table.outside, table.size, *[1] * (rank - a - 1))
        y = c.emit("where", k.value(mask), filler, y)
    return y
