"""Running a graph by the definitions of its operators, with NumPy: the reference for everything else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.analysis import dependences, made_symbols
from opcel_compiler.ir.dims import Dim, Symbol, as_symbol, evaluate, substitute, symbols_of
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.opdef import AttrDef, InferenceError
from opcel_compiler.ir.ops.foreign import BODIES
from opcel_compiler.ir.text import print_node
from opcel_compiler.ir.types import TensorType

Observe = Callable[[Node, Sequence[np.ndarray]], None]
Foreign = Callable[[Node, Sequence["np.ndarray | None"]], Sequence[np.ndarray]]


class InterpretError(OpcelError):
    """The feeds do not fit the graph, or a node cannot be evaluated."""


def run(
    graph: Graph, feeds: Mapping[str, np.ndarray], *, observe: Observe | None = None, foreign: Foreign | None = None
) -> dict[str, np.ndarray]:
    """The outputs of `graph`, by output name, for `feeds` by input name.

    Symbols take their values from the shapes of the feeds and from `read_dims`; a value is dropped after its last use.
    An output may share the memory of a feed or a constant. `observe` sees each node, also those of regions, with its
    results. `foreign(node, operands)` computes the nodes of operator `foreign`; without it they are refused. Raises
    InterpretError for a feed that is missing, unknown or of another type, for a shape that contradicts the graph's
    types, and for what NumPy refuses.
    """
    names = [v.name for v in graph.inputs]
    for name in feeds:
        if name not in names:
            raise InterpretError(f"the graph has no input {name!r}; it has {', '.join(names) or 'none'}")
    symbols: dict[str, int] = {}
    env: dict[Value, np.ndarray] = {}
    for value in graph.inputs:
        if value.name not in feeds:
            raise InterpretError(f"input {value.name!r} is not fed")
        env[value] = feeds[value.name]
    for value in graph.inputs:
        _bind(value, env[value], symbols, f"input {value.name!r}", final=False)
    for value in graph.inputs:
        _bind(value, env[value], symbols, f"input {value.name!r}")
    _Run(symbols, observe, foreign).graph(graph, env)
    return {name: env[v] for name, v in zip(graph.output_names, graph.outputs, strict=True)}


def bind_attrs(
    attrs: Mapping[str, Any], definitions: Mapping[str, AttrDef], symbols: Mapping[str, int]
) -> dict[str, Any]:
    """`attrs` with every dim as its integer value. Raises KeyError for a symbol without a value."""
    out = dict(attrs)
    for name, value in attrs.items():
        if name in definitions and definitions[name].kind == "dims":
            out[name] = tuple(evaluate(d, symbols) for d in value)
    return out


def evaluate_node(
    node: Node, operands: Sequence[np.ndarray | None], symbols: Mapping[str, int] | None = None
) -> tuple[np.ndarray, ...]:
    """The results of a node without regions. Raises InterpretError, whose text shows the node."""
    definition = node.definition
    if definition.evaluate is None:
        raise InterpretError(f"{node.op} cannot be evaluated:\n  {print_node(node)}")
    try:
        return definition.evaluate(operands, bind_attrs(node.attrs, definition.attrs, symbols or {}))
    except KeyError as e:
        raise InterpretError(f"the symbol {e.args[0]} has no value, which is needed by\n  {print_node(node)}") from None
    except (InferenceError, ValueError, IndexError, TypeError) as e:
        raise InterpretError(f"{e}, in\n  {print_node(node)}") from e


def _high(symbol: Symbol) -> str:
    return "" if symbol.hi is None else str(symbol.hi)


def _solve(dim: Dim, value: int, symbols: Mapping[str, int]) -> tuple[Symbol, int] | None:
    """(symbol, its value) when `dim` == `value` leaves one symbol unknown and is linear in it."""
    rest = substitute(dim, symbols)
    if isinstance(rest, int):
        return None
    terms = dict(rest.terms)
    offset = terms.pop((), 0)
    (monomial, slope), *more = terms.items()
    if more or len(monomial) != 1 or not isinstance(monomial[0], Symbol) or (value - offset) % slope:
        return None
    return monomial[0], (value - offset) // slope


def _bind(value: Value, array: np.ndarray, symbols: dict[str, int], whose: str | Node, final: bool = True) -> None:
    """Take unbound symbols from the shape of `array`, then check it against the value's type, wholly when `final`.
    `whose` says in an error what the value is, or is the node that makes it."""
    t = value.type
    if not isinstance(t, TensorType):
        return
    shape = t.shape
    if shape is not None and isinstance(array, np.ndarray) and array.shape == shape and array.dtype == t.dtype.numpy:
        return
    what = whose if isinstance(whose, str) else f"%{value.name} of\n  {print_node(whose)}\n"
    if not isinstance(array, np.ndarray):
        raise InterpretError(f"{what} is a {type(array).__name__}, not an array of {t}")
    if array.dtype != t.dtype.numpy and not (t.dtype.kind == "s" and array.dtype.kind in "US"):
        raise InterpretError(f"{what} has dtype {array.dtype}, not that of {t}")
    if t.shape is None:
        return
    if array.ndim != len(t.shape):
        raise InterpretError(f"{what} has shape {array.shape}, which is not of the rank of {t}")
    for i, (dim, size) in enumerate(zip(t.shape, array.shape, strict=True)):
        if solved := _solve(dim, size, symbols):
            symbol, v = solved
            if v < symbol.lo or (symbol.hi is not None and v > symbol.hi):
                span = f"{symbol.lo}..{_high(symbol)}"
                raise InterpretError(f"{what}: axis {i} makes {symbol} = {v}, which is not in {span}")
            symbols[symbol.name] = v
        expected = substitute(dim, symbols)
        if isinstance(expected, int) and expected != size:
            known = ", ".join(f"{s.name} = {symbols[s.name]}" for s in dict.fromkeys(symbols_of(dim)))
            where = f" with {known}" if known else ""
            raise InterpretError(f"{what} has shape {array.shape}; axis {i} of {t} is {expected}{where}")
        if final and not isinstance(expected, int):
            raise InterpretError(f"{what}: the sizes do not determine the symbols of axis {i} of {t}")


class _Run:
    def __init__(self, symbols: dict[str, int], observe: Observe | None, foreign: Foreign | None) -> None:
        self.symbols = symbols
        self.observe = observe
        self.foreign = foreign

    def graph(self, graph: Graph, env: dict[Value, np.ndarray]) -> None:
        """Evaluate the nodes of `graph` into `env`, which holds its inputs and what it captures."""
        last: dict[Value, Node] = {}
        for node in graph.nodes:
            last.update(dict.fromkeys(dependences(node), node))
        keep = set(graph.outputs)
        for node in graph.nodes:
            results = self.node(node, env)
            for value, array in zip(node.results, results, strict=True):
                _bind(value, array, self.symbols, node, final=False)
                if value in last or value in keep:
                    env[value] = array
            if self.observe is not None:
                self.observe(node, results)
            for value in dict.fromkeys(dependences(node)):
                if last[value] is node and value.graph is graph and value not in keep:
                    del env[value]

    def node(self, node: Node, env: dict[Value, np.ndarray]) -> Sequence[np.ndarray]:
        operands = [None if v is None else env[v] for v in node.operands]
        if node.op in BODIES:
            body = node.regions[0]
            inner = {v: a for v, a in zip(body.inputs, operands, strict=True) if a is not None}
            self.graph(body, inner)
            return tuple(inner[v] for v in body.outputs)
        if node.op == "if_":
            taken = node.regions[0 if bool(env[node.operand(0)].reshape(())) else 1]
            self.graph(taken, env)
            return tuple(env[v] for v in taken.outputs)
        if node.op == "loop":
            return self.loop(node, env)
        if "opaque" in node.definition.traits:
            if self.foreign is None:
                raise InterpretError(f"there is nothing to run the operator of another domain in\n  {print_node(node)}")
            return tuple(self.foreign(node, operands))
        if node.op == "read_dims":
            self.read(node, operands)
            return ()
        return evaluate_node(node, operands, self.symbols)

    def loop(self, node: Node, env: dict[Value, np.ndarray]) -> Sequence[np.ndarray]:
        (body,), attrs = node.regions, node.attrs
        iteration = as_symbol(attrs["iteration"][0])
        assert iteration is not None
        trip = max(0, evaluate(attrs["trip"][0], self.symbols)) if attrs["trip"] else None
        carried = [env[v] for v in node.operands if v is not None]
        count, rows = len(carried), [[] for _ in body.outputs[len(carried) :]]  # type: tuple[int, list[list[np.ndarray]]]
        at = 0
        while (trip is None or at < trip) and not (attrs["conditional"] and not carried[-1].reshape(())):
            self.symbols[iteration.name] = at
            env.update(zip(body.inputs, carried, strict=True))
            self.graph(body, env)
            carried = [env[v] for v in body.outputs[:count]]
            for row, v in zip(rows, body.outputs[count:], strict=True):
                row.append(env[v])
            at += 1
        stacked = []
        for row, v in zip(rows, node.results[count:], strict=True):
            out = np.zeros([evaluate(d, self.symbols) for d in v.tensor.dims], v.tensor.dtype.numpy)
            for i, part in enumerate(row):
                out[i] = part
            stacked.append(out)
        return [*carried, *stacked]

    def read(self, node: Node, operands: Sequence[np.ndarray | None]) -> None:
        """Give the symbols of a `read_dims` their values."""
        (x,) = operands
        assert x is not None
        for symbol, v in zip(made_symbols(node), np.asarray(x).reshape(-1).tolist(), strict=True):
            if not symbol.lo <= v <= (v if symbol.hi is None else symbol.hi):
                where = ", ".join(node.origin) or print_node(node)
                raise InterpretError(f"{where}: {symbol} is {v}, and must be in {symbol.lo}..{_high(symbol)}")
            self.symbols[symbol.name] = v


__all__ = ["Foreign", "InterpretError", "Observe", "bind_attrs", "evaluate_node", "run"]
