"""Images sampled at computed coordinates."""

from __future__ import annotations

import math
from itertools import product as cartesian

import numpy as np

from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import present, quiet, same_dtype, tensor_of, unify, unknown_rank, widen
from opcel_compiler.ir.types import TensorType, Type

GRID_MODES = ("nearest", "linear", "cubic")
GRID_PADDINGS = ("zeros", "border", "reflection")


def _infer_grid_sample(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, grid = tensor_of(operands, 0, "f"), tensor_of(operands, 1, "f")
    same_dtype((x, grid))
    if attrs["mode"] not in GRID_MODES or attrs["padding"] not in GRID_PADDINGS:
        raise InferenceError(f"mode={attrs['mode']!r} or padding={attrs['padding']!r} is unknown")
    if x.shape is None or grid.shape is None:
        return unknown_rank(x.dtype)
    rank = len(x.shape) - 2
    if not 1 <= rank <= 3 or len(grid.shape) != rank + 2:
        raise InferenceError(f"x [n, c, spatial...] and grid [n, spatial..., axes] do not fit: {x}, {grid}")
    n = unify(x.shape[0], grid.shape[0], "the batches differ")
    unify(grid.shape[-1], rank, "coordinates of each position")
    return (TensorType(x.dtype, (n, x.shape[1], *grid.shape[1:-1])),)


def _reflected(at: np.ndarray, low: float, high: float) -> np.ndarray:
    span = max(high - low, np.finfo(np.float32).tiny)
    beyond = np.where(at < low, low - at, at - high)
    times = np.trunc(beyond / span)
    rest, even = beyond - times * span, times % 2 == 0
    out = np.where(at < low, np.where(even, low + rest, high - rest), np.where(even, high - rest, low + rest))
    return np.asarray(np.where((at < low) | (at > high), out, at))


def _grid_taps(at: np.ndarray, size: int, attrs: Attrs) -> list[tuple[np.ndarray, np.ndarray]]:
    """(place, weight) of each neighbour along one axis; a weight of 0 where it lies outside of a zero border."""
    corners = attrs["align_corners"]
    low, high = (0.0, size - 1.0) if corners else (-0.5, size - 0.5)
    at = (at + 1) / 2 * (size - 1) if corners else ((at + 1) * size - 1) / 2
    if attrs["mode"] == "nearest":
        at = np.rint(at)
    if attrs["padding"] == "border" and attrs["mode"] != "cubic":
        at = np.clip(at, 0, size - 1)
    elif attrs["padding"] == "reflection":
        at = _reflected(at, low, high)
    floor = np.floor(at)
    t, a = at - floor, -0.75
    if attrs["mode"] == "nearest":
        weights = {0: np.ones_like(at)}
        floor = np.trunc(at)
    elif attrs["mode"] == "linear":
        weights = {0: 1 - t, 1: t}
    else:

        def far(d: np.ndarray) -> np.ndarray:
            return np.asarray(((a * d - 5 * a) * d + 8 * a) * d - 4 * a)

        def near(d: np.ndarray) -> np.ndarray:
            return np.asarray(((a + 2) * d - (a + 3)) * d * d + 1)

        weights = {-1: far(t + 1), 0: near(t), 1: near(1 - t), 2: far(2 - t)}
    out = []
    for step, weight in weights.items():
        place = floor + step
        if attrs["padding"] == "zeros":
            weight = np.where((place >= 0) & (place < size), weight, 0)
        elif attrs["padding"] == "reflection":
            place = np.trunc(_reflected(place, low, high))
        out.append((np.nan_to_num(np.clip(place, 0, size - 1)).astype(np.int64), weight))
    return out


@quiet
def _grid_sample(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, grid = present(arrays)
    sizes, (n, c) = x.shape[2:], x.shape[:2]
    at = widen(grid).reshape(n, -1, len(sizes))
    taps = [_grid_taps(at[..., len(sizes) - 1 - i], size, attrs) for i, size in enumerate(sizes)]
    flat = widen(x).reshape(n, c, -1)
    y = np.zeros((n, c, at.shape[1]))
    for choice in cartesian(*taps):
        place, weight = np.zeros(at.shape[:2], np.int64), np.ones(at.shape[:2])
        for size, (p, w) in zip(sizes, choice, strict=True):
            place, weight = place * size + p, weight * w
        values = np.take_along_axis(flat, place[:, None], 2) * weight[:, None]
        y += np.where(weight[:, None] == 0, 0, values)
    return (y.reshape(n, c, *grid.shape[1:-1]).astype(x.dtype),)


define(
    "grid_sample",
    "x [n, c, spatial...] at the positions grid [n, places..., axes], the last axis first, -1 and 1 being the edges of "
    "the image or, with align_corners, the centres of its outermost elements",
    "x grid",
    _infer_grid_sample,
    _grid_sample,
    (AttrDef("mode", "str"), AttrDef("padding", "str"), AttrDef("align_corners", "bool")),
)


def _infer_roi_align(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, rois, images = tensor_of(operands, 0, "f"), tensor_of(operands, 1, "f"), tensor_of(operands, 2, "iu")
    same_dtype((x, rois))
    if len(attrs["size"]) != 2 or any(v < 1 for v in attrs["size"]):
        raise InferenceError(f"size={attrs['size']} must be two positive integers")
    if attrs["mode"] not in ("avg", "max"):
        raise InferenceError(f"mode={attrs['mode']!r} is unknown")
    if x.shape is None or rois.shape is None or images.shape is None:
        return unknown_rank(x.dtype)
    if len(x.shape) != 4 or len(rois.shape) != 2 or len(images.shape) != 1:
        raise InferenceError(f"x [n, c, h, w], rois [r, 4] and images [r] do not fit: {x}, {rois}, {images}")
    unify(rois.shape[1], 4, "corners of a region")
    count = unify(rois.shape[0], images.shape[0], "rois and images differ")
    return (TensorType(x.dtype, (count, x.shape[1], *attrs["size"])),)


def _region_taps(
    start: float, end: float, size: int, bins: int, attrs: Attrs
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """(lower places, weights [2, bins * samples], valid samples, samples a bin) along one axis of a region."""
    shift = np.float32(0.5 if attrs["half_pixel"] else 0)
    low = np.float32(start) * np.float32(attrs["scale"]) - shift
    extent = np.float32(end) * np.float32(attrs["scale"]) - shift - low
    if not attrs["half_pixel"]:
        extent = max(extent, np.float32(1))
    width = extent / np.float32(bins)
    samples = attrs["samples"] or max(math.ceil(width), 0)
    steps = (np.arange(samples, dtype=np.float32) + np.float32(0.5)) * width / np.float32(max(samples, 1))
    at = (low + np.arange(bins, dtype=np.float32)[:, None] * width + steps).reshape(-1)
    valid = (at >= -1) & (at <= size)
    at = np.clip(at, 0, size - 1)
    floor = np.floor(at)
    return floor.astype(np.int64), np.stack([1 - (at - floor), at - floor]), valid, samples


@quiet
def _roi_align(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, rois, images = present(arrays)
    wide, (h, w), (oh, ow) = widen(x).astype(np.float64), x.shape[2:], attrs["size"]
    y = np.zeros((len(rois), x.shape[1], oh, ow))
    for r, (roi, image) in enumerate(zip(widen(rois), images, strict=True)):
        rows, down, in_rows, ny = _region_taps(roi[1], roi[3], h, oh, attrs)
        columns, across, in_columns, nx = _region_taps(roi[0], roi[2], w, ow, attrs)
        if not ny or not nx:
            continue
        valid = in_rows[:, None] & in_columns
        parts = np.stack([
            np.where(valid, wide[image][:, np.minimum(rows + i, h - 1)][:, :, np.minimum(columns + j, w - 1)]
                     * down[i][:, None] * across[j], 0)
            for i, j in cartesian((0, 1), (0, 1))
        ])  # fmt: skip
        shape = (4, x.shape[1], oh, ny, ow, nx)
        if attrs["mode"] == "max":
            y[r] = parts.reshape(shape).max((0, 3, 5))
        else:
            y[r] = parts.reshape(shape).sum((0, 3, 5)) / (ny * nx)
    return (y.astype(x.dtype),)


define(
    "roi_align",
    "Bins of regions [x1, y1, x2, y2] times scale of the images they name: the mean of the values interpolated at "
    "`samples`² points of a bin (0: as many as it has elements), or the largest of their weighted neighbours",
    "x rois images",
    _infer_roi_align,
    _roi_align,
    (
        AttrDef("size", "ints"), AttrDef("mode", "str"), AttrDef("samples", "int"), AttrDef("scale", "float"),
        AttrDef("half_pixel", "bool"),
    ),
)  # fmt: skip
