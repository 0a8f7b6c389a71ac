"""A Program run with NumPy: real storage with real strides, kernels tile by tile.

Buffers hold their layout's elements in one flat array, temporaries start as NaN (integers as a fixed pattern), so that
a wrong view, layout or order of steps gives wrong numbers. A kernel with tiles is evaluated tile by tile at its
outermost on-chip level: each tile loads what its access maps say and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product as cartesian
from typing import Protocol

import numpy as np

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.access import ACCUMULATES, Access, Interval, TileBytes, analyze, domain_text
from opcel_compiler.ir.dims import as_symbol, evaluate, symbols_of
from opcel_compiler.ir.graph import InferenceError
from opcel_compiler.ir.program import (
    AccessMap,
    Buffer,
    Control,
    Kernel,
    Program,
    Read,
    Region,
    Requirement,
    Step,
    View,
    block_end,
    whole,
)
from opcel_compiler.ir.tile_evaluate import Accumulator, Box, Tile, Uncovered, box_of
from opcel_compiler.ir.types import BF16, F32


class ProgramError(OpcelError):
    """A Program that cannot run: a tile that overflows a memory, a wrong view, inputs that do not fit."""


class Memory(Protocol):
    @property
    def size(self) -> int: ...

    @property
    def managed(self) -> str: ...


class Machine(Protocol):
    """What the interpreter asks of a target: the memory of a name (KeyError when there is none)."""

    def memory(self, name: str) -> Memory: ...


RunRegion = Callable[[Region, Sequence[np.ndarray]], Sequence[np.ndarray]]


def run_program(
    program: Program,
    feeds: Mapping[str, np.ndarray],
    target: Machine | None = None,
    run_region: RunRegion | None = None,
) -> dict[str, np.ndarray]:
    """The outputs by name, for inputs by name.

    `target` gives the capacities of the software-managed memories that tiles name; `run_region` computes what another
    engine runs. Raises ProgramError.
    """
    sizes = bind_symbols(program, feeds)
    state = _Run(program, sizes, target, run_region)
    state.check(set(sizes), program.requirements)
    for buffer in program.inputs:
        state.write(whole(buffer), None, np.asarray(feeds[buffer.name]))
    state.block(program.steps)
    return {b.name: state.read(whole(b), None) for b in program.outputs}


def bind_symbols(program: Program, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The value of each symbol, from the inputs' shapes. Raises ProgramError for inputs that do not fit."""
    sizes: dict[str, int] = {}
    for buffer in program.inputs:
        if buffer.name not in feeds:
            raise ProgramError(f"input {buffer.name} is missing; given are {', '.join(feeds) or 'none'}")
        array = np.asarray(feeds[buffer.name])
        if array.ndim != len(buffer.type.dims) or array.dtype != buffer.type.dtype.numpy:
            raise ProgramError(
                f"input {buffer.name} is {array.dtype}{list(array.shape)}, the program takes {buffer.type}"
            )
        for dim, extent in zip(buffer.type.dims, array.shape, strict=True):
            name = as_symbol(dim)
            if name is not None:
                sizes.setdefault(name.name, extent)
    for buffer in program.inputs:
        shape = np.asarray(feeds[buffer.name]).shape
        for axis, (dim, extent) in enumerate(zip(buffer.type.dims, shape, strict=True)):
            try:
                wanted = evaluate(dim, sizes)
            except KeyError as e:
                raise ProgramError(f"no input's shape tells the symbol {e.args[0]}") from None
            if wanted != extent:
                raise ProgramError(f"input {buffer.name}: axis {axis} is {extent}, but {dim} is {wanted} here")
    return sizes


def kernel_name(kernel: Kernel) -> str:
    """How messages name a kernel: its family and the user's nodes."""
    return f"{kernel.family} kernel of {', '.join(kernel.origin) or kernel.body.name}"


class _Run:
    def __init__(
        self, program: Program, sizes: dict[str, int], target: Machine | None, run_region: RunRegion | None
    ) -> None:
        self.program, self.sizes, self.target, self.run_region = program, sizes, target, run_region
        self.storage: dict[Buffer, np.ndarray] = {}
        self.required = [program.requirements]
        """The requirements of the program and of the blocks around a step."""

    # -- storage -----------------------------------------------------------------------------------------------------

    def memory(self, buffer: Buffer) -> np.ndarray:
        """Flat storage, made when it is first needed: pads and halo hold the pad value, the logical elements their data
        or a pattern that shows when it is read."""
        if buffer not in self.storage:
            self._allocate(buffer)
            if buffer.data is not None:
                view = whole(buffer)
                self.write(view, None, buffer.data.array.reshape(self.shape(view)))
        return self.storage[buffer]

    def _allocate(self, buffer: Buffer) -> None:
        dtype, layout = buffer.type.dtype, buffer.layout
        self.storage[buffer] = np.empty(self.evaluate(buffer.elements), dtype.numpy)
        if dtype.kind != "s":
            self.storage[buffer].fill(dtype.numpy.type(layout.pad_value))
            poison = np.array(np.nan if dtype.kind in "fc" else 85 % (1 << min(dtype.bits - 1, 7)))
            view = whole(buffer)
            self.write(view, None, np.broadcast_to(poison.astype(dtype.numpy), self.shape(view)))

    def evaluate(self, dim: object) -> int:
        return evaluate(dim, self.sizes)  # type: ignore[arg-type]

    def shape(self, view: View) -> tuple[int, ...]:
        return tuple(self.evaluate(d) for d in view.shape)

    def _places(self, view: View, box: Box | None) -> np.ndarray:
        """The flat index of every element of `box` (the whole view for None)."""
        layout = view.buffer.layout
        spans = box if box is not None else tuple((0, n) for n in self.shape(view))
        flat = np.full((1,) * len(spans), self.evaluate(view.offset), np.int64)
        for axis, ((start, stop), stride) in enumerate(zip(spans, view.strides, strict=True)):
            at = np.arange(start, stop, dtype=np.int64)
            if layout.block > 1 and axis == layout.block_axis:
                at = at // layout.block * self.evaluate(stride) + at % layout.block
            else:
                at = at * self.evaluate(stride)
            flat = flat + at.reshape(-1, *[1] * (len(spans) - 1 - axis))
        size = self.evaluate(view.buffer.elements)
        if flat.size and not (flat.min() >= 0 and flat.max() < size):
            at = flat.max() if flat.max() >= size else flat.min()
            raise ProgramError(f"a view of buffer {view.buffer.name} reaches element {at} of {size}")
        return flat

    def read(self, view: View, box: Box | None) -> np.ndarray:
        return np.asarray(self.memory(view.buffer)[self._places(view, box)])

    def write(self, view: View, box: Box | None, data: np.ndarray) -> None:
        if view.buffer.layout.storage == "bf16":
            data = data.astype(BF16.numpy).astype(F32.numpy)
        self.memory(view.buffer)[self._places(view, box)] = data

    # -- steps -------------------------------------------------------------------------------------------------------

    def block(self, steps: Sequence[Step]) -> None:
        at = 0
        while at < len(steps):
            step = steps[at]
            if not isinstance(step, Control):
                self.step(step)
                at += 1
                continue
            middle, end = block_end(steps, at)
            if step.kind == "loop":
                self.loop(step, steps[at + 1 : end])
            elif self._holds(step):
                self.marked(step, steps[at + 1 : middle if middle is not None else end])
            elif middle is not None and isinstance(other := steps[middle], Control):
                self.marked(other, steps[middle + 1 : end])
            at = end + 1

    def marked(self, mark: Control, steps: Sequence[Step]) -> None:
        """The steps of a mark's block, whose sizes are as yet unknown or those of another iteration."""
        names = {s.name for step in steps if isinstance(step, Read) for s in step.symbols}
        for name in names:
            self.sizes.pop(name, None)
        if mark.iteration is not None:
            names.add(mark.iteration.name)
        self._forget(names)
        self.required.append(mark.requirements)
        self.check(set(self.sizes), mark.requirements)
        self.block(steps)
        self.required.pop()

    def _forget(self, names: set[str]) -> None:
        for buffer in list(self.storage):
            if any(s.name in names for d in buffer.type.dims for s in symbols_of(d)):
                del self.storage[buffer]

    def loop(self, mark: Control, steps: Sequence[Step]) -> None:
        assert mark.iteration is not None
        at = 0
        while (mark.trip is None or at < self.evaluate(mark.trip)) and self._holds(mark):
            self.sizes[mark.iteration.name] = at
            self.marked(mark, steps)
            at += 1

    def _holds(self, mark: Control) -> bool:
        return all(bool(self.read(v, None).all()) for v in mark.inputs)

    def step(self, step: Kernel | Region | Read) -> None:
        if isinstance(step, Read):
            self.read_symbols(step)
            return
        if isinstance(step, Kernel):
            try:
                self.kernel(step)
            except (Uncovered, InferenceError, NotImplementedError, ValueError, IndexError) as e:
                raise ProgramError(f"{kernel_name(step)}: {e}") from e
            return
        if self.run_region is None:
            raise ProgramError(f"region {step.index} ({step.reason}) needs another engine; give run_region")
        results = self.run_region(step, [self.read(v, None) for v in step.inputs])
        for view, data in zip(step.outputs, results, strict=True):
            self.write(view, None, data)

    def read_symbols(self, step: Read) -> None:
        for symbol, value in zip(step.symbols, self.read(step.inputs[0], None).reshape(-1).tolist(), strict=True):
            if value < symbol.lo or (symbol.hi is not None and value > symbol.hi):
                high = "" if symbol.hi is None else symbol.hi
                where = ", ".join(step.origin) or "a read"
                raise ProgramError(f"{where}: {symbol} is {value}, and must be in {symbol.lo}..{high}")
            self.sizes[symbol.name] = value
        names = {s.name for s in step.symbols}
        for requirements in self.required:
            self.check(names, requirements)
        self._forget(names)

    def check(self, new: set[str], requirements: Sequence[Requirement]) -> None:
        """Raise ProgramError for a requirement that names one of the symbols `new`, all others known, and fails."""
        for r in requirements:
            named = {s.name for d in (r.left, r.right) for s in symbols_of(d)}
            if not named & new or not named <= set(self.sizes):
                continue
            left, right = self.evaluate(r.left), self.evaluate(r.right)
            if not (left == right if r.exact else left >= right):
                raise ProgramError(f"{', '.join(r.origin)}: {r} does not hold: {left} and {right}")

    def kernel(self, kernel: Kernel) -> None:
        self._check_capacity(kernel)
        access = analyze(kernel.body, kernel.anchor)
        maps = kernel.maps
        if not kernel.tiles or not kernel.axes:
            maps = tuple(access.values[v] for v in (*kernel.body.inputs, *kernel.body.outputs))
        elif kernel.axes != access.axes:
            raise ProgramError(
                f"{kernel_name(kernel)}: its axes are {domain_text(kernel.axes)}, "
                f"its body iterates over {domain_text(access.axes)}"
            )
        axes = access.axes
        sizes = [self.evaluate(a.extent) for a in axes]
        chosen = next(iter(kernel.tiles.values()), ()) if axes else ()
        tile = [min(self.evaluate(t), n) for t, n in zip(chosen, sizes, strict=True)] if chosen else sizes
        parallel = [i for i, a in enumerate(axes) if a.kind == "parallel"]
        reduce = [i for i, a in enumerate(axes) if a.kind == "reduce"]
        summed = [axes[i].name for i in reduce if tile[i] < sizes[i]]
        if summed and (kernel.anchor is None or kernel.anchor.op not in ACCUMULATES):
            raise ProgramError(f"{kernel_name(kernel)}: it cannot accumulate over tiles of {', '.join(summed)}")
        for outer in _tiles([sizes[i] for i in parallel], [tile[i] for i in parallel]):
            spans: list[Interval] = [(0, n) for n in sizes]
            for i, span in zip(parallel, outer, strict=True):
                spans[i] = span
            self._tile(kernel, access, maps, spans, reduce, [tile[i] for i in reduce])

    def _tile(
        self,
        kernel: Kernel,
        access: Access,
        maps: Sequence[AccessMap],
        spans: list[Interval],
        reduce: list[int],
        cut: list[int],
    ) -> None:
        """One tile of the parallel axes, `spans`; `cut` is the tile of each reduce axis."""
        inner = list(_tiles([spans[i][1] for i in reduce], cut))
        last = self._load(kernel, access, maps, spans)
        if len(inner) > 1 and kernel.anchor is not None:
            total = Accumulator(kernel.anchor)
            for part in inner:
                for i, span in zip(reduce, part, strict=True):
                    spans[i] = span
                tile = self._load(kernel, access, maps, spans)
                tile.partial = kernel.anchor
                total.add(tile)
            result = kernel.anchor.result
            last.known[result] = (last.box(result), total.result(last))
        for view, value, access_map in zip(
            kernel.outputs, kernel.body.outputs, maps[len(kernel.inputs) :], strict=True
        ):
            box = box_of(access_map, self.shape(view), last.intervals)
            self.write(view, box, last.part(value, box))

    def _load(self, kernel: Kernel, access: Access, maps: Sequence[AccessMap], spans: Sequence[Interval]) -> Tile:
        tile = Tile(access, self.sizes, tuple(spans), {})
        for view, value, access_map in zip(kernel.inputs, kernel.body.inputs, maps, strict=False):
            box = box_of(access_map, self.shape(view), spans)
            tile.known[value] = (box, self.read(view, box))
        return tile

    def _check_capacity(self, kernel: Kernel) -> None:
        if self.target is None or not kernel.tiles:
            return
        measure = TileBytes(kernel, self.sizes)
        for level, tiles in kernel.tiles.items():
            try:
                memory = self.target.memory(level)
            except KeyError as e:
                raise ProgramError(
                    f"{kernel_name(kernel)}: its tiles name a memory that the target lacks: {e}"
                ) from None
            extents = [min(self.evaluate(t), n) for t, n in zip(tiles, measure.extents, strict=True)]
            need = measure.footprint(extents)
            if memory.managed == "software" and need > memory.size:
                raise ProgramError(
                    f"{kernel_name(kernel)}: a tile of {extents} ({domain_text(kernel.axes)}) needs {need} bytes of "
                    f"{level}, which holds {memory.size}; give it smaller tiles"
                )


def _tiles(sizes: Sequence[int], cuts: Sequence[int]) -> Iterator[tuple[Interval, ...]]:
    """Every tile of a box, last axis fastest. An axis of extent 0 has one empty tile."""
    spans = [
        [(start, min(start + cut, size)) for start in range(0, size, max(cut, 1))] or [(0, 0)]
        for size, cut in zip(sizes, cuts, strict=True)
    ]
    return cartesian(*spans)
