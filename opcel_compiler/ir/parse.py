"""Reading the text form of a graph; `text` describes the form."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np

from opcel_compiler.ir.dims import Dim, Symbol
from opcel_compiler.ir.encodings import DENSE, Constant, Encoding, Grouped, Sparse
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.opdef import InferenceError, op_def
from opcel_compiler.ir.parse_dims import parse_dim
from opcel_compiler.ir.scan import BYTES, DIGEST, INT, NAME, NUMBER, STRING, ParseError, Scanner
from opcel_compiler.ir.types import (
    DTYPES,
    DType,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnknownType,
)

MAX_BYTES = 1 << 28
"""The largest constant that a text may hold: one element may stand for all."""

Item = TypeVar("Item")


def parse_graph(text: str, constants: Mapping[str, Constant] | None = None) -> Graph:
    """The graph that `text` writes. `constants` gives the data of constants written as a digest. Raises ParseError,
    also for what a definition refuses when a node is made; `verify` checks the rest."""
    parser = _Parser(text, constants or {})
    return parser.whole(parser.top)


class _Parser(Scanner):
    def __init__(self, text: str, constants: Mapping[str, Constant]) -> None:
        super().__init__(text)
        self.constants = constants
        self.symbols: dict[str, Symbol] = {}
        self.names: set[str] = set()

    def whole(self, item: Callable[[], Item]) -> Item:
        """What all of the text after its symbols writes."""
        try:
            while self.word("symbol"):
                self.symbol()
            out = item()
        except RecursionError:
            self.fail("nested too deeply")
        self.skip()
        if self.at < len(self.text):
            self.fail("expected the end of the text")
        return out

    def top(self) -> Graph:
        if not self.word("graph"):
            self.fail("expected 'graph'")
        return self.graph(Graph(), {})

    # -- dims and types --------------------------------------------------------------------------------------------

    def symbol(self) -> None:
        self.skip()
        start = self.at
        name = self.identifier("a symbol's name")
        if not self.word("in"):
            self.fail("expected 'in'")
        found = self.take(re.compile(r"(-?\d+)\.\.(-?\d+)?"))
        if not found:
            self.fail("expected a range like 1..64 or 1..")
        try:
            self.symbols[name] = Symbol(name, int(found[1]), None if found[2] is None else int(found[2]))
        except ValueError as e:
            self.fail(str(e), start)

    def dim(self) -> Dim:
        """A dim: all up to the comma or bracket that ends it."""
        self.skip()
        start, depth = self.at, 0
        while self.at < len(self.text):
            c = self.text[self.at]
            if c in ",)]}" and depth == 0:
                break
            depth += (c == "(") - (c == ")")
            self.at += 1
        try:
            return parse_dim(self.text[start : self.at], self.symbols)
        except (ValueError, ZeroDivisionError) as e:
            self.fail(str(e), start)

    def dtype(self) -> DType:
        self.skip()
        start = self.at
        name = self.identifier("an element type")
        if name not in DTYPES:
            self.fail(f"{name!r} is no element type", start)
        return DTYPES[name]

    def type(self) -> Type:
        if self.sign("?"):
            return UnknownType()
        self.skip()
        start = self.at
        name = self.identifier("a type")
        if name in ("seq", "optional", "map"):
            self.expect("<")
            key = self.dtype() if name == "map" else None
            if key is not None:
                self.expect(",")
            inner = self.type()
            self.expect(">")
            if key is not None:
                return MapType(key, inner)
            return SequenceType(inner) if name == "seq" else OptionalType(inner)
        self.at = start
        return self.tensor_type()

    def tensor_type(self) -> TensorType:
        dtype = self.dtype()
        self.skip()
        start = self.at
        if re.compile(r"\[\s*\*\s*\]").match(self.text, start):
            self.at = self.text.index("]", start) + 1
            return TensorType(dtype, None)
        try:
            return TensorType(dtype, tuple(self.items("[", "]", self.dim)))
        except TypeError as e:
            self.fail(str(e), start)

    # -- data ------------------------------------------------------------------------------------------------------

    def encoding(self) -> Encoding:
        self.skip()
        start = self.at
        try:
            if self.word("sparse"):
                found = self.take(re.compile(r"<(\d+):(\d+), *axis=(\d+)(?:, *granularity=(\d+))?>"))
                if not found:
                    self.fail("expected <n:m, axis=a, granularity=g>")
                return Sparse(int(found[1]), int(found[2]), int(found[3]), int(found[4] or 1))
            if self.word("grouped"):
                self.expect("<")
                dtype = self.dtype()
                found = self.take(re.compile(r", *group=(\d+), *axis=(\d+)>"))
                if not found:
                    self.fail("expected group=g, axis=a>")
                return Grouped(dtype, int(found[1]), int(found[2]))
        except ValueError as e:
            self.fail(str(e), start)
        return DENSE

    def constant(self) -> Constant:
        t = self.tensor_type()
        encoding = self.encoding()
        self.skip()
        start = self.at
        if found := self.take(DIGEST):
            data = self.constants.get(found[1])
            if data is None:
                self.fail(f"the data of constant #{found[1]} is not given", start)
            if data.type != t or data.encoding != encoding:
                self.fail(f"constant #{found[1]} is {data.type} {data.encoding}, not {t} {encoding}", start)
            return data
        if not t.is_static:
            self.fail(f"a constant's shape has integers only, not {t}", start)
        flat: list[Any] = []
        self.elements(t.dtype, flat)
        size, per = math.prod(t.static_shape), 2 if t.dtype.kind == "c" else 1
        if size * t.dtype.bits // 8 > MAX_BYTES:
            self.fail(f"{t} is larger than the {MAX_BYTES >> 20} MiB that a constant in a text may have", start)
        if len(flat) not in (per, size * per):
            self.fail(f"{len(flat) // per} elements for {t}, which has {size}", start)
        try:
            few = _array(t.dtype, flat)
            shape = t.static_shape
            return Constant(few.reshape(shape) if len(few) == size else np.full(shape, few), t.dtype, encoding)
        except (ValueError, OverflowError) as e:
            self.fail(f"not elements of {t.dtype}: {e}", start)

    def elements(self, dtype: DType, out: list[Any]) -> None:
        if self.peek(re.compile(r"\[")):
            self.items("[", "]", lambda: self.elements(dtype, out))
        elif dtype.kind == "s":
            out.append(self.binary() if self.peek(BYTES) else self.string())
        elif dtype.kind == "b":
            out.append(self.truth())
        else:
            self.skip()
            start = self.at
            found = self.take(NUMBER)
            if not found:
                self.fail(f"expected an element of {dtype}")
            text = found.group()
            if dtype.is_integer and not INT.match(text):
                self.fail(f"{text} is not an integer", start)
            out.append(self.number(found) if dtype.is_integer else text)

    # -- attributes ------------------------------------------------------------------------------------------------

    def attr(self, kind: str | None) -> Any:
        """A value of `kind`, or of the kind that its first characters show when that is None."""
        if self.word("none"):
            return None
        if kind == "constant":
            return self.constant()
        if kind in ("dims", "ints", "symbols"):
            return tuple(self.items("[", "]", self.dim))
        if kind in ("type", "types", "dtype"):
            return self.untyped() if kind == "types" else self.type() if kind == "type" else self.dtype()
        return self.untyped()

    def untyped(self) -> Any:
        if self.peek(STRING):
            return self.string()
        if self.peek(BYTES):
            return self.binary()
        if self.peek(re.compile(r"\(")):
            return tuple(self.items("(", ")", self.type_or_constant))
        if self.peek(re.compile(r"\[")):
            return tuple(self.items("[", "]", self.list_item))
        if found := self.take(NUMBER):
            return self.number(found)
        if self.peek(re.compile(r"true\b|false\b")):
            return self.truth()
        return self.type_or_constant()

    def list_item(self) -> Any:
        """A string, bool, float, dtype or dim."""
        if self.peek(STRING) or self.peek(BYTES) or self.peek(re.compile(r"true\b|false\b")):
            return self.untyped()
        if self.peek(re.compile(r"\w+\s*[\],]")) and not self.peek(re.compile(r"\d|inf\b|nan\b")):
            start = self.at
            if (name := self.identifier("a dim")) in DTYPES:
                return DTYPES[name]
            self.at = start
        start = self.at
        found = self.take(NUMBER)
        if found and self.peek(re.compile(r"[\],]")) and not INT.match(found.group()):
            return self.number(found)
        self.at = start
        return self.dim()

    def type_or_constant(self) -> Any:
        """A dtype, a type, or a constant: a type with data after it."""
        if self.peek(re.compile(r"\w+")) and not self.peek(re.compile(r"\w+\s*[\[<]")):
            return self.dtype()
        start = self.at
        t = self.type()
        if isinstance(t, TensorType) and self.peek(re.compile(r"""[\[#\w"+.-]""")):
            self.at = start
            return self.constant()
        return t

    # -- nodes -----------------------------------------------------------------------------------------------------

    def define(self, what: re.Match[str] | None) -> str:
        """A name that is new."""
        if what is None:
            self.fail("expected a value like %x")
        if what[1] in self.names:
            self.fail(f"%{what[1]} is defined twice", what.start())
        self.names.add(what[1])
        return what[1]

    def use(self, scope: Mapping[str, Value]) -> Value:
        found = self.take(NAME)
        if not found:
            self.fail("expected a value like %x")
        if found[1] not in scope:
            self.fail(f"%{found[1]} is not defined before its use", found.start())
        return scope[found[1]]

    def graph(self, graph: Graph, outer: Mapping[str, Value]) -> Graph:
        scope = dict(outer)
        if self.peek(STRING):
            graph.name = self.string()
        elif not self.peek(re.compile(r"\(")):
            graph.name = self.identifier("the graph's name")

        def parameter() -> None:
            name = self.define(self.take(NAME))
            self.expect(":")
            scope[name] = graph.add_input(name, self.type())

        self.items("(", ")", parameter)
        self.expect("{")
        while not self.word("return"):
            self.statement(graph, scope)
        while not self.sign("}"):
            if graph.outputs:
                self.expect(",")
            value = self.use(scope)
            graph.add_output(value, self.string() if self.word("as") else None)
        return graph

    def statement(self, graph: Graph, scope: dict[str, Value]) -> None:
        names = []
        while self.peek(NAME):
            names.append(self.define(self.take(NAME)))
            if not self.sign(","):
                break
        if names:
            self.expect("=")
        self.skip()
        start = self.at
        op = self.identifier("an operator")
        operands: list[Value | None] = []
        attrs: dict[str, Any] = {}
        if op in DTYPES:
            self.at = start
            op, attrs = "constant", {"value": self.constant()}
        else:
            try:
                definition = op_def(op)
            except KeyError:
                self.fail(f"there is no operator {op!r}", start)
            if self.peek(re.compile(r"\(")):
                operands = self.items("(", ")", lambda: None if self.word("_") else self.use(scope))
            if self.sign("{"):
                while not self.sign("}"):
                    if attrs:
                        self.expect(",")
                    name = self.identifier("an attribute's name")
                    self.expect("=")
                    known = definition.attrs.get(name)
                    attrs[name] = self.attr(known.kind if known else None)
        types: list[Type] | None = [] if not names and op_def(op).results < 0 else None
        if self.sign(":"):
            types = [self.type()]
            while self.sign(","):
                types.append(self.type())
        origin = []
        if self.word("from"):
            origin.append(self.string())
            while self.sign(","):
                origin.append(self.string())
        if types is not None and len(types) != len(names):
            self.fail(f"{len(types)} types for {len(names)} results", start)

        def regions(node: Node) -> list[Graph]:
            out = []
            while self.word("region"):
                out.append(self.graph(Graph(parent=node), scope))
            return out

        has_regions = self.word("region")
        self.at -= len("region") if has_regions else 0
        try:
            node = graph.add(
                op, operands, attrs, names=names, types=types, origin=origin, regions=regions if has_regions else None
            )
        except InferenceError as e:
            self.fail(str(e), start)
        if len(node.results) != len(names):
            self.fail(f"{op} has {len(node.results)} results, not {len(names)}", start)
        scope.update(zip(names, node.results, strict=True))


def _array(dtype: DType, flat: list[Any]) -> np.ndarray:
    """The elements as a list of `dtype`; floats and the parts of complex numbers come as texts."""
    base = dtype.numpy
    if dtype.kind == "s":
        out = np.empty(len(flat), object)
        out[:] = flat
        return out
    if dtype.kind in "fc":
        part = base if dtype.kind == "f" else np.dtype(np.float32 if dtype.bits == 64 else np.float64)
        out = np.array([0.0 if s.startswith("0x") else float(s) for s in flat], np.float64).astype(part)
        for i, s in enumerate(flat):
            if s.startswith("0x"):
                out[i] = np.frombuffer(bytes.fromhex(s[2:])[::-1], part)[0]
        return out.view(base)
    if dtype.is_integer and flat:
        low = 0 if dtype.kind == "u" else -(2 ** (dtype.bits - 1))
        high = low + 2**dtype.bits - 1
        if min(flat) < low or max(flat) > high:
            raise ValueError(f"not in {low}..{high}")
    wide = np.int32 if dtype.bits < 8 else base
    return np.array(flat, wide).astype(base)


__all__ = ["ParseError", "parse_graph"]
