"""The lower level of the IR: kernels over buffers, what every backend lowers from.

A Program is a list of steps in execution order, with marks where control flow parts and joins. Buffers carry layouts
and live in named memories; a kernel reads and writes them through strided views. What a kernel computes is its `body`,
a small Graph whose inputs and outputs correspond to the kernel's views; its `anchor` is the one contraction, reduction,
row operator or data movement in that body (None for a purely elementwise kernel), everything before it the prologue,
everything after it the epilogue.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from opcel_compiler.ir.dims import Dim, Symbol, dim_max, dim_min, equal, product, symbols_of
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.layout import PLAIN, Layout
from opcel_compiler.ir.types import DType, TensorType

BUFFER_KINDS = ("input", "output", "weight", "temp")


class Buffer:
    """Memory for one tensor: logical `type`, how it lies (`layout`), where (`memory`), whose it is (`kind`).

    A `weight` has `data` (a constant in logical, row-major order) that is laid out when the artifact is written,
    `packing` naming the family-specific order where a Layout does not say it ("" otherwise).
    """

    __slots__ = ("data", "kind", "layout", "memory", "name", "packing", "type")

    def __init__(
        self, name: str, type: TensorType, kind: str = "temp", layout: Layout = PLAIN, memory: str = "dram",
        data: Constant | None = None, packing: str = "",
    ) -> None:  # fmt: skip
        if kind not in BUFFER_KINDS:
            raise ValueError(f"buffer {name}: kind {kind!r} is none of {BUFFER_KINDS}")
        self.name, self.type, self.kind, self.layout, self.memory = name, type, kind, layout, memory
        self.data, self.packing = data, packing

    @property
    def elements(self) -> Dim:
        """How many elements the buffer occupies, halo and padding included."""
        return self.layout.elements(self.type.dims)

    @property
    def element_bytes(self) -> int:
        """Bytes from one element to the next."""
        return 2 if self.layout.storage == "bf16" else (self.type.dtype.bits + 7) // 8

    def __repr__(self) -> str:
        return f"@{self.name}: {self.type} {self.layout} {self.kind}"


@dataclass(frozen=True)
class View:
    """A strided window on a buffer: element (i0, i1, …) lies at offset + Σ i·stride, in elements of the buffer.

    On a blocked buffer the strides are those of `Layout.strides`: the blocked axis steps from block to block.
    """

    buffer: Buffer
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    offset: Dim = 0

    @property
    def dtype(self) -> DType:
        return self.buffer.type.dtype

    @property
    def is_contiguous(self) -> bool:
        """Row-major without gaps (axes of extent 1 may have any stride)."""
        step: Dim = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if extent != 1 and equal(stride, step) is not True:
                return False
            step = step * extent
        return self.buffer.layout.block == 1

    @property
    def is_whole(self) -> bool:
        """Covers its buffer, row-major."""
        return self.is_contiguous and self.offset == 0 and equal(product(self.shape), self.buffer.elements) is True

    def transpose(self, perm: Sequence[int]) -> View:
        return View(self.buffer, tuple(self.shape[p] for p in perm), tuple(self.strides[p] for p in perm), self.offset)

    def expand(self, shape: Sequence[Dim], late: bool = False) -> View:
        """Broadcast to `shape`, NumPy's way. A symbolic size is not taken for 1, unless with `late`: then the stride is
        0 where the size turns out to be 1."""
        lead = len(shape) - len(self.shape)
        strides: list[Dim] = [0] * lead
        for have, want, stride in zip(self.shape, shape[lead:], self.strides, strict=True):
            if late and not isinstance(have, int) and equal(have, want) is not True:
                strides.append(stride * dim_min(dim_max(have - 1, 0), 1))
            else:
                strides.append(0 if have == 1 and want != 1 else stride)
        return View(self.buffer, tuple(shape), tuple(strides), self.offset)

    def slice(self, starts: Sequence[Dim], sizes: Sequence[Dim], steps: Sequence[Dim]) -> View:
        offset = self.offset
        for start, stride in zip(starts, self.strides, strict=True):
            offset = offset + start * stride
        strides = tuple(stride * step for stride, step in zip(self.strides, steps, strict=True))
        return View(self.buffer, tuple(sizes), strides, offset)

    def merged(self) -> tuple[list[Dim], list[Dim]]:
        """(extents, strides) with axes of extent 1 dropped and neighbours that lie end to end merged."""
        extents: list[Dim] = []
        strides: list[Dim] = []
        for extent, stride in zip(self.shape, self.strides, strict=True):
            if extent == 1:
                continue
            if extents and equal(strides[-1], stride * extent) is True:
                extents[-1] = extents[-1] * extent
                strides[-1] = stride
            else:
                extents.append(extent)
                strides.append(stride)
        return extents, strides

    def reshape(self, shape: Sequence[Dim]) -> View | None:
        """The same elements as `shape`, or None when that needs a copy."""
        if self.buffer.layout.block != 1:
            return None
        extents, old = self.merged()
        wanted = list(shape)
        strides: list[Dim] = [0] * len(wanted)
        at = 0
        for extent, stride in zip(extents, old, strict=True):
            first, have = at, 1  # type: tuple[int, Dim]
            while at < len(wanted) and equal(have, extent) is not True:
                have = have * wanted[at]
                at += 1
            if equal(have, extent) is not True:
                return None
            step = stride
            for axis in reversed(range(first, at)):
                strides[axis] = step
                step = step * wanted[axis]
        if any(w != 1 for w in wanted[at:]):
            return None
        return View(self.buffer, tuple(wanted), tuple(strides), self.offset)


def whole(buffer: Buffer) -> View:
    """The view of all logical elements of a buffer, in logical axis order."""
    shape = buffer.type.dims
    return View(buffer, shape, buffer.layout.strides(shape), buffer.layout.interior(shape))


@dataclass(frozen=True)
class Axis:
    """One axis of a kernel's iteration domain; `kind` is "parallel" or "reduce"."""

    name: str
    extent: Dim
    kind: str = "parallel"


@dataclass(frozen=True)
class Index:
    """An affine index into one logical axis of an operand: base + Σ coefficient · axis (axes by position).

    `whole` (no terms, whole=True) reads the axis entirely whatever the tile.
    """

    terms: tuple[tuple[int, int], ...] = ()
    base: int = 0
    whole: bool = False


AccessMap = tuple[Index, ...]


@dataclass(eq=False)
class Kernel:
    """One launch. `family` is a row of the kernel table; `params` are that family's compile-time choices.

    `inputs[i]` is read as `body.inputs[i]`, `outputs[i]` receives `body.outputs[i]`. `axes` with `maps` (one access
    map per input, then per output) state the iteration domain; `tiles` gives a tile extent per axis for each memory
    level, outermost first.
    """

    family: str
    body: Graph
    inputs: list[View]
    outputs: list[View]
    anchor: Node | None = None
    params: dict[str, Any] = field(default_factory=dict)
    axes: tuple[Axis, ...] = ()
    maps: tuple[AccessMap, ...] = ()
    tiles: dict[str, tuple[Dim, ...]] = field(default_factory=dict)
    origin: tuple[str, ...] = ()

    @property
    def views(self) -> tuple[View, ...]:
        return (*self.inputs, *self.outputs)


@dataclass(eq=False)
class Region:
    """A part of the graph that another engine runs, with the reason why."""

    index: int
    nodes: tuple[Node, ...]
    inputs: list[View]
    outputs: list[View]
    reason: str
    origin: tuple[str, ...] = ()

    @property
    def views(self) -> tuple[View, ...]:
        return (*self.inputs, *self.outputs)


@dataclass(frozen=True)
class Requirement:
    """What must hold of sizes for the Program to be right: `left` equals `right` where `exact`, else is at least
    `right`. A run checks it as soon as it knows both, and otherwise fails; one of a mark of control flow, where its
    block begins or, if a step inside reads a symbol of it, after that step."""

    left: Dim
    right: Dim
    exact: bool
    origin: tuple[str, ...] = ()
    reason: str = ""
    """The message, where it is not that of the sizes."""

    def __str__(self) -> str:
        return f"{self.left} {'==' if self.exact else '>='} {self.right}"


@dataclass(eq=False)
class Control:
    """Where control flow parts or joins; between its marks lie the steps that it governs.

    `kind` "if": what follows runs where the only input, one bool, holds; "else": what follows runs where it does not;
    "loop": what follows runs for `iteration` = 0, 1, … below `trip` (None: no limit), as long as the input, where there
    is one, holds before an iteration; "end": the end of the innermost "if" or "loop".
    """

    kind: str
    inputs: list[View] = field(default_factory=list)
    iteration: Symbol | None = None
    trip: Dim | None = None
    origin: tuple[str, ...] = ()
    outputs: list[View] = field(default_factory=list)
    requirements: list[Requirement] = field(default_factory=list)

    @property
    def views(self) -> tuple[View, ...]:
        return tuple(self.inputs)


@dataclass(eq=False)
class Read:
    """Gives `symbols` the values of the elements of its one input, a dense view of integers, in order. The run fails
    where a value is outside its symbol's range. Steps and buffers that name the symbols come into being after it."""

    inputs: list[View]
    symbols: tuple[Symbol, ...]
    origin: tuple[str, ...] = ()
    outputs: list[View] = field(default_factory=list)
    requirements: list[Requirement] = field(default_factory=list)

    @property
    def views(self) -> tuple[View, ...]:
        return tuple(self.inputs)


Step = Union[Kernel, Region, Control, Read]


def block_end(steps: Sequence[Step], at: int) -> tuple[int | None, int]:
    """(index of the "else", if there is one, index of the "end") of the "if" or "loop" at index `at`. Raises ValueError
    when it does not end."""
    depth, middle = 0, None
    for i in range(at, len(steps)):
        step = steps[i]
        if isinstance(step, Control):
            depth += {"if": 1, "loop": 1, "end": -1}.get(step.kind, 0)
            if step.kind == "else" and depth == 1:
                middle = i
            if depth == 0:
                return middle, i
    raise ValueError(f"step {at} opens a block that does not end")


def blocks(steps: Sequence[Step]) -> list[tuple[int, ...]]:
    """For each step the indices of the marks whose blocks it lies in, outermost first; a mark lies in no block of its
    own."""
    out: list[tuple[int, ...]] = []
    stack: tuple[int, ...] = ()
    for i, step in enumerate(steps):
        if isinstance(step, Control) and step.kind in ("else", "end"):
            stack = stack[:-1]
        out.append(stack)
        if isinstance(step, Control) and step.kind != "end":
            stack = (*stack, i)
    return out


def loops(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """(first, last) index of each loop, those inside another before it."""
    found = [(i, block_end(steps, i)[1]) for i, s in enumerate(steps) if isinstance(s, Control) and s.kind == "loop"]
    return sorted(found, key=lambda span: span[1] - span[0])


@dataclass(frozen=True)
class State:
    """An input and an output that share memory: the output is the input with places appended along `axis`, which has
    `capacity` of them in both buffers' layouts."""

    past: Buffer
    present: Buffer
    axis: int
    capacity: int


@dataclass(eq=False)
class Program:
    """Steps over buffers; `inputs` and `outputs` in the order of the graph's."""

    name: str
    inputs: list[Buffer] = field(default_factory=list)
    outputs: list[Buffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    requirements: list[Requirement] = field(default_factory=list)

    @property
    def buffers(self) -> list[Buffer]:
        """Every buffer, each once: inputs, outputs, then in order of first use."""
        seen: dict[Buffer, None] = dict.fromkeys((*self.inputs, *self.outputs))
        for step in self.steps:
            seen.update(dict.fromkeys(v.buffer for v in step.views))
        return list(seen)

    @property
    def kernels(self) -> Iterator[Kernel]:
        return (s for s in self.steps if isinstance(s, Kernel))

    @property
    def launches(self) -> list[Kernel | Region]:
        """The steps that compute, in order."""
        return [s for s in self.steps if isinstance(s, (Kernel, Region))]

    @property
    def reads(self) -> Iterator[Read]:
        return (s for s in self.steps if isinstance(s, Read))

    @property
    def iterations(self) -> dict[str, Symbol]:
        """The symbols that number the iterations of loops, by name."""
        found = (s.iteration for s in self.steps if isinstance(s, Control))
        return {symbol.name: symbol for symbol in found if symbol is not None}

    @property
    def symbols(self) -> dict[str, Symbol]:
        """Every symbol that a buffer's shape or a trip count mentions, in order of first appearance, then what only a
        step reads; without those that number iterations."""
        out: dict[str, Symbol] = {}
        trips = [s.trip for s in self.steps if isinstance(s, Control) and s.trip is not None]
        for d in (*(d for b in self.buffers for d in b.type.dims), *trips):
            for s in symbols_of(d):
                out.setdefault(s.name, s)
        for read in self.reads:
            for s in read.symbols:
                out.setdefault(s.name, s)
        for name in self.iterations:
            out.pop(name, None)
        return out
