"""Control flow: operators whose regions run according to data, and may use values of the graphs around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opcel_compiler.ir.dims import Dim, as_symbol, equal
from opcel_compiler.ir.opdef import AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.types import BOOL, TensorType, Type

if TYPE_CHECKING:
    from opcel_compiler.ir.graph import Graph, Node

BRANCHING = frozenset({"if_", "loop"})
"""The operators with regions that run according to data."""


def _given(_: Operands, __: Attrs) -> tuple[Type, ...]:
    raise InferenceError("the types of control flow follow from its regions")


define(
    "if_",
    "The results of the first region where the condition, a tensor of one bool, holds, else those of the second",
    "condition",
    _given,
    results=-1,
    traits="control",
)

define(
    "loop",
    "A region run again and again: it takes the carried values and gives their next ones, then rows. `iteration` is "
    "the symbol that numbers the iterations from 0, `trip` their number, or nothing for no limit. If `conditional`, "
    "the last carried value is a bool tested before each iteration. Results: the last carried values, then the rows, "
    "stacked along a new first axis of `trip` places, those not reached undefined",
    "carried*",
    _given,
    attrs=(AttrDef("iteration", "dims"), AttrDef("trip", "dims", ()), AttrDef("conditional", "bool", False)),
    results=-1,
    traits="control",
)


define(
    "invalid",
    "What a branch that must not be taken would give: to run it is an error, whose text is `reason`",
    "",
    _given,
    attrs=(AttrDef("reason", "str"),),
    results=-1,
    traits="opaque",
)


def if_types(node: Node) -> list[Type]:
    """The result types of an `if_` from its regions. Raises InferenceError where these differ; where they differ in a
    size, types that leave it to a symbol may be given instead."""
    first, second = ([v.type for v in region.outputs] for region in node.regions)
    if len(first) != len(second):
        raise InferenceError(f"the branches give {len(first)} and {len(second)} results")
    for a, b in zip(first, second, strict=True):
        if not same_type(a, b):
            raise InferenceError(f"one branch gives {a}, the other {b}")
    return list(first)


def loop_types(node: Node) -> list[Type]:
    """The result types of a `loop` from its region and trip count. Raises InferenceError for a region that does not
    give the carried values' next ones in their types, and for rows without a limit on their number."""
    (body,), trip = node.regions, node.attrs["trip"]
    count = len(body.inputs)
    for x, y in zip(body.inputs, body.outputs, strict=False):
        if not same_type(x.type, y.type):
            raise InferenceError(f"the carried value %{x.name} is {x.type} before an iteration and {y.type} after it")
    rows = []
    for v in body.outputs[count:]:
        if not isinstance(v.type, TensorType) or v.type.shape is None or not trip:
            raise InferenceError(f"the number or the shape of the rows %{v.name} is not known")
        rows.append(TensorType(v.type.dtype, (trip[0], *v.type.shape)))
    return [*(v.type for v in body.inputs), *rows]


def same_type(a: Type, b: Type) -> bool:
    """Whether two types are provably the same, of tensors of known rank."""
    if not (isinstance(a, TensorType) and isinstance(b, TensorType)) or a.shape is None or b.shape is None:
        return False
    shapes = zip(a.shape, b.shape, strict=False)
    return a.dtype == b.dtype and a.rank == b.rank and all(equal(x, y) is True for x, y in shapes)


def fault(node: Node) -> str | None:
    """What is wrong with the regions or attributes of a node of control flow, or None."""
    if node.op == "if_":
        if len(node.regions) != 2 or any(region.inputs for region in node.regions):
            return "an if_ has two regions without inputs"
        return _condition_fault(node.operand(0).type) or _branches_fault(node)
    if len(node.regions) != 1:
        return f"a loop has one region, not {len(node.regions)}"
    body, attrs = node.regions[0], node.attrs
    if len(attrs["iteration"]) != 1 or as_symbol(attrs["iteration"][0]) is None or len(attrs["trip"]) > 1:
        return "a loop has one iteration symbol and at most one trip count"
    given = [None if v is None else v.type for v in node.operands]
    if len(given) != len(body.inputs) or not all(map(_fits, given, (v.type for v in body.inputs))):
        return "the region takes other types than the loop's operands have"
    if len(body.outputs) < len(body.inputs):
        return f"the region gives {len(body.outputs)} values for {len(body.inputs)} carried ones"
    if attrs["conditional"] and (reason := _condition_fault(body.inputs[-1].type) if body.inputs else "no condition"):
        return reason
    return _types_fault(node, loop_types)


def _fits(a: Type | None, b: Type) -> bool:
    return a is not None and same_type(a, b)


def _condition_fault(t: Type) -> str | None:
    one = isinstance(t, TensorType) and t.dtype == BOOL and t.shape is not None and equal(t.size, 1) is True
    return None if one else f"a condition is one bool, not {t}"


def _branches_fault(node: Node) -> str | None:
    for region in node.regions:
        if len(region.outputs) != len(node.results):
            return f"a branch gives {len(region.outputs)} values, the node has {len(node.results)} results"
        for v, result in zip(region.outputs, node.results, strict=True):
            if not _may_be(v.type, result.type):
                return f"%{result.name} is {result.type}, a branch gives {v.type}"
    return None


def _may_be(a: Type, b: Type) -> bool:
    if not (isinstance(a, TensorType) and isinstance(b, TensorType)) or a.shape is None or b.shape is None:
        return False
    shapes = zip(a.shape, b.shape, strict=False)
    return a.dtype == b.dtype and a.rank == b.rank and all(equal(x, y) is not False for x, y in shapes)


def _types_fault(node: Node, types: object) -> str | None:
    try:
        wanted = types(node)  # type: ignore[operator]
    except InferenceError as e:
        return str(e)
    have = [v.type for v in node.results]
    if len(have) != len(wanted) or not all(map(same_type, have, wanted)):
        return f"its results are {', '.join(map(str, have))}, its regions give {', '.join(map(str, wanted))}"
    return None


def nested(graph: Graph) -> list[Graph]:
    """`graph` and the regions of control flow in it, however deep, each before those inside it."""
    out = [graph]
    for node in graph.nodes:
        if node.op in BRANCHING:
            for region in node.regions:
                out += nested(region)
    return out


def trip_count(node: Node) -> Dim | None:
    """The limit on a loop's iterations, or None."""
    trip: tuple[Dim, ...] = node.attrs["trip"]
    return trip[0] if trip else None
