"""Choose a tile of each kernel's iteration domain for every on-chip memory of the target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from opcel_compiler.ir.access import ACCUMULATES, TileBytes, domain_text
from opcel_compiler.ir.program import Kernel, Program
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pass_ import Pass
from opcel_compiler.rewrite.rule import Numerics
from opcel_compiler.schedule.cost import domain, nominal_sizes, traffic
from opcel_compiler.targets import Target

Extents = tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Tile(Pass):
    """Sets `Kernel.tiles` (and axes and maps where they are missing), outermost memory first.

    At each level the tile is the one that moves the fewest bytes into that level, of those whose operands fit:
    `double_buffer` keeps room for the next tile's inputs too. A kernel of which no tile fits keeps the tiles of the
    outer levels and the reason is reported. Symbols count at their nominal size. Where the pipeline forbids
    reassociation, no sum is cut.
    """

    name: ClassVar[str] = "tile"
    summary: ClassVar[str] = "choose tiles that fit the target's on-chip memories"
    level: ClassVar[str] = "program"

    double_buffer: bool = True

    def run(self, program: Program, ctx: PassContext, /) -> None:
        if ctx.target is None:
            return
        known: dict[object, Extents | None] = {}
        exact = Numerics.REASSOCIATES in ctx.forbidden
        for kernel in program.kernels:
            node = kernel.anchor or next(iter(kernel.body.nodes), None)
            if node is not None and not ctx.allows("tile", node):
                continue
            if not kernel.maps:
                kernel.axes, kernel.maps = domain(kernel)
            reason = self._choose(kernel, ctx.target, _fixed(kernel, exact), known)
            if node is not None and kernel.tiles:
                ctx.changed("tile", node)
            if node is not None and reason:
                ctx.refuse("tile", node, f"{reason} ({domain_text(kernel.axes) or 'no axis can be cut'})")

    def _choose(
        self, kernel: Kernel, target: Target, fixed: frozenset[int], known: dict[object, Extents | None]
    ) -> str | None:
        """Set the tiles of a kernel; the reason why there is none for some memory, or None. `known` remembers."""
        measure = TileBytes(kernel, nominal_sizes(kernel))
        kernel.tiles = {}
        outer = measure.extents
        for memory in target.memories[1:]:
            key = (measure.signature, fixed, outer, memory.size)
            if key not in known:
                known[key] = _search(measure, fixed, outer, memory.size, 2 if self.double_buffer else 1)
            tile = known[key]
            if tile is None:
                least = measure.footprint(_smallest(fixed, outer))
                return f"its smallest tile needs {least} bytes of {memory.name}, which holds {memory.size}"
            kernel.tiles[memory.name] = outer = tile
        return None


def _fixed(kernel: Kernel, exact: bool) -> frozenset[int]:
    """The axes that must stay whole: reduce axes over which the anchor cannot combine partial results, or may not
    because that sums in another order (`exact`)."""
    op = kernel.anchor.op if kernel.anchor is not None else ""
    if op in ("reduce_max", "reduce_min") or (op in ACCUMULATES and not exact):
        return frozenset()
    return frozenset(i for i, a in enumerate(kernel.axes) if a.kind == "reduce")


def _smallest(fixed: frozenset[int], outer: Extents) -> Extents:
    return tuple(n if i in fixed else min(n, 1) for i, n in enumerate(outer))


def _candidates(extent: int) -> list[int]:
    """Powers of two and divisors up to `extent`, each at least a quarter above the one before; `extent` itself."""
    powers = {1 << i for i in range(extent.bit_length()) if 1 << i <= extent}
    divisors = {d for i in range(1, int(extent**0.5) + 1) if extent % i == 0 for d in (i, extent // i)}
    out = [extent]
    for n in sorted(powers | divisors, reverse=True):
        if n * 1.25 <= out[-1]:
            out.append(n)
    return out[::-1]


def _search(measure: TileBytes, fixed: frozenset[int], outer: Extents, capacity: int, buffering: int) -> Extents | None:
    """The best tile within `outer` that fits, or None when not even the smallest does.

    From the best of a few starts, each with one axis (or the reduce axes) as large as it can be, the search takes the
    change of one or two axes that leaves the least traffic, then the fewest tiles, until none helps. When double
    buffering leaves no room, single buffering is tried.
    """

    def fits(tile: Extents) -> bool:
        return measure.footprint(tile, 1 if tile == outer else buffering) <= capacity

    def rank(tile: Extents) -> tuple[float, int, Extents]:
        count = 1
        for t, n in zip(tile, outer, strict=True):
            count *= -(-n // max(t, 1))
        return traffic(measure, tile, outer), count, tile

    if fits(outer):
        return outer
    start = _smallest(fixed, outer)
    if not fits(start):
        return _search(measure, fixed, outer, capacity, 1) if buffering > 1 else None
    choices = [[n] if i in fixed else _candidates(n) for i, n in enumerate(outer)]
    groups = [(*range(i, len(outer)), *range(i)) for i in range(len(outer))]
    groups.append((*measure.reduce, *(i for i in range(len(outer)) if i not in measure.reduce)))
    best = min(rank(_stretched(start, group, choices, fits)) for group in groups)
    while True:
        found = min((rank(t) for t in _neighbours(best[2], choices) if fits(t)), default=best)
        if found >= best:
            return best[2]
        best = found


def _stretched(
    start: Extents, group: Sequence[int], choices: Sequence[Sequence[int]], fits: Callable[[Extents], bool]
) -> Extents:
    """`start` with the axes of `group` as large as they can be, one after the other."""
    tile = start
    for axis in group:
        wider = ((*tile[:axis], extent, *tile[axis + 1 :]) for extent in reversed(choices[axis]))
        tile = next((t for t in wider if fits(t)), tile)
    return tile


def _neighbours(tile: Extents, choices: Sequence[Sequence[int]]) -> Iterator[Extents]:
    """Every tile that differs in one or two axes."""
    free = [i for i, options in enumerate(choices) if len(options) > 1]
    for at, a in enumerate(free):
        for x in choices[a]:
            one = (*tile[:a], x, *tile[a + 1 :])
            if x != tile[a]:
                yield one
            for b in free[at + 1 :] if x != tile[a] else ():
                yield from ((*one[:b], y, *one[b + 1 :]) for y in choices[b] if y != tile[b])
