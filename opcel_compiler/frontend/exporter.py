"""Graphs become ONNX models: a whole graph, or a region of its nodes for another engine to run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import onnx
from onnx import ModelProto, NodeProto, helper

from opcel_compiler import frontend
from opcel_compiler.frontend.export_ops import EXPORTS
from opcel_compiler.frontend.importer import Imported
from opcel_compiler.frontend.limits import ExportError, domain_of
from opcel_compiler.frontend.proto_types import plain_symbol, type_to
from opcel_compiler.frontend.writer import Writer, inner_names, rename, value_info
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.ops.control import BRANCHING
from opcel_compiler.ir.types import BOOL, I64, UnknownType, tensor

for _module in iter_modules(frontend.__path__):
    if _module.name.startswith("export_"):
        import_module(f"{frontend.__name__}.{_module.name}")  # registers its entries of EXPORTS

MESSAGE = (1 << 31) - (1 << 20)
"""Bytes that a protobuf message must stay below, names and all."""
DEFAULT_OPSET = 20
"""The opset of the default domain for graphs without opaque nodes."""
QDQ_OPSET = 21
"""That for graphs with quantized values: the first that has all of our types and scales of blocks for them."""
QUANTIZED = frozenset({"quantize", "dequantize", "matmul_nbits"})


@dataclass(frozen=True)
class Region:
    """A model that computes some nodes of a graph.

    `inputs`, `outputs`: tensor names, in the order of the values that were asked for. `symbols`: sizes that the model
    wants besides, as (symbol, input name); each is fed as an i64 vector of one element.
    """

    model: ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    symbols: tuple[tuple[str, str], ...]


def export_model(graph: Graph, *, opset: int | None = None, names: Imported | None = None) -> ModelProto:
    """`graph` as an ONNX model. `names`: the import it comes from, whose tensor and dimension names are then used.

    The opset is that of the opaque nodes where there are any, else `opset`, else DEFAULT_OPSET or QDQ_OPSET. Raises
    ExportError for what that opset cannot express.
    """
    inputs = names.input_names if names else tuple(v.name for v in graph.inputs)
    symbols = dict(names.symbols) if names else {}
    nodes = list(graph.nodes)
    opsets = _opsets(nodes, opset)
    writer = Writer(opsets[""], _reserved(nodes))
    writer.reserve([*inputs, *graph.output_names])

    def dim_name(d: Dim) -> str:
        symbol = plain_symbol(d)
        return symbols.get(symbol, symbol)

    for value, name in zip(graph.inputs, inputs, strict=True):
        writer.define(value, name)
    given = [value_info(n, type_to(v.type, dim_name)) for v, n in zip(graph.inputs, inputs, strict=True)]
    outputs = _write(writer, nodes, graph.inputs, graph.outputs, graph.output_names)
    results = [value_info(n, type_to(v.type, dim_name)) for v, n in zip(graph.outputs, outputs, strict=True)]
    return _model(writer, graph.name, given, results, opsets)


def export_region(
    nodes: Iterable[Node], inputs: Sequence[Value], outputs: Sequence[Value], *, opset: int | None = None
) -> Region:
    """A model that computes `outputs` from `inputs` with `nodes`, which are given in a valid order.

    Constants that the nodes use need not be among the inputs; they are stored in the model. Raises ExportError.
    """
    listed = list(nodes)
    opsets = _opsets(listed, opset)
    writer = Writer(opsets[""], _reserved(listed), ask=True)
    given = []
    for value in inputs:
        if isinstance(value.type, UnknownType):
            raise ExportError(f"the type of %{value.name} is unknown, so it cannot enter a region")
        writer.define(value, writer.unique(value.name))
        given.append(value_info(writer.name(value), type_to(value.type, plain_symbol)))
    names = _write(writer, listed, inputs, outputs, [""] * len(outputs))
    results = [value_info(n, type_to(v.type, plain_symbol)) for v, n in zip(outputs, names, strict=True)]
    given += [value_info(name, type_to(tensor(I64, 1))) for name in writer.asked.values()]
    model = _model(writer, "region", given, results, opsets)
    return Region(model, tuple(writer.name(v) for v in inputs), tuple(names), tuple(writer.asked.items()))


def write_model(model: ModelProto, path: Path) -> None:
    """Write a model to a file, by one rename; its tensors into PATH.data beside it where one message cannot hold them.

    Raises ExportError when the file cannot be written.
    """
    apart = model.ByteSize() >= MESSAGE
    partial = path.with_name(f".{path.name}.partial")
    try:
        onnx.save_model(model, partial, save_as_external_data=apart, location=f"{path.name}.data" if apart else None)
        partial.replace(path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror}") from None
    finally:
        partial.unlink(missing_ok=True)


def _opsets(nodes: Iterable[Node], wanted: int | None) -> dict[str, int]:
    """The opset of each domain in use."""
    out: dict[str, int] = {}
    stack, quantized = list(nodes), False
    while stack:
        node = stack.pop()
        for region in node.regions:
            stack.extend(region.nodes)
        quantized |= node.op in QUANTIZED
        if node.op != "foreign":
            continue
        for domain, version in [(node.attrs["domain"], node.attrs["opset"]), *_inner_opsets(node)]:
            if out.setdefault(domain, version) != version:
                both = f"opsets {out[domain]} and {version} of domain {domain or 'ai.onnx'!r}"
                raise ExportError(f"opaque nodes of {both} cannot share a model")
    out.setdefault("", wanted or (QDQ_OPSET if quantized else DEFAULT_OPSET))
    return out


def _inner_opsets(node: Node) -> list[tuple[str, int]]:
    return [(d, int(v)) for d, v in (text.rsplit(":", 1) for text in node.attrs.get("opsets", ()))]


def _reserved(nodes: Iterable[Node]) -> set[str]:
    """The names inside the graphs of opaque nodes, which no value may take."""
    out: set[str] = set()
    for node in nodes:
        if node.op == "foreign" and node.attrs.get("captured") is not None:
            out |= inner_names(NodeProto.FromString(node.attrs["node"]))
    return out


def _write(
    w: Writer, nodes: Sequence[Node], inputs: Sequence[Value], outputs: Sequence[Value], output_names: Sequence[str]
) -> list[str]:
    """Write the nodes; the names of the outputs, which are `output_names` where those are given."""
    final: dict[Value, str] = {}
    for value, name in zip(outputs, output_names, strict=True):
        if name and value not in final and value not in inputs and value.constant is None:
            final[value] = name
    for node in nodes:
        _write_node(w, node, final)
    out = []
    made = {r for node in nodes for r in node.results}
    for value, name in zip(outputs, output_names, strict=True):
        have = w.name(value)
        if (name and have != name) or (not name and (value not in made or have in out or value.constant is not None)):
            name = name or w.unique(value.name)
            w.nodes.append(helper.make_node("Identity", [have], [name]))
            have = name
        out.append(have)
    return out


def _write_node(w: Writer, node: Node, final: dict[Value, str]) -> None:
    w.where = f"node {node.origin[0]!r}" if node.origin else repr(node)
    if node.op == "constant":
        return
    if node.op == "fused":
        _inline(w, node, final)
        return
    xs = ["" if v is None else w.name(v) for v in node.operands]
    if node.op == "foreign":
        _write_foreign(w, node, xs, final)
        return
    if node.op in BRANCHING:
        _write_control(w, node, xs, final)
        return
    export = EXPORTS.get(node.op)
    if export is None:
        raise ExportError(f"{w.where}: the operator {node.op} has no ONNX form")
    while xs and not xs[-1]:
        xs.pop()
    first = len(w.nodes)
    made = export(w, node, xs)
    for result, have in zip(node.results, [made] if isinstance(made, str) else made, strict=True):
        name = final.get(result) or w.unique(result.name)
        if len(w.nodes) > first and w.nodes[-1].output[0] == have:
            w.nodes[-1].output[0] = name
        else:
            w.nodes.append(helper.make_node("Identity", [have], [name]))
        w.define(result, name)
    w.label(first, node.origin)


def _inline(w: Writer, node: Node, final: dict[Value, str]) -> None:
    (region,) = node.regions
    for value, operand in zip(region.inputs, node.operands, strict=True):
        if operand is not None:
            w.alias(value, operand)
    inner = {v: final[r] for v, r in zip(region.outputs, node.results, strict=True) if r in final}
    for child in region.nodes:
        _write_node(w, child, inner)
    for result, value in zip(node.results, region.outputs, strict=True):
        have, want = w.name(value), final.get(result)
        if want and have != want:
            w.nodes.append(helper.make_node("Identity", [have], [want]))
            have = want
        w.define(result, have)


def _write_foreign(w: Writer, node: Node, xs: list[str], final: dict[Value, str]) -> None:
    proto = NodeProto.FromString(node.attrs["node"])
    count = len(proto.input)
    proto.input[:] = xs[:count]
    rename(proto, dict(zip(node.attrs.get("captured", ()), xs[count:], strict=True)))
    results = iter(node.results)
    for i, old in enumerate(proto.output):
        if old:
            result = next(results)
            proto.output[i] = final.get(result) or w.unique(result.name)
            w.define(result, proto.output[i])
    proto.domain = domain_of(proto.domain)
    w.nodes.append(proto)
    w.label(len(w.nodes) - 1, node.origin)


def _write_control(w: Writer, node: Node, xs: list[str], final: dict[Value, str]) -> None:
    first = len(w.nodes)
    names = [final.get(r) or w.unique(r.name) for r in node.results]
    if node.op == "if_":
        graphs = [_write_region(w.inner(), region) for region in node.regions]
        w.nodes.append(helper.make_node("If", xs, names, then_branch=graphs[0], else_branch=graphs[1]))
    else:
        _write_loop(w, node, xs, names)
    w.label(first, node.origin)
    for result, name in zip(node.results, names, strict=True):
        w.define(result, name)


def _write_loop(w: Writer, node: Node, xs: list[str], names: list[str]) -> None:
    (body,), attrs, count = node.regions, node.attrs, len(xs)
    limit = w.dims(attrs["trip"]) if attrs["trip"] else ""
    inner = w.inner()
    at, goes_on = inner.unique("iteration"), inner.unique("goes_on")
    given = [value_info(at, type_to(tensor(I64))), value_info(goes_on, type_to(tensor(BOOL)))]
    inner.size(plain_symbol(attrs["iteration"][0]), inner.node("Reshape", [at, inner.ints([1])]))
    carried, state = list(body.inputs), list(names[:count])
    if attrs["conditional"]:
        inner.define(carried.pop(), goes_on)
        state.pop()
    for v in carried:
        inner.define(v, inner.unique(v.name))
        given.append(value_info(inner.name(v), type_to(v.type, plain_symbol)))
    graph = _write_region(inner, body, given)
    if attrs["conditional"]:
        more = graph.output.pop(count - 1)
    else:
        more = value_info(inner.node("Identity", [goes_on]), type_to(tensor(BOOL)))
        graph.node.append(inner.nodes[-1])
    rest = list(graph.output)
    del graph.output[:]
    graph.output.extend([more, *rest])
    start = xs.pop() if attrs["conditional"] else ""
    if attrs["conditional"] and node.results[count - 1].uses:
        raise ExportError(f"{w.where}: the condition that ended a loop has no ONNX form")
    w.nodes.append(helper.make_node("Loop", [limit, start, *xs], [*state, *names[count:]], body=graph))


def _write_region(w: Writer, region: Graph, given: Sequence[onnx.ValueInfoProto] = ()) -> onnx.GraphProto:
    names = _write(w, list(region.nodes), region.inputs, region.outputs, [""] * len(region.outputs))
    results = [value_info(n, type_to(v.type, plain_symbol)) for v, n in zip(region.outputs, names, strict=True)]
    return helper.make_graph(w.nodes, region.name, given, results, w.initializers)


def _model(
    w: Writer,
    name: str,
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    opsets: dict[str, int],
) -> ModelProto:
    used = {o.name for o in outputs}
    for node in w.nodes:
        used.update(node.input, inner_names(node))
    graph = helper.make_graph(w.nodes, name, inputs, outputs, [t for t in w.initializers if t.name in used])
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(graph, producer_name="opcel", opset_imports=imports)
    model.ir_version = max(4, helper.find_min_ir_version_for(imports, ignore_unknown=True))
    return model
