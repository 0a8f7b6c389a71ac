"""Operators that make tensors, read shapes, or change nothing but the shape."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers, nonnegative
from opcel_compiler.frontend.lowerings import late
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, dim_min, equal, floordiv, product
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, I64, STRING

_MAX_RANGE = 1 << 20


@lowers("Constant", first=1)
def constant(c: Lowering) -> Value:
    sparse = next((n for n in ("sparse_value", "value") if c.is_sparse(n)), None)
    data = c.attr_tensor("value") if sparse is None else c.attr_sparse(sparse)
    if data is None:
        data = _plain_value(c)
    return c.builder.constant(data, c.origin)


def _plain_value(c: Lowering) -> Constant:
    """The data of a Constant whose value is a number, a string or a list of them."""
    if c.has("value_float"):
        return Constant(np.array(c.attr_float("value_float"), np.float32), F32)
    if c.has("value_floats"):
        return Constant(np.array(c.attr_floats("value_floats"), np.float32), F32)
    if c.has("value_int"):
        return Constant(np.array(c.attr_int("value_int"), np.int64), I64)
    if c.has("value_ints"):
        return Constant(np.array(c.attr_ints("value_ints"), np.int64), I64)
    if c.has("value_string"):
        return Constant(np.array(c.attr_str("value_string"), object), STRING)
    if c.has("value_strings"):
        return Constant(np.array([s.decode(errors="replace") for s in c.attr_strings("value_strings")], object), STRING)
    raise ModelError(f"node {c.origin!r} (Constant) holds no value")


@lowers("Shape")
def shape(c: Lowering) -> Value:
    dims = c.shape(c.x())
    rank = len(dims)
    start, end = c.attr_int("start", 0), c.attr_int("end", rank)
    low, high = (min(max(i + rank if i < 0 else i, 0), rank) for i in (start, end))
    c.builder.sizes.update(dims)
    return c.of_dims(dims[low:high])


@lowers("Size")
def size(c: Lowering) -> Value:
    return c.of_dims([product(c.shape(c.x()))], scalar=True)


def check_sizes(c: Lowering, sizes: Sequence[Dim]) -> None:
    if any(isinstance(d, int) and d < 0 for d in sizes):
        raise ModelError(f"node {c.origin!r} ({c.op_type}): the shape {list(sizes)} has a negative size")


@lowers("ConstantOfShape")
def constant_of_shape(c: Lowering) -> Value:
    sizes = c.sizes(c.x(), "the shape")
    check_sizes(c, sizes)
    data = c.attr_tensor("value") or Constant(np.zeros(1, np.float32), F32)
    if data.array.size != 1:
        raise ModelError(f"node {c.origin!r} (ConstantOfShape): the value must have one element, not {data.array.size}")
    return c.emit("expand", c.constant(data.array.reshape(()), data.dtype), shape=sizes)


@lowers("Range", first=11)
def range_(c: Lowering) -> Value:
    start, limit, delta = (c.reshape(c.x(i), ()) for i in range(3))
    dtype = c.dtype(start)
    data = [v.constant for v in (start, limit, delta)]
    if all(d is not None for d in data) and not dtype.is_integer:
        low, high, step = (float(d.array) for d in data if d is not None)
        count = math.ceil((high - low) / step) if step else 0
        if not 0 <= count <= _MAX_RANGE:
            raise Unsupported(f"a range of {count} elements is left to the fallback")
        first, step_ = (d.array for d in (data[0], data[2]) if d is not None)
        return c.constant((first + np.arange(count).astype(dtype.numpy) * step_).astype(dtype.numpy), dtype)
    if not (dtype.is_integer and c.is_known(start, limit) and late.known_axes(c, delta)):
        steps = c.emit("range_", start=(0,), size=(late.count_of_range(c, start, limit, delta),), step=1, dtype=I64)
        return c.emit("add", start, c.emit("mul", c.cast(steps, dtype), delta))
    (low_,), (high_,) = c.dims(start, "the start"), c.dims(limit, "the limit")
    (step_int,) = c.known_ints(delta, "the step")
    if step_int == 0:
        raise ModelError(f"node {c.origin!r} (Range): the step is 0")
    span = high_ - low_ if step_int > 0 else low_ - high_
    n = dim_max(ceildiv(span, abs(step_int)), 0)
    return c.emit("range_", start=(low_,), size=(n,), step=step_int, dtype=dtype)


def target_shape(c: Lowering, source: tuple[Dim, ...], wanted: Sequence[Dim], allow_zero: bool) -> tuple[Dim, ...]:
    """The shape that Reshape's `wanted` stands for: 0 copies a size, -1 takes what is left."""
    out: list[Dim] = []
    for i, d in enumerate(wanted):
        if d == 0 and not allow_zero:
            if i >= len(source):
                raise ModelError(f"node {c.origin!r} (Reshape): {list(wanted)} copies axis {i} of {list(source)}")
            out.append(source[i])
        else:
            out.append(d)
    open_ = [i for i, d in enumerate(out) if d == -1]
    if len(open_) > 1 or any(isinstance(d, int) and d < -1 for d in out):
        raise ModelError(f"node {c.origin!r} (Reshape): {list(wanted)} is no target shape")
    if not all(isinstance(d, int) or nonnegative(d) or d in c.builder.sizes for d in out):
        raise Unsupported(f"the target shape {list(wanted)} may hold a -1")
    if open_:
        # Sizes that source and target share cancel before dividing, so that a size of 0 cannot divide by itself.
        left, rest = list(source), [d for i, d in enumerate(out) if i not in open_]
        for d in list(rest):
            if (d != 0 or not allow_zero) and d in left:
                left.remove(d)
                rest.remove(d)
        known, total = product(rest), product(left)
        if known == 0:
            raise ModelError(
                f"node {c.origin!r} (Reshape): the target shape {list(wanted)} has a size of 0 beside -1, which could "
                "then be anything; write the size in place of the -1, or copy a size with allowzero=0"
            )
        out[open_[0]] = floordiv(total, known)
        if equal(out[open_[0]] * known, total) is False:
            raise ModelError(f"node {c.origin!r} (Reshape): {list(source)} cannot take the shape {list(wanted)}")
    elif equal(product(out), product(source)) is False:
        raise ModelError(f"node {c.origin!r} (Reshape): {list(source)} cannot take the shape {list(wanted)}")
    return tuple(out)


@lowers("Reshape")
def reshape(c: Lowering) -> Value:
    x, allow_zero = c.x(), bool(c.attr_int("allowzero", 0))
    if c.is_known(c.x(1)):
        try:
            return c.reshape(x, target_shape(c, c.shape(x), c.dims(c.x(1), "the target shape"), allow_zero))
        except Unsupported:  # a symbol may be -1 when the model runs
            pass
    return c.reshape(x, late.reshaped(c, x, c.x(1), allow_zero))


@lowers("Flatten")
def flatten(c: Lowering) -> Value:
    x = c.x()
    dims = c.shape(x)
    axis = c.attr_int("axis", 1)
    if not -len(dims) <= axis <= len(dims):
        raise ModelError(f"node {c.origin!r} (Flatten): axis {axis} is out of range for rank {len(dims)}")
    axis = axis + len(dims) if axis < 0 else axis
    return c.reshape(x, (product(dims[:axis]), product(dims[axis:])))


def axes_of(c: Lowering, rank: int, since: int) -> tuple[int, ...] | None:
    """The normalised axes: an attribute before opset `since`, input 1 from then on; None when absent."""
    if c.opset < since:
        axes = c.attr_ints("axes", None)
    else:
        operand = c.opt(1)
        axes = None if operand is None else c.known_ints(operand, "the axes")
    return None if axes is None else tuple(sorted({c.axis(a, rank) for a in axes}))


@lowers("Squeeze")
def squeeze(c: Lowering) -> Value:
    x = c.x()
    dims = c.shape(x)
    if c.opset >= 13 and not late.known_axes(c, c.opt(1)):
        return late.squeezed(c, x, c.x(1))
    axes = axes_of(c, len(dims), 13)
    if axes is None:
        if not all(isinstance(d, int) or equal(d, 1) is False for d in dims):
            raise Unsupported("which axes are squeezed depends on the sizes at run time")
        axes = tuple(i for i, d in enumerate(dims) if d == 1)
    for a in axes:
        if equal(dims[a], 1) is False:
            raise ModelError(f"node {c.origin!r} (Squeeze): axis {a} of %{x.name} has size {dims[a]}, not 1")
    return c.reshape(x, tuple(d for i, d in enumerate(dims) if i not in axes))


@lowers("Unsqueeze")
def unsqueeze(c: Lowering) -> Value:
    x = c.x()
    dims = list(c.shape(x))
    if c.opset >= 13 and not late.known_axes(c, c.x(1)):
        return late.unsqueezed(c, x, c.x(1))
    raw = c.attr_ints("axes") if c.opset < 13 else c.known_ints(c.x(1), "the axes")
    axes = sorted(c.axis(a, len(dims) + len(raw)) for a in raw)
    if len(set(axes)) != len(axes):
        raise ModelError(f"node {c.origin!r} (Unsqueeze): axes {list(raw)} repeat")
    for a in axes:
        dims.insert(a, 1)
    return c.reshape(x, tuple(dims))


@lowers("Expand", first=8)
def expand(c: Lowering) -> Value:
    x = c.x()
    have, want = c.shape(x), c.sizes(c.x(1), "the target shape")
    check_sizes(c, want)
    return expand_to(c, x, broadcast(have, want))


def expand_to(c: Lowering, x: Value, shape: tuple[Dim, ...]) -> Value:
    return x if c.shape(x) == shape else c.emit("expand", x, shape=shape)


def broadcast(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape that two shapes broadcast to."""
    rank = max(len(a), len(b))
    out: list[Dim] = []
    for p, q in zip([1] * (rank - len(a)) + list(a), [1] * (rank - len(b)) + list(b), strict=True):
        if p == 1 or q == 1:
            out.append(q if p == 1 else p)
        elif p == q or (equal(p, 1) is False and equal(p, q) is not False):
            out.append(p)
        elif equal(q, 1) is False and equal(p, q) is not False:
            out.append(q)
        elif isinstance(p, int) or isinstance(q, int):
            if equal(p, q) is False:
                raise ModelError(f"shapes {list(a)} and {list(b)} do not broadcast")
            out.append(p if isinstance(p, int) else q)
        else:
            # The larger, but nothing where one is nothing.
            out.append(dim_max(p, q) * dim_min(p, 1) * dim_min(q, 1))
    return tuple(out)


@lowers("Tile")
def tile(c: Lowering) -> Value:
    x = c.x()
    dims, repeats = c.shape(x), c.sizes(c.x(1), "the repeats")
    if len(dims) != len(repeats):
        raise ModelError(f"node {c.origin!r} (Tile): {len(repeats)} repeats for rank {len(dims)}")
    check_sizes(c, repeats)
    if all(r == 1 or d == 1 for d, r in zip(dims, repeats, strict=True)):
        return expand_to(c, x, tuple(r if d == 1 else d for d, r in zip(dims, repeats, strict=True)))
    split: list[Dim] = []
    spread: list[Dim] = []
    for d, r in zip(dims, repeats, strict=True):
        split += [d] if r == 1 else [1, d]
        spread += [d] if r == 1 else [r, d]
    y = c.emit("expand", c.reshape(x, split), shape=tuple(spread))
    return c.reshape(y, tuple(d * r for d, r in zip(dims, repeats, strict=True)))


@lowers("EyeLike", first=9)
def eye_like(c: Lowering) -> Value:
    x = c.x()
    rows, columns = c.shape(x)
    dtype = c.attr_dtype("dtype", c.dtype(x))
    hit = c.emit("equal", *diagonal(c, rows, columns, c.attr_int("k", 0)))
    return c.emit("cast", hit, dtype=dtype)


def diagonal(c: Lowering, rows: Dim, columns: Dim, k: Dim) -> tuple[Value, Value]:
    """For each row the column of diagonal `k`, shaped [rows, 1], and the columns [columns]."""
    down = c.emit("range_", start=(k,), size=(rows,), step=1, dtype=I64)
    return c.reshape(down, (rows, 1)), c.emit("range_", start=(0,), size=(columns,), step=1, dtype=I64)


@lowers("Trilu", first=14)
def trilu(c: Lowering) -> Value:
    x = c.x()
    k = c.opt(1)
    offset: Dim = 0 if k is None else c.size(k, "the diagonal", late.ANY)
    rows, columns = c.shape(x)[-2:]
    edge, at = diagonal(c, rows, columns, offset)
    keep = c.emit("less_equal", edge, at) if c.attr_int("upper", 1) else c.emit("less_equal", at, edge)
    return c.emit("where", keep, x, c.number(0, x))
