"""What a model must keep to before its nodes are lowered: its graphs' names and outputs, its operands' types."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import onnx.defs
from onnx import GraphProto, NodeProto, TensorProto

from opcel_compiler.frontend.foreign import graphs_of
from opcel_compiler.frontend.limits import MIN_OPSET, ModelError
from opcel_compiler.frontend.proto_types import code_of
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import OptionalType, SequenceType, TensorType, Type

Formals = tuple[tuple[str, str, frozenset[str]], ...]
"""Of each input of an operator: its name, the type parameter that operands of one type share ("" where they need not),
and the types it takes."""


def check_graph(graph: GraphProto) -> None:
    """Raises ModelError for a model's graph that gives nothing, and for two nodes of one name in a graph."""
    if not graph.output:
        raise ModelError(
            f"the model's graph {graph.name!r} has no outputs, so there is nothing to compute; export the model with "
            "the tensors that it is to give as outputs"
        )
    stack = [graph]
    while stack:
        current = stack.pop()
        seen: dict[str, NodeProto] = {}
        for node in current.node:
            if node.name and (first := seen.setdefault(node.name, node)) is not node:
                raise ModelError(
                    f"two nodes of graph {current.name!r} are called {node.name!r} ({_made(first)} and {_made(node)}); "
                    "give each node a name of its own, or none"
                )
            stack += graphs_of(node)


def _made(node: NodeProto) -> str:
    return f"{node.op_type}, which gives {', '.join(map(repr, node.output))}"


def check_types(
    node: NodeProto, domain: str, version: int, operands: Sequence[Value | None], origin: str, exact: bool = False
) -> None:
    """Raises ModelError for an operand of a type that the operator, if it is one of the standard, does not take at
    opset `version` of its domain. Unless it must be `exact`, an operator takes all widths of the kinds of types that
    its definition lists, and before MIN_OPSET, when definitions were narrower than models, everything."""
    if not exact and not domain and version < MIN_OPSET:
        return
    bound: dict[str, str] = {}
    formals = _formals(domain, node.op_type, version, len(operands))
    for (name, parameter, allowed), value in zip(formals, operands, strict=False):
        text = None if value is None else _type_string(value.type)
        if text is None or f"optional({text})" in allowed:  # an optional input of the model is the tensor that it holds
            continue
        where = f"node {origin!r} ({node.op_type})"
        if text not in allowed and (exact or _kind(text) not in map(_kind, allowed)):
            raise ModelError(
                f"{where} does not take {text} as its input {name!r} at opset {version}, only "
                f"{', '.join(sorted(allowed))}; put a Cast before it, or export the model again"
            )
        if parameter and bound.setdefault(parameter, text) != text:
            raise ModelError(
                f"{where}: its operands must be of one type, and are {bound[parameter]} and {text}; put a Cast before "
                f"its input {name!r}"
            )


@cache
def _formals(domain: str, op_type: str, version: int, count: int) -> Formals:
    """The first `count` inputs of an operator; nothing where the standard has no such operator."""
    try:
        schema = onnx.defs.get_schema(op_type, version, domain)
    except onnx.defs.SchemaError:
        return ()
    constraints = {c.type_param_str: frozenset(c.allowed_type_strs) for c in schema.type_constraints}
    formals = list(schema.inputs)
    if formals and formals[-1].option == onnx.defs.OpSchema.FormalParameterOption.Variadic:
        formals += formals[-1:] * (count - len(formals))
    out = []
    for formal in formals[:count]:
        parameter = formal.type_str if formal.is_homogeneous and formal.type_str in constraints else ""
        out.append((formal.name, parameter, constraints.get(formal.type_str, frozenset({formal.type_str}))))
    return tuple(out)


def _kind(text: str) -> str:
    """A schema's type with its element type's kind in place of the element type."""
    element = text.rsplit("(", 1)[-1].rstrip(")")
    kind = "float" if "float" in element or element == "double" else "integer" if "int" in element else element
    return text.replace(f"({element})", f"({kind})")


def _type_string(t: Type) -> str | None:
    """The type as the operators' schemas write it, or None when it is unknown."""
    if isinstance(t, TensorType):
        return f"tensor({TensorProto.DataType.Name(code_of(t.dtype)).lower()})"
    if isinstance(t, SequenceType) and (inner := _type_string(t.element)):
        return f"seq({inner})"
    if isinstance(t, OptionalType) and (inner := _type_string(t.element)):
        return f"optional({inner})"
    return None
