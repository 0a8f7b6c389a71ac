"""Kernels that choose elements: the largest of each line, distinct rows, boxes that overlap no better one."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.expressions import CTYPES, computing_type
from opcel_compiler.codegen.cpu.unit import MAX_TASK_WORK, KernelUnit
from opcel_compiler.ir.dims import ceildiv, dim_max, floordiv, product
from opcel_compiler.ir.program import Kernel
from opcel_compiler.ir.types import DType
from opcel_compiler.targets.schema import Target


def _headers(dtype: DType, *names: str) -> list[str]:
    narrow = dtype.bits < 8 or (dtype.is_float and dtype.bits <= 16)
    return [*(["base/narrow.h"] if narrow else []), *names]


def emit_topk(kernel: Kernel, target: Target) -> KernelUnit:
    """A dense operand of any arithmetic type, a line a time."""
    assert kernel.anchor is not None
    unit = KernelUnit()
    (x,), (y, index), a = kernel.inputs, kernel.outputs, kernel.anchor.attrs
    n, inner = x.shape[a["axis"]], product(x.shape[a["axis"] + 1 :])
    lines = product(x.shape[: a["axis"]]) * inner
    per_task = dim_max(1, floordiv(MAX_TASK_WORK, dim_max(1, 4 * n)))
    unit.tasks = ceildiv(lines, per_task)
    ctype = CTYPES[x.dtype]
    fields = map(unit.integer, (n, inner, y.shape[a["axis"]], lines, per_task))
    pointers = (
        unit.pointer(x, ctype), unit.pointer(y, ctype, const=False), unit.pointer(index, "int64_t", const=False),
    )  # fmt: skip
    types = f"{ctype}, {computing_type(x.dtype)}, {str(a['largest']).lower()}"
    return unit.finish(
        _headers(x.dtype, "kernels/select/topk.h"), "",
        f"  const TopkArgs args{{{', '.join(fields)}}};\n"
        f"  topk_tasks<{types}>(args, {', '.join(pointers)}, begin, end);\n",
    )  # fmt: skip


def emit_unique(kernel: Kernel, target: Target) -> KernelUnit:
    """The rows of a dense matrix of any arithmetic type, in one task."""
    assert kernel.anchor is not None
    unit = KernelUnit()
    x = kernel.inputs[0]
    ctype, order = CTYPES[x.dtype], str(kernel.anchor.attrs["sorted"]).lower()
    source = unit.pointer(x, ctype)
    first, which, counts, number = (unit.pointer(v, "int64_t", const=False) for v in kernel.outputs)
    sizes = ", ".join(map(unit.integer, x.shape))
    return unit.finish(
        _headers(x.dtype, "kernels/select/unique.h"), "",
        f"  (void)begin, (void)end;\n  *{number} = unique_rows<{ctype}, {computing_type(x.dtype)}>(\n"
        f"      {source}, {sizes}, {order}, {first}, {which}, {counts});\n",
    )  # fmt: skip


def emit_suppress(kernel: Kernel, target: Target) -> KernelUnit:
    """A class of a batch a task."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    views = [inputs[anchor.operand(i)] for i in range(5)]
    kinds = ("float", "float", CTYPES[views[2].dtype], "float", "float")
    boxes, scores, most, overlap, least = (unit.pointer(v, t) for v, t in zip(views, kinds, strict=True))
    kept = unit.pointer(kernel.outputs[0], "int64_t", const=False)
    heap = unit.pointer(kernel.outputs[1], "int32_t", const=False)
    b, c, n = views[1].shape
    unit.tasks = b * c
    sizes = ", ".join(map(unit.integer, (n, c, kernel.outputs[0].shape[2])))
    return unit.finish(
        ["kernels/select/suppress.h"], "",
        f"  const SuppressArgs args{{{sizes}, static_cast<int64_t>(*{most}), *{overlap}, *{least}}};\n"
        f"  suppress_tasks<{str(anchor.attrs['center']).lower()}>"
        f"(args, {boxes}, {scores}, {kept}, {heap}, begin, end);\n",
    )  # fmt: skip


EMITTERS = {"topk": emit_topk, "unique": emit_unique, "suppress": emit_suppress}
