"""Nodes without a lowering: kept whole as `foreign`, typed by ONNX's own inference."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import onnx
import onnx.checker
import onnx.defs
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto

from opcel_compiler.frontend.limits import MAX_GRAPH_DEPTH, MAX_RANK, ModelError
from opcel_compiler.frontend.proto_types import Symbols, type_from, type_to
from opcel_compiler.frontend.weights import Weights, restore, to_proto
from opcel_compiler.ir.dims import Dim, Symbol, symbols_of
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.parse_dims import parse_dim
from opcel_compiler.ir.types import MapType, OptionalType, SequenceType, TensorType, Type, UnknownType

_MAX_DATA = 1024
"""Constants with at most this many elements are shown to ONNX's shape inference."""


def graphs_of(node: NodeProto) -> list[GraphProto]:
    """The graphs in a node's attributes."""
    out = []
    for a in node.attribute:
        if a.type == AttributeProto.GRAPH or a.HasField("g"):
            out.append(a.g)
        out.extend(a.graphs)
    return out


def captured(node: NodeProto) -> list[str]:
    """The names that the graphs in a node's attributes take from outside, each once, in order of first use."""
    out: dict[str, None] = {}
    for graph in graphs_of(node):
        _captured(graph, frozenset(), out, 0)
    return list(out)


def _captured(graph: GraphProto, known: frozenset[str], out: dict[str, None], depth: int) -> None:
    if depth > MAX_GRAPH_DEPTH:
        raise ModelError(f"graph {graph.name!r} is nested more than {MAX_GRAPH_DEPTH} deep")
    inside = set(known)
    inside.update(v.name for v in graph.input)
    inside.update(t.name for t in graph.initializer)
    inside.update(t.values.name for t in graph.sparse_initializer)
    for node in graph.node:
        inside.update(node.output)
    names = frozenset(inside)
    for node in graph.node:
        for name in node.input:
            if name and name not in names:
                out[name] = None
        for inner in graphs_of(node):
            _captured(inner, names, out, depth + 1)
    for v in graph.output:
        if v.name and v.name not in names:
            out[v.name] = None


def embed(node: NodeProto, weights: Weights, origin: str) -> None:
    """Move every tensor of the node's attributes into the message, so that its bytes stand alone."""
    for a in node.attribute:
        for t in [a.t] if a.HasField("t") else a.tensors:
            restore(t, weights, f"attribute {a.name!r} of node {origin!r}")
    stack = [(g, 0) for g in graphs_of(node)]
    while stack:
        graph, depth = stack.pop()
        if depth > MAX_GRAPH_DEPTH:
            raise ModelError(f"graph {graph.name!r} is nested more than {MAX_GRAPH_DEPTH} deep")
        for t in graph.initializer:
            restore(t, weights, f"initializer {t.name!r}")
        for inner in graph.node:
            for a in inner.attribute:
                for t in [a.t] if a.HasField("t") else a.tensors:
                    restore(t, weights, f"attribute {a.name!r} of node {inner.name!r}")
            stack += [(g, depth + 1) for g in graphs_of(inner)]


class Typing:
    """Result types of opaque nodes: from the operator's own inference on the types that we know, else from what the
    file declares, else from an inference of the whole model, which runs when it is first needed."""

    def __init__(self, model: onnx.ModelProto, opsets: Mapping[str, int], symbols: Symbols) -> None:
        self._model = model
        self._opsets = opsets
        self._symbols = symbols
        self._declared: dict[str, TypeProto] | None = None
        self._inferred: dict[str, TypeProto] | None = None

    def types(self, node: NodeProto, operands: Sequence[Value | None], origin: str, top: bool) -> list[Type]:
        """A type for each output of `node`. Raises ModelError when the operator's inference rejects the operands."""
        local = self._by_operator(node, operands, origin)
        ranges = {s.name: s for v in operands if v is not None for s in _symbols(v.type)}
        out = []
        for name in node.output:
            found = self._read(local[name], ranges, origin) if name in local else UnknownType()
            if isinstance(found, TensorType) and found.shape is None and node.op_type in ("Reshape", "ConstantOfShape"):
                found = TensorType(found.dtype, _rank_of_target(operands[-1]))
            if top and name and not _complete(found):
                found = _merge(found, self._declared_type(name, origin))
                if isinstance(found, UnknownType):
                    found = self._whole_model(name, origin)
            out.append(self._closed(found))
        return out

    def _by_operator(self, node: NodeProto, operands: Sequence[Value | None], origin: str) -> dict[str, TypeProto]:
        version = self._opsets.get(node.domain)
        if version is None or not onnx.defs.has(node.op_type, node.domain):
            return {}
        types: dict[str, TypeProto] = {}
        data: dict[str, TensorProto] = {}
        for name, value in zip(node.input, operands, strict=False):
            if name and value is not None and not isinstance(value.type, UnknownType):
                types[name] = type_to(value.type)
                if value.constant is not None and value.constant.array.size <= _MAX_DATA:
                    data[name] = to_proto(value.constant, name)
        imports = [onnx.helper.make_opsetid(d, v) for d, v in self._opsets.items()]
        try:
            schema = onnx.defs.get_schema(node.op_type, version, node.domain)
            infer = onnx.shape_inference.infer_node_outputs
            return dict(infer(schema, node, types, data, None, imports, self._model.ir_version))
        except onnx.shape_inference.InferenceError as e:
            if not graphs_of(node):
                raise ModelError(f"node {origin!r} ({node.op_type}): {_first_line(e)}") from None
            return {}
        except Exception:  # the binding raises many kinds for a node that it cannot infer
            return {}

    def _declared_type(self, name: str, origin: str) -> Type:
        if self._declared is None:
            graph = self._model.graph
            self._declared = {v.name: v.type for v in [*graph.value_info, *graph.output] if v.HasField("type")}
        proto = self._declared.get(name)
        return UnknownType() if proto is None else self._read(proto, {}, origin)

    def _whole_model(self, name: str, origin: str) -> Type:
        if self._inferred is None:
            self._inferred = {}
            try:
                # Without data propagation: a few Concat of a tensor with itself make that take any amount of memory.
                graph = onnx.shape_inference.infer_shapes(self._model).graph
                self._inferred = {v.name: v.type for v in [*graph.value_info, *graph.output] if v.HasField("type")}
            except Exception:  # a model that inference rejects leaves its types unknown
                pass
        proto = self._inferred.get(name)
        return UnknownType() if proto is None else self._read(proto, {}, origin)

    def _read(self, proto: TypeProto, ranges: dict[str, Symbol], origin: str) -> Type:
        """Our type; dims that are not told stay the placeholder -1 in `_OPEN` until `_closed`."""

        def shape(p: TypeProto) -> tuple[Dim, ...] | None:
            if not p.tensor_type.HasField("shape"):
                return None
            return tuple(self._dim(d, ranges) for d in p.tensor_type.shape.dim)

        return type_from(proto, shape, f"an output of node {origin!r}")

    def _dim(self, d: onnx.TensorShapeProto.Dimension, ranges: dict[str, Symbol]) -> Dim:
        if d.HasField("dim_value") and d.dim_value >= 0:
            return d.dim_value
        if d.dim_param:
            try:
                found = parse_dim(d.dim_param, ranges)
                if all(s.name in ranges for s in symbols_of(found)):
                    return found
            except (ValueError, ZeroDivisionError):
                pass
            if d.dim_param in self._symbols.originals.values():
                return self._symbols.named(d.dim_param)
        return _OPEN

    def _closed(self, t: Type) -> Type:
        """`t` with a fresh symbol for each dim that stayed open."""
        if isinstance(t, TensorType) and t.shape is not None and _OPEN in t.shape:
            return TensorType(t.dtype, tuple(self._symbols.fresh() if d == _OPEN else d for d in t.shape))
        if isinstance(t, SequenceType):
            return SequenceType(self._closed(t.element))
        if isinstance(t, OptionalType):
            return OptionalType(self._closed(t.element))
        return MapType(t.key, self._closed(t.value)) if isinstance(t, MapType) else t


_OPEN: Dim = parse_dim("opcel_open_dim")


def _rank_of_target(target: Value | None) -> tuple[Dim, ...] | None:
    """Open dims, as many as a shape operand of known length has entries."""
    if target is not None and isinstance(target.type, TensorType) and target.type.shape is not None:
        count = target.type.shape[0] if target.type.shape else 0
        if isinstance(count, int) and len(target.type.shape) < 2 and count <= MAX_RANK:
            return (_OPEN,) * count
    return None


def _complete(t: Type) -> bool:
    return isinstance(t, TensorType) and t.shape is not None and _OPEN not in t.shape


def _merge(a: Type, b: Type) -> Type:
    """`a`, with what it leaves open taken from `b`."""
    if isinstance(a, UnknownType):
        return b
    if isinstance(a, TensorType) and isinstance(b, TensorType) and b.shape is not None and a.dtype == b.dtype:
        if a.shape is None:
            return b
        if len(a.shape) == len(b.shape):
            return TensorType(a.dtype, tuple(q if p == _OPEN else p for p, q in zip(a.shape, b.shape, strict=True)))
    return a


def _symbols(t: Type) -> Iterable[Symbol]:
    if isinstance(t, TensorType):
        return [s for d in t.shape or () for s in symbols_of(d)]
    if isinstance(t, (SequenceType, OptionalType)):
        return _symbols(t.element)
    return _symbols(t.value) if isinstance(t, MapType) else []


def _first_line(e: Exception) -> str:
    return str(e).strip().split("\n")[0]


_LEAST = {("GatherND", "batch_dims"): 0}
"""The least values of attributes with which the inference of `onnx` ends: it does not look at them itself."""


def check_attributes(node: NodeProto) -> None:
    """Raises ModelError for an attribute that the inference of `onnx` would not survive."""
    for a in node.attribute:
        if a.i < _LEAST.get((node.op_type, a.name), a.i):
            name = node.name or ", ".join(node.output)
            raise ModelError(f"node {name!r} ({node.op_type}): {a.name}={a.i} must not be negative")


def check_node(node: NodeProto, opsets: Mapping[str, int], ir_version: int, origin: str) -> None:
    """Raises ModelError when an operator of the standard is used wrongly: attributes or number of operands."""
    where = f"node {origin!r} ({node.op_type})"
    try:
        onnx.defs.get_schema(node.op_type, opsets[node.domain], node.domain)
    except onnx.defs.SchemaError:
        raise ModelError(f"{where}: opset {opsets[node.domain]} has no operator {node.op_type!r}") from None
    if not graphs_of(node):
        context = onnx.checker.C.CheckerContext()
        context.ir_version = ir_version
        context.opset_imports = dict(opsets)
        try:
            onnx.checker.check_node(node, context)
        except onnx.checker.ValidationError as e:
            raise ModelError(f"{where} is not valid: {_first_line(e)}") from None
