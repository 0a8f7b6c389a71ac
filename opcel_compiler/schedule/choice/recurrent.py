"""Recurrent layers: tiles over the batch, and how a step's hidden units are shared out."""

from __future__ import annotations

from opcel_compiler.ir.layout import PLAIN
from opcel_compiler.ir.program import Kernel, whole
from opcel_compiler.ir.recurrent import MOST_UNITS
from opcel_compiler.ir.types import I8
from opcel_compiler.schedule.choice.context import TASKS, Choosing, heights

BLOCKS = 4


def choose_recurrent(kernel: Kernel, choosing: Choosing) -> None:
    """Tasks of a step share out blocks of hidden units, unless a step is too short to share."""
    anchor = kernel.anchor
    assert anchor is not None
    r = anchor.operand(1)
    directions, rows, n = r.tensor.static_shape
    at = list(kernel.body.inputs).index(r)
    rounds = choosing.precision == "bf16" and n <= MOST_UNITS // 2
    precision = "int8" if r.tensor.dtype == I8 else "bf16" if rounds else "f32"
    layout = PLAIN.stored_as("bf16") if precision == "bf16" else PLAIN
    kernel.inputs[at] = whole(choosing.packed_weight(kernel.inputs[at], layout, f"recurrent:{choosing.width}"))
    batch, gates, blocks = kernel.outputs[0].shape[2], rows // n, directions * -(-n // choosing.width)
    registers: int = choosing.target.vector.registers
    tallest = max(1, (registers - gates - 1) // gates)
    work = directions * rows * n * (batch if isinstance(batch, int) else 1)
    general = tuple(h for h in (8, 6, 4, 2, 1) if h <= tallest)
    # Each task rounds the states for itself, which several blocks then make up for.
    least = min(BLOCKS, blocks // BLOCKS) if precision == "int8" else 1
    per_task = blocks if work < 1 << 15 else max(1, least, blocks // TASKS)
    # One row reads the hidden state for every block: several blocks at once read it once, and end together.
    wide = max(w for w in (1, 2, 4) if w == 1 or (batch == 1 and w * gates <= registers // 2 and 4 * w <= blocks))
    kernel.params = {
        "rows": heights(batch, min(tallest, 8), batch, general),
        "blocks": wide,
        "blocks_per_task": -(-per_task // wide) * wide,
        "precision": precision,
    }
