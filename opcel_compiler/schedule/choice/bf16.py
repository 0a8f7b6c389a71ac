"""Products in bf16: operands rounded once, before the kernel; sums in f32."""

from __future__ import annotations

from opcel_compiler.ir.dims import Dim, equal, product
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Kernel, Step, View, whole
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.schedule.choice.context import Choosing, copy_body, heights
from opcel_compiler.schedule.choice.contraction import panel_width, panels_per_task
from opcel_compiler.schedule.choice.vector import FEW_ROWS


def choose_matmul_bf16(kernel: Kernel, choosing: Choosing) -> list[Step] | None:
    """A product with a constant second operand, after the kernel that rounds its first; None where it stays f32."""
    anchor = kernel.anchor
    assert anchor is not None
    at = {v: i for i, v in enumerate(kernel.body.inputs)}
    ia, ib = at[anchor.operand(0)], at[anchor.operand(1)]
    a, b, c = kernel.inputs[ia], kernel.inputs[ib], kernel.outputs[0]
    if choosing.precision != "bf16" or ia == ib or any(v.dtype != F32 for v in (a, b, c)):
        return None
    if b.buffer.kind != "weight" or len(b.shape) < 2 or len(a.shape) < 2:
        return None
    m: Dim = product(a.shape[:-1])
    if len(b.shape) > 2:
        batch = c.shape[:-2]
        if any(equal(product(v.shape[:-2]), product(batch)) is not True for v in (a, b)):
            return None
        m = c.shape[-2]
    n, k = b.shape[-1], b.shape[-2]
    steps: list[Step] = []
    rounded = grouped(a, choosing, steps, kernel.origin, 2)
    if rounded is None:
        return None
    pref = choosing.target.kernel("gemm")
    vectors, tallest = (pref.vectors, pref.rows[0]) if pref is not None else (2, 6)
    panel = panel_width(n, vectors, choosing)
    kernel.inputs[ia] = rounded
    kernel.inputs[ib] = whole(choosing.packed_weight(b, Layout(storage="bf16"), f"pairs:{panel}"))
    rows = rows_per_task(m, k, tallest, choosing.cache)
    kernel.family = "gemm.bf16"
    kernel.params = {
        "precision": "bf16", "panel": panel,
        "rows": heights(m, tallest, rows, pref.rows if pref else (tallest, 4, 2, 1)),
        "rows_per_task": rows,
        "panels_per_task": panels_per_task(product(c.shape[:-2]) if len(b.shape) > 2 else 1, m, n, panel, rows),
    }  # fmt: skip
    return [*steps, kernel]


def choose_attention_bf16(kernel: Kernel, choosing: Choosing) -> None:
    """Both products of an attention in bf16, but where few queries leave it bound by reading keys and values. With
    precision "int8" where the result is rounded to 8 bits and the target has the instructions."""
    queries = kernel.outputs[0].shape[2]
    last = kernel.body.outputs[0].producer
    eight = choosing.precision == "int8" and last is not None and last.op == "quantize" and choosing.target.peak("bf16")
    if (choosing.precision == "bf16" or eight) and not (type(queries) is int and queries <= FEW_ROWS):
        kernel.family, kernel.params = "attention.bf16", {"precision": "bf16"}


def grouped(a: View, choosing: Choosing, steps: list[Step], origin: tuple[str, ...], group: int) -> View | None:
    """`a` as kernels read it that multiply `group` elements at once, its rows padded to whole groups: f32 rounded to
    bf16 in pairs, bytes in quads. Made at the first call and shared by later ones; `a` itself where it is so already.

    None where the rows of `a` are not contiguous or not evenly spaced.
    """
    if a not in choosing.rounded:
        lead = View(a.buffer, a.shape[:-1], a.strides[:-1])
        if a.buffer.layout.block != 1 or len(lead.merged()[0]) > 1 or not (a.shape[-1] == 1 or a.strides[-1] == 1):
            return None
        k, bf16 = a.shape[-1], a.dtype == F32
        even = isinstance(k, int) and k % group == 0
        if even and not bf16:
            return a
        layout = Layout() if even else Layout(block_axis=len(a.shape) - 1, block=group)
        family, end = ("round", ".bf16") if bf16 else ("quads", ".quads")
        held = layout.stored_as("bf16" if bf16 else "")
        buffer = Buffer(choosing.name(f"{a.buffer.name}{end}"), TensorType(a.dtype, a.shape), layout=held)
        choosing.rounded[a] = whole(buffer)
        steps.append(Kernel(family, copy_body(a), [a], [whole(buffer)], origin=origin))
    return choosing.rounded[a]


def rows_per_task(m: Dim, k: Dim, tallest: int, cache: int) -> Dim:
    """Rows of the first operand that fill half of the cache, all tasks alike where the number of rows is known."""
    depth = k if isinstance(k, int) else 1024
    rows = max(tallest, cache // (4 * max(1, depth)) // tallest * tallest)
    return -(-m // -(-m // rows)) if isinstance(m, int) and m else rows
