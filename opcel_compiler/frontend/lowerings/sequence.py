"""Sequences of known length become lists of values here, optionals what they hold; nothing is left of either unless
the model takes or gives one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, DType, OptionalType, SequenceType, TensorType

MAX_PARTS = 4096
"""The longest sequence that is taken apart."""


def is_sequence(value: Value) -> bool:
    return isinstance(value.type, SequenceType)


def stacked(value: Value) -> Value | None:
    """The tensor whose parts along its first axis are the elements of a sequence, where there is one."""
    node = value.producer
    return node.operand(0) if node is not None and node.op == "sequence" and node.attrs["stacked"] else None


def elements(c: Lowering, value: Value) -> list[Value]:
    """The elements of a sequence of known length. Raises Unsupported for another."""
    node = value.producer
    if node is None or node.op != "sequence":
        raise Unsupported(f"the elements of the sequence %{value.name} are known only when the model runs")
    rows = stacked(value)
    if rows is None:
        return [v for v in node.operands if v is not None]
    count = c.shape(rows)[0]
    if not isinstance(count, int) or count > MAX_PARTS:
        raise Unsupported(f"the sequence %{value.name} has {count} elements")
    return [part(c, rows, i) for i in range(count)]


def part(c: Lowering, rows: Value, at: Dim) -> Value:
    shape = c.shape(rows)
    return c.reshape(c.slice(rows, 0, at, 1), shape[1:])


def make(c: Lowering, values: Sequence[Value], dtype: DType) -> Value:
    """The sequence of these tensors."""
    for v in values:
        c.tensor_type(v)
    return c.emit("sequence", *values, dtype=dtype)


def unstack(c: Lowering, rows: Value) -> Value:
    return c.emit("sequence", rows, dtype=c.dtype(rows), stacked=True)


def element_type(value: Value) -> DType:
    t = value.type.element if isinstance(value.type, SequenceType) else value.type
    if not isinstance(t, TensorType):
        raise Unsupported(f"%{value.name} is {value.type}, not a sequence of tensors")
    return t.dtype


def position(c: Lowering, i: int, count: int, last: int) -> int:
    """Input `i`, a place among `count`, from 0; `last` is the highest that there may be."""
    (at,) = c.known_ints(c.x(i), "the position")
    if not -count <= at <= last:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): position {at} in a sequence of {count} elements")
    return at + count if at < 0 else at


@lowers("SequenceEmpty", first=11)
def sequence_empty(c: Lowering) -> Value:
    return make(c, [], c.attr_dtype("dtype", F32))


@lowers("SequenceConstruct", first=11)
def sequence_construct(c: Lowering) -> Value:
    xs = [c.x(i) for i in range(len(c.inputs))]
    return make(c, xs, c.dtype(xs[0]))


@lowers("SequenceInsert", first=11)
def sequence_insert(c: Lowering) -> Value:
    xs = elements(c, c.x())
    at = len(xs) if c.opt(2) is None else position(c, 2, len(xs), len(xs))
    return make(c, [*xs[:at], c.x(1), *xs[at:]], c.dtype(c.x(1)))


@lowers("SequenceErase", first=11)
def sequence_erase(c: Lowering) -> Value:
    xs = elements(c, c.x())
    at = len(xs) - 1 if c.opt(1) is None else position(c, 1, len(xs), len(xs) - 1)
    return make(c, [*xs[:at], *xs[at + 1 :]], element_type(c.x()))


@lowers("SequenceAt", first=11)
def sequence_at(c: Lowering) -> Value:
    rows, at = stacked(c.x()), c.builder.content(c.x(1))
    counted = rows is None or isinstance(c.shape(rows)[0], int)
    if rows is not None and (at is None or not counted or not isinstance(at.reshape(-1)[0], int)):
        return c.emit("gather", rows, c.reshape(c.x(1), ()), axis=0)
    xs = elements(c, c.x())
    if at is None:
        kinds = {c.tensor_type(v) for v in xs}
        if len(kinds) != 1:
            raise Unsupported("which element of a sequence is taken depends on data, and their shapes differ")
        return c.emit("gather", stack(c, xs, 0), c.reshape(c.x(1), ()), axis=0)
    return xs[position(c, 1, len(xs), len(xs) - 1)]


def stack(c: Lowering, xs: Sequence[Value], axis: int) -> Value:
    parts = [c.reshape(v, (*c.shape(v)[:axis], 1, *c.shape(v)[axis:])) for v in xs]
    return parts[0] if len(parts) == 1 else c.emit("concat", *parts, axis=axis)


@lowers("SequenceLength", first=11)
def sequence_length(c: Lowering) -> Value:
    rows = stacked(c.x())
    return c.of_dims([c.shape(rows)[0] if rows is not None else len(elements(c, c.x()))], scalar=True)


@lowers("SplitToSequence", first=11)
def split_to_sequence(c: Lowering) -> Value:
    x, given = c.x(), c.opt(1)
    axis, dims = c.axis(c.attr_int("axis", 0), c.rank(x)), c.shape(x)
    size = dims[axis]
    if given is None:
        if not c.attr_int("keepdims", 1):
            order = [axis, *(i for i in range(len(dims)) if i != axis)]
            return unstack(c, c.transpose(x, order))
        sizes: tuple[Dim, ...] = (1,) * _count(size)
    elif c.rank(given) == 0:
        (each,) = c.known_ints(given, "the size of the parts")
        if each < 1:
            raise ModelError(f"node {c.origin!r} (SplitToSequence): parts of size {each}")
        total = _count(size)
        sizes = tuple(min(each, total - at) for at in range(0, total, each))
    else:
        sizes = c.sizes(given, "the sizes of the parts")
    out: list[Value] = []
    at: Dim = 0
    for n in sizes:
        out.append(c.slice(x, axis, at, n))
        at = at + n
    return make(c, out, c.dtype(x))


def _count(size: Dim) -> int:
    if not isinstance(size, int) or size > MAX_PARTS:
        raise Unsupported(f"an axis of size {size} is split into a sequence")
    return size


@lowers("ConcatFromSequence", first=11)
def concat_from_sequence(c: Lowering) -> Value:
    rows, new = stacked(c.x()), c.attr_int("new_axis", 0)
    if rows is not None:
        shape = c.shape(rows)
        axis = c.axis(c.attr_int("axis"), len(shape) - 1 + new)
        order = [*range(1, axis + 1), 0, *range(axis + 1, len(shape))]
        moved = c.transpose(rows, order)
        if new:
            return moved
        inner = shape[1:]
        return c.reshape(moved, (*inner[:axis], shape[0] * inner[axis], *inner[axis + 1 :]))
    xs = elements(c, c.x())
    if not xs:
        raise Unsupported("an empty sequence is concatenated")
    axis = c.axis(c.attr_int("axis"), c.rank(xs[0]) + new)
    if new:
        return stack(c, xs, axis)
    return xs[0] if len(xs) == 1 else c.emit("concat", *xs, axis=axis)


@lowers("SequenceMap", first=17)
def sequence_map(c: Lowering) -> list[Value]:
    """The body once for each element; tensors besides the first sequence go to every one."""
    body, inputs = c.graph("body"), [c.x(i) for i in range(len(c.inputs))]
    lists = [elements(c, v) if is_sequence(v) else None for v in inputs]
    count = len(lists[0] or [])
    if not count or any(xs is not None and len(xs) != count for xs in lists):
        raise Unsupported(f"sequences of {', '.join(str(len(xs)) for xs in lists if xs is not None)} elements")
    results: list[list[Value]] = [[] for _ in body.output]
    for i in range(count):
        given = [v if xs is None else xs[i] for v, xs in zip(inputs, lists, strict=True)]
        for values, v in zip(results, c.scope.inner(body, given, c.origin), strict=True):
            values.append(v)
    return [make(c, values, c.dtype(values[0])) for values in results]


# -- optionals ---------------------------------------------------------------------------------------------------------


@lowers("Optional", first=15)
def optional(c: Lowering) -> Value:
    if c.opt(0) is None:
        raise Unsupported("an optional that holds nothing")
    return c.x()


@lowers("OptionalGetElement", first=15)
def optional_get_element(c: Lowering) -> Value:
    if isinstance(c.x().type, OptionalType):
        raise Unsupported(f"whether %{c.x().name} holds something is known only when the model runs")
    return c.x()


@lowers("OptionalHasElement", first=15)
def optional_has_element(c: Lowering) -> Value:
    value = c.opt(0)
    if value is not None and isinstance(value.type, OptionalType):
        raise Unsupported(f"whether %{value.name} holds something is known only when the model runs")
    return c.constant(np.array(value is not None))
