"""Matrix products of bytes: u8 activations times s8 weights, sums in s32."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.dims import equal, product
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.ops.quant import LARGEST_DEPTH
from opcel_compiler.ir.program import Kernel, Step, View, whole
from opcel_compiler.ir.program_split import dequantizations, zero_number
from opcel_compiler.ir.types import F32, I8, U8
from opcel_compiler.schedule.choice.bf16 import grouped, rows_per_task
from opcel_compiler.schedule.choice.context import Choosing, heights
from opcel_compiler.schedule.choice.contraction import panel_width, panels_per_task
from opcel_compiler.schedule.choice.vector import FEW_ROWS


def choose_matmul_int8(kernel: Kernel, choosing: Choosing) -> list[Step] | None:
    """A product of dequantized bytes with dequantized weights, after the kernel that pads the rows of its first operand
    where they are no whole quads; None where integers cannot compute it."""
    anchor = kernel.anchor
    assert anchor is not None
    found = _operands(kernel)
    if found is None:
        return None
    ia, ib = found
    a, b = kernel.inputs[ia], kernel.inputs[ib]
    n, k = b.shape[-1], b.shape[-2]
    m = product(a.shape[:-1])
    steps: list[Step] = []
    rows = grouped(a, choosing, steps, kernel.origin, 4)
    if rows is None:
        return None
    pref = choosing.target.kernel("gemm")
    vectors, tallest = (pref.vectors, pref.rows[0]) if pref is not None else (2, 6)
    registers: int = choosing.target.vector.registers
    if "avx512_vnni" not in choosing.target.isa.features:  # bytes are widened: each vector takes two registers
        tallest = min(tallest, registers // 4)
    if isinstance(m, int) and m <= FEW_ROWS:  # bound by reading the weights: longer stretches of them
        vectors = 2 * vectors
    panel = panel_width(n, vectors, choosing)
    zero = zero_number(kernel)
    head = 1 if zero is None else zero  # what is known as it runs multiplies the panel's head
    kernel.inputs[ia] = rows
    kernel.inputs[ib] = whole(choosing.packed_weight(b, Layout(), f"quads:{panel}:{head}"))
    count = rows_per_task(m, k, tallest, 2 * choosing.cache)
    general = tuple(r for r in (pref.rows if pref else (tallest, 4, 2, 1)) if r < tallest)
    kernel.family = "gemm.int8"
    kernel.params = {
        "precision": "int8", "panel": panel, "rows": heights(m, tallest, count, (tallest, *general)),
        "rows_per_task": count, "panels_per_task": panels_per_task(1, m, n, panel, count),
    }  # fmt: skip
    return [*steps, kernel]


def _operands(kernel: Kernel) -> tuple[int, int] | None:
    """The places among the kernel's inputs of the two matrices of bytes; None where it is not such a product."""
    anchor = kernel.anchor
    assert anchor is not None
    makers = dequantizations(anchor)
    if len(makers) != 2 or anchor.operand(0) is not makers[0].result or len(kernel.outputs) != 1:
        return None
    inputs = kernel.body.inputs
    x, w = (node.operand(0) for node in makers)
    if x not in inputs or w not in inputs or x.tensor.dtype != U8 or w.tensor.dtype != I8:
        return None
    b = kernel.inputs[inputs.index(w)]
    if b.buffer.kind != "weight" or len(b.shape) != 2 or len(x.tensor.dims) < 2:
        return None
    k = b.shape[0]
    if not (isinstance(k, int) and 0 < k <= LARGEST_DEPTH):
        return None
    if any(node.result.tensor.dtype != F32 or node.operand(1).tensor.dtype != F32 for node in makers):
        return None
    if len(makers[1].operands) > 2 and not _zeros(kernel, makers[1].operands[2]):
        return None
    if not all(_by_row(v, makers[0]) for v in makers[0].operands[1:]) or not _by_column(makers[1].operand(1), b):
        return None
    return inputs.index(x), inputs.index(w)


def _zeros(kernel: Kernel, value: Value | None) -> bool:
    if value is None:
        return True
    at = kernel.body.inputs
    data = value.constant or (kernel.inputs[at.index(value)].buffer.data if value in at else None)
    return data is not None and not np.any(data.array)


def _by_row(value: Value | None, x: Node) -> bool:
    """Whether a scale or zero point of the first operand is one number, or one for each row."""
    if value is None or value.tensor.size == 1:
        return True
    have, rows = value.tensor.dims, x.result.tensor.dims
    return len(have) == len(rows) and have[-1] == 1 and all(map(equal, have[:-1], rows[:-1]))


def _by_column(scale: Value, b: View) -> bool:
    have = scale.tensor.dims
    return scale.tensor.size == 1 or (equal(have[-1], b.shape[-1]) is True and scale.tensor.size == have[-1])
