"""Products of a few rows with a constant matrix: panels so narrow that all threads have some."""

from __future__ import annotations

from opcel_compiler.ir.dims import ceildiv, product
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Kernel, Step, View, whole
from opcel_compiler.ir.types import F32
from opcel_compiler.schedule.choice.context import TASKS, Choosing

FEW_ROWS = 4
"""Up to so many rows a product takes as long as reading its weights."""


def choose_few_rows(kernel: Kernel, choosing: Choosing) -> list[Step] | None:
    """The product in the family `vector`; None where it has more rows, or an unknown number, or no constant."""
    anchor = kernel.anchor
    assert anchor is not None
    at = {v: i for i, v in enumerate(kernel.body.inputs)}
    ia, ib = at[anchor.operand(0)], at[anchor.operand(1)]
    a, b, c = kernel.inputs[ia], kernel.inputs[ib], kernel.outputs[0]
    if ia == ib or b.buffer.kind != "weight" or len(b.shape) != 2 or any(v.dtype != F32 for v in (a, b, c)):
        return None
    m, n = product(a.shape[:-1]), b.shape[-1]
    if not (isinstance(m, int) and 0 < m <= FEW_ROWS and isinstance(n, int) and n > 0 and _is_rows(a)):
        return None
    # Half of the registers hold sums; narrower panels where there would be less than one for each task.
    vectors = 8
    while vectors > 1 and (vectors * m > choosing.target.vector.registers // 2 or n < TASKS * vectors * choosing.width):
        vectors //= 2
    panel = vectors * choosing.width
    panels = ceildiv(n, panel)
    bf16 = choosing.precision == "bf16"
    layout = Layout((1, 0), 1, panel, storage="bf16" if bf16 else "")
    kernel.inputs[ib] = whole(choosing.packed_weight(b, layout))
    kernel.family = "vector"
    kernel.params = {"rows": m, "panel": panel, "panels_per_task": ceildiv(panels, 2 * TASKS)}
    if bf16:
        kernel.params["precision"] = "bf16"
    return [kernel]


def _is_rows(a: View) -> bool:
    """Whether the view is a matrix of evenly spaced, contiguous rows."""
    lead = View(a.buffer, a.shape[:-1], a.strides[:-1])
    return a.buffer.layout.block == 1 and len(lead.merged()[0]) <= 1 and (a.shape[-1] == 1 or a.strides[-1] == 1)
