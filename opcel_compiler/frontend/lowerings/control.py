"""If and Loop: their graphs become regions, or are inlined where what they depend on is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import GraphProto

from opcel_compiler.frontend.foreign import captured, graphs_of
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Invalid, Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.sequence import elements, is_sequence, make, unstack
from opcel_compiler.ir.analysis import made_symbols, symbols_in
from opcel_compiler.ir.dims import Dim, Symbol, as_symbol, bounds, dim_max, equal, product, substitute
from opcel_compiler.ir.extremes import Ends, extreme
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.opdef import InferenceError
from opcel_compiler.ir.ops.control import loop_types, same_type
from opcel_compiler.ir.types import BOOL, I64, TensorType, Type, tensor

NO_LIMIT = 1 << 31
"""From here on a trip count only says that another condition ends the loop."""
SAMPLED = 4
"""Iterations of which the sizes are compared before those of all are taken to be equal."""
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
    if equal(t.size, 1) is False:
        raise ModelError(
            f"node {c.origin!r} ({c.op_type}): the condition %{value.name} is {t}, and must be one bool; reduce it to "
            "one, with ReduceMin or ReduceMax on a cast of it"
        )
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
    wrong: dict[Graph, str] = {}

    def regions(node: Node) -> list[Graph]:
        for name, graph in zip(("then", "otherwise"), graphs, strict=True):
            region = Graph(name, parent=node)
            made.append(region)
            try:
                with c.builder.inside(region):
                    values = c.scope.inner(graph, [], c.origin)
                    lists = [elements(c, v) if is_sequence(v) else None for v in values]
                    give(region, [x for v, xs in zip(values, lists, strict=True) for x in ([v] if xs is None else xs)])
            except Invalid as e:
                wrong[region] = str(e)
                continue
            forms.append([None if xs is None else len(xs) for xs in lists])
        for region, reason in wrong.items():
            (other,) = (g for g in made if g is not region)
            if other in wrong or _made_in(other) & {s for v in other.outputs for s in symbols_in(v.type)}:
                raise Unsupported(reason)
            with c.builder.inside(region):
                give(
                    region,
                    c.builder.add("invalid", (), {"reason": reason}, c.origin, [v.type for v in other.outputs]).results,
                )
        if forms[0] != forms[-1]:
            raise Unsupported("the branches give sequences of different lengths")
        return made

    test = condition(c, c.x())
    try:
        results = iter(c.builder.add("if_", [test], {}, c.origin, lambda _: _joined(c, test, made), regions).results)
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


def _joined(c: Lowering, test: Value, branches: Sequence[Graph]) -> list[Type]:
    """The types of what an If gives. Sizes that differ between its branches are chosen by its condition beforehand."""
    inside = _made_in(*branches)
    out: list[Type] = []
    for a, b in zip(*(region.outputs for region in branches), strict=True):
        s, t = c.tensor_type(a), c.tensor_type(b)
        open_ = [i for i, (x, y) in enumerate(zip(s.dims, t.dims, strict=False)) if equal(x, y) is not True]
        if s.dtype != t.dtype or s.rank != t.rank:
            raise Unsupported(f"one branch gives {s}, the other {t}")
        if any(found in inside for i in open_ for found in symbols_in((s.dims[i], t.dims[i]))):
            raise Unsupported(f"one branch gives {s}, the other {t}, and the sizes are known only inside them")
        dims = list(s.dims)
        if open_:
            sizes = [c.of_dims([dims_[i] for i in open_]) for dims_ in (s.dims, t.dims)]
            chosen = c.sizes(c.emit("where", c.reshape(test, (1,)), *sizes), "the sizes of a branch's result")
            for i, d in zip(open_, chosen, strict=True):
                dims[i] = d
        out.append(TensorType(s.dtype, tuple(dims)))
    return out


def _made_in(*regions: Graph) -> set[Symbol]:
    """The symbols that nodes of regions make, or number iterations with."""
    nodes = [node for region in regions for node in region.walk()]
    numbers = {s for node in nodes if node.op == "loop" for s in symbols_in(node.attrs["iteration"])}
    return numbers | {s for node in nodes for s in made_symbols(node)}


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
        following, rows = [_settled(c, v, iteration) for v in following], [_settled(c, v, iteration) for v in rows]
        _check_limits(region, iteration, trip)
        conditional = starts is None or known_truth(c, more) is not True
        for v in following:
            if not isinstance(v.type, TensorType):
                raise Unsupported(f"the carried value %{v.name} is {v.type}, not a tensor")
        counted = conditional and any(wanted)
        if counted:
            if trip is None:
                raise Unsupported("a loop without a limit gives rows, and how many is known only when it ends")
            region.add_input("count", tensor(I64))
            following = [*following, c.of_dims([iteration + 1], scalar=True)]
        if conditional:
            test = tensor(BOOL) if go_on is None else condition(c, go_on).tensor
            region.add_input("condition", test)
            more = c.constant(np.array(True)) if more is None else condition(c, more)
            following = [*following, c.reshape(more, test.dims)]
        give(region, [*following, *(v for v, use in zip(rows, wanted, strict=True) if use)])
        for before, after in zip(region.inputs, region.outputs, strict=False):
            if not same_type(before.type, after.type):
                raise Unsupported(
                    f"the carried value %{before.name} is {before.type} before an iteration and {after.type} after it"
                )

    operands = [*initial, *([c.constant(np.array(0))] if counted else [])]
    if conditional:
        operands.append(c.constant(np.array(True)) if go_on is None else go_on)

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
    rows = results[count + counted + conditional :]
    if counted:
        done = c.size(results[count], "the number of iterations", 0, trip if isinstance(trip, int) else None)
        rows = [c.slice(v, 0, 0, done) for v in rows]
    stacked = iter(rows)
    return [*results[:count], *(next(stacked) if use else None for use in wanted)]


def _settled(c: Lowering, value: Value, iteration: Dim) -> Value:
    """A value of a body without the number of the iteration in its sizes, where these look the same in the first ones;
    a run checks that they are in all."""
    t, symbol = value.type, as_symbol(iteration)
    if symbol is None or not isinstance(t, TensorType) or t.shape is None or symbol not in symbols_in(t):
        return value
    shapes = [tuple(substitute(d, {symbol.name: i}) for d in t.shape) for i in range(SAMPLED)]
    if any(shape != shapes[0] for shape in shapes):
        raise Unsupported(f"%{value.name} is {t}, which changes with the iteration {symbol}")
    return c.reshape(value, shapes[0])


def _check_limits(region: Graph, iteration: Dim, trip: Dim | None) -> None:
    symbol = as_symbol(iteration)
    assert symbol is not None
    ends: Ends = {symbol.name: (0, None if trip is None else trip - 1)}
    for node in region.walk():
        for v in node.results:
            if isinstance(v.type, TensorType) and v.type.shape is not None and symbol in symbols_in(v.type):
                if extreme(product(v.type.shape), ends, True) is None:
                    raise Unsupported(f"%{v.name} is {v.type}, of which no limit is known before the loop runs")


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
    limit, go_on = c.opt(0), c.opt(1)
    trip: Dim | None = None
    if limit is not None:
        if go_on is not None and known_truth(c, go_on) is None and _going_on(graph):
            one, go_on = c.reshape(condition(c, go_on), ()), None
            limit = c.emit("where", one, c.reshape(limit, ()), c.number(0, limit))
        if not c.is_known(limit):
            limit = c.emit("max", limit, c.number(0, limit))
        trip = c.size(limit, "the trip count")
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
        found = iter(_rolled(c, trip, go_on, moving, body, [*[True] * len(grown), *wanted]))
        ends = {i: next(found) for i, _ in numbered if i not in same and i not in grown}
        for i in grown:
            rows = next(found)
            assert rows is not None
            ends[i] = unstack(c, rows)
        return [*(v if i in same else ends[i] for i, v in numbered), *found]

    numbered = list(enumerate(initial))
    return _or_unrolled(c, trip, go_on, rolled, lambda times: _unrolled(c, times, initial, run, wanted))


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


def _going_on(graph: GraphProto) -> bool:
    """Whether a body hands its condition on as it is, so that only the first one counts."""
    name, copies = graph.output[0].name, _copies(graph)
    for _ in copies:
        name = copies.get(name, name)
    return len(graph.input) > 1 and name == graph.input[1].name


def _copies(graph: GraphProto) -> dict[str, str]:
    return {n.output[0]: n.input[0] for n in graph.node if n.op_type == "Identity" and not n.domain}


def _positive(d: Dim) -> bool:
    low = bounds(d)[0]
    return low is not None and low >= 0


def _unchanged(graph: GraphProto, count: int) -> set[int]:
    """The carried values that a body hands on as they are."""
    copies = _copies(graph)
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
