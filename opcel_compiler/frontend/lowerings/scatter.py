"""Operators that write at places computed at run time, and those that read at such places along a sequence."""

from __future__ import annotations

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.dims import Dim, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import I64


@lowers("ScatterElements", first=11)
@lowers("Scatter", first=9, last=10)
def scatter_elements(c: Lowering) -> Value:
    x, axis = c.x(), c.axis(c.attr_int("axis", 0), c.rank(c.x()))
    return c.emit("scatter_elements", x, c.x(1), c.x(2), axis=axis, reduction=c.attr_str("reduction", "none"))


@lowers("ScatterND", first=11)
def scatter_nd(c: Lowering) -> Value:
    return c.emit("scatter_nd", c.x(0), c.x(1), c.x(2), reduction=c.attr_str("reduction", "none"))


def numbers(c: Lowering, count: Dim, axis: int, rank: int) -> Value:
    """0, 1, … count - 1 as i64 along one axis of a tensor of `rank`, whose other axes have size 1."""
    line = c.emit("range_", start=(0,), size=(count,), step=1, dtype=I64)
    return c.reshape(line, [count if i == axis else 1 for i in range(rank)])


def index_vectors(c: Lowering, parts: list[Value], shape: tuple[Dim, ...]) -> Value:
    """Index vectors [*shape, n] from their n entries, each of a shape that broadcasts to `shape`."""
    columns = [c.reshape(c.emit("expand", p, shape=shape), (*shape, 1)) for p in parts]
    return columns[0] if len(columns) == 1 else c.emit("concat", *columns, axis=len(shape))


@lowers("TensorScatter", first=24)
def tensor_scatter(c: Lowering) -> Value:
    """Each batch's updates along one axis from its own position on; circular: past the end, from the front again."""
    x, updates, starts = c.x(0), c.x(1), c.opt(2)
    dims, mode = c.shape(x), c.attr_str("mode", "linear")
    if mode not in ("linear", "circular"):
        raise ModelError(f"node {c.origin!r} (TensorScatter): mode {mode!r} is unknown")
    axis = c.axis(c.attr_int("axis", -2), len(dims))
    if axis == 0:
        raise ModelError(f"node {c.origin!r} (TensorScatter): axis 0 is the batch, along which nothing is scattered")
    lead = c.shape(updates)[: axis + 1]
    place = numbers(c, lead[axis], axis, axis + 1)
    if starts is not None:
        start = c.reshape(c.cast(starts, I64), (lead[0], *([1] * axis)))
        place = c.emit("add", start, place)
    if mode == "circular":
        place = c.emit("mod", place, c.of_dims([dims[axis]], scalar=True))
    parts = [numbers(c, lead[i], i, axis + 1) for i in range(axis)]
    return c.emit("scatter_nd", x, index_vectors(c, [*parts, place], lead), updates)


@lowers("ReverseSequence", first=10)
def reverse_sequence(c: Lowering) -> Value:
    """The first `sequence_lens` elements of each batch in reverse order, those after them as they are."""
    x, lengths = c.x(0), c.x(1)
    time, batch = c.attr_int("time_axis", 0), c.attr_int("batch_axis", 1)
    if sorted((time, batch)) != [0, 1]:
        raise Unsupported(f"time_axis {time} and batch_axis {batch} have no lowering")
    lead = c.shape(x)[:2]
    steps = numbers(c, lead[time], time, 2)
    ends = c.reshape(c.cast(lengths, I64), [lead[batch] if i == batch else 1 for i in range(2)])
    mirrored = c.emit("sub", c.emit("sub", ends, c.number(1, ends)), steps)
    places = c.emit("where", c.emit("less", steps, ends), mirrored, steps)
    parts = [places, numbers(c, lead[batch], batch, 2)]
    return c.emit("gather_nd", x, index_vectors(c, parts if time == 0 else parts[::-1], lead), batch_dims=0)


@lowers("ArrayFeatureExtractor", domain="ai.onnx.ml", first=1)
def array_feature_extractor(c: Lowering) -> Value:
    """Elements of the last axis; a vector becomes one row."""
    x, index = c.x(0), c.x(1)
    y = c.emit("gather", x, c.reshape(index, (product(c.shape(index)),)), axis=c.rank(x) - 1)
    return y if c.rank(x) > 1 else c.reshape(y, (1, *c.shape(y)))
