"""An ONNX graph under construction: names, nodes, initializers, and run-time sizes by integer arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, TypeProto, helper

from opcel_compiler.frontend.foreign import graphs_of
from opcel_compiler.frontend.limits import ExportError
from opcel_compiler.frontend.proto_types import code_of
from opcel_compiler.frontend.weights import to_proto
from opcel_compiler.ir.dims import Call, Dim, Expr, Symbol, bounds
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import DType, TensorType

INT64_MIN = -(1 << 63)


class Writer:
    """Collects the nodes and initializers of one ONNX graph at `opset`.

    Sizes named by symbols are read with Shape from the first value that carries them; with `ask`, a symbol that no
    value carries becomes an extra graph input, named by `asked`.
    """

    def __init__(self, opset: int, reserved: Iterable[str] = (), ask: bool = False) -> None:
        self.opset = opset
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.asked: dict[str, str] = {}
        self._ask = ask
        self._taken = set(reserved)
        self._node_names: set[str] = set()
        self._names: dict[Value, str] = {}
        self._sources: dict[str, tuple[str, int, int, int]] = {}
        self._dims: dict[Dim, str] = {}
        self._known: dict[str, str] = {}
        self._constants: dict[tuple[object, ...], str] = {}
        self.where = ""

    def inner(self) -> Writer:
        """A writer of a graph inside this one, which sees its tensors."""
        out = Writer(self.opset, ask=self._ask)
        out.asked, out._taken, out._node_names, out.where = self.asked, self._taken, self._node_names, self.where
        out._names, out._sources = dict(self._names), dict(self._sources)
        out._dims, out._known, out._constants = dict(self._dims), dict(self._known), dict(self._constants)
        return out

    # -- names ---------------------------------------------------------------------------------------------------

    def unique(self, base: str) -> str:
        name, n = base, 0
        while not name or name in self._taken:
            n += 1
            name = f"{base}_{n}"
        self._taken.add(name)
        return name

    def label(self, first: int, origin: Sequence[str]) -> None:
        """Name the nodes from index `first` on after the origin of the node that they write."""
        for proto in self.nodes[first:]:
            base, n = (proto.name if proto.name else origin[0] if origin else ""), 0
            proto.name = base
            while base and proto.name in self._node_names:
                n += 1
                proto.name = f"{base}_{n}"
            self._node_names.add(proto.name)

    def reserve(self, names: Iterable[str]) -> None:
        self._taken.update(names)

    def name(self, value: Value) -> str:
        """The tensor name of a value; one that nothing defined yet must be a constant, and becomes an initializer."""
        found = self._names.get(value)
        if found is None:
            if value.constant is None:
                raise ExportError(f"%{value.name}, used by {self.where}, is neither given nor computed")
            found = self._names[value] = self.unique(value.name)
            self.initializers.append(to_proto(value.constant, found))
        return found

    def define(self, value: Value, name: str) -> None:
        """Say that the tensor `name` holds `value`; its sizes become a source of symbols."""
        self._names[value] = name
        if isinstance(value.type, TensorType):
            for axis, d in enumerate(value.type.shape or ()):
                if isinstance(d, Expr) and (line := _linear(d)) is not None:
                    symbol, factor, offset = line
                    known = self._sources.get(symbol.name)
                    if known is None or (known[2:] != (1, 0) and (factor, offset) == (1, 0)):
                        self._sources[symbol.name] = (name, axis, factor, offset)

    def alias(self, value: Value, like: Value) -> None:
        self._names[value] = self.name(like)

    # -- nodes ---------------------------------------------------------------------------------------------------

    def node(self, op_type: str, inputs: Sequence[str], /, **attrs: Any) -> str:
        """Append a node of the default domain with one output, and give the output's name."""
        return self.many(op_type, inputs, (True,), **attrs)[0]

    def many(self, op_type: str, inputs: Sequence[str], wanted: Sequence[bool], /, **attrs: Any) -> list[str]:
        """Append a node of the default domain with the `wanted` ones of its outputs, and give their names."""
        outputs = [self.unique(f"{op_type.lower()}_out") if want else "" for want in wanted]
        given = {k: v for k, v in attrs.items() if v is not None}
        self.nodes.append(helper.make_node(op_type, list(inputs), outputs, **given))
        return [name for name in outputs if name]

    def constant(self, array: np.ndarray, dtype: DType | None = None) -> str:
        """The name of an initializer with this data; equal data is stored once."""
        data = Constant(array, dtype)
        key = (data.type, data.digest)
        if key not in self._constants:
            self._constants[key] = self.unique("const")
            self.initializers.append(to_proto(data, self._constants[key]))
        return self._constants[key]

    def number(self, x: Any, dtype: DType) -> str:
        return self.constant(np.asarray(x).astype(dtype.numpy), dtype)

    def ints(self, values: Sequence[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def cast(self, x: str, dtype: DType, **attrs: Any) -> str:
        return self.node("Cast", [x], to=code_of(dtype), **attrs)

    # -- sizes ---------------------------------------------------------------------------------------------------

    def dims(self, dims: Sequence[Dim]) -> str:
        """An i64 vector with these dims."""
        if all(isinstance(d, int) for d in dims):
            return self.ints([int(d) for d in dims if isinstance(d, int)])
        parts = [self.dim(d) for d in dims]
        return parts[0] if len(parts) == 1 else self.node("Concat", parts, axis=0)

    def dim(self, d: Dim) -> str:
        """An i64 vector of one element with the value of a dim."""
        if isinstance(d, int):
            return self.ints([d])
        if d not in self._dims:
            self._dims[d] = self._sum(d)
        return self._dims[d]

    def size(self, symbol: str, name: str) -> None:
        """Say that the tensor `name`, an i64 vector of one element, holds the value of a symbol."""
        self._known[symbol] = name

    def _sum(self, d: Expr) -> str:
        total = ""
        for mono, coeff in d.terms:
            term = self.ints([coeff]) if coeff != 1 or not mono else ""
            for atom in mono:
                factor = self._symbol(atom) if isinstance(atom, Symbol) else self._call(atom)
                term = self.node("Mul", [term, factor]) if term else factor
            total = self.node("Add", [total, term]) if total else term
        return total

    def _call(self, call: Call) -> str:
        a, b = self.dim(call.a), self.dim(call.b)
        if call.fn in ("min", "max"):
            if self.opset >= 12:
                return self.node(call.fn.capitalize(), [a, b])
            first = self.node("Less", [a, b])
            return self.node("Where", [first, a, b] if call.fn == "min" else [first, b, a])
        low, divisor = bounds(call.a)[0], bounds(call.b)[0]
        whole = low is not None and low >= 0 and divisor is not None and divisor >= 0
        if call.fn == "//" and whole:
            return self.node("Div", [a, b])
        if self.opset < 10:
            if not whole:
                raise ExportError(f"the size {call} needs opset 10")
            return self.node("Sub", [a, self.node("Mul", [self.node("Div", [a, b]), b])])
        rest = self.node("Mod", [a, b])
        return rest if call.fn == "%" else self.node("Div", [self.node("Sub", [a, rest]), b])

    def _symbol(self, symbol: Symbol) -> str:
        if symbol.name in self._known:
            return self._known[symbol.name]
        source = self._sources.get(symbol.name)
        if source is None:
            if not self._ask:
                raise ExportError(f"no value carries the size {symbol}, which {self.where} needs")
            if symbol.name not in self.asked:
                self.asked[symbol.name] = self.unique(f"size_{symbol.name}")
            return self.asked[symbol.name]
        name, axis, factor, offset = source
        out = self.node("Gather", [self.node("Shape", [name]), self.ints([axis])], axis=0)
        if offset:
            out = self.node("Sub", [out, self.ints([offset])])
        return self.node("Div", [out, self.ints([factor])]) if factor != 1 else out


def _linear(d: Expr) -> tuple[Symbol, int, int] | None:
    """(s, k, c) when `d` is k s + c with positive k."""
    symbol, factor, offset = None, 0, 0
    for mono, coeff in d.terms:
        if not mono:
            offset = coeff
        elif len(mono) == 1 and isinstance(mono[0], Symbol) and symbol is None:
            symbol, factor = mono[0], coeff
        else:
            return None
    return None if symbol is None or factor < 1 else (symbol, factor, offset)


def inner_names(node: NodeProto) -> set[str]:
    """Every tensor name inside the graphs of a node."""
    out: set[str] = set()
    stack = graphs_of(node)
    while stack:
        graph = stack.pop()
        out.update(v.name for v in [*graph.input, *graph.output])
        out.update(t.name for t in graph.initializer)
        for inner in graph.node:
            out.update([*inner.input, *inner.output])
            stack += graphs_of(inner)
    return out


def rename(node: NodeProto, names: Mapping[str, str]) -> None:
    """Rename what the graphs of a node take from outside."""
    stack: list[tuple[GraphProto, Mapping[str, str]]] = [(g, names) for g in graphs_of(node)]
    while stack:
        graph, outer = stack.pop()
        local = {v.name for v in graph.input} | {t.name for t in graph.initializer}
        local.update(name for inner in graph.node for name in inner.output)
        mapping = {k: v for k, v in outer.items() if k not in local}
        for inner in graph.node:
            for i, name in enumerate(inner.input):
                inner.input[i] = mapping.get(name, name)
            stack += [(g, mapping) for g in graphs_of(inner)]
        for v in graph.output:
            v.name = mapping.get(v.name, v.name)


def value_info(name: str, type_: TypeProto) -> Any:
    out = helper.make_empty_tensor_value_info(name)
    out.type.CopyFrom(type_)
    return out
