"""Products with weights of 4 and 8 bits: panels, tiles, and groups in which rows are rounded."""

from __future__ import annotations

from opcel_compiler.ir.dims import Dim, dim_max, product
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Kernel, Step, View, whole
from opcel_compiler.schedule.choice.context import TASKS, Choosing, heights
from opcel_compiler.schedule.choice.contraction import panels_per_task
from opcel_compiler.schedule.choice.vector import FEW_ROWS

LARGEST_GROUP = 128
"""Rows are rounded by groups of at most so many elements, where scales allow it."""
LEAST_COLUMNS = 128
"""Columns of a task: each task prepares the rows that it reads, which takes as long as some 20 columns."""
STACK = 192 << 10
"""Bytes of a task's rows, which lie on its stack."""
ROUNDED = ("int4", "int8")
"""The precisions in which rows are rounded, whatever the model says."""


def choose_nbits(kernel: Kernel, choosing: Choosing) -> list[Step]:
    """A product with weights of a few bits; they are packed when they are written."""
    anchor = kernel.anchor
    assert anchor is not None
    at = {v: i for i, v in enumerate(kernel.body.inputs)}
    places = [at[v] for v in anchor.operands if v is not None]
    x, w = kernel.inputs[places[0]], kernel.inputs[places[1]]
    k, n = (int(d) for d in w.shape)  # type: ignore[arg-type]
    m = product(x.shape[:-1])
    rounded = bool(anchor.attrs["rounded"]) or choosing.precision in ROUNDED
    group, shared = groups(k, anchor.attrs["group"])
    pref = choosing.target.kernel("gemm")
    vectors, tallest = 2, pref.rows[0] if pref is not None else 6
    if isinstance(m, int) and 0 < m <= FEW_ROWS and choosing.target.vector.registers >= 32:
        vectors = 4
    while vectors > 1 and n < TASKS * vectors * choosing.width:
        vectors //= 2
    panel = vectors * choosing.width
    for i in places[1:]:
        kernel.inputs[i] = _packed(kernel.inputs[i], i == places[1], panel, group, choosing)
    rows = _rows_per_task(m, k, group, 1 if rounded else 4, tallest)
    kernel.family = "gemm.nbits"
    kernel.params = {
        "panel": panel, "rows": heights(m, tallest, rows, pref.rows if pref else (tallest, 4, 2, 1)),
        "rows_per_task": rows,
        "panels_per_task": dim_max(panels_per_task(1, m, n, panel, rows), -(-LEAST_COLUMNS // panel)),
        "group": group, "shared": shared,
    }  # fmt: skip
    if rounded:
        kernel.params["precision"] = "rounded"
    return [kernel]


def groups(k: int, group: int) -> tuple[int, int]:
    """(elements of a group in which rows are rounded, such groups that have one scale), for scales by `group` of k."""
    if group >= k:
        return min(k, LARGEST_GROUP) or 1, max(1, -(-k // LARGEST_GROUP))
    small = group
    while small > LARGEST_GROUP and small % 2 == 0:
        small //= 2
    return small, group // small


def _rows_per_task(m: Dim, k: int, group: int, element: int, tallest: int) -> Dim:
    """Rows that fit on the stack with their scales and sums, in tasks that are even where their number is known."""
    row = element * (k + 8 * -(-k // group)) + 8 * -(-k // group)
    rows = max(1, STACK // row)
    rows = rows // tallest * tallest or rows
    rows = min(rows, 8 * tallest)
    if isinstance(m, int):
        rows = min(rows, max(tallest, -(-m // 4 // tallest) * tallest))
    if isinstance(m, int) and m > 0:
        tasks = -(-m // rows)
        rows = min(rows, -(-m // tasks // tallest) * tallest) if m > tallest else m
    return rows


def _packed(view: View, weights: bool, panel: int, group: int, choosing: Choosing) -> View:
    """The weights, or their scales or zero points, as the kernel reads them; shared by kernels that have the same."""
    layout = Layout() if weights else Layout((1, 0), 1, panel)
    packing = f"nbits:{group}:{panel}" if weights else ""
    key = (view, layout, packing)
    if key not in choosing.packed:
        old = view.buffer
        assert old.data is not None and old.data.array.shape == view.shape
        name = choosing.name(f"{old.name}.packed")
        choosing.packed[key] = Buffer(name, old.type, "weight", layout, data=old.data, packing=packing)
    return whole(choosing.packed[key])
