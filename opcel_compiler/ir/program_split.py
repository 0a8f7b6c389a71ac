"""Take a kernel apart where no single kernel can run it whole."""

from __future__ import annotations

from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.program import Buffer, Kernel, View, whole


def split_epilogue(kernel: Kernel, name: str) -> list[Kernel]:
    """[anchor alone, its epilogue as an elementwise kernel] with a new buffer `name` between; [kernel] without one."""
    anchor = kernel.anchor
    if anchor is None or len(list(kernel.body.nodes)) == 1:
        return [kernel]
    link = whole(Buffer(name, anchor.result.tensor))
    outside = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    first, first_inputs = _body([anchor], anchor.result, outside, {})
    rest = [n for n in kernel.body.nodes if n is not anchor]
    second, second_inputs = _body(rest, kernel.body.outputs[0], outside, {anchor.result: link})
    copied = next(n for n in first.nodes if n.op == anchor.op)
    return [
        Kernel(kernel.family, first, first_inputs, [link], copied, dict(kernel.params), origin=kernel.origin),
        Kernel("elementwise", second, second_inputs, list(kernel.outputs), None, origin=kernel.origin),
    ]


def _body(
    nodes: list[Node], result: Value, outside: dict[Value, View], links: dict[Value, View]
) -> tuple[Graph, list[View]]:
    body = Graph("body")
    known: dict[Value, Value] = {}
    views: list[View] = []

    def get(v: Value) -> Value:
        if v not in known:
            if v.constant is not None:
                known[v] = body.constant(v.constant, name=v.name)
            else:
                known[v] = body.add_input(v.name, v.type)
                views.append(links[v] if v in links else outside[v])
        return known[v]

    for node in nodes:
        if node.op == "constant":
            continue
        copy = body.add(
            node.op, [None if v is None else get(v) for v in node.operands], node.attrs, origin=node.origin,
            types=[r.type for r in node.results],
        )  # fmt: skip
        known.update(zip(node.results, copy.results, strict=True))
    body.add_output(get(result))
    return body, views
