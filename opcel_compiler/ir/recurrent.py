"""What is known of a recurrent layer of a Graph: its form, and its bias in two parts."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.ops.recurrent import GATES, special_form
from opcel_compiler.ir.types import F32

RECURRENT = frozenset(GATES)
MOST_UNITS = 1 << 15
"""The most hidden units of a layer with weights of bytes: a task has their codes on its stack."""


def special(node: Node) -> str:
    """What keeps a layer from the kernels of a call a step, in words for the user; "" for nothing."""
    states = len(node.results)
    if any(v is not None and v.constant is None for v in [*node.operands, None][1:4]):
        return "its weights are not constant"
    if node.optional(4 + states) is not None:
        return "its sequences have lengths of their own"
    if node.op == "lstm" and node.optional(5 + states) is not None:
        return "it has peepholes"
    if form := special_form(node.op, node.attrs):
        return form
    if node.operand(0).tensor.dtype != F32:
        return f"it is computed in {node.operand(0).tensor.dtype}"
    return ""


def bias_parts(node: Node) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(what is added to the gates of all steps [d·g·n], what the steps add [d, 2·g·n]) of a layer's constant bias; None
    for zero. The steps add what a gru's reset gate scales."""
    bias = node.optional(3)
    if bias is None:
        return None, None
    assert bias.constant is not None
    array = np.asarray(bias.constant.array)
    half, n = array.shape[1] // 2, node.operand(1).tensor.static_shape[2]
    of_w, of_r = array[:, :half], array[:, half:].copy()
    kept = np.zeros_like(array)
    if node.op == "gru" and node.attrs["reset_after"]:
        kept[:, -n:] = of_r[:, -n:]
        of_r[:, -n:] = 0
    total = np.ascontiguousarray((of_w + of_r).reshape(-1))
    return total if total.any() else None, kept if kept.any() else None
