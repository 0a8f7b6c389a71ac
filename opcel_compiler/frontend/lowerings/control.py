"""If, Loop and Scan: their graphs become regions, or are inlined where what they depend on is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import GraphProto

from opcel_compiler.frontend.foreign import captured, graphs_of
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.sequence import elements, is_sequence, make, unstack
from opcel_compiler.ir.dims import Dim, as_symbol, bounds, dim_max, equal
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.opdef import InferenceError
from opcel_compiler.ir.ops.control import if_types, loop_types, same_type
from opcel_compiler.ir.types import BOOL, TensorType

NO_LIMIT = 1 << 31
"""From here on a trip count only says that another condition ends the loop."""
UNROLL_TRIPS = 64
UNROLL_NODES = 2048
"""The most iterations and nodes of a loop that is unrolled because it cannot stay one."""

Body = Callable[[Dim, Sequence[Value]], tuple["Value | None", list[Value], list[Value]]]
"""(number of the iteration, carried values) → (whether to go on, or None for always; the next carried values; rows)."""


def known_truth(c: Lowering, value: Value | None) -> bool | None:
    """What a condition is known to be; an absent one holds."""
    if value is None:
        return True
    content = c.builder.content(value)
    return None if content is None or content.size != 1 else bool(content.reshape(-1)[0])


def condition(c: Lowering, value: Value) -> Value:
    t = c.tensor_type(value)
    if t.dtype != BOOL or equal(t.size, 1) is not True:
        raise Unsupported(f"the condition %{value.name} is {t}, not one bool")
    return value


@lowers("If")
def if_(c: Lowering) -> list[Value]:
    graphs = c.graph("then_branch"), c.graph("else_branch")
    known = known_truth(c, c.x())
    if known is not None:
        return c.scope.inner(graphs[0 if known else 1], [], c.origin)
    made: list[Graph] = []
    forms: list[list[int | None]] = []

    def regions(node: Node) -> list[Graph]:
        for name, graph in zip(("then", "otherwise"), graphs, strict=True):
            region = Graph(name, parent=node)
            with c.builder.inside(region):
                values = c.scope.inner(graph, [], c.origin)
                lists = [elements(c, v) if is_sequence(v) else None for v in values]
                forms.append([None if xs is None else len(xs) for xs in lists])
                give(region, [x for v, xs in zip(values, lists, strict=True) for x in (xs if xs is not None else [v])])
            made.append(region)
        if forms[0] != forms[1]:
            raise Unsupported("the branches give sequences of different lengths")
        return made

    try:
        results = iter(c.builder.add("if_", [condition(c, c.x())], {}, c.origin, if_types, regions).results)
    except BaseException:
        for region in made:
            region.clear()
        raise
    out = []
    for form in forms[0]:
        xs = [next(results) for _ in range(1 if form is None else form)]
        if form == 0:
            raise Unsupported("the branches give an empty sequence")
        out.append(xs[0] if form is None else make(c, xs, c.dtype(xs[0])))
    return out


def give(region: Graph, values: Sequence[Value]) -> None:
    for i, v in enumerate(values):
        if not isinstance(v.type, TensorType) or v.type.shape is None:
            raise Unsupported(f"%{v.name}, a result of a graph inside, is {v.type}, not a tensor of known rank")
        region.add_output(v, f"out{i}")


# -- loops -------------------------------------------------------------------------------------------------------------


def loop_over(
    c: Lowering, trip: Dim | None, go_on: Value | None, initial: Sequence[Value], body: Body, wanted: Sequence[bool]
) -> list[Value | None]:
    """The carried values after the last iteration and the stacked rows of `body`, run at most `trip` times (None: no
    limit) while the condition holds that it gives, `go_on` before the first. `wanted` tells which rows are. A loop that
    cannot stay one is unrolled where it has few iterations."""
    return _or_unrolled(
        c, trip, go_on, lambda: _rolled(c, trip, go_on, initial, body, wanted),
        lambda count: _unrolled(c, count, initial, body, wanted),
    )  # fmt: skip


def _or_unrolled(
    c: Lowering, trip: Dim | None, go_on: Value | None, rolled: Callable[[], list[Value | None]],
    unrolled: Callable[[int], list[Value | None]],
) -> list[Value | None]:  # fmt: skip
    mark = c.builder.mark()
    try:
        return rolled()
    except (Unsupported, InferenceError, ValueError) as e:
        starts = known_truth(c, go_on)
        if not isinstance(trip, int) or trip > UNROLL_TRIPS or starts is None:
            raise
        c.builder.undo(mark)
        try:
            return unrolled(trip if starts else 0)
        except Unsupported:
            raise e from None


def _rolled(
    c: Lowering, trip: Dim | None, go_on: Value | None, initial: Sequence[Value], body: Body, wanted: Sequence[bool]
) -> list[Value | None]:
    b = c.builder
    starts = known_truth(c, go_on)
    trip = 0 if starts is False else trip
    iteration = b.symbols.iteration(trip - 1 if isinstance(trip, int) and trip > 0 else None)
    if trip is not None and (symbol := as_symbol(iteration)) is not None:
        b.trips[symbol.name] = trip
    holder = Node(b.graph, "loop", {}, ())
    region = Graph("body", parent=holder)
    with b.inside(region):
        carried = [region.add_input(v.name, c.tensor_type(v)) for v in initial]
        more, following, rows = body(iteration, carried)
        conditional = starts is None or known_truth(c, more) is not True
        operands = list(initial)
        for v in following:
            if not isinstance(v.type, TensorType):
                raise Unsupported(f"the carried value %{v.name} is {v.type}, not a tensor")
        if conditional:
            if any(wanted):
                raise Unsupported("how many rows the loop gives is known only when its condition ends it")
            first = c.constant(np.array(True)) if go_on is None else condition(c, go_on)
            operands.append(first)
            region.add_input("condition", first.type)
            more = c.constant(np.array(True)) if more is None else condition(c, more)
            following = [*following, c.reshape(more, c.shape(first))]
        give(region, [*following, *(v for v, use in zip(rows, wanted, strict=True) if use)])
        for before, after in zip(region.inputs, region.outputs, strict=False):
            if not same_type(before.type, after.type):
                raise Unsupported(
                    f"the carried value %{before.name} is {before.type} before an iteration and {after.type} after it"
                )

    def adopt(node: Node) -> list[Graph]:
        region.parent = node
        return [region]

    attrs = {"iteration": (iteration,), "trip": () if trip is None else (trip,), "conditional": conditional}
    try:
        results = list(b.add("loop", operands, attrs, c.origin, loop_types, adopt).results)
    except InferenceError:
        region.clear()
        raise
    count = len(initial)
    stacked = iter(results[count + conditional :])
    return [*results[:count], *(next(stacked) if use else None for use in wanted)]


def _unrolled(
    c: Lowering, trip: int, initial: Sequence[Value], body: Body, wanted: Sequence[bool]
) -> list[Value | None]:
    values, stacks = list(initial), [[] for _ in wanted]  # type: tuple[list[Value], list[list[Value]]]
    first = c.builder.mark()
    for i in range(trip):
        more, values, rows = body(i, values)
        for stack, row in zip(stacks, rows, strict=True):
            stack.append(c.reshape(row, (1, *c.shape(row))))
        going = known_truth(c, more)
        if going is None:
            raise Unsupported("whether the loop goes on depends on data")
        if c.builder.mark() - first > UNROLL_NODES:
            raise Unsupported(f"unrolled, it has more than {UNROLL_NODES} nodes")
        if not going:
            break
    if any(use and not stack for use, stack in zip(wanted, stacks, strict=True)):
        raise Unsupported("a loop without iterations gives rows of unknown shape")
    out: list[Value | None] = list(values)
    for use, stack in zip(wanted, stacks, strict=True):
        out.append(None if not use else stack[0] if len(stack) == 1 else c.emit("concat", *stack, axis=0))
    return out


@lowers("Loop")
def loop(c: Lowering) -> list[Value | None]:
    graph, given = c.graph("body"), c.inputs[2:]
    if any(v is None for v in given):
        raise Unsupported("a carried value has no initial one")
    initial = [v for v in given if v is not None]
    limit = c.opt(0)
    trip: Dim | None = None
    if limit is not None:
        (trip,) = c.dims(limit, "the trip count")
        trip = None if isinstance(trip, int) and trip >= NO_LIMIT else trip if _positive(trip) else dim_max(trip, 0)
    count = len(initial)
    same, grown = _unchanged(graph, count), _appended(graph, initial)
    moving = [v for i, v in enumerate(initial) if i not in same and i not in grown]
    wanted = [c.wants(i) for i in range(count, len(graph.output) - 1)]

    def run(iteration: Dim, args: Sequence[Value]) -> tuple[Value, list[Value], list[Value]]:
        given = [c.of_dims([iteration], scalar=True), c.constant(np.array(True)), *args]
        out = c.scope.inner(graph, given, c.origin)
        return out[0], out[1 : 1 + count], out[1 + count :]

    def body(iteration: Dim, carried: Sequence[Value]) -> tuple[Value | None, list[Value], list[Value]]:
        values = iter(carried)
        more, following, rows = run(iteration, [v if i in same or i in grown else next(values) for i, v in numbered])
        added = [elements(c, following[i])[-1] for i in grown]
        return more, [v for i, v in enumerate(following) if i not in same and i not in grown], [*added, *rows]

    def rolled() -> list[Value | None]:
        found = iter(_rolled(c, trip, c.opt(1), moving, body, [*[True] * len(grown), *wanted]))
        ends = {i: next(found) for i, _ in numbered if i not in same and i not in grown}
        for i in grown:
            rows = next(found)
            assert rows is not None
            ends[i] = unstack(c, rows)
        return [*(v if i in same else ends[i] for i, v in numbered), *found]

    numbered = list(enumerate(initial))
    return _or_unrolled(c, trip, c.opt(1), rolled, lambda times: _unrolled(c, times, initial, run, wanted))


def _appended(graph: GraphProto, initial: Sequence[Value]) -> list[int]:
    """The carried values that begin as an empty sequence and to whose end a body only adds, one element each time."""
    out = []
    for i, value in enumerate(initial):
        if not is_sequence(value) or value.producer is None or value.producer.operands or 1 + i >= len(graph.output):
            continue
        name = graph.input[2 + i].name if 2 + i < len(graph.input) else ""
        users = [n for n in graph.node if name in n.input or (graphs_of(n) and name in captured(n))]
        adds = [n for n in users if n.op_type == "SequenceInsert" and list(n.input[:1]) == [name] and not n.input[2:]]
        if len(users) == len(adds) == 1 and adds[0].output[0] == graph.output[1 + i].name and adds[0].input[1] != name:
            out.append(i)
    return out


def _positive(d: Dim) -> bool:
    low = bounds(d)[0]
    return low is not None and low >= 0


def _unchanged(graph: GraphProto, count: int) -> set[int]:
    """The carried values that a body hands on as they are."""
    copies = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity" and not n.domain}
    out = set()
    for i in range(count):
        if 1 + i >= len(graph.output) or 2 + i >= len(graph.input):
            break
        name = graph.output[1 + i].name
        for _ in copies:
            name = copies.get(name, name)
        if name == graph.input[2 + i].name:
            out.add(i)
    return out


# -- scans -------------------------------------------------------------------------------------------------------------


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
