"""The upper level of the IR: tensor operators in SSA form with logical shapes.

Node, Value and Graph are mutable and compared by identity; types and attributes are immutable and checked when set.
Uses live on the Value, in order, and change only through the methods here; a graph's outputs count as uses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.opdef import InferenceError, OpDef, op_def
from opcel_compiler.ir.types import TensorType, Type

Use = tuple["Node | Graph", int]
"""(user, operand index); a Graph as user means its output of that index."""


class Value:
    """A value of the graph: a graph input (`producer` None) or result `index` of a node."""

    __slots__ = ("_uses", "graph", "index", "name", "producer", "type")

    def __init__(self, type: Type, name: str, producer: Node | None, index: int, graph: Graph) -> None:
        self.type = type
        self.name = name
        self.producer = producer
        self.index = index
        self.graph = graph
        self._uses: dict[Use, None] = {}

    @property
    def uses(self) -> tuple[Use, ...]:
        return tuple(self._uses)

    @property
    def users(self) -> tuple[Node, ...]:
        """The nodes that use this value, each once, in order of first use."""
        return tuple(dict.fromkeys(u for u, _ in self._uses if isinstance(u, Node)))

    @property
    def is_output(self) -> bool:
        """Whether some graph returns this value."""
        return any(isinstance(u, Graph) for u, _ in self._uses)

    @property
    def tensor(self) -> TensorType:
        """The type, when it is a tensor's. Raises TypeError otherwise."""
        if not isinstance(self.type, TensorType):
            raise TypeError(f"%{self.name} is {self.type}, not a tensor")
        return self.type

    @property
    def constant(self) -> Constant | None:
        """The data when a `constant` node makes this value, else None."""
        if self.producer is not None and self.producer.op == "constant":
            data: Constant = self.producer.attrs["value"]
            return data
        return None

    def replace_with(self, other: Value) -> None:
        """Make every use of this value a use of `other`. Refused (ValueError) when the types' dtypes differ."""
        if other is self:
            return
        a, b = self.type, other.type
        if isinstance(a, TensorType) and isinstance(b, TensorType) and a.dtype != b.dtype:
            raise ValueError(f"cannot replace %{self.name}: {a} with %{other.name}: {b}")
        for user, i in self.uses:
            if isinstance(user, Graph):
                user.set_output(i, other)
            else:
                user.set_operand(i, other)

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Node:
    """One operator application. Made by `Graph.add`; `operands` may hold None for an absent optional operand."""

    __slots__ = ("_attrs", "_next", "_operands", "_prev", "graph", "op", "origin", "regions", "results")

    def __init__(self, graph: Graph, op: str, attrs: Mapping[str, Any], origin: tuple[str, ...]) -> None:
        self.graph: Graph | None = graph
        self.op = op
        self._operands: list[Value | None] = []
        self._attrs = MappingProxyType(dict(attrs))
        self.results: tuple[Value, ...] = ()
        self.regions: tuple[Graph, ...] = ()
        self.origin = origin
        self._prev: Node | None = None
        self._next: Node | None = None

    @property
    def operands(self) -> tuple[Value | None, ...]:
        return tuple(self._operands)

    @property
    def attrs(self) -> Mapping[str, Any]:
        return self._attrs

    @property
    def result(self) -> Value:
        """The only result. Raises ValueError when there are several."""
        if len(self.results) != 1:
            raise ValueError(f"{self!r} has {len(self.results)} results")
        return self.results[0]

    @property
    def definition(self) -> OpDef:
        return op_def(self.op)

    def optional(self, i: int) -> Value | None:
        """Operand `i`, or None when it is absent."""
        return self._operands[i] if i < len(self._operands) else None

    def operand(self, i: int) -> Value:
        """Operand `i`. Raises ValueError when it is absent."""
        value = self.optional(i)
        if value is None:
            raise ValueError(f"{self!r} has no operand {i}")
        return value

    def set_operand(self, i: int, value: Value | None) -> None:
        old = self._operands[i]
        if old is not None:
            del old._uses[(self, i)]
        self._operands[i] = value
        if value is not None:
            value._uses[(self, i)] = None

    def set_attrs(self, **changes: Any) -> None:
        """Change attributes; they are checked against the definition (InferenceError)."""
        self._attrs = MappingProxyType(self.definition.complete({**self._attrs, **changes}))

    def reinfer(self) -> None:
        """Recompute the result types from operands and attributes. Raises InferenceError."""
        types = self.definition.infer([None if v is None else v.type for v in self._operands], self._attrs)
        for value, t in zip(self.results, types, strict=True):
            value.type = t

    def __repr__(self) -> str:
        names = ", ".join(f"%{v.name}" for v in self.results)
        return f"{names} = {self.op}"


class Graph:
    """Inputs, nodes in a valid order, outputs. A region of a node is a Graph with `parent` set; its nodes may use
    values of the enclosing graphs."""

    __slots__ = ("_first", "_last", "_names", "_outputs", "_size", "inputs", "name", "output_names", "parent")

    def __init__(self, name: str = "main", parent: Node | None = None) -> None:
        self.name = name
        self.parent = parent
        self.inputs: list[Value] = []
        self._outputs: list[Value] = []
        self.output_names: list[str] = []
        self._first: Node | None = None
        self._last: Node | None = None
        self._size = 0
        self._names: dict[str, int] = {}

    # -- reading -------------------------------------------------------------------------------------------------

    @property
    def outputs(self) -> tuple[Value, ...]:
        return tuple(self._outputs)

    @property
    def nodes(self) -> Iterator[Node]:
        """The nodes in order. The node just yielded may be erased, and nodes may be inserted before it."""
        node = self._first
        while node is not None:
            following = node._next
            yield node
            node = following

    def __len__(self) -> int:
        return self._size

    def walk(self) -> Iterator[Node]:
        """Every node, those of regions after the node that holds them."""
        for node in self.nodes:
            yield node
            for region in node.regions:
                yield from region.walk()

    def values(self) -> Iterator[Value]:
        yield from self.inputs
        for node in self.nodes:
            yield from node.results

    # -- building ------------------------------------------------------------------------------------------------

    def unique_name(self, base: str) -> str:
        """`base` made printable (letters, digits, _ . only) and different from every name given out before."""
        root = self
        while root.parent is not None and root.parent.graph is not None:
            root = root.parent.graph
        clean = "".join(c if (c.isalnum() and c.isascii()) or c in "_." else "_" for c in base) or "v"
        count = root._names.get(clean)
        root._names[clean] = 0 if count is None else count + 1
        if count is None:
            return clean
        return root.unique_name(f"{clean}.{count + 1}")

    def add_input(self, name: str, type: Type) -> Value:
        value = Value(type, self.unique_name(name), None, len(self.inputs), self)
        self.inputs.append(value)
        return value

    def add(
        self,
        op: str,
        operands: Sequence[Value | None] = (),
        attrs: Mapping[str, Any] | None = None,
        *,
        before: Node | None = None,
        origin: Iterable[str] = (),
        names: Sequence[str] = (),
        types: Sequence[Type] | Callable[[Node], Sequence[Type]] | None = None,
        regions: Callable[[Node], Sequence[Graph]] | None = None,
    ) -> Node:
        """Append a node (or insert it before `before`).

        Result types are inferred unless `types` is given (operators that cannot infer: `foreign`, `fused`, control
        flow), as such or as what gives them once there are regions. `regions(node)` builds the node's regions; it may
        add to this graph. Raises InferenceError when attributes, operands or regions break the operator's definition;
        the node is then not added.
        """
        d = op_def(op)
        d.check_operands(operands)
        full = d.complete(attrs or {})
        if types is None:
            types = d.infer([None if v is None else v.type for v in operands], full)
        node = Node(self, op, full, tuple(dict.fromkeys(origin)))
        if regions is not None:
            node.regions = tuple(regions(node))
        if callable(types):
            try:
                types = types(node)
            except InferenceError:
                for region in node.regions:
                    region.clear()
                raise
        for i, value in enumerate(operands):
            node._operands.append(value)
            if value is not None:
                value._uses[(node, i)] = None
        hint = list(names) + [op] * (len(types) - len(names))
        node.results = tuple(Value(t, self.unique_name(hint[i]), node, i, self) for i, t in enumerate(types))
        self._link(node, before)
        return node

    def constant(
        self, data: Constant, *, before: Node | None = None, origin: Iterable[str] = (), name: str = "c"
    ) -> Value:
        return self.add("constant", (), {"value": data}, before=before, origin=origin, names=[name]).result

    def _link(self, node: Node, before: Node | None) -> None:
        node._next = before
        node._prev = self._last if before is None else before._prev
        if node._prev is None:
            self._first = node
        else:
            node._prev._next = node
        if before is None:
            self._last = node
        else:
            before._prev = node
        self._size += 1

    def _unlink(self, node: Node) -> None:
        if node._prev is None:
            self._first = node._next
        else:
            node._prev._next = node._next
        if node._next is None:
            self._last = node._prev
        else:
            node._next._prev = node._prev
        self._size -= 1

    # -- changing ------------------------------------------------------------------------------------------------

    def erase(self, node: Node) -> None:
        """Remove a node. Raises ValueError while one of its results is used."""
        for value in node.results:
            if value._uses:
                raise ValueError(f"{node!r} still has uses")
        for region in node.regions:
            region.clear()
        for i in range(len(node._operands)):
            node.set_operand(i, None)
        self._unlink(node)
        node.graph = None

    def clear(self) -> None:
        """Remove all outputs and nodes."""
        for i in reversed(range(len(self._outputs))):
            del self._outputs[i]._uses[(self, i)]
        self._outputs, self.output_names = [], []
        for node in reversed(list(self.nodes)):
            self.erase(node)

    def move(self, node: Node, before: Node | None) -> None:
        """Move a node of this graph to just before `before` (None: to the end)."""
        if node is not before:
            self._unlink(node)
            self._link(node, before)

    def replace(self, node: Node, values: Sequence[Value]) -> None:
        """Replace a node's results by `values` and erase it; their origins take in the node's."""
        for old, new in zip(node.results, values, strict=True):
            if new.producer is not None and new.producer is not node:
                new.producer.origin = tuple(dict.fromkeys((*new.producer.origin, *node.origin)))
            old.replace_with(new)
        self.erase(node)

    def add_output(self, value: Value, name: str | None = None) -> None:
        self._outputs.append(value)
        self.output_names.append(name or value.name)
        value._uses[(self, len(self._outputs) - 1)] = None

    def set_output(self, i: int, value: Value) -> None:
        del self._outputs[i]._uses[(self, i)]
        self._outputs[i] = value
        value._uses[(self, i)] = None


__all__ = ["Graph", "InferenceError", "Node", "Use", "Value"]
