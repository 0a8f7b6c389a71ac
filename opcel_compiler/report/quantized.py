"""Which quantized layers of a model are computed in integers, and why others are not."""

from __future__ import annotations

from typing import Any

from opcel_compiler.compilation import Compilation
from opcel_compiler.ir.program import Kernel
from opcel_compiler.ir.recurrent import RECURRENT
from opcel_compiler.ir.types import I8
from opcel_compiler.schedule.choice.integers import is_integer

PASS = "integer-operands"
IN_FLOATS = "it is computed in floats: "
"""How that pass begins its reason."""


def quantized_facts(work: Compilation) -> dict[str, Any]:
    """How many products read quantized numbers, and of those that are computed in floats the nodes and the reason."""
    kernels = work.program.kernels if work.program is not None else []
    done = {name for kernel in kernels if multiplies_integers(kernel) for name in kernel.origin}
    told = (r for r in work.context.report.refusals() if r.pass_name == PASS)
    refused = {name: r.reason.removeprefix(IN_FLOATS) for r in told for name in r.origin}
    known = work.imported.operators
    floats = [
        {
            "op": layer.op, "origin": list(layer.origin),
            "operators": list(dict.fromkeys(known[o] for o in layer.origin if o in known)),
            "reason": next((refused[o] for o in layer.origin if o in refused), layer.reason),
        }
        for layer in work.quantized_layers if not done.intersection(layer.origin)
    ]  # fmt: skip
    return {"layers": len(work.quantized_layers), "in_floats": floats}


def multiplies_integers(kernel: Kernel) -> bool:
    """Whether a kernel multiplies the integers that weights are stored as."""
    anchor = kernel.anchor
    steps = anchor is not None and anchor.op in RECURRENT and anchor.operand(1).tensor.dtype == I8
    return kernel.family in ("gemm.int8", "gemm.nbits") or is_integer(kernel) or steps
