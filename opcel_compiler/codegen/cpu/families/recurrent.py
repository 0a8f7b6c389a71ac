"""Recurrent layers: a call for each time step, its tasks share out the hidden units."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.expressions import CTYPES, literal
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv
from opcel_compiler.ir.ops.recurrent import SCALE_AT, functions
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.targets.schema import Target


def emit_recurrent(kernel: Kernel, target: Target) -> KernelUnit:
    """`params`: rows, the heights of tiles over the batch; blocks, how many of hidden units are computed at once;
    blocks_per_task; precision of the product with R.
    """
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    operands = [*(None if v is None else inputs[v] for v in anchor.operands), *[None] * 4][:6]
    gates, r, _, bias, hidden, cell = operands
    assert gates is not None and r is not None
    y = kernel.outputs[0]
    steps, directions, batch, n = y.shape
    width = target.vector.width_f32 if target.vector else 1
    rows = ", ".join(map(str, kernel.params["rows"]))
    weight = {"bf16": "bf16", "int8": "int8_t"}.get(kernel.params["precision"], "float")
    scale = anchor.optional(SCALE_AT[anchor.op]) if weight == "int8_t" else None
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
        "nullptr" if scale is None else unit.pointer(inputs[scale]),
    ]  # fmt: skip
    relu = str("relu" in anchor.attrs["activations"]).lower()
    cells = {"lstm": "LstmCell", "gru": "GruCell", "rnn": f"RnnCell<{relu}>"}
    parameters = f"{cells[anchor.op]}, {weight}, {kernel.params['blocks']}, {rows}"
    return unit.finish(
        ["kernels/recurrent/steps.h"], "",
        f"  const RecurrentArgs args{{{', '.join(fields)}}};\n"
        f"  recurrent_tasks<{parameters}>(args, {unit.call}, begin, end);\n",
    )  # fmt: skip


def emit_general(kernel: Kernel, target: Target) -> KernelUnit:
    """Any form: a task for each direction of each sequence."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    a, states = anchor.attrs, len(kernel.outputs)
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    operands = [*(None if v is None else inputs[v] for v in anchor.operands), *[None] * 6][: 6 + states]
    gates, r, _, bias, hidden, *rest = operands
    cell, lengths, peepholes = rest if states == 2 else (None, *rest)
    assert gates is not None and r is not None
    y, ctype = kernel.outputs[0], CTYPES[gates.dtype]
    steps, directions, batch, n = y.shape
    unit.tasks = directions * batch

    def pointer(view: View | None, of: str = ctype) -> str:
        return "nullptr" if view is None else unit.pointer(view, of)

    named = [
        ", ".join(f"{{Function::{f}, {literal(p, gates.dtype)}, {literal(q, gates.dtype)}}}" for f, p, q in one)
        for one in functions(anchor.op, a)
    ]
    fields = [
        unit.pointer(gates, ctype), *map(unit.integer, gates.strides[:2]), *map(pointer, (r, bias, hidden, cell)),
        pointer(lengths, "int32_t"), pointer(peepholes), unit.pointer(y, ctype, const=False),
        *map(unit.integer, y.strides[:3]),
        unit.pointer(kernel.outputs[1], ctype, const=False) if states == 2 else "nullptr",
        *map(unit.integer, (steps, batch, n)), str(a["direction"] == "reverse").lower(),
        str(a.get("input_forget", False)).lower(), literal(a["clip"], gates.dtype),
        "{" + ", ".join(f"{{{one}}}" for one in named) + "}",
    ]  # fmt: skip
    after = str(a.get("reset_after", False)).lower()
    cells = {"lstm": "GeneralLstm", "gru": f"GeneralGru<{after}>", "rnn": "GeneralRnn"}
    return unit.over_tasks(
        ["kernels/recurrent/general.h"],
        f"GeneralRecurrentArgs<{ctype}>",
        fields,
        f"general_recurrent_tasks<{cells[anchor.op]}>",
    )


EMITTERS = {**dict.fromkeys(("lstm", "gru", "rnn"), emit_recurrent), "recurrent.general": emit_general}
