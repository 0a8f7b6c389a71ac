"""Which kernel an attention in f32 takes: blocks of queries, or one row of them."""

from __future__ import annotations

from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.program import Kernel
from opcel_compiler.targets.schema import Target


def takes_row(kernel: Kernel, target: Target) -> bool:
    """Whether the kernel is for one query row a head: heads are of whole vectors."""
    assert kernel.anchor is not None
    width = target.vector.width_f32 if target.vector else 1
    whole = all(isinstance(size, int) and size % width == 0 for size in head_sizes(kernel.anchor))
    return whole and kernel.anchor.operand(0).tensor.dims[2] == 1 and kernel.params.get("precision") != "bf16"


def head_sizes(anchor: Node) -> tuple[Dim, Dim]:
    """Of queries and keys, and of values."""
    return anchor.operand(0).tensor.dims[3], anchor.operand(2).tensor.dims[3]
