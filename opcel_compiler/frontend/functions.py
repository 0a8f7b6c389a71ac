"""The functions that a model defines: found, checked, and bound to their calls."""

from __future__ import annotations

from collections.abc import Mapping

import onnx.defs
from onnx import AttributeProto, FunctionProto, ModelProto, NodeProto

from opcel_compiler.frontend.foreign import graphs_of
from opcel_compiler.frontend.limits import ModelError, domain_of


class Functions:
    """The functions that a model defines, by domain, name and overload."""

    def __init__(self, model: ModelProto) -> None:
        self._by_key: dict[tuple[str, str, str], FunctionProto] = {}
        for f in model.functions:
            self._by_key[domain_of(f.domain), f.name, f.overload] = f

    def find(self, node: NodeProto) -> FunctionProto | None:
        return self._by_key.get((domain_of(node.domain), node.op_type, node.overload))


def check_calls(model: ModelProto) -> None:
    """Raises ModelError when functions of the model call one another in a circle."""
    functions = Functions(model)
    calls: dict[str, set[str]] = {}
    for f in model.functions:
        stack, inner = list(f.node), calls.setdefault(f.name, set())
        while stack:
            node = stack.pop()
            found = functions.find(node)
            if found is not None:
                inner.add(found.name)
            for graph in graphs_of(node):
                stack.extend(graph.node)
    while calls:
        leaves = [name for name, inner in calls.items() if not inner & set(calls)]
        if not leaves:
            raise ModelError(f"the functions {', '.join(sorted(calls))} call one another in a circle")
        for name in leaves:
            del calls[name]


def fill_defaults(model: ModelProto) -> None:
    """Write the default values of a function's attributes into the calls that leave them out."""
    functions = Functions(model)
    stack = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    while stack:
        node = stack.pop()
        found = functions.find(node)
        if found is not None:
            given = {a.name for a in node.attribute}
            node.attribute.extend(a for a in found.attribute_proto if a.name not in given)
        for graph in graphs_of(node):
            stack.extend(graph.node)


def defaults_of(node: NodeProto, opsets: Mapping[str, int]) -> list[AttributeProto]:
    """The values that the standard gives the attributes of an operator, where the node has none."""
    version = opsets.get(domain_of(node.domain))
    if version is None or not onnx.defs.has(node.op_type, node.domain):
        return []
    try:
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    except onnx.defs.SchemaError:
        return []
    return [a.default_value for a in schema.attributes.values() if a.default_value.name]


def bound(node: NodeProto, given: Mapping[str, AttributeProto], absent: set[str]) -> NodeProto:
    """A node of a function body with the attributes of the call filled in, and operands the call lacks left out."""
    out = NodeProto()
    out.CopyFrom(node)
    stack = [out]
    while stack:
        n = stack.pop()
        for i, name in enumerate(n.input):
            if name in absent:
                n.input[i] = ""
        for a in list(n.attribute):
            if a.ref_attr_name:
                n.attribute.remove(a)
                value = given.get(a.ref_attr_name)
                if value is not None:
                    filled = n.attribute.add()
                    filled.CopyFrom(value)
                    filled.name = a.name
        for graph in graphs_of(n):
            stack.extend(graph.node)
    return out
