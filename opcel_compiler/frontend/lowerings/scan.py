"""Scan: a loop over slices of its inputs."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.control import loop_over
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Value


def element(c: Lowering, x: Value, axis: int, at: Dim) -> Value:
    """x[..., at, ...] along `axis`, which goes."""
    shape = c.shape(x)
    return c.reshape(c.slice(x, axis, at, 1), (*shape[:axis], *shape[axis + 1 :]))


def _lengths(c: Lowering, xs: Sequence[Value], axes: Sequence[int]) -> Dim:
    sizes = [c.shape(x)[axis] for x, axis in zip(xs, axes, strict=True)]
    return next((s for s in sizes if isinstance(s, int)), sizes[0])


@lowers("Scan", first=8)
def scan(c: Lowering) -> list[Value | None]:
    if c.opset < 9:
        return _scan_batches(c)
    graph, count = c.graph("body"), c.attr_int("num_scan_inputs")
    given = [c.x(i) for i in range(len(c.inputs))]
    initial, xs = given[: len(given) - count], given[len(given) - count :]
    outputs = len(graph.output) - len(initial)
    axes = [c.axis(a, c.rank(x)) for a, x in zip(c.attr_ints("scan_input_axes", (0,) * count), xs, strict=True)]
    backwards = c.attr_ints("scan_input_directions", (0,) * count)
    trip = _lengths(c, xs, axes)

    def body(iteration: Dim, carried: Sequence[Value]) -> tuple[Value | None, list[Value], list[Value]]:
        parts = [
            element(c, x, axis, trip - 1 - iteration if back else iteration)
            for x, axis, back in zip(xs, axes, backwards, strict=True)
        ]
        out = c.scope.inner(graph, [*carried, *parts], c.origin)
        return None, out[: len(initial)], out[len(initial) :]

    wanted = [c.wants(len(initial) + i) for i in range(outputs)]
    found = loop_over(c, trip, None, initial, body, wanted)
    rows: list[Value | None] = []
    for i, v in enumerate(found[len(initial) :]):
        if v is not None:
            to = c.axis(c.attr_ints("scan_output_axes", (0,) * outputs)[i], c.rank(v))
            if c.attr_ints("scan_output_directions", (0,) * outputs)[i]:
                v = _reversed(c, v)
            order = list(range(1, c.rank(v)))
            v = c.transpose(v, [*order[:to], 0, *order[to:]])
        rows.append(v)
    return [*found[: len(initial)], *rows]


def _reversed(c: Lowering, x: Value) -> Value:
    shape = c.shape(x)
    starts, steps = (shape[0] - 1, *[0] * (len(shape) - 1)), (-1, *[1] * (len(shape) - 1))
    return c.emit("slice", x, starts=starts, sizes=shape, steps=steps)


def _scan_batches(c: Lowering) -> list[Value | None]:
    """Every state and input has a batch axis in front, and the scan axis after it."""
    if c.opt(0) is not None:
        raise Unsupported("its sequences have lengths of their own")
    graph, count = c.graph("body"), c.attr_int("num_scan_inputs")
    given = [c.x(i) for i in range(1, len(c.inputs))]
    states = len(given) - count
    backwards = c.attr_ints("directions", (0,) * count)
    trip = _lengths(c, given[states:], [1] * count)
    wanted = [c.wants(i) for i in range(len(graph.output))]

    def one(batch: Dim, _: Sequence[Value]) -> tuple[Value | None, list[Value], list[Value]]:
        parts = [element(c, x, 0, batch) for x in given]

        def body(iteration: Dim, carried: Sequence[Value]) -> tuple[Value | None, list[Value], list[Value]]:
            rows = [
                element(c, x, 0, trip - 1 - iteration if back else iteration)
                for x, back in zip(parts[states:], backwards, strict=True)
            ]
            out = c.scope.inner(graph, [*carried, *rows], c.origin)
            return None, out[:states], out[states:]

        found = loop_over(c, trip, None, parts[:states], body, [True] * (len(graph.output) - states))
        return None, [], [v for v in found if v is not None]

    batches = _lengths(c, given, [0] * len(given))
    return loop_over(c, batches, None, [], one, wanted)
