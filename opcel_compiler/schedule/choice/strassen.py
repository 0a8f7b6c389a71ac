"""One level of Strassen's algorithm for large products with a constant second operand: where it pays, and its tasks."""

from __future__ import annotations

from dataclasses import dataclass

from opcel_compiler.ir.dims import product
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


@dataclass(frozen=True)
class Strassen:
    """Tasks of `rows` of the upper half of the rows and as many of the lower, for at most `pairs` pairs of panels where
    there are several `blocks` of the axis that is summed over, `depth` the deepest one of its halves."""

    panel: int
    rows: int
    blocks: int
    depth: int
    pairs: int
    heights: tuple[int, ...]


def plan_strassen(kernel: Kernel, choosing: Choosing) -> Strassen | None:
    """The fastest cut into tasks; None where the plain product is faster or the kernel is of another kind."""
    sizes = _sizes(kernel)
    pref = choosing.target.kernel("gemm")
    if sizes is None or pref is None or choosing.precision != "f32" or pref.vectors * pref.rows[0] < LARGE:
        return None
    m, k, n = sizes
    panel = pref.vectors * choosing.width
    upper, half, pairs = -(-m // 2), k // 2, -(-n // (2 * panel))
    if k % 2 or any(size < least for size, least in zip(sizes, LEAST, strict=True)):
        return None
    plans = []
    for groups in range(1, -(-upper // pref.rows[0]) + 1):
        rows = -(-upper // groups)
        if rows < min(upper, TILES * pref.rows[0]):
            break
        for blocks in range(1, half // SHALLOWEST + 1):
            depth = -(-half // blocks)
            factors, sums = 28 * rows * (depth + 2 * choosing.width), 16 * rows * panel
            most = (min(STACK, choosing.cache) - factors) // sums if blocks > 1 else 1
            if most >= 1 and factors <= choosing.cache * 3 // 4 and factors + sums <= STACK:
                parts = {rows, upper % rows or rows}
                cut = sorted({h for part in parts for h in heights(part, pref.rows[0], part, ())}, reverse=True)
                plans.append(Strassen(panel, rows, blocks, depth, min(most, pairs), tuple(cut)))
    if not plans:
        return None
    peak = f32_peak(choosing)
    work = 2.0 * m * k * n / (EFFICIENCY * peak)
    operation = 2.0 * choosing.width / peak
    vectors = pairs * panel // choosing.width

    def seconds(plan: Strassen) -> float:
        products = 14.0 * upper * half * pairs * panel / (EFFICIENCY * peak)
        parts = max(PARTS, -(-pairs // plan.pairs)) if plan.blocks > 1 else PARTS
        factors = FACTORS * parts * upper * half / choosing.width
        sums = SUMS * 12 * upper * vectors * plan.blocks
        computing = products + (factors + sums) * operation
        return float(max(computing, read_seconds(28 * half * pairs * panel, choosing)))

    cost, best = min(((seconds(p), i) for i, p in enumerate(plans)), key=lambda c: c[0])
    plain = max(work, read_seconds(4 * k * n, choosing))
    return plans[best] if cost < GAIN * plain else None


def use_strassen(kernel: Kernel, plan: Strassen, choosing: Choosing) -> None:
    """Make `kernel`, a matrix product, one of family gemm.strassen."""
    assert kernel.anchor is not None
    at = list(kernel.body.inputs).index(kernel.anchor.operand(1))
    packing = f"strassen:{plan.blocks}:{plan.panel}"
    kernel.inputs[at] = whole(choosing.packed_weight(kernel.inputs[at], Layout(), packing))
    kernel.family = "gemm.strassen"
    kernel.params = {
        "panel": plan.panel, "rows": plan.heights, "rows_per_task": plan.rows, "blocks": plan.blocks,
        "depth": plan.depth, "pairs": plan.pairs,
    }  # fmt: skip


def combined_bytes(shape: tuple[int, ...], packing: str) -> int:
    """Bytes of a matrix [k, n] in `packing`; "strassen:blocks:panel"."""
    panel = int(packing.split(":")[2])
    return 4 * 7 * (shape[0] // 2) * -(-shape[1] // (2 * panel)) * panel


def _sizes(kernel: Kernel) -> tuple[int, int, int] | None:
    """Rows, depth and columns where they are known and the operands are dense f32 matrices, the second a weight."""
    anchor = kernel.anchor
    assert anchor is not None
    at = {v: i for i, v in enumerate(kernel.body.inputs)}
    a, b = (kernel.inputs[at[anchor.operand(i)]] for i in (0, 1))
    c = kernel.outputs[0]
    if any(v.dtype != F32 for v in (a, b, c)) or b.buffer.kind != "weight" or len(b.shape) != 2 or len(a.shape) < 2:
        return None
    rows = [View(v.buffer, v.shape[:-1], v.strides[:-1]) for v in (a, c)]
    if any(len(v.merged()[0]) > 1 for v in rows) or a.strides[-1] != 1:
        return None
    m, k, n = product(a.shape[:-1]), *b.shape
    return (m, k, n) if isinstance(m, int) and isinstance(k, int) and isinstance(n, int) else None
