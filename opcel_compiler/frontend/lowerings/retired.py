"""Operators that left the standard, and LRN."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.movement import slice_axis
from opcel_compiler.ir.dims import Dim, product
from opcel_compiler.ir.graph import Value


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
