"""One level of Strassen's algorithm for large products with a constant second operand: where it pays, and its tasks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from opcel_compiler.ir.dims import Dim, bounds, product
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Kernel, View, whole
from opcel_compiler.ir.types import F32
from opcel_compiler.schedule.choice.context import Choosing, heights
from opcel_compiler.schedule.choice.winograd import EFFICIENCY, f32_peak, read_seconds

LEAST = (96, 256, 256)
"""Rows, depth and columns of the smallest product."""
SHALLOWEST = 128
"""Depth of a block of half of the axis that is summed over, below which adding up the blocks costs too much."""
STACK = 1000 << 10
"""Bytes of scratch that a kernel may take from the stack of the thread that runs it."""
LARGE = 24
"""Vectors of the tallest register tile, at least: with half of them it was measured to be 3 to 5 % slower."""
TILES = 4
"""Register tiles of a task on top of each other, while which the next panel comes closer."""
PARTS = 2
"""Parts of the panels, at least, for each of which the left factors are made."""
FACTORS = 30
"""Operations on vectors that a vector of each left factor takes: read from and written to the second-level cache."""
SUMS = 7
"""Operations on vectors that it takes to add a vector of a product to a quarter of the result."""
GAIN = 0.96
"""Of the plain product's time, what this one may take at most."""
MOST_ROWS = 2048
"""Of a product whose rows are not known, where this one is tried."""


@dataclass(frozen=True)
class Strassen:
    """Tasks of `rows` of the upper half of the rows and as many of the lower, for at most `pairs` pairs of panels where
    there are several `blocks` of the axis that is summed over, `depth` the deepest one of its halves. Where the
    rows are not known, fewer than `fewest` are for the plain product."""

    panel: int
    rows: int
    blocks: int
    depth: int
    pairs: int
    heights: tuple[int, ...]
    fewest: int = 0


def plan_strassen(kernel: Kernel, choosing: Choosing) -> Strassen | None:
    """The fastest cut into tasks; None where the plain product is faster or the kernel is of another kind."""
    sizes = _sizes(kernel)
    pref = choosing.target.kernel("gemm")
    if sizes is None or pref is None or choosing.precision != "f32" or pref.vectors * pref.rows[0] < LARGE:
        return None
    m, k, n = sizes
    if k % 2 or k < LEAST[1] or n < LEAST[2]:
        return None
    product = _Product(choosing, k, n, pref.vectors * choosing.width, pref.rows[0])
    if isinstance(m, int):
        if m < LEAST[0]:
            return None
        found = product.best(m, -(-m // 2))
        return found if found is not None and product.pays(m, found) else None
    most = min(MOST_ROWS, bounds(m)[1] or MOST_ROWS)
    # Tasks as tall as a large product has them; the fewest rows for which they pay.
    tall = product.best(MOST_ROWS, MOST_ROWS // 2)
    if tall is None:
        return None
    tall = replace(tall, heights=pref.rows)
    fewest = next((rows for rows in range(LEAST[0], most + 1) if product.pays(rows, tall)), None)
    return None if fewest is None else replace(tall, fewest=fewest)


class _Product:
    """Times of a product with the second operand [k, n] in panels of `panel` columns, by tiles of `tallest` rows."""

    def __init__(self, choosing: Choosing, k: int, n: int, panel: int, tallest: int) -> None:
        self.choosing, self.k, self.n, self.panel, self.tallest = choosing, k, n, panel, tallest
        self.half, self.pairs, self.peak = k // 2, -(-n // (2 * panel)), f32_peak(choosing)

    def plans(self, upper: int) -> Iterator[Strassen]:
        """Cuts of `upper` rows that keep to the caches and the stack."""
        width, cache = self.choosing.width, self.choosing.cache
        for groups in range(1, -(-upper // self.tallest) + 1):
            rows = -(-upper // groups)
            if rows < min(upper, TILES * self.tallest):
                return
            for blocks in range(1, self.half // SHALLOWEST + 1):
                depth = -(-self.half // blocks)
                factors, sums = 28 * rows * (depth + 2 * width), 16 * rows * self.panel
                most = (min(STACK, cache) - factors) // sums if blocks > 1 else 1
                if most >= 1 and factors <= cache * 3 // 4 and factors + sums <= STACK:
                    parts = {rows, upper % rows or rows}
                    cut = sorted({h for part in parts for h in heights(part, self.tallest, part, ())}, reverse=True)
                    yield Strassen(self.panel, rows, blocks, depth, min(most, self.pairs), tuple(cut))

    def best(self, m: int, upper: int) -> Strassen | None:
        return min(self.plans(upper), key=lambda plan: self.seconds(m, plan), default=None)

    def seconds(self, m: int, plan: Strassen) -> float:
        width, upper = self.choosing.width, -(-m // 2)
        operation = 2.0 * width / self.peak
        products = 14.0 * upper * self.half * self.pairs * self.panel / (EFFICIENCY * self.peak)
        parts = max(PARTS, -(-self.pairs // plan.pairs)) if plan.blocks > 1 else PARTS
        factors = FACTORS * parts * upper * self.half / width
        sums = SUMS * 12 * upper * (self.pairs * self.panel // width) * plan.blocks
        computing = products + (factors + sums) * operation
        return float(max(computing, read_seconds(28 * self.half * self.pairs * self.panel, self.choosing)))

    def pays(self, m: int, plan: Strassen) -> bool:
        work = 2.0 * m * self.k * self.n / (EFFICIENCY * self.peak)
        plain = max(work, read_seconds(4 * self.k * self.n, self.choosing))
        return self.seconds(m, plan) < GAIN * plain


def use_strassen(kernel: Kernel, plan: Strassen, choosing: Choosing) -> None:
    """Make `kernel`, a matrix product, one of family gemm.strassen."""
    assert kernel.anchor is not None
    at = list(kernel.body.inputs).index(kernel.anchor.operand(1))
    packing = f"strassen:{plan.blocks}:{plan.panel}"
    kernel.inputs[at] = whole(choosing.packed_weight(kernel.inputs[at], Layout(), packing))
    kernel.family = "gemm.strassen"
    kernel.params = {
        "panel": plan.panel, "rows": plan.heights, "rows_per_task": plan.rows, "blocks": plan.blocks,
        "depth": plan.depth, "pairs": plan.pairs, "fewest": plan.fewest,
    }  # fmt: skip


def combined_bytes(shape: tuple[int, ...], packing: str) -> int:
    """Bytes of a matrix [k, n] in `packing`; "strassen:blocks:panel"."""
    panel = int(packing.split(":")[2])
    return 4 * 7 * (shape[0] // 2) * -(-shape[1] // (2 * panel)) * panel


def _sizes(kernel: Kernel) -> tuple[Dim, int, int] | None:
    """Rows, depth and columns where the operands are dense f32 matrices, the second a weight."""
    anchor = kernel.anchor
    assert anchor is not None
    at = {v: i for i, v in enumerate(kernel.body.inputs)}
    a, b = (kernel.inputs[at[anchor.operand(i)]] for i in (0, 1))
    c = kernel.outputs[0]
    if (
        anchor.attrs["exact"]
        or any(v.dtype != F32 for v in (a, b, c))
        or b.buffer.kind != "weight"
        or len(b.shape) != 2
        or len(a.shape) < 2
    ):
        return None
    rows = [View(v.buffer, v.shape[:-1], v.strides[:-1]) for v in (a, c)]
    if any(len(v.merged()[0]) > 1 for v in rows) or a.strides[-1] != 1:
        return None
    m, k, n = product(a.shape[:-1]), *b.shape
    return (m, k, n) if isinstance(k, int) and isinstance(n, int) else None
