"""Which node first made a value that is not finite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from opcel_compiler.calibrate.accumulate import NonfiniteError
from opcel_compiler.calibrate.samples import first_bad
from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.interpret import run


def first_maker(error: NonfiniteError, graph: Graph, feeds: Mapping[str, np.ndarray]) -> NonfiniteError:
    """The same error with the node that made the first such element on the way to the value, and its coordinate.

    `feeds` are by the names of the graph's inputs. The interpreter runs the sample; where it cannot, or makes no such
    element itself, the error says no more than it did.
    """
    found: dict[str, tuple[tuple[int, ...], float]] = {}

    def note(node: Node, results: Sequence[np.ndarray]) -> None:
        for value, array in zip(node.results, results, strict=True):
            if isinstance(array, np.ndarray) and (at := first_bad(array)) is not None:
                found[value.name] = at, float(array[at])

    try:
        run(graph, feeds, observe=note)
    except OpcelError:
        return error
    value = next((v for v in graph.values() if v.name == error.tensor), None)
    if value is None or value.name not in found:
        return error
    node = _maker(value, set(found))
    at, what = found[node.results[0].name] if node.results[0].name in found else found[value.name]
    label = ", ".join(node.origin[:3]) or node.op
    where = f"its result %{node.results[0].name} is {what} at {list(at)}"
    return NonfiniteError(
        f"{error}; the node {label} ({node.op}) made the first: {where}. Leave the sample out, or use "
        "--on-bad-sample=skip", sample=error.sample, tensor=error.tensor, coordinate=found[value.name][0], node=label,
    )  # fmt: skip


def _maker(value: Value, bad: set[str]) -> Node:
    """The node at the start of a chain of results that are not all finite, ending in `value`."""
    node = value.producer
    assert node is not None
    while True:
        earlier = next(
            (v.producer for v in node.operands if v is not None and v.name in bad and v.producer is not None
             and v.constant is None), None,
        )  # fmt: skip
        if earlier is None:
            return node
        node = earlier
