"""Random element types, sizes and data, and the graph that grows from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from opcel_compiler.ir.dims import Dim, Expr, evaluate, symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.interpret import evaluate_node
from opcel_compiler.ir.types import DTYPES, DType, TensorType
from opcel_compiler.schedule.assumed import assumed

SIZES = (0, 1, 1, 2, 3, 4, 5, 7, 8, 11, 13, 16, 17, 19, 23, 31, 32, 33, 37)
COMMON = ("f32",) * 12 + ("i64", "i64", "i32", "bool", "f16", "bf16", "f64", "u8", "i8")
MAX_ELEMENTS = 4096
MAX_VALUE = 1e3
"""Results with larger floats are not kept: what follows from them says more of rounding than of the compiler."""


@dataclass
class Sample:
    """A graph, arrays for its inputs, and what every value holds for those.

    `exact` are the floats that take no rounding, so that operators with jumps may read them. `sizes` binds symbols.
    """

    graph: Graph
    rng: np.random.Generator
    sizes: dict[str, int] = field(default_factory=dict)
    arrays: dict[Value, np.ndarray] = field(default_factory=dict)
    exact: set[Value] = field(default_factory=set)
    data_axis: int = 0

    @property
    def feeds(self) -> dict[str, np.ndarray]:
        return {v.name: self.arrays[v] for v in self.graph.inputs}

    # -- choices -------------------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, things: Sequence) -> object:
        return things[int(self.rng.integers(len(things)))]

    def size(self) -> int:
        n = int(self.pick(SIZES))
        return n if n or self.chance(0.3) else 1

    def shape(self, rank: int | None = None) -> tuple[int, ...]:
        rank = int(self.rng.choice([0, 1, 2, 2, 3, 3, 4, 4, 5])) if rank is None else rank
        out: list[int] = []
        for _ in range(rank):
            n = self.size()
            while n * int(np.prod(out or [1])) > MAX_ELEMENTS // 2:
                n = max(1, n // 2) if n > 1 else 1
                if n == 1:
                    break
            out.append(n)
        return tuple(out)

    def dtype(self) -> DType:
        return (
            DTYPES[str(self.pick(COMMON))]
            if self.chance(0.97)
            else DTYPES[str(self.pick(["u16", "i16", "u32", "u64"]))]
        )

    def concrete(self, dims: Sequence[Dim]) -> tuple[int, ...]:
        return tuple(evaluate(d, self.sizes) for d in dims)

    def values(self, kinds: str = "fiub", rank: int | None = None, dtype: DType | None = None) -> list[Value]:
        return [
            v
            for v in self.arrays
            if v.tensor.dtype.kind in kinds
            and (rank is None or len(v.tensor.dims) == rank)
            and (dtype is None or v.tensor.dtype == dtype)
        ]

    def recent(self, values: Sequence[Value]) -> Value | None:
        """One of `values`, the later the likelier."""
        if not values:
            return None
        return values[max(int(self.rng.integers(len(values))), int(self.rng.integers(len(values))))]

    # -- growing -------------------------------------------------------------------------------------------------

    def data(self, shape: Sequence[int], dtype: DType, high: int | None = None) -> np.ndarray:
        """Random data; `high` bounds integers for use as indices (from -high up to high - 1)."""
        shape = tuple(shape)
        if dtype.kind == "b":
            out = self.rng.random(shape) < 0.5
        elif dtype.is_integer:
            low = 0 if dtype.kind == "u" else -9 if high is None else -high
            out = self.rng.integers(low, 10 if high is None else high, shape)
        elif self.chance(0.5):
            out = self.rng.integers(-24, 25, shape) / 8
        else:
            out = self.rng.standard_normal(shape)
        return np.asarray(np.asarray(out, np.float32 if dtype.is_float else None), dtype.numpy)

    def input(self, dims: Sequence[Dim], dtype: DType, data: np.ndarray | None = None) -> Value:
        value = self.graph.add_input(f"x{len(self.graph.inputs)}", TensorType(dtype, tuple(dims)))
        self.arrays[value] = self.data(self.concrete(dims), dtype) if data is None else data
        self.exact.add(value)
        return value

    def constant(self, array: np.ndarray, dtype: DType) -> Value:
        value = self.graph.constant(Constant(array, dtype), name=f"c{len(self.graph)}")
        self.arrays[value] = array
        self.exact.add(value)
        return value

    def leaf(self, dims: Sequence[Dim], dtype: DType, data: np.ndarray | None = None) -> Value:
        """A new constant or input of that type."""
        symbolic = any(isinstance(d, Expr) for d in dims)
        if symbolic or self.chance(0.4):
            return self.input(dims, dtype, data)
        array = self.data(self.concrete(dims), dtype) if data is None else data
        return self.constant(array, dtype)

    def symbol(self) -> Expr:
        name = f"n{len(self.sizes)}"
        self.sizes[name] = int(self.pick((1, 2, 3, 5, 8, 13)))
        return symbol(name, 1, 64 if self.chance(0.5) else None)

    def add(self, op: str, operands: Sequence[Value | None], exact: bool = False, **attrs: object) -> bool:
        """Append a node unless its definition refuses it or its result is of no use; whether it was kept."""
        node = self.graph.add(op, operands, attrs, origin=(f"{op}_{len(self.graph)}",))
        if not all(isinstance(v.type, TensorType) for v in node.results) or not self._holds(node):
            self.graph.erase(node)
            return False
        try:
            results = evaluate_node(node, [None if v is None else self.arrays[v] for v in operands], self.sizes)
        except Exception:
            self.graph.erase(node)
            raise
        types = [v.tensor for v in node.results]
        if not all(_useful(a, t) for a, t in zip(results, types, strict=True)):
            self.graph.erase(node)
            return False
        for value, array in zip(node.results, results, strict=True):
            self.arrays[value] = np.asarray(array)
            if exact or not value.tensor.dtype.is_float:
                self.exact.add(value)
        return True

    def _holds(self, node: Node) -> bool:
        """Whether what the node takes for granted of open sizes is so for those that are bound."""
        for a in assumed(node):
            left, right = evaluate(a.left, self.sizes), evaluate(a.right, self.sizes)
            if not (left == right if a.exact else left >= right):
                return False
        return True


def _useful(array: np.ndarray, type: TensorType) -> bool:
    if type.shape is None or array.size > MAX_ELEMENTS or array.ndim > 6:
        return False
    if type.dtype.is_float:
        wide = np.abs(array.astype(np.float64))
        return bool(np.isfinite(wide).all() and (wide < MAX_VALUE).all())
    return type.dtype.kind == "b" or bool((np.abs(array.astype(np.float64)) < 1 << 20).all())
