"""Matrix products: column panels, register tiles and task sizes."""

from __future__ import annotations

from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, equal, floordiv, product
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Kernel, Step, View, whole
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.schedule.choice.context import TASKS, Choosing, copy_body, heights


def choose_matmul(kernel: Kernel, choosing: Choosing) -> list[Step]:
    """A matrix product, after the kernel that packs its second operand where that is known only at run time."""
    anchor = kernel.anchor
    assert anchor is not None
    at = {v: i for i, v in enumerate(kernel.body.inputs)}
    ia, ib = at[anchor.operand(0)], at[anchor.operand(1)]
    a, b, c = kernel.inputs[ia], kernel.inputs[ib], kernel.outputs[0]
    lead = product(b.shape[:-2])
    batch = c.shape[:-2]
    fits = c.dtype == F32 and len(a.shape) >= 1 and len(b.shape) >= 2 and ia != ib
    if fits and len(b.shape) > 2:
        same = lead == 1 or equal(lead, product(batch)) is True
        wide = View(a.buffer, a.shape, a.strides, a.offset).expand((*batch, *a.shape[-2:])) if len(a.shape) > 1 else a
        merges = len(View(wide.buffer, wide.shape[:-2], wide.strides[:-2]).merged()[0]) <= 1
        fits = same and merges and len(a.shape) > 1
    if not fits:
        return choosing.reference(kernel, "matmul.reference")
    m = product(a.shape[:-1]) if len(b.shape) == 2 else c.shape[-2]
    n, k = b.shape[-1], b.shape[-2]
    pref = choosing.target.kernel("gemm")
    vectors, tallest = (pref.vectors, pref.rows[0]) if pref is not None else (2, 6)
    panel = panel_width(n, vectors, choosing)
    layout = Layout((*range(len(b.shape) - 2), len(b.shape) - 1, len(b.shape) - 2), len(b.shape) - 1, panel)
    steps: list[Step] = []
    if b.buffer.kind == "weight":
        kernel.inputs[ib] = whole(choosing.packed_weight(b, layout))
    else:
        packed = Buffer(choosing.name(f"{b.buffer.name}.panels"), TensorType(F32, b.shape), layout=layout)
        steps.append(Kernel("pack", copy_body(b), [b], [whole(packed)], origin=kernel.origin))
        kernel.inputs[ib] = whole(packed)
    kernel.family = "gemm"
    rows_per_task = _rows_per_task(m, k, tallest, choosing.cache)
    kernel.params = {
        "panel": panel, "rows": _heights(m, rows_per_task, tallest, pref.rows if pref else (tallest, 4, 2, 1)),
        "rows_per_task": rows_per_task,
        "panels_per_task": panels_per_task(
            product(batch) if len(b.shape) > 2 else 1, m, n, panel, rows_per_task
        ),
    }  # fmt: skip
    return [*steps, kernel]


def _rows_per_task(m: Dim, k: Dim, tallest: int, cache: int) -> Dim:
    """Rows of A that stay in half a cache of `cache` bytes; tasks of whole tiles, as even as that allows."""
    depth = k if isinstance(k, int) else 1024
    rows = max(tallest, cache // (8 * max(1, depth)) // tallest * tallest)
    if isinstance(m, int) and m <= rows:
        return max(1, m)
    even = ceildiv(m, dim_max(1, ceildiv(m, rows)))
    return dim_max(1, ceildiv(even, tallest)) * tallest


def _heights(m: Dim, rows: Dim, tallest: int, general: tuple[int, ...]) -> tuple[int, ...]:
    """The tile heights of tasks of `rows` rows: an even cut of the only task, or of the last one beside whole tiles."""
    if not (isinstance(m, int) and isinstance(rows, int) and m > rows and rows % tallest == 0):
        return heights(m, tallest, rows, general)
    last = m % rows or rows
    return tuple(sorted({tallest, *heights(last, tallest, last, general)}, reverse=True))


def panel_width(n: Dim, vectors: int, choosing: Choosing) -> int:
    """Columns of a panel: `vectors` vectors, halved while half of it holds all `n` columns."""
    panel = vectors * choosing.width
    while panel > choosing.width and type(n) is int and n <= panel // 2:
        panel //= 2
    return panel


def panels_per_task(batch: Dim, m: Dim, n: Dim, panel: int, rows: Dim) -> Dim:
    """Two rounds of TASKS in all: a product is most of a network's time, so its tasks even out finer."""
    groups = ceildiv(m, dim_max(1, rows)) * (batch if isinstance(batch, int) or not isinstance(m, int) else 1)
    shares = dim_max(1, floordiv(2 * TASKS, dim_max(1, groups)))
    return dim_max(1, ceildiv(ceildiv(n, panel), shares))
