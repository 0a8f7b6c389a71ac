"""One name space of a file: its values by name, and how its nodes become ours."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Union

import onnx
import onnx.defs
from onnx import (
    FunctionProto,
    GraphProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    TypeProto,
)

from opcel_compiler.frontend.builder import Builder
from opcel_compiler.frontend.checks import check_types
from opcel_compiler.frontend.foreign import Typing, captured, check_node, embed, graphs_of
from opcel_compiler.frontend.functions import Functions, bound, defaults_of
from opcel_compiler.frontend.limits import (
    EXPERIMENTAL,
    MAX_FUNCTION_DEPTH,
    MIN_OPSET,
    ModelError,
    domain_of,
)
from opcel_compiler.frontend.lowering import OLDER, REGISTRY, Invalid, Lowering, Unsupported
from opcel_compiler.frontend.proto_types import type_to
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.opdef import InferenceError
from opcel_compiler.ir.types import UnknownType

Initializer = Union[TensorProto, SparseTensorProto]


class Scope:
    """The values of a graph, or of one call of a function (`call`: the names of the calls that led here). A graph in a
    node's attribute sees the values of the scope around it, its `parent`, too."""

    def __init__(
        self,
        builder: Builder,
        typing: Typing,
        functions: Functions,
        opsets: Mapping[str, int],
        ir_version: int,
        call: tuple[str, ...] = (),
        parent: Scope | None = None,
    ) -> None:
        self.builder = builder
        self.graph = builder.graph
        self.parent = parent
        self.typing = typing
        self.functions = functions
        self.opsets = opsets
        self.ir_version = ir_version
        self.call = call
        self.strict = False
        self.initializers: dict[str, Initializer] = {}
        self._values: dict[str, Value] = {}
        self._count: dict[str, int] = {}
        self._used: set[str] = set()

    # -- names ---------------------------------------------------------------------------------------------------

    def add_initializers(self, graph: GraphProto) -> None:
        for t in graph.initializer:
            self._add_initializer(t.name, t)
        for s in graph.sparse_initializer:
            self._add_initializer(s.values.name, s)

    def _add_initializer(self, name: str, t: Initializer) -> None:
        if not name:
            raise ModelError("an initializer has no name")
        if name in self.initializers:
            raise ModelError(f"the initializer {name!r} is defined twice")
        self.initializers[name] = t

    def define(self, name: str, value: Value, what: str) -> None:
        if name in self._values or name in self.initializers:
            raise ModelError(f"the tensor {name!r} is defined twice, the second time by {what}")
        self._values[name] = value

    def known(self, name: str) -> bool:
        return self._own(name) or (self.parent is not None and self.parent.known(name))

    def _own(self, name: str) -> bool:
        return name in self._values or name in self.initializers

    def value(self, name: str, user: str) -> Value:
        """The value of a tensor. Raises ModelError, naming its user, when nothing defines it."""
        found = self._values.get(name)
        if found is None:
            t = self.initializers.get(name)
            if t is None and self.parent is not None:
                return self.parent.value(name, user)
            if t is None:
                raise ModelError(f"the tensor {name!r}, used by {user}, is made by no node, input or initializer")
            where = f"initializer {name!r}"
            weights = self.builder.weights
            data = weights.sparse(t, where) if isinstance(t, SparseTensorProto) else weights.constant(t, where)
            found = self.graph.constant(data, origin=(name,), name=name)
            self._values[name] = found
        return found

    # -- nodes ---------------------------------------------------------------------------------------------------

    def add_nodes(self, nodes: Iterable[NodeProto], outputs: Iterable[str]) -> None:
        """Lower `nodes`, of which `outputs` are wanted."""
        given = list(nodes)
        self._used = {name for name in outputs if name}
        for node in given:
            self._used.update(name for name in node.input if name)
            self._used.update(captured(node) if graphs_of(node) else ())
        for node in self._ordered(given):
            self._add_node(node)

    def _ordered(self, nodes: list[NodeProto]) -> list[NodeProto]:
        """The nodes with every producer before its users. Raises ModelError for a tensor that nothing or two nodes
        make, and for a cycle."""
        maker: dict[str, int] = {}
        for i, node in enumerate(nodes):
            for name in node.output:
                if name and (name in maker or self._own(name)):
                    raise ModelError(f"the tensor {name!r} is defined twice, the second time by node {_label(node, i)}")
                if name:
                    maker[name] = i
        needs: list[set[int]] = []
        users: list[list[int]] = [[] for _ in nodes]
        for i, node in enumerate(nodes):
            before: set[int] = set()
            for name in [n for n in node.input if n] + (captured(node) if graphs_of(node) else []):
                if name in maker:
                    before.add(maker[name])
                elif not self.known(name):
                    raise ModelError(
                        f"the tensor {name!r}, used by node {_label(node, i)} ({node.op_type}), is made by no node,"
                        " input or initializer"
                    )
            needs.append(before)
            for j in before:
                users[j].append(i)
        if all(j < i for i, before in enumerate(needs) for j in before):
            return nodes
        ready, out = deque(i for i, before in enumerate(needs) if not before), []
        left = [len(before) for before in needs]
        while ready:
            i = ready.popleft()
            out.append(nodes[i])
            for user in users[i]:
                left[user] -= 1
                if not left[user]:
                    ready.append(user)
        if len(out) < len(nodes):
            stuck = next(i for i, n in enumerate(left) if n)
            used = [*nodes[stuck].input, *captured(nodes[stuck])]
            name = next(n for n in used if n in maker and left[maker[n]])
            label = _label(nodes[stuck], stuck)
            raise ModelError(f"the graph has a cycle: node {label} needs {name!r}, which depends on it")
        return out

    def _origin(self, node: NodeProto) -> str:
        count = self._count.get(node.op_type, 0)
        self._count[node.op_type] = count + 1
        own = node.name or f"{node.op_type}_{count}"
        return "/".join((*self.call, own))

    def _add_node(self, node: NodeProto) -> None:
        origin = self._origin(node)
        if not node.op_type:
            raise ModelError(f"node {origin!r} names no operator")
        user = f"node {origin!r} ({node.op_type})"
        inputs = [self.value(n, user) if n else None for n in node.input]
        for name, value in zip(node.output, self._lower(node, inputs, origin), strict=False):
            if value is None:
                if name in self._used:
                    raise ModelError(f"{user} has no output {name!r}")
            elif name:
                if value.producer is not None and value.name.split(".")[0] == value.producer.op:
                    value.name = self.builder.graph.unique_name(name)
                self.define(name, value, user)
        for name in node.output:
            if name in self._used and not self.known(name):
                raise ModelError(f"{user} has too many outputs: {name!r}")

    def _lower(self, node: NodeProto, inputs: Sequence[Value | None], origin: str) -> Sequence[Value | None]:
        domain = domain_of(node.domain)
        function = self.functions.find(node)
        if function is not None:
            return self._call(function, node, inputs, origin)
        version = self.opsets.get(domain)
        if version is None:
            raise ModelError(
                f"node {origin!r} ({node.op_type}): the model imports no opset of domain {domain or 'ai.onnx'!r}"
            )
        self.builder.operators[origin] = f"{domain}{'::' * bool(domain)}{node.op_type}:{version}"
        check_types(node, domain, version, inputs, origin)
        mark, invalid = self.builder.mark(), False
        entry = REGISTRY.get((domain, node.op_type))
        old = not domain and version < MIN_OPSET
        if entry is None or not entry[1] <= (MIN_OPSET if old else version) <= entry[2]:
            reason = f"{node.op_type} has no lowering"
        else:
            try:
                lowering = Lowering(self.builder, node, version, inputs, origin, self._used, self)
                lowering = OLDER[0](lowering) if old else lowering
                out = entry[0](lowering)
                if (name := lowering.unread()) is not None:
                    raise Unsupported(f"its attribute {name!r} is not known to the lowering")
                return [out] if isinstance(out, Value) else list(out)
            except Unsupported as e:
                reason, invalid = str(e), isinstance(e, Invalid)
            except InferenceError as e:
                reason, invalid = str(e), self.strict and self._rejected(node, inputs, origin)
            except (ValueError, TypeError, IndexError, ArithmeticError) as e:
                reason = str(e) or type(e).__name__
            self.builder.undo(mark)
        body = self._body(node, inputs, version)
        if body is not None:
            inner = self._try_body(body, node, inputs, origin)
            if inner is not None:
                return inner
            self.builder.undo(mark)
        if self.strict:
            text = f"{origin}: {reason}" if self.parent is not None else reason
            raise Invalid(text) if invalid else Unsupported(text)
        return self._foreign(node, inputs, origin, version, reason)

    def _rejected(self, node: NodeProto, inputs: Sequence[Value | None], origin: str) -> bool:
        """Whether the operator's own inference finds the operands wrong."""
        try:
            self.typing.types(node, inputs, origin, top=False)
        except ModelError:
            return True
        return False

    # -- graphs in attributes ------------------------------------------------------------------------------------

    def inner(self, graph: GraphProto, inputs: Sequence[Value], origin: str) -> list[Value]:
        """Lower a graph of a node's attribute where the builder is at: the values of its outputs. Raises Unsupported
        for a graph in which something has no lowering."""
        if len(self.call) >= MAX_FUNCTION_DEPTH:
            raise ModelError(f"node {origin!r}: graphs nest more than {MAX_FUNCTION_DEPTH} deep")
        own = origin.split("/")[-1] if self.call else origin
        call = (*self.call, own)
        inner = Scope(self.builder, self.typing, self.functions, self.opsets, self.ir_version, call, self)
        inner.strict = True
        inner.add_initializers(graph)
        given = [v for v in graph.input if v.name not in inner.initializers]
        if len(given) != len(inputs):
            raise Unsupported(f"graph {graph.name!r} takes {len(given)} inputs, and is given {len(inputs)}")
        for v, value in zip(given, inputs, strict=True):
            inner.define(v.name, value, f"input {v.name!r}")
        try:
            inner.add_nodes(graph.node, [v.name for v in graph.output])
            return [inner.value(v.name, f"the outputs of graph {graph.name!r}") for v in graph.output]
        except ModelError as e:
            raise Invalid(str(e)) from None

    # -- functions -----------------------------------------------------------------------------------------------

    def _call(
        self, f: FunctionProto, node: NodeProto, inputs: Sequence[Value | None], origin: str, strict: bool = False
    ) -> list[Value | None]:
        """Inline one call: the values of the function's outputs."""
        if len(self.call) >= MAX_FUNCTION_DEPTH:
            raise ModelError(
                f"node {origin!r}: function calls nest more than {MAX_FUNCTION_DEPTH} deep; is {f.name} recursive?"
            )
        if len(node.input) > len(f.input) or len(node.output) > len(f.output):
            raise ModelError(f"node {origin!r} does not fit the function {f.name}: too many inputs or outputs")
        opsets = {**self.opsets, **{domain_of(o.domain): o.version for o in f.opset_import}}
        own = origin.split("/")[-1] if self.call else origin
        inner = Scope(self.builder, self.typing, self.functions, opsets, self.ir_version, (*self.call, own))
        inner.strict = strict or self.strict
        absent = set()
        for i, name in enumerate(f.input):
            value = inputs[i] if i < len(inputs) else None
            if value is None:
                absent.add(name)
            else:
                inner._values[name] = value
        given = {a.name: a for a in (*defaults_of(node, self.opsets), *f.attribute_proto, *node.attribute)}
        wanted = [mine if name else "" for mine, name in zip(f.output, node.output, strict=False)]
        inner.add_nodes((bound(n, given, absent) for n in f.node), wanted)
        return [inner.value(name, f"function {f.name}") if name else None for name in wanted]

    def _body(self, node: NodeProto, inputs: Sequence[Value | None], version: int) -> FunctionProto | None:
        """The body that the standard gives the operator, if it gives one."""
        if not onnx.defs.has(node.op_type, node.domain):
            return None
        try:
            schema: Any = onnx.defs.get_schema(node.op_type, version, node.domain)
        except onnx.defs.SchemaError:
            return None
        if schema.has_function:
            body: FunctionProto = schema.function_body
            return body
        typed = not any(v is not None and isinstance(v.type, UnknownType) for v in inputs)
        if not schema.has_context_dependent_function or not typed:
            return None
        try:
            types = [(TypeProto() if v is None else type_to(v.type)).SerializeToString() for v in inputs]
            body = FunctionProto.FromString(schema.get_context_dependent_function(node.SerializeToString(), types))
            return body
        except Exception:  # the binding raises many kinds for a body that it cannot build
            return None

    def _try_body(
        self, f: FunctionProto, node: NodeProto, inputs: Sequence[Value | None], origin: str
    ) -> list[Value | None] | None:
        try:
            return self._call(f, node, inputs, origin, strict=True)
        except (Unsupported, ModelError):
            return None

    # -- opaque nodes --------------------------------------------------------------------------------------------

    def _foreign(
        self, node: NodeProto, inputs: Sequence[Value | None], origin: str, version: int, reason: str
    ) -> Sequence[Value | None]:
        domain = domain_of(node.domain)
        if not domain and not onnx.defs.has(node.op_type) and node.op_type not in EXPERIMENTAL:
            raise ModelError(f"node {origin!r}: there is no operator {node.op_type!r} in ONNX opset {version}")
        whole = NodeProto()
        whole.CopyFrom(node)
        whole.domain = domain
        whole.name = origin
        embed(whole, self.builder.weights, origin)
        if onnx.defs.has(node.op_type, domain):
            check_node(whole, self.opsets, self.ir_version, origin)
            check_types(whole, domain, version, inputs, origin, exact=True)
        names = captured(node)
        operands = [*inputs, *(self.value(n, f"a graph inside node {origin!r}") for n in names)]
        types = self.typing.types(whole, inputs, origin, top=not self.call)
        kept = [t for t, name in zip(types, node.output, strict=True) if name]
        attrs = {
            "domain": domain,
            "op_type": node.op_type,
            "opset": version,
            "node": whole.SerializeToString(deterministic=True),
            "captured": tuple(names),
            "reason": reason,
            "opsets": tuple(f"{d}:{v}" for d, v in sorted(self.opsets.items())) if graphs_of(node) else (),
        }
        results = iter(self.builder.add("foreign", operands, attrs, origin, types=kept).results)
        return [next(results) if name else None for name in node.output]


def _label(node: NodeProto, i: int) -> str:
    return repr(node.name) if node.name else f"{i} of the graph"
