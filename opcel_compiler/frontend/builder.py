"""The graph under construction: emitting operators, folding small constants, and following symbolic content."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from opcel_compiler.frontend import symbolic
from opcel_compiler.frontend.limits import LIMITS, MAX_CONTENT, ModelError, check_size
from opcel_compiler.frontend.proto_types import Symbols
from opcel_compiler.frontend.symbolic import Content
from opcel_compiler.frontend.weights import Weights
from opcel_compiler.ir.analysis import made_symbols, symbols_in
from opcel_compiler.ir.dims import Call, Dim, Expr, Monomial, Symbol, as_symbol, bounds, equal, substitute, symbols_of
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.opdef import op_def
from opcel_compiler.ir.types import BOOL, I64, DType, TensorType, Type


class Narrow(Exception):
    """The model only works when a symbol is at most `hi`: a size clamped to a constant meets the size itself."""

    def __init__(self, symbol: Symbol, hi: int) -> None:
        super().__init__(f"{symbol} <= {hi}")
        self.symbol = symbol
        self.hi = hi


_INTEGRAL = frozenset("cast add sub mul div floor ceil reshape".split())
"""Operators whose content is followed through floating-point tensors too, as long as it stays integral."""


KEPT = frozenset({"constant", "dequantize"})
"""Operators that are never folded: passes know which dequantized weights are to stay integers."""


_CARRIES = frozenset({"concat", "reshape", "cast"})
"""Operators whose results hold the values of their operands, so that each of them can be read alone."""


class Builder:
    """Emits nodes into `graph`. Results whose content is known become `constant` or `dims` nodes at once."""

    def __init__(self, graph: Graph, weights: Weights, symbols: Symbols) -> None:
        self.graph = graph
        self.weights = weights
        self.symbols = symbols
        self.log: list[Node] = []
        self.limits = LIMITS.get()
        self.deadline = time.monotonic() + self.limits.seconds
        self.operators: dict[str, str] = {}
        """From a node's origin to its operator in the model, `domain::Name:opset` or `Name:opset`."""
        self.sizes: set[Dim] = set()
        """Dims that are some tensor's size, and so not negative whatever their bounds say."""
        self.trips: dict[str, Dim] = {}
        """Of each symbol that numbers iterations, how many there are at most."""
        self._contents: dict[Value, Content] = {}

    # -- undo ----------------------------------------------------------------------------------------------------

    def mark(self) -> int:
        return len(self.log)

    def undo(self, mark: int) -> None:
        """Erase every node emitted since `mark`."""
        while len(self.log) > mark:
            node = self.log.pop()
            for value in node.results:
                self._contents.pop(value, None)
            self._forget(made_symbols(node))
            if node.graph is not None:
                node.graph.erase(node)

    @contextmanager
    def inside(self, region: Graph) -> Iterator[None]:
        """Emit into `region`, which is emptied when that fails. What is read in it of values outside has no symbol
        outside."""
        outer, self.graph = self.graph, region
        try:
            yield
        except BaseException:
            self._forget([s for node in region.walk() for s in made_symbols(node)])
            region.clear()
            raise
        finally:
            self._forget([s for node in region.walk() for s in made_symbols(node)])
            self.graph = outer

    def _forget(self, symbols: Collection[Symbol]) -> None:
        """Drop the contents that name one of `symbols`."""
        for value, content in list(self._contents.items()) if symbols else ():
            if any(s in symbols for d in content.flat for s in symbols_in(d)):
                del self._contents[value]

    # -- contents ------------------------------------------------------------------------------------------------

    def content(self, value: Value) -> Content | None:
        """The integers, symbolic sizes or bools that `value` holds, when they are known."""
        found = self._contents.get(value)
        if found is None and (data := value.constant) is not None:
            found = symbolic.content_of(data)
            if found is not None:
                self._contents[value] = found
        return found

    def read(self, value: Value, origin: str, lo: int, hi: int | None = None) -> Content | None:
        """The content of an integer tensor, of which what is computed from data is read when the model runs: symbols
        from `lo` to `hi` stand for it. None when the tensor has no constant number of at most MAX_CONTENT elements."""
        found = self.content(value)
        t, maker = value.type, value.producer
        small = isinstance(t, TensorType) and t.is_static and math.prod(t.static_shape) <= MAX_CONTENT
        if found is not None or not small or not isinstance(t, TensorType) or not t.dtype.is_integer:
            return found
        if maker is not None and maker.op in _CARRIES and all(v is not None for v in maker.operands):
            parts = [self.read(v, origin, lo, hi) for v in maker.operands if v is not None]
            first = maker.operand(0).tensor.dtype
            found = symbolic.evaluate(maker.op, parts, first, maker.attrs)
        if found is None:
            count = math.prod(t.static_shape)
            base = value.name if maker is None or not value.name.startswith(maker.op) else origin
            names = [base] if count == 1 else [f"{base}_{i}" for i in range(count)]
            symbols = [self.symbols.late(name, lo, hi) for name in names]
            self.add("read_dims", (value,), {"symbols": tuple(symbols)}, origin)
            found = np.empty(count, object)
            found[:] = symbols
            found = found.reshape(t.static_shape)
        self._contents[value] = found
        return found

    def materialise(self, content: Content, dtype: DType | None, origin: str) -> Value:
        """A value of `dtype` (i64 when None) that holds `content`."""
        dtype = dtype or I64
        array = symbolic.as_array(content, dtype)
        if array is not None:
            return self.constant(Constant(array, dtype), origin)
        dims = symbolic.as_dims(content)
        value = self.add("dims", (), {"values": dims, "scalar": content.ndim == 0}, origin).result
        if content.ndim > 1:
            value = self.add("reshape", (value,), {"shape": content.shape}, origin).result
        if dtype != I64:
            value = self.add("cast", (value,), {"dtype": dtype}, origin).result
        self._contents[value] = content
        return value

    def in_range(self, index: Dim, size: Dim) -> bool:
        """Whether 0 <= index < size for every value of the symbols and in every iteration, as far as that is known."""
        low = high = index
        for name, trip in self.trips.items():
            if not isinstance(index, Expr) or all(s.name != name for s in symbols_of(index)):
                continue
            terms = [(mono, coeff) for mono, coeff in index.terms if any(s.name == name for s in _symbols(mono))]
            if len(terms) > 1 or len(terms[0][0]) > 1 or isinstance(terms[0][0][0], Call):
                return False
            first, last = ({name: at} for at in ((0, trip - 1) if terms[0][1] > 0 else (trip - 1, 0)))
            low, high = substitute(low, first), substitute(high, last)
        edges = [bounds(low)[0], bounds(size - 1 - high)[0]]
        return all(edge is not None and edge >= 0 for edge in edges)

    # -- emitting ------------------------------------------------------------------------------------------------

    def add(
        self,
        op: str,
        operands: Sequence[Value | None],
        attrs: Mapping[str, Any],
        origin: str,
        types: Sequence[Type] | Callable[[Node], Sequence[Type]] | None = None,
        regions: Callable[[Node], Sequence[Graph]] | None = None,
    ) -> Node:
        node = self.graph.add(op, operands, attrs, origin=(origin,), types=types, regions=regions)
        self.log.append(node)
        for value in node.results:
            check_size(value)
        if len(self.log) > self.limits.nodes:
            raise ModelError(
                f"the model has more than {self.limits.nodes} operators by node {origin!r}; for a model that you trust "
                "raise the limit, as in --limit nodes=N"
            )
        if time.monotonic() > self.deadline:
            raise ModelError(
                f"reading the model took more than {self.limits.seconds} seconds at node {origin!r}; for a model that "
                "you trust raise the limit, as in --limit seconds=N"
            )
        return node

    def constant(self, data: Constant, origin: str, name: str = "c") -> Value:
        value = self.graph.constant(data, origin=(origin,), name=name)
        assert value.producer is not None
        self.log.append(value.producer)
        return value

    def emit(self, op: str, operands: Sequence[Value | None], attrs: Mapping[str, Any], origin: str) -> Value:
        """The result of applying `op`. Raises InferenceError when operands or attributes break its definition."""
        d = op_def(op)
        d.check_operands(operands)
        full = d.complete(attrs)
        given = [v for v in operands if v is not None]
        (result,) = d.infer([None if v is None else v.type for v in operands], full)
        if isinstance(result, TensorType) and result.dtype.kind != "s":
            folded = self._fold(op, operands, full, result, origin)
            if folded is not None:
                return folded
        if "elementwise" in d.traits and len(given) > 1:
            self._match(given)
        return self.add(op, operands, full, origin).result

    def _fold(
        self, op: str, operands: Sequence[Value | None], attrs: Mapping[str, Any], result: TensorType, origin: str
    ) -> Value | None:
        """A constant or `dims` in place of the node, when the content of its small result is known."""
        d = op_def(op)
        data = [None if v is None else v.constant for v in operands]
        small = result.is_static and math.prod(result.static_shape) <= MAX_CONTENT
        known = all(
            v is None or (c is not None and c.array.size <= 4 * MAX_CONTENT)
            for c, v in zip(data, operands, strict=True)
        )
        if small and known and operands and d.evaluate is not None and op not in KEPT:
            try:
                with np.errstate(all="ignore"):
                    (array,) = d.evaluate([None if c is None else c.array for c in data], attrs)
            except (ValueError, TypeError, IndexError, ArithmeticError):
                return None
            return self.constant(Constant(np.array(array, result.dtype.numpy), result.dtype), origin)
        if result.dtype.is_integer or result.dtype == BOOL or op in _INTEGRAL:
            contents = [None if v is None else self.content(v) for v in operands]
            first = operands[0].type if operands and operands[0] is not None else None
            dtype = first.dtype if isinstance(first, TensorType) else None
            content = symbolic.evaluate(op, contents, dtype, attrs)
            if content is not None and result.shape is not None and content.ndim == len(result.shape):
                return self.materialise(content, result.dtype, origin)
        return None

    def _match(self, values: Sequence[Value]) -> None:
        """Raises Narrow when sizes that must agree are some symbol and the same symbol clamped to a constant."""
        shapes = [v.type.shape for v in values if isinstance(v.type, TensorType) and v.type.shape is not None]
        for i in range(1, max(map(len, shapes), default=0) + 1):
            dims = {s[-i] for s in shapes if len(s) >= i and s[-i] != 1}
            for a in dims:
                for b in dims:
                    clamp = _clamp(b)
                    if a is not b and clamp is not None and clamp[0] == a and equal(a, b) is None:
                        found = as_symbol(a)
                        if found is not None:
                            raise Narrow(found, clamp[1])


def _symbols(mono: Monomial) -> Iterator[Symbol]:
    for atom in mono:
        yield from [atom] if isinstance(atom, Symbol) else (*symbols_of(atom.a), *symbols_of(atom.b))


def _clamp(d: Dim) -> tuple[Dim, int] | None:
    """(x, c) when `d` is min(x, c) with a constant c."""
    if isinstance(d, Expr) and len(d.terms) == 1:
        mono, coeff = d.terms[0]
        if coeff == 1 and len(mono) == 1 and isinstance(mono[0], Call) and mono[0].fn == "min":
            a, b = mono[0].a, mono[0].b
            if isinstance(b, int):
                return a, b
            if isinstance(a, int):
                return b, a
    return None
