"""ONNX models become graphs of our operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, ValueInfoProto

from opcel_compiler.frontend import lowerings  # noqa: F401  registers the lowerings
from opcel_compiler.frontend.builder import Builder, Narrow
from opcel_compiler.frontend.checks import check_graph
from opcel_compiler.frontend.digest import external_locations, model_digest
from opcel_compiler.frontend.foreign import Typing, captured, check_attributes, graphs_of
from opcel_compiler.frontend.functions import Functions, check_calls, fill_defaults
from opcel_compiler.frontend.limits import (
    MAX_GRAPH_DEPTH,
    MAX_VERSION,
    ModelError,
    check_opsets,
    check_size,
    domain_of,
)
from opcel_compiler.frontend.proto_types import DimValue, Symbols, file_shape, type_from
from opcel_compiler.frontend.scope import Scope
from opcel_compiler.frontend.weights import Weights, map_file
from opcel_compiler.frontend.wire import Buffer, WireError, without_weights
from opcel_compiler.ir.analysis import dead_nodes
from opcel_compiler.ir.dims import Symbol, symbols_of
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import OptionalType, TensorType, Type


@dataclass(frozen=True)
class Imported:
    """A model's graph, and what of the file the graph does not say.

    `input_names`, `output_names`: as the user wrote them, in the order of `graph.inputs` and `graph.outputs`.
    `symbols`: from the name of a symbol to the name that the file gives the dimension ("" where it gives none).
    `opsets`: the opset of each domain, "" being the default one.
    `source`: the bytes of the file; `weights` reads the tensors beside it, in the files `external`.
    `operators`: from a node's origin to its operator in the file, `domain::Name:opset` or `Name:opset`.
    """

    graph: Graph
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    opsets: Mapping[str, int]
    ir_version: int
    symbols: Mapping[str, str]
    producer: str
    path: Path | None
    operators: Mapping[str, str]
    source: Buffer = field(repr=False)
    weights: Weights = field(repr=False)
    external: tuple[str, ...] = ()

    @cached_property
    def model_hash(self) -> str:
        """The SHA-256 of the model file, in hex; of a model in memory, of its deterministic serialisation. External
        data count too (see `digest`)."""
        return model_digest(self.source, self.weights, self.external)

    def release(self) -> None:
        """Let go of the pages of mapped weights that were read so far; the graph's constants stay valid."""
        self.weights.release()

    @property
    def foreign(self) -> tuple[Node, ...]:
        """The nodes without a lowering; their attribute `reason` says why."""
        return tuple(n for n in self.graph.walk() if n.op == "foreign")


def import_model(
    model: str | Path | bytes | ModelProto, *, name: str | None = None, dims: Mapping[str, DimValue] | None = None
) -> Imported:
    """Read a model. A path's external data is read from the folder of the file; `name` names the graph.

    `dims` gives symbolic dimensions a size, or the (least, largest) size they may have, by name.
    What has no lowering becomes `foreign` nodes. Raises ModelError for a file that is missing, not ONNX, truncated,
    of an unsupported opset, or not a valid graph, for a tensor of absurd size, and for a name in `dims` that no
    dimension has.
    """
    try:
        return _import(model, name, dims)
    except RecursionError:
        raise ModelError("the model is nested too deeply; flatten its graphs, functions or shape arithmetic") from None
    except MemoryError as e:
        raise ModelError(f"the model needs more memory than there is: {e or 'out of memory'}") from None


def _import(model: str | Path | bytes | ModelProto, name: str | None, dims: Mapping[str, DimValue] | None) -> Imported:
    _check_dims(dims or {})
    proto, source, weights, path = _read(model)
    opsets = _opsets(proto)
    check_opsets(opsets)
    limits: dict[str, Symbol] = {}
    while True:
        symbols = Symbols(limits, dims)
        graph = Graph(name or proto.graph.name or "main")
        try:
            builder = Builder(graph, weights, symbols)
            inputs = _build(proto, builder, opsets)
            break
        except Narrow as n:
            known = limits.get(n.symbol.name)
            if n.hi < n.symbol.lo or (known is not None and known.hi is not None and known.hi <= n.hi):
                raise ModelError(
                    f"the dimension {n.symbol} would have to be at most {n.hi}, which never holds"
                ) from None
            limits[n.symbol.name] = Symbol(n.symbol.name, n.symbol.lo, n.hi)
    weights.release()
    if unknown := [n for n in dims or {} if n not in symbols.used]:
        names = dict.fromkeys(symbols.originals[s.name] or s.name for v in graph.inputs for s in _symbols(v))
        raise ModelError(
            f"no dimension of the model is called {unknown[0]!r}; its inputs have {', '.join(names) or 'none open'}"
        )
    for value in graph.values():
        check_size(value)
    return Imported(
        graph,
        tuple(v.name for v in inputs),
        tuple(v.name for v in proto.graph.output),
        opsets,
        proto.ir_version,
        symbols.originals,
        f"{proto.producer_name} {proto.producer_version}".strip(),
        path,
        builder.operators,
        source,
        weights,
        external_locations(proto),
    )


def _check_dims(dims: Mapping[str, DimValue]) -> None:
    for name, value in dims.items():
        lo, hi = (value, value) if isinstance(value, int) else value
        if lo < 0 or (hi is not None and hi < lo):
            raise ModelError(f"the dimension {name!r} cannot be {lo}" + (f" to {hi}" if hi != lo else ""))


def _symbols(value: Value) -> Iterator[Symbol]:
    if isinstance(value.type, TensorType):
        for dim in value.type.shape or ():
            yield from symbols_of(dim)


def _read(model: str | Path | bytes | ModelProto) -> tuple[ModelProto, Buffer, Weights, Path | None]:
    if isinstance(model, ModelProto):
        check_graph(model.graph)
        proto = _without_inner_calls(model, "the model")
        return proto, model.SerializeToString(deterministic=True), Weights(None, None), None
    path = None
    if isinstance(model, bytes):
        what, data = "the model", memoryview(model)
    else:
        path = Path(model)
        what = str(path)
        if path.is_dir():
            raise ModelError(f"{what} is a folder, not a model file")
        try:
            data = map_file(path)
        except FileNotFoundError:
            raise ModelError(f"{what} does not exist") from None
        except (OSError, ValueError) as e:
            raise ModelError(f"{what} cannot be read: {e}") from None
    if not len(data):
        raise ModelError(f"{what} is empty")
    if bytes(data[:24]).startswith(b"version https://git-lfs"):
        raise ModelError(f"{what} is a Git LFS pointer, not the model; fetch the file itself with `git lfs pull`")
    try:
        proto = ModelProto.FromString(without_weights(data))
    except (WireError, DecodeError) as e:
        if "depth" in str(e).lower():
            raise ModelError(f"{what} nests graphs more than {MAX_GRAPH_DEPTH} deep; flatten its branches") from None
        raise ModelError(f"{what} is no ONNX model, or is truncated: {e}") from None
    if not proto.HasField("graph") or not 1 <= proto.ir_version <= MAX_VERSION:
        raise ModelError(f"{what} is no ONNX model: it has no {'IR version' if proto.HasField('graph') else 'graph'}")
    check_text(proto, what)
    check_graph(proto.graph)
    return _without_inner_calls(proto, what), data, Weights(data, path.parent if path else None), path


def check_text(proto: ModelProto, what: str) -> None:
    """Raises ModelError for a name that is not UTF-8, which protobuf hands over as bytes, and for attributes that no
    node may have."""
    texts: list[str | bytes] = [proto.graph.name, proto.producer_name, proto.producer_version]
    texts += [o.domain for o in proto.opset_import]
    nodes = list(proto.graph.node)
    graphs = [proto.graph]
    for f in proto.functions:
        texts += [f.name, f.domain, f.overload, *f.input, *f.output, *f.attribute, *(o.domain for o in f.opset_import)]
        nodes += f.node
    while nodes or graphs:
        for node in nodes:
            texts += [node.name, node.op_type, node.domain, node.overload, *node.input, *node.output]
            texts += [t for a in node.attribute for t in (a.name, a.ref_attr_name)]
            check_attributes(node)
            graphs += graphs_of(node)
        inner, graphs, nodes = graphs, [], []
        for g in inner:
            values = [*g.input, *g.output, *g.value_info]
            texts += [v.name for v in values] + [t.name for t in g.initializer]
            texts += [d.dim_param for v in values for d in v.type.tensor_type.shape.dim]
            texts += [s for t in g.initializer for e in t.external_data for s in (e.key, e.value)]
            if g is not proto.graph:
                nodes += g.node
    for text in texts:
        if isinstance(text, bytes):
            raise ModelError(f"{what} holds the name {text!r}, which is not UTF-8; the file is damaged")


def _without_inner_calls(proto: ModelProto, what: str) -> ModelProto:
    """The model with its functions inlined when nodes hold graphs, which may call them; those stay opaque."""
    holders = [*proto.graph.node, *(n for f in proto.functions for n in f.node)]
    if not proto.functions or not any(graphs_of(n) for n in holders):
        return proto
    check_calls(proto)
    complete = ModelProto()
    complete.CopyFrom(proto)
    fill_defaults(complete)
    try:
        return onnx.inliner.inline_local_functions(complete)
    except Exception as e:  # the binding raises many kinds
        raise ModelError(f"{what}: its functions cannot be inlined: {e}") from None


def _opsets(proto: ModelProto) -> dict[str, int]:
    out: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = domain_of(entry.domain)
        out[domain] = max(entry.version, out.get(domain, entry.version))
    if not out and proto.ir_version < 3:
        out[""] = 1
    return out


def _build(proto: ModelProto, builder: Builder, opsets: dict[str, int]) -> list[ValueInfoProto]:
    """Fill the builder's graph; gives the file's inputs that are no initializers."""
    graph, source = builder.graph, proto.graph
    functions = Functions(proto)
    scope = Scope(builder, Typing(proto, opsets, builder.symbols), functions, opsets, proto.ir_version)
    scope.add_initializers(source)
    inputs = [v for v in source.input if v.name not in scope.initializers]
    taken = {id(n) for n in source.node if n.op_type == "OptionalGetElement"}
    asked = {name for n in source.node if id(n) not in taken for name in (*n.input, *captured(n))}
    asked.update(v.name for v in source.output)
    for v in inputs:
        value = graph.add_input(v.name, _input_type(v, builder.symbols, v.name in asked))
        check_size(value)
        scope.define(v.name, value, f"input {v.name!r}")
    scope.add_nodes(source.node, [v.name for v in source.output])
    for v in source.output:
        if v.name in graph.output_names:
            raise ModelError(f"two outputs of the model are called {v.name!r}")
        graph.add_output(scope.value(v.name, "the graph's outputs"), v.name)
    _sweep(graph)
    return inputs


def _input_type(v: ValueInfoProto, symbols: Symbols, asked: bool) -> Type:
    """The type of an input. An optional tensor must be given, and is then a tensor, unless the model has `asked` for
    it otherwise than for what it holds."""
    where = f"input {v.name!r}"
    if v.type.WhichOneof("value") is None:
        raise ModelError(f"{where} has no type")
    found = type_from(v.type, file_shape(symbols, where), where)
    if isinstance(found, OptionalType) and isinstance(found.element, TensorType) and not asked:
        return found.element
    return found


def _sweep(graph: Graph) -> None:
    """Erase nodes that nothing uses: shape arithmetic that became attributes, constants that were folded."""
    for node in dead_nodes(list(graph.nodes)):
        graph.erase(node)
    for node in graph.nodes:
        for region in node.regions:
            _sweep(region)


__all__ = ["Imported", "import_model"]
