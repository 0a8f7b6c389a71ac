"""The plan of a quantization from the ranges of its values."""

from __future__ import annotations

from collections.abc import Mapping

from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.quantization import CONVOLUTIONS, DYNAMIC, FLOAT, STATIC, Layer, Plan
from opcel_compiler.ir.thresholds import grid_of
from opcel_compiler.quantization.layers import Candidate, candidates, root, shared_values
from opcel_compiler.targets.schema import Target

Range = tuple[float, float]
CLOSE = 1.6
"""A value and the concat that it is a part of share one grid where the concat's range is at most so much longer: less
than a bit is lost, and the value is rounded once for all its readers."""


def observed_values(graph: Graph, target: Target | None = None) -> dict[str, int | None]:
    """The values whose ranges `make_plan` may ask for, by name, with the axis of their channels counted from the last:
    that over which the layers that read them add up; None where none does."""
    nodes = [c.node for c in candidates(graph, target) if not c.reason]
    out: dict[str, int | None] = {v.name: None for v in shared_values(nodes).all}
    for node in nodes:
        rank = len(node.operand(0).tensor.dims)
        out[root(node.operand(0)).name] = 1 - rank if node.op in CONVOLUTIONS else -1
    return out


def make_plan(
    graph: Graph, ranges: Mapping[str, Range], target: Target | None = None, kept: Mapping[str, str] | None = None,
    dynamic: frozenset[str] = frozenset(),
) -> Plan:  # fmt: skip
    """Every layer quantized that can be. `kept` are layers to stay float with the reasons; `dynamic` those that get a
    scale for each row. A value without a range keeps its readers float."""
    plan, static = Plan(), []
    for candidate in candidates(graph, target):
        name = candidate.name
        reason = candidate.reason or (kept or {}).get(name, "") or _unseen(candidate, ranges, name in dynamic)
        scheme = FLOAT if reason else DYNAMIC if name in dynamic else STATIC
        plan.layers[name] = Layer(scheme, reason)
        if scheme == STATIC:
            static.append(candidate.node)
    shared = shared_values(static)
    own = {v: ranges[v.name] for v in shared.values if v.name in ranges}
    found: dict[Value, Range] = dict(own)
    for v, parts in shared.values.items():
        if v in own and parts:
            for part in parts:
                if part not in own or _close(own[part], own[v]):
                    found[part] = own[v]
    plan.grids = {v.name: grid_of(*r) for v, r in found.items()}
    for node, operands in shared.readers.items():
        if all(root(node.operand(i)) in found for i in operands):
            plan.readers[node.results[0].name] = operands
    return plan


def _unseen(candidate: Candidate, ranges: Mapping[str, Range], dynamic: bool) -> str:
    if dynamic:
        return ""
    v = root(candidate.node.operand(0))
    return "" if v.name in ranges else f"no statistics of {v.name}, which it reads"


def _close(inner: Range, outer: Range) -> bool:
    return outer[1] - outer[0] <= CLOSE * (inner[1] - inner[0])
