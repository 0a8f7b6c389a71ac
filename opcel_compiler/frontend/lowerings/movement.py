"""Operators that move elements."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers, nonnegative
from opcel_compiler.frontend.lowerings import late
from opcel_compiler.ir.dims import Dim, Expr, bounds, ceildiv, dim_max, dim_min
from opcel_compiler.ir.graph import Value


@lowers("Transpose")
def transpose(c: Lowering) -> Value:
    x = c.x()
    rank = c.rank(x)
    perm = c.attr_ints("perm", tuple(reversed(range(rank))))
    perm = tuple(c.axis(p, rank) for p in perm)
    if sorted(perm) != list(range(rank)):
        raise ModelError(f"node {c.origin!r} (Transpose): perm {list(perm)} is no permutation of {rank} axes")
    return c.transpose(x, perm)


@lowers("Concat")
def concat(c: Lowering) -> Value:
    xs = [c.x(i) for i in range(len(c.inputs))]
    axis = c.axis(c.attr_int("axis"), c.rank(c.x()))
    return xs[0] if len(xs) == 1 else c.emit("concat", *xs, axis=axis)


def clamp(index: Dim, size: Dim, low: Dim, high: Dim) -> Dim:
    """An index of Slice made absolute: negative ones count from the end, then it is cut to [low, high]."""
    if isinstance(index, int):
        if abs(index) >= 1 << 31:
            return high if index > 0 else low
        if index < 0:
            index = size + index
    elif not nonnegative(index):
        _, hi = bounds(index)
        if hi is None or hi >= 0:
            raise Unsupported(f"whether the bound {index} counts from the end depends on the sizes at run time")
        index = size + index
    return dim_min(dim_max(index, low), high)


def slice_axis(size: Dim, start: Dim, end: Dim, step: int) -> tuple[Dim, Dim]:
    """(first element, number of elements) of a slice of one axis, as ONNX defines it."""
    if step > 0:
        first, last = clamp(start, size, 0, size), clamp(end, size, 0, size)
        return first, dim_max(ceildiv(last - first, step), 0)
    first, last = clamp(start, size, 0, size - 1), clamp(end, size, -1, size - 1)
    return first, dim_max(ceildiv(first - last, -step), 0)


@lowers("Slice")
def slice_(c: Lowering) -> Value:
    x = c.x()
    dims = c.shape(x)
    steps: tuple[int, ...] | None = None
    if c.opset < 10:
        starts, ends, axes = c.attr_ints("starts"), c.attr_ints("ends"), c.attr_ints("axes", None)
    else:
        axes_in, steps_in = c.opt(3), c.opt(4)
        if not (c.is_known(c.x(1), c.x(2)) and late.known_axes(c, axes_in) and late.known_axes(c, steps_in)):
            return late.sliced(c, x, c.x(1), c.x(2), axes_in, steps_in)
        starts, ends = c.dims(c.x(1), "the starts"), c.dims(c.x(2), "the ends")
        axes = None if axes_in is None else c.known_ints(axes_in, "the axes")
        steps = None if steps_in is None else c.known_ints(steps_in, "the steps")
    axes = tuple(range(len(starts))) if axes is None else axes
    steps = (1,) * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        given = f"starts {list(starts)}, ends {list(ends)}, axes {list(axes)}, steps {list(steps)}"
        raise ModelError(f"node {c.origin!r} (Slice): {given} do not fit together")
    first: list[Dim] = [0] * len(dims)
    sizes, by = list(dims), [1] * len(dims)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        a = c.axis(axis, len(dims))
        if dims[a] == 0:
            continue
        try:
            first[a], sizes[a] = slice_axis(dims[a], start, end, step)
        except Unsupported:
            if c.opset < 10:
                raise
            return late.sliced(c, x, c.x(1), c.x(2), c.opt(3), c.opt(4))
        by[a] = step
        if sizes[a] == 0:
            first[a] = 0
    if tuple(sizes) == dims and all(d == 0 for d in first) and set(by) <= {1}:
        return x
    return c.emit("slice", x, starts=tuple(first), sizes=tuple(sizes), steps=tuple(by))


@lowers("Split")
def split(c: Lowering) -> list[Value]:
    x = c.x()
    dims = c.shape(x)
    axis = c.axis(c.attr_int("axis", 0), len(dims))
    parts = len(c.node.output)
    given = c.opt(1)
    sizes: Sequence[Dim]
    if c.opset < 13 and c.has("split"):
        sizes = c.attr_ints("split")
    elif c.opset >= 13 and given is not None:
        sizes = c.sizes(given, "the sizes of the parts")
    else:
        each = ceildiv(dims[axis], parts)
        sizes = [*[each] * (parts - 1), dims[axis] - each * (parts - 1)]
    if len(sizes) != parts:
        raise ModelError(f"node {c.origin!r} (Split): {len(sizes)} sizes for {parts} outputs")
    out, at = [], 0
    start: Dim = at
    for size in sizes:
        out.append(c.slice(x, axis, start, size))
        start = start + size
    return out


@lowers("Gather")
def gather(c: Lowering) -> Value:
    x, at = c.x(), c.builder.content(c.x(1))
    axis = c.axis(c.attr_int("axis", 0), c.rank(x))
    if at is not None and at.size == 1 and c.builder.content(x) is None:
        index, shape = at.reshape(-1)[0], c.shape(x)
        if isinstance(index, Expr) and c.builder.in_range(index, shape[axis]):
            return c.reshape(c.slice(x, axis, index, 1), (*shape[:axis], *at.shape, *shape[axis + 1 :]))
    return c.emit("gather", x, c.x(1), axis=axis)


@lowers("GatherElements", first=11)
def gather_elements(c: Lowering) -> Value:
    x = c.x()
    return c.emit("gather_elements", x, c.x(1), axis=c.axis(c.attr_int("axis", 0), c.rank(x)))


@lowers("GatherND", first=11)
def gather_nd(c: Lowering) -> Value:
    return c.emit("gather_nd", c.x(0), c.x(1), batch_dims=c.attr_int("batch_dims", 0))


@lowers("DepthToSpace")
def depth_to_space(c: Lowering) -> Value:
    x, b = c.x(), c.attr_int("blocksize")
    n, channels, h, w = c.shape(x)
    inner = channels // (b * b)
    if c.attr_str("mode", "DCR") == "CRD":
        y = c.transpose(c.reshape(x, (n, inner, b, b, h, w)), (0, 1, 4, 2, 5, 3))
    else:
        y = c.transpose(c.reshape(x, (n, b, b, inner, h, w)), (0, 3, 4, 1, 5, 2))
    return c.reshape(y, (n, inner, h * b, w * b))


@lowers("SpaceToDepth")
def space_to_depth(c: Lowering) -> Value:
    x, b = c.x(), c.attr_int("blocksize")
    n, channels, h, w = c.shape(x)
    perm = (0, 1, 3, 5, 2, 4) if c.attr_str("mode", "DCR") == "CRD" else (0, 3, 5, 1, 2, 4)
    y = c.transpose(c.reshape(x, (n, channels, h // b, b, w // b, b)), perm)
    return c.reshape(y, (n, channels * b * b, h // b, w // b))
