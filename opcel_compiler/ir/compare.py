"""Structural equality of graphs."""

from __future__ import annotations

import struct
from typing import Any

from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.text import print_node


def equal(a: Graph, b: Graph, *, names: bool = False, origins: bool = False) -> str | None:
    """None when the graphs have the same inputs, nodes (in the same order), regions and outputs up to the names of
    values, else the first difference. With `names` the names of inputs and outputs must agree too, with `origins`
    the nodes' origins."""
    return _Comparison(names, origins).graphs(a, b, "")


class _Comparison:
    def __init__(self, names: bool, origins: bool) -> None:
        self.names = names
        self.origins = origins
        self.match: dict[Value, Value] = {}

    def graphs(self, a: Graph, b: Graph, where: str) -> str | None:
        if len(a.inputs) != len(b.inputs):
            return f"{where}{len(a.inputs)} inputs, not {len(b.inputs)}"
        for i, (x, y) in enumerate(zip(a.inputs, b.inputs, strict=True)):
            if x.type != y.type:
                return f"{where}input {i} is {x}, not {y}"
            if self.names and x.name != y.name:
                return f"{where}input {i} is named {x.name}, not {y.name}"
            self.match[x] = y
        left, right = list(a.nodes), list(b.nodes)
        for i, (m, n) in enumerate(zip(left, right, strict=False)):
            if reason := self.nodes(m, n):
                return f"{where}node {i}: {reason}\n  {print_node(m)}\n  {print_node(n)}"
            for j, (r, s) in enumerate(zip(m.regions, n.regions, strict=True)):
                if reason := self.graphs(r, s, f"{where}node {i}, region {j}: "):
                    return reason
            self.match.update(zip(m.results, n.results, strict=True))
        if len(left) != len(right):
            longer, which = (left, "first") if len(left) > len(right) else (right, "second")
            extra = longer[min(len(left), len(right))]
            return f"{where}{len(left)} nodes, not {len(right)}; only the {which} has\n  {print_node(extra)}"
        if len(a.outputs) != len(b.outputs):
            return f"{where}{len(a.outputs)} outputs, not {len(b.outputs)}"
        for i, (x, y) in enumerate(zip(a.outputs, b.outputs, strict=True)):
            if self.match.get(x) is not y:
                return f"{where}output {i} is %{x.name}, not the counterpart of %{y.name}"
        if self.names and a.output_names != b.output_names:
            return f"{where}the outputs are named {a.output_names}, not {b.output_names}"
        return None

    def nodes(self, m: Node, n: Node) -> str | None:
        if m.op != n.op:
            return f"{m.op}, not {n.op}"
        if len(m.operands) != len(n.operands):
            return f"{len(m.operands)} operands, not {len(n.operands)}"
        for i, (x, y) in enumerate(zip(m.operands, n.operands, strict=True)):
            if (None if x is None else self.match.get(x)) is not y:
                return f"operand {i} differs"
        for name in {**m.attrs, **n.attrs}:
            if (name in m.attrs) != (name in n.attrs) or not same_attr(m.attrs[name], n.attrs[name]):
                return f"attribute {name} differs"
        if [v.type for v in m.results] != [v.type for v in n.results]:
            return "the result types differ"
        if len(m.regions) != len(n.regions):
            return f"{len(m.regions)} regions, not {len(n.regions)}"
        if self.origins and m.origin != n.origin:
            return f"origin {m.origin}, not {n.origin}"
        return None


def same_attr(a: Any, b: Any) -> bool:
    """Whether two attribute values are the same; floats by their bits."""
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same_attr, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b) or (a != a and b != b)
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)
