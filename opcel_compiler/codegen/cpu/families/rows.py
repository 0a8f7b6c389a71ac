"""Row kernels: softmax, normalizations, and f32 reductions over neighbouring axes."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.codegen.cpu.expressions import literal
from opcel_compiler.codegen.cpu.families.functors import Functor, after, before, last_step, row_step
from opcel_compiler.codegen.cpu.unit import MAX_TASK_WORK, KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, floordiv, product
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.ir.types import F32
from opcel_compiler.targets.schema import Target


def _functors(unit: KernelUnit, kernel: Kernel, keep: int) -> tuple[str, str]:
    """(struct texts, statements that make `prologue` and `epilogue`) with the last `keep` axes as the row."""
    anchor = kernel.anchor
    assert anchor is not None

    def steps(view: View) -> Sequence[Dim]:
        vector = len(view.shape) <= keep or product(view.shape[:-keep]) == 1
        return (0 if vector else row_step(view, keep)), last_step(view)

    prologue = Functor(unit, kernel, ("row", "col"), steps)
    first = prologue.struct(
        "Prologue", "load(int64_t row, int64_t col, int lanes)", before(kernel.body, anchor), {}, anchor.operand(0)
    )
    make = f"  const Prologue prologue{prologue.instance};\n"
    epilogue = Functor(unit, kernel, ("row", "col"), steps)
    second = epilogue.struct(
        "Epilogue", "apply(vf v, int64_t row, int64_t col, int lanes)", after(kernel.body, anchor),
        {anchor.result: "v"}, kernel.body.outputs[0],
    )  # fmt: skip
    return first + second, make + f"  const Epilogue epilogue{epilogue.instance};\n"


def emit_rows(kernel: Kernel, target: Target) -> KernelUnit:
    """softmax, log_softmax, layer_norm, rms_norm over the last axes; the norms also, or only, to bf16."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    y = kernel.outputs[0]
    axis: int = anchor.attrs["axis"]
    n, rows = product(y.shape[axis:]), product(y.shape[:axis])
    structs, make = _functors(unit, kernel, len(y.shape) - axis)
    per_task = dim_max(1, floordiv(MAX_TASK_WORK // 8, dim_max(1, n)))
    unit.tasks = ceildiv(rows, per_task)
    rounded = [unit.pointer(v, "bf16", const=False) for v in kernel.outputs if v.buffer.layout.storage == "bf16"]
    address = "nullptr" if y.buffer.layout.storage else unit.pointer(y, const=False)
    common = [address, *map(unit.integer, (row_step(y, len(y.shape) - axis), rows, n, per_task))]
    args = "{" + ", ".join(common) + "}"
    if anchor.op.endswith("softmax"):
        return unit.finish(
            ["kernels/rows/softmax.h"], structs,
            f"  const RowArgs args{args};\n{make}  {anchor.op}_tasks(args, prologue, epilogue, begin, end);\n",
        )  # fmt: skip
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    extras = [*anchor.operands[1:], None, None][:2]
    pointers = [unit.pointer(inputs[v]) if v is not None else "nullptr" for v in extras]
    flags = ", ".join("true" if v else "false" for v in (*extras, rounded))
    epsilon = literal(anchor.attrs["epsilon"], F32)
    return unit.finish(
        ["kernels/rows/layer_norm.h"], structs,
        f"  const NormArgs args{{{args}, {', '.join(pointers)}, {epsilon}, nullptr, nullptr, "
        f"{rounded[0] if rounded else 'nullptr'}}};\n{make}"
        f"  {anchor.op}_tasks<{flags}>(args, prologue, epilogue, begin, end);\n",
    )  # fmt: skip


KINDS = {"reduce_sum": "sum", "reduce_mean": "mean", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "product"}


def emit_reduce(kernel: Kernel, target: Target) -> KernelUnit:
    """f32 reductions of a dense operand over neighbouring axes."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    x, y, axes = kernel.inputs[0], kernel.outputs[0], anchor.attrs["axes"]
    outer, n = product(x.shape[: axes[0]]), product(x.shape[axes[0] : axes[-1] + 1])
    inner = product(x.shape[axes[-1] + 1 :])
    place = "last" if inner == 1 else "middle"
    row = n if place == "last" else inner
    prologue = (
        "struct Prologue {\n  const float* x;\n  int64_t step;\n  template <bool Tail>\n"
        "  OPCEL_INLINE vf load(int64_t row, int64_t col, int lanes) const {\n"
        "    return load_t<Tail>(x + row * step + col, lanes);\n  }\n};\n"
        "struct Epilogue {\n  template <bool Tail>\n  OPCEL_INLINE vf apply(vf v, int64_t, int64_t, int) const {\n"
        "    return v;\n  }\n};\n"
    )
    if place == "last":
        per_task: Dim = dim_max(16, floordiv(MAX_TASK_WORK, dim_max(1, n)))
        unit.tasks = ceildiv(outer, per_task)
    else:
        per_task = 256
        unit.tasks = outer * ceildiv(inner, per_task)
    make = f"  const Prologue prologue{{{unit.pointer(x)}, {unit.integer(row)}}};\n  const Epilogue epilogue{{}};\n"
    fields = [unit.pointer(y, const=False), *map(unit.integer, (outer, n, inner, per_task))]
    return unit.finish(
        ["kernels/rows/reduce.h"], prologue,
        f"  const ReduceArgs args{{{', '.join(fields)}}};\n{make}"
        f"  reduce_{place}_tasks<Reduction::{KINDS[anchor.op]}>(args, prologue, epilogue, begin, end);\n",
    )  # fmt: skip


EMITTERS = {
    **dict.fromkeys(("softmax", "log_softmax", "layer_norm", "rms_norm"), emit_rows),
    "reduce.rows": emit_reduce,
}
