"""Operators that draw random numbers: with a seed the same in every run, whatever the threads; without one, others."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, I32, I64, DType


def uniform(c: Lowering, shape: Sequence[Dim], stream: int = 0) -> Value:
    """Numbers in [0, 1). Values of other `stream` are independent, also under one seed."""
    if c.has("seed"):
        seed = c.attr_int("seed") if c.op_type == "Dropout" else float(c.attr_float("seed"))
        text = f"{seed} {stream}"
    else:
        text = f"{c.origin} {stream}"  # two nodes are never one
    key = zlib.crc32(text.encode()) << 32 | zlib.adler32(text.encode())
    return c.emit("random_uniform", shape=tuple(shape), key=key, fixed=c.has("seed"))


def _normal(c: Lowering, shape: Sequence[Dim]) -> Value:
    """By Box and Muller."""
    first, second = uniform(c, shape), uniform(c, shape, 1)
    log = c.emit("log", c.emit("sub", c.number(1, first), first))
    radius = c.emit("sqrt", c.emit("mul", log, c.number(-2, log)))
    return c.emit("mul", radius, c.emit("cos", c.emit("mul", second, c.number(2 * np.pi, second))))


def _like(c: Lowering) -> tuple[tuple[Dim, ...], DType]:
    if c.op_type.endswith("Like"):
        x = c.x()
        return c.shape(x), c.attr_dtype("dtype") if c.has("dtype") else c.dtype(x)
    return tuple(c.attr_ints("shape")), c.attr_dtype("dtype") if c.has("dtype") else F32


def _drawn(c: Lowering, y: Value, scale: float, shift: float, dtype: DType) -> Value:
    if not dtype.is_float:
        raise Unsupported(f"random numbers of type {dtype} have no lowering")
    return c.cast(c.emit("add", c.emit("mul", y, c.number(scale, y)), c.number(shift, y)), dtype)


@lowers("RandomUniform", "RandomUniformLike", first=1)
def random_uniform(c: Lowering) -> Value:
    shape, dtype = _like(c)
    low, high = c.attr_float("low", 0.0), c.attr_float("high", 1.0)
    return _drawn(c, uniform(c, shape), high - low, low, dtype)


@lowers("RandomNormal", "RandomNormalLike", first=1)
def random_normal(c: Lowering) -> Value:
    shape, dtype = _like(c)
    return _drawn(c, _normal(c, shape), c.attr_float("scale", 1.0), c.attr_float("mean", 0.0), dtype)


@lowers("Bernoulli", first=15)
def bernoulli(c: Lowering) -> Value:
    x = c.x()
    drawn = c.emit("less", uniform(c, c.shape(x)), c.cast(x, F32))
    return c.cast(drawn, c.attr_dtype("dtype") if c.has("dtype") else c.dtype(x))


@lowers("Multinomial", first=7)
def multinomial(c: Lowering) -> Value:
    """A number falls into the class up to whose end the probabilities' running sum first exceeds it."""
    x, count = c.cast(c.x(), F32), c.attr_int("sample_size", 1)
    dtype = c.attr_dtype("dtype") if c.has("dtype") else I32
    rows, classes = c.shape(x)
    if not isinstance(classes, int) or classes < 1 or dtype not in (I32, I64):
        raise ModelError(f"node {c.origin!r} (Multinomial): {classes} classes as {dtype}")
    sums = c.emit("matmul", c.emit("softmax", x, axis=1), c.constant(np.triu(np.ones((classes, classes), np.float32))))
    ends = c.reshape(c.slice(sums, 1, 0, classes - 1), (rows, 1, classes - 1))
    drawn = c.reshape(uniform(c, (rows, count)), (rows, count, 1))
    passed = c.cast(c.emit("less_equal", ends, drawn), dtype)
    return c.emit("reduce_sum", passed, axes=(2,), keepdims=False)


@lowers("Dropout")
def dropout(c: Lowering) -> Sequence[Value | None]:
    x, training = c.x(), c.opt(2)
    if training is not None and (training.constant is None or training.constant.array.any()):
        ratio = c.opt(1)
        return _dropped(c, x, c.number(0.5, x) if ratio is None else ratio, training)
    if not c.wants(1):
        return [x]
    if c.opset < 10:
        raise Unsupported("the mask of a Dropout before opset 10 is left to the fallback")
    return [x, c.emit("expand", c.constant(np.array(True)), shape=c.shape(x))]


def _dropped(c: Lowering, x: Value, ratio: Value, training: Value) -> tuple[Value, Value]:
    """(x with elements dropped and the others scaled, which are kept) where `training`, a scalar bool, holds."""
    kept = c.emit("less_equal", c.cast(ratio, F32), uniform(c, c.shape(x)))
    scaled = c.emit("div", x, c.cast(c.emit("sub", c.number(1, ratio), ratio), c.dtype(x)))
    some = c.emit("where", kept, scaled, c.number(0, x))
    all_kept = c.emit("or", kept, c.emit("not", training))
    return c.emit("where", training, some, x), all_kept
