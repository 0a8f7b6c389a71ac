"""Row kernels: softmax, normalizations, and f32 reductions over neighbouring axes."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.codegen.cpu.expressions import literal, stored_type
from opcel_compiler.codegen.cpu.families.functors import Functor, between, last_step, row_step
from opcel_compiler.codegen.cpu.unit import MAX_TASK_WORK, KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, floordiv, product
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.ir.types import F32
from opcel_compiler.targets.schema import Target


def _functors(unit: KernelUnit, kernel: Kernel, keep: int, wide: Value, narrow: Value | None) -> tuple[str, str]:
    """(struct texts, statements that make `prologue`, `epilogue` and `narrow`) with the last `keep` axes as the row.
    `wide` is the result in f32, `narrow` what is made of it and written as another type."""
    anchor = kernel.anchor
    assert anchor is not None

    def steps(view: View) -> Sequence[Dim]:
        vector = len(view.shape) <= keep or product(view.shape[:-keep]) == 1
        return (0 if vector else row_step(view, keep)), last_step(view)

    def functor(name: str, signature: str, nodes: Sequence[Node], known: dict[Value, str], result: Value) -> None:
        made = Functor(unit, kernel, ("row", "col"), steps)
        structs.append(made.struct(name, signature, nodes, known, result))
        statements.append(f"  const {name} {name.lower()}{made.instance};\n")

    structs: list[str] = []
    statements: list[str] = []
    apply = "apply(vf v, int64_t row, int64_t col, int lanes)"
    load = "load(int64_t row, int64_t col, int lanes)"
    functor("Prologue", load, between(kernel.body, anchor.operands[:1]), {}, anchor.operand(0))
    functor("Epilogue", apply, between(kernel.body, [wide], anchor.result), {anchor.result: "v"}, wide)
    if narrow is None:
        statements.append("  const NoNarrow narrow;\n")
    else:
        functor("Narrow", apply, between(kernel.body, [narrow], wide), {wide: "v"}, narrow)
    return "".join(structs), "".join(statements)


def _results(kernel: Kernel) -> tuple[View | None, View | None, Value, Value | None]:
    """(where the f32 result goes, where the narrow one does, the values that they are)."""
    values, views = kernel.body.outputs, kernel.outputs
    held = [v.buffer.layout.storage or ("" if v.dtype == F32 else "narrow") for v in views]
    if "bf16" in held:
        at = held.index("bf16")
        return (views[1 - at] if len(views) == 2 else None), views[at], values[0], values[at]
    if "narrow" not in held:
        return views[0], None, values[0], None
    at = held.index("narrow")
    last = values[at].producer
    assert last is not None
    return (views[1 - at] if len(views) == 2 else None), views[at], last.operand(0), values[at]


def emit_rows(kernel: Kernel, target: Target) -> KernelUnit:
    """softmax, log_softmax, layer_norm, rms_norm over the last axes; also, or only, to bytes, the norms to bf16 too."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    axis: int = anchor.attrs["axis"]
    shape = kernel.outputs[0].shape
    n, rows = product(shape[axis:]), product(shape[:axis])
    y, low, wide, narrow = _results(kernel)
    structs, make = _functors(unit, kernel, len(shape) - axis, wide, narrow)
    per_task = dim_max(1, floordiv(MAX_TASK_WORK // 8, dim_max(1, n)))
    unit.tasks = ceildiv(rows, per_task)
    ctype = stored_type(low) if low is not None else "float"
    common = [
        "nullptr" if y is None else unit.pointer(y, const=False),
        *map(unit.integer, (row_step(y, len(shape) - axis) if y is not None else n, rows, n, per_task)),
        "nullptr" if low is None else unit.pointer(low, ctype, const=False),
    ]  # fmt: skip
    args = "{" + ", ".join(common) + "}"
    if anchor.op.endswith("softmax"):
        return unit.finish(
            ["kernels/rows/softmax.h"], structs,
            f"  const RowArgs<{ctype}> args{args};\n{make}"
            f"  {anchor.op}_tasks(args, prologue, epilogue, narrow, begin, end);\n",
        )  # fmt: skip
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    extras = [*anchor.operands[1:], None, None][:2]
    pointers = [unit.pointer(inputs[v]) if v is not None else "nullptr" for v in extras]
    flags = ", ".join("true" if v else "false" for v in extras)
    epsilon = literal(anchor.attrs["epsilon"], F32)
    return unit.finish(
        ["kernels/rows/layer_norm.h"], structs,
        f"  const NormArgs<{ctype}> args{{{args}, {', '.join(pointers)}, {epsilon}, nullptr, nullptr}};\n{make}"
        f"  {anchor.op}_tasks<{flags}>(args, prologue, epilogue, narrow, begin, end);\n",
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


def emit_scaled(kernel: Kernel, target: Target) -> KernelUnit:
    """Rows of f32 as bytes, by a number that is made of each row's maximum and is a result too."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    (scale, codes), (factor, bytes_) = kernel.body.outputs, kernel.outputs
    n, rows = bytes_.shape[-1], product(bytes_.shape[:-1])

    def steps(view: View) -> Sequence[Dim]:
        return row_step(view), last_step(view)

    load = "load(int64_t row, int64_t col, int lanes"
    structs, make = "", ""
    for name, coordinates, signature, nodes, known, result in (
        ("Prologue", ("row", "col"), f"{load})", between(kernel.body, anchor.operands[:1]), {}, anchor.operand(0)),
        (
            "Mid",
            (),
            "apply(vf v, int lanes)",
            between(kernel.body, [scale], anchor.result),
            {anchor.result: "v"},
            scale,
        ),
        ("Last", ("row", "col"), f"{load}, vf scale)", between(kernel.body, [codes], scale), {scale: "scale"}, codes),
    ):
        functor = Functor(unit, kernel, coordinates, steps)
        structs += functor.struct(name, signature, nodes, known, result)
        make += f"  const {name} {name.lower()}{functor.instance};\n"
    per_task = dim_max(1, floordiv(MAX_TASK_WORK // 4, dim_max(1, n)))
    unit.tasks = ceildiv(rows, per_task)
    ctype = stored_type(bytes_)
    fields = [unit.pointer(factor, const=False), unit.pointer(bytes_, ctype, const=False)]
    fields += map(unit.integer, (rows, n, per_task))
    return unit.finish(
        ["kernels/rows/scaled.h", "base/vmath.h"], structs,
        f"  const ScaledRowsArgs<{ctype}> args{{{', '.join(fields)}}};\n{make}"
        "  scaled_rows_tasks<Reduction::max>(args, prologue, mid, last, begin, end);\n",
    )  # fmt: skip


EMITTERS = {
    **dict.fromkeys(("softmax", "log_softmax", "layer_norm", "rms_norm"), emit_rows),
    "reduce.rows": emit_reduce,
    "rows.scaled": emit_scaled,
}
