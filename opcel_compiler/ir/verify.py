"""The invariants of a graph. Each holds for the graph and for every region in it.

 1. Order: the list of nodes is linked both ways, counts right, and each node knows its graph.
 2. Values: an input or result knows its graph, its producer and its index.
 3. Names: a value's name is of letters, digits, `_` and `.`, and no other value anywhere in the graph has it.
 4. Dominance: an operand or output is an input or a result of an earlier node, here or in an enclosing graph.
 5. Uses: a value's uses are exactly the operands and outputs that refer to it.
 6. Operators: a node's operator is defined, and it has the operands and the number of results that this wants.
 7. Attributes: all are there and of the kinds that the definition gives.
 8. Types: a result's type is what inference gives, or may be: the same dtype, rank and no dim provably different.
 9. Symbols: a symbol has the same range wherever it stands.
10. Constants: data has the NumPy dtype of its element type, and its encoding fits its shape and holds.
11. Regions: only operators of the trait `control` have them, each knows its node; `fused` and `external` have one,
    which takes the operands, returns the results and uses nothing else; those of `if_` and `loop` fit the node.
12. Outputs: each has a name, and no two the same.
13. Unknown types: only an opaque node takes or makes a value of unknown type.
14. Sizes from data: one `read_dims` makes a symbol, and what names the symbol comes after it, in the same graph or in
    a region of a later node.
"""

from __future__ import annotations

import re

import numpy as np

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.analysis import captured, made_symbols, named_symbols, symbol_places, symbols_in
from opcel_compiler.ir.dims import Symbol, equal
from opcel_compiler.ir.encodings import Constant, Grouped, Sparse
from opcel_compiler.ir.graph import Graph, Node, Use, Value
from opcel_compiler.ir.opdef import InferenceError, OpDef, op_def
from opcel_compiler.ir.ops.control import BRANCHING, fault
from opcel_compiler.ir.ops.foreign import BODIES
from opcel_compiler.ir.text import context
from opcel_compiler.ir.types import MapType, OptionalType, SequenceType, TensorType, Type, UnknownType


class VerifyError(OpcelError):
    """A graph breaks an invariant: its number is `invariant`, the node, if there is one, `node`."""

    def __init__(self, invariant: int, message: str, node: Node | None) -> None:
        where = "" if node is None else f"\n{context(node)}"
        origin = f"\n(from {', '.join(node.origin)})" if node is not None and node.origin else ""
        super().__init__(f"the graph breaks invariant {invariant}: {message}{where}{origin}")
        self.invariant = invariant
        self.node = node


def verify(graph: Graph) -> None:
    """Raise VerifyError for the first broken invariant of `graph`. The numbers are those of this module's text."""
    _Verifier().run(graph)


def compatible(a: Type, b: Type) -> bool:
    """Whether a value may have both types: dims may be equal, an unknown rank may be any."""
    if isinstance(a, UnknownType) or isinstance(b, UnknownType):
        return True
    if isinstance(a, TensorType) and isinstance(b, TensorType):
        if a.dtype != b.dtype:
            return False
        if a.shape is None or b.shape is None:
            return True
        if len(a.shape) != len(b.shape):
            return False
        return all(equal(x, y) is not False for x, y in zip(a.shape, b.shape, strict=True))
    if isinstance(a, (SequenceType, OptionalType)) and type(a) is type(b):
        return compatible(a.element, b.element)
    if isinstance(a, MapType) and isinstance(b, MapType):
        return a.key == b.key and compatible(a.value, b.value)
    return False


_PRINTABLE = re.compile(r"[A-Za-z0-9_.]+\Z")


class _Verifier:
    def __init__(self) -> None:
        self.names: set[str] = set()
        self.uses: dict[Value, set[Use]] = {}
        self.values: list[Value] = []

    def run(self, graph: Graph) -> None:
        self.graph(graph, set())
        for value in self.values:
            if set(value.uses) != self.uses.get(value, set()):
                listed, real = len(value.uses), len(self.uses.get(value, set()))
                self.fail(
                    5, f"%{value.name} lists {listed} uses, {real} refer to it, or others than those", value.producer
                )
        ranges: dict[str, Symbol] = {}
        for node, item in symbol_places(graph):
            for s in symbols_in(item):
                if ranges.setdefault(s.name, s) != s:
                    one, two = ranges[s.name], s
                    self.fail(9, f"{s.name} is in {one.lo}..{one.hi} and in {two.lo}..{two.hi}", node)
        makers: dict[Symbol, Node] = {}
        for node in graph.walk():
            for s in made_symbols(node):
                if makers.setdefault(s, node) is not node:
                    self.fail(14, f"{s} is made a second time", node)
        if makers:
            self.made_before(graph, set(makers))

    def made_before(self, graph: Graph, missing: set[Symbol]) -> None:
        """`missing`: the symbols of `read_dims` that are not made before `graph`."""
        for value in graph.inputs:
            if found := next((s for s in symbols_in(value.type) if s in missing), None):
                self.fail(14, f"%{value.name} names {found}, which is not made before", graph.parent)
        missing = set(missing)
        for node in graph.nodes:
            if found := next((s for s in named_symbols(node) if s in missing), None):
                self.fail(14, f"{node.op} names {found}, which is not made before", node)
            for region in node.regions:
                self.made_before(region, missing)
            missing.difference_update(made_symbols(node))

    def fail(self, invariant: int, message: str, node: Node | None) -> None:
        raise VerifyError(invariant, message, node)

    # -- graphs ----------------------------------------------------------------------------------------------------

    def graph(self, graph: Graph, outer: set[Value]) -> None:
        nodes = self.linked(graph)
        known = set(outer)
        for i, value in enumerate(graph.inputs):
            self.value(value, graph, None, i)
            known.add(value)
        for node in nodes:
            self.node(node, known)
            known.update(node.results)
        if len(graph.outputs) != len(graph.output_names):
            self.fail(12, f"{len(graph.outputs)} outputs have {len(graph.output_names)} names", graph.parent)
        if len(set(graph.output_names)) < len(graph.output_names) or "" in graph.output_names:
            self.fail(12, f"the output names {graph.output_names} are not distinct and non-empty", graph.parent)
        for i, value in enumerate(graph.outputs):
            if value not in known:
                self.fail(4, f"output {i}, %{value.name}, is not made in the graph", graph.parent)
            self.uses.setdefault(value, set()).add((graph, i))

    def linked(self, graph: Graph) -> list[Node]:
        nodes: list[Node] = []
        seen: set[Node] = set()
        before, node = None, graph._first
        while node is not None:
            if node in seen:
                self.fail(1, f"the list of nodes runs in a circle at {node!r}", None)
            if node._prev is not before or node.graph is not graph:
                self.fail(1, f"{node!r} is not linked to the node before it and to its graph", node)
            seen.add(node)
            nodes.append(node)
            before, node = node, node._next
        if graph._last is not before or graph._size != len(nodes):
            self.fail(1, f"graph {graph.name} counts {graph._size} nodes, {len(nodes)} are linked", before)
        return nodes

    def value(self, value: Value, graph: Graph, producer: Node | None, index: int) -> None:
        if value.graph is not graph or value.producer is not producer or value.index != index:
            self.fail(2, f"%{value.name} does not know its graph, producer and index", producer)
        if not _PRINTABLE.match(value.name):
            self.fail(3, f"{value.name!r} is not a printable name", producer)
        if value.name in self.names:
            self.fail(3, f"two values are named %{value.name}", producer)
        self.names.add(value.name)
        self.values.append(value)

    # -- nodes -----------------------------------------------------------------------------------------------------

    def node(self, node: Node, known: set[Value]) -> None:
        for i, value in enumerate(node.results):
            self.value(value, node.graph or Graph(), node, i)
        for i, operand in enumerate(node.operands):
            if operand is None:
                continue
            if operand not in known:
                self.fail(4, f"operand {i}, %{operand.name}, is not made before the node", node)
            self.uses.setdefault(operand, set()).add((node, i))
        try:
            definition = op_def(node.op)
        except KeyError:
            self.fail(6, f"there is no operator {node.op!r}", node)
            return
        try:
            definition.check_operands(node.operands)
        except InferenceError as e:
            self.fail(6, str(e), node)
        if definition.results >= 0 and len(node.results) != definition.results:
            self.fail(6, f"{node.op} makes {definition.results} results, not {len(node.results)}", node)
        self.attributes(node, definition)
        opaque = "opaque" in definition.traits
        for at in (*node.operands, *node.results):
            if at is not None and isinstance(at.type, UnknownType) and not opaque and not node.regions:
                self.fail(13, f"%{at.name} is of unknown type, {node.op} is not opaque", node)
        if node.regions or node.op in BODIES or node.op in BRANCHING:
            self.regions(node, definition, known)
        elif not opaque and "control" not in definition.traits:
            self.types(node, definition)

    def attributes(self, node: Node, definition: OpDef) -> None:
        for name, d in definition.attrs.items():
            if name not in node.attrs:
                self.fail(7, f"attribute {name} is missing", node)
            if reason := d.check(node.attrs[name]):
                self.fail(7, reason, node)
        extra = [name for name in node.attrs if name not in definition.attrs]
        if extra and "opaque" not in definition.traits:
            self.fail(7, f"{node.op} has no attribute {extra[0]!r}", node)
        for item in node.attrs.values():
            if isinstance(item, Constant) and (reason := constant_fault(item)):
                self.fail(10, reason, node)

    def types(self, node: Node, definition: OpDef) -> None:
        try:
            inferred = definition.infer([None if v is None else v.type for v in node.operands], node.attrs)
        except InferenceError as e:
            self.fail(8, str(e), node)
            return
        for value, t in zip(node.results, inferred, strict=True):
            if not compatible(value.type, t):
                self.fail(8, f"%{value.name} is {value.type}, inference gives {t}", node)

    def regions(self, node: Node, definition: OpDef, known: set[Value]) -> None:
        if "control" not in definition.traits:
            self.fail(11, f"{node.op} has a region", node)
        for region in node.regions:
            if region.parent is not node:
                self.fail(11, f"region {region.name} does not know its node", node)
        if node.op in BODIES:
            if len(node.regions) != 1:
                self.fail(11, f"{node.op} has {len(node.regions)} regions, not 1", node)
            body = node.regions[0]
            for what, ours, theirs in (("takes", node.operands, body.inputs), ("returns", node.results, body.outputs)):
                if [None if v is None else v.type for v in ours] != [v.type for v in theirs]:
                    self.fail(11, f"the body {what} other types than the node", node)
            for value in captured(node):
                if value in known:
                    self.fail(11, f"the body uses %{value.name} from outside", node)
        if node.op in BRANCHING and (reason := fault(node)) is not None:
            self.fail(11, reason, node)
        for region in node.regions:
            self.graph(region, known)


def constant_fault(c: Constant) -> str | None:
    """How the data breaks its dtype or its encoding, or None."""
    found = c.array.dtype
    if found != c.dtype.numpy and not (c.dtype.kind == "s" and found.kind in "USO"):
        return f"constant of {c.dtype} holds NumPy {found}"
    e, shape = c.encoding, c.array.shape
    if isinstance(e, (Sparse, Grouped)):
        if not 0 <= e.axis < len(shape):
            return f"{e} names no axis of {c.type}"
        if isinstance(e, Sparse):
            return _sparse_fault(c, e)
        if shape[e.axis] % e.group:
            return f"{e}: axis {e.axis} of {c.type} is no multiple of the group"
    return None


def _sparse_fault(c: Constant, e: Sparse) -> str | None:
    if c.array.shape[e.axis] % e.m:
        return f"{e}: axis {e.axis} of {c.type} is no multiple of {e.m}"
    last = np.moveaxis(c.array != 0, e.axis, -1)
    counts = last.reshape(*last.shape[:-1], -1, e.m).sum(-1)
    return f"{e}: some {e.m} neighbours hold {counts.max()} non-zeros" if counts.size and counts.max() > e.n else None
