"""Which values a compiled program can hold, and so pass to and take from another engine."""

from __future__ import annotations

from collections.abc import Callable

from opcel_compiler.ir.analysis import symbols_in
from opcel_compiler.ir.dims import as_symbol
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.types import TensorType, Type

Stuck = Callable[[Type], "str | None"]
"""Why no compiled program can hold a value of a type, or None."""


def bound_symbols(graph: Graph) -> frozenset[str]:
    """The symbols that are sizes of the graph's inputs by themselves, that a node of it reads from a tensor, or that
    number iterations."""
    dims = [d for v in graph.inputs if isinstance(v.type, TensorType) for d in v.type.shape or ()]
    found = {s.name for d in dims if (s := as_symbol(d)) is not None}
    for node in graph.walk():
        if node.op in ("read_dims", "loop"):
            made = node.attrs["symbols" if node.op == "read_dims" else "iteration"]
            found.update(s.name for s in symbols_in(made))
    return frozenset(found)


def stuck_in(graph: Graph) -> Stuck:
    """What decides it for the values of `graph`."""
    bound = bound_symbols(graph)

    def why(t: Type) -> str | None:
        if not isinstance(t, TensorType) or t.dtype.kind == "s":
            return f"is {t}, which no kernel takes"
        if t.shape is None:
            return f"is {t}, a tensor of unknown rank"
        open_ = [s.name for s in symbols_in(t) if s.name not in bound]
        return f"is {t}, and its size {open_[0]} is known only when the model runs" if open_ else None

    return why


def stuck_node(node: Node, stuck: Stuck) -> str | None:
    """Why a node's operands, results or sizes keep it out of a compiled program."""
    for value in (*node.operands, *node.results):
        if value is not None and value.constant is None and (why := stuck(value.type)) is not None:
            return f"%{value.name} {why}"
    return None


def stuck_boundary(graph: Graph) -> str | None:
    """Why a compiled program cannot have the graph's inputs and outputs; None when it can."""
    stuck = stuck_in(graph)
    sides = [("input", v.name, v) for v in graph.inputs]
    sides += [("output", name, v) for v, name in zip(graph.outputs, graph.output_names, strict=True)]
    found = ((side, name, stuck(v.type)) for side, name, v in sides)
    return next((f"the {side} {name!r} {why}" for side, name, why in found if why is not None), None)
