"""Ensembles of decision trees: tasks of some rows and a part of the trees."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.expressions import CTYPES
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import ceildiv, dim_max, dim_min
from opcel_compiler.ir.program import Kernel
from opcel_compiler.ir.types import DTYPES
from opcel_compiler.targets.schema import Target

ROWS = 12
"""Rows that go through a tree at once."""
TASK_STEPS = 1 << 16
"""Steps through trees of one task: about 40 microseconds."""
TASKS = 16
"""Into how many tasks rows are divided at least, where there are enough."""


def emit_trees(kernel: Kernel, target: Target) -> KernelUnit:
    """`TreeArgs` of csrc/kernels/trees/walk.h; the number of features is a template argument."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    x, nodes, leaves, trees = (inputs[anchor.operand(i)] for i in range(4))
    y = kernel.outputs[0]
    count, parts = trees.shape[0], y.shape[0]
    (features,) = x.shape[1:]
    assert isinstance(features, int) and isinstance(count, int)
    most = min(960, max(60, TASK_STEPS // max(1, count * 8) // ROWS * ROWS))
    rows_per_task = dim_min(most, dim_max(2 * ROWS, ROWS * ceildiv(x.shape[0], TASKS * ROWS)))
    unit.tasks = ceildiv(x.shape[0], rows_per_task) * parts
    node, read, value = "WideNode" if nodes.dtype == DTYPES["u64"] else "NarrowNode", CTYPES[x.dtype], CTYPES[y.dtype]
    fields = [
        unit.pointer(x, read), unit.pointer(nodes, node), unit.pointer(leaves, value), unit.pointer(trees, "Tree"),
        unit.pointer(y, value, const=False),
        *map(unit.integer, (x.shape[0], parts, count, y.shape[2], rows_per_task)),
    ]  # fmt: skip
    dense = leaves.shape[1] != 1
    parameters = f"{features}, Join::{anchor.attrs['aggregate']}, {str(dense).lower()}"
    return unit.over_tasks(
        ["kernels/trees/walk.h"], f"TreeArgs<{node}, {read}, {value}>", fields, f"tree_tasks<{parameters}>"
    )


EMITTERS = {"tree_ensemble": emit_trees}
