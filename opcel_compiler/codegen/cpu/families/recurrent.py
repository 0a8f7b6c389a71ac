"""Recurrent layers: a call for each time step, its tasks share out the hidden units."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target


def emit_recurrent(kernel: Kernel, target: Target) -> KernelUnit:
    """`params`: rows, the heights of tiles over the batch; blocks, how many of hidden units are computed at once;
    blocks_per_task; precision of the product with R.
    """
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    operands = [*(None if v is None else inputs[v] for v in anchor.operands), None, None, None][:6]
    gates, r, _, bias, hidden, cell = operands
    assert gates is not None and r is not None
    y = kernel.outputs[0]
    steps, directions, batch, n = y.shape
    width = target.vector.width_f32 if target.vector else 1
    rows = ", ".join(map(str, kernel.params["rows"]))
    weight = "bf16" if kernel.params["precision"] == "bf16" else "float"
    per_task: Dim = kernel.params["blocks_per_task"]
    unit.tasks = ceildiv(directions * ceildiv(n, width), per_task)
    unit.calls = steps
    fields = [
        unit.pointer(gates), *map(unit.integer, gates.strides[:2]), unit.pointer(r, weight),
        *("nullptr" if v is None else unit.pointer(v) for v in (bias, hidden, cell)),
        unit.pointer(y, const=False), *map(unit.integer, y.strides[:3]),
        unit.pointer(kernel.outputs[1], const=False) if len(kernel.outputs) > 1 else "nullptr",
        *map(unit.integer, (steps, directions, batch, n, per_task)),
        "true" if anchor.attrs["direction"] == "reverse" else "false",
    ]  # fmt: skip
    relu = str(anchor.attrs.get("activation") == "relu").lower()
    cells = {"lstm": "LstmCell", "gru": "GruCell", "rnn": f"RnnCell<{relu}>"}
    parameters = f"{cells[anchor.op]}, {weight}, {kernel.params['blocks']}, {rows}"
    return unit.finish(
        ["kernels/recurrent/steps.h"], "",
        f"  const RecurrentArgs args{{{', '.join(fields)}}};\n"
        f"  recurrent_tasks<{parameters}>(args, {unit.call}, begin, end);\n",
    )  # fmt: skip


EMITTERS = dict.fromkeys(("lstm", "gru", "rnn"), emit_recurrent)
