"""A model at older opsets, for an engine that does not know its own yet."""

from __future__ import annotations

from collections.abc import Iterator

import onnx.defs
from onnx import ModelProto, NodeProto, helper

from opcel_compiler.frontend.foreign import graphs_of
from opcel_compiler.frontend.limits import DEFAULT_DOMAINS, MIN_OPSET


def at_older_opsets(model: ModelProto) -> Iterator[ModelProto]:
    """The model at its own opset, then at each older one at which every node means the same, newest first.

    Each has the least IR version that its opsets allow. A node means the same where the standard's text for its
    operator does: description, attributes, inputs and outputs; only the types it takes may be fewer.
    """
    own = next((o.version for o in model.opset_import if o.domain in DEFAULT_DOMAINS), 0)
    nodes = list(_nodes(model))
    for version in range(own, min(own, MIN_OPSET) - 1, -1):
        if version != own and (model.functions or not all(_same(n, own, version) for n in nodes)):
            return
        out = ModelProto()
        out.CopyFrom(model)
        for entry in out.opset_import:
            if entry.domain in DEFAULT_DOMAINS:
                entry.version = version
        out.ir_version = max(4, helper.find_min_ir_version_for(list(out.opset_import), ignore_unknown=True))
        if model.functions:
            out.ir_version = max(out.ir_version, 8)
        yield out


def _nodes(model: ModelProto) -> Iterator[NodeProto]:
    stack = list(model.graph.node)
    while stack:
        node = stack.pop()
        yield node
        for graph in graphs_of(node):
            stack.extend(graph.node)


def _same(node: NodeProto, newer: int, older: int) -> bool:
    if node.domain not in DEFAULT_DOMAINS:
        return True
    try:
        a, b = (onnx.defs.get_schema(node.op_type, version, "") for version in (newer, older))
    except onnx.defs.SchemaError:
        return False
    return a.since_version == b.since_version or _text(a) == _text(b)


def _text(schema: onnx.defs.OpSchema) -> tuple[object, ...]:
    attributes = sorted((n, str(a.type), a.default_value.SerializeToString()) for n, a in schema.attributes.items())
    sides = [[(v.name, str(v.option)) for v in side] for side in (schema.inputs, schema.outputs)]
    return ((schema.doc or "").split(), attributes, sides)
