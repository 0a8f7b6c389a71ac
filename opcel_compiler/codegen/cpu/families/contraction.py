"""Matrix products: register-tiled on packed panels, run-time packing, and the reference for every other case."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from opcel_compiler.codegen.cpu.expressions import CTYPES, constant_text, stored_type
from opcel_compiler.codegen.cpu.families.functors import Functor, after, last_step, row_step
from opcel_compiler.codegen.cpu.unit import MAX_TASK_WORK, KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, floordiv, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.ir.program_split import dequantizations, source, zero_point
from opcel_compiler.targets.schema import Target


def batches(kernel: Kernel, view: View) -> View:
    """A matrix operand broadcast to the product's batch axes."""
    return view.expand((*kernel.outputs[0].shape[:-2], *view.shape[-2:]))


def operands(kernel: Kernel) -> tuple[View, View]:
    """A product's matrices in memory, which may be those that its operands are dequantized from."""
    assert kernel.anchor is not None
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    return inputs[source(kernel.anchor.operand(0))], inputs[source(kernel.anchor.operand(1))]


def _steps(m: Dim, shared: bool) -> Callable[[View], Sequence[Dim]]:
    """How far a batch, a row and a column are apart. `shared`: one matrix of m rows, no batch."""

    def steps(view: View) -> Sequence[Dim]:
        row = row_step(view) if len(view.shape) > 1 else 0
        return ((0 if shared else row * m), row, last_step(view))

    return steps


def matrix_epilogue(unit: KernelUnit, kernel: Kernel, m: Dim, shared: bool) -> tuple[str, str]:
    """The struct of a product's epilogue and the statement that makes one. `shared`: one matrix of m rows, no batch."""
    assert kernel.anchor is not None
    epilogue = Functor(unit, kernel, ("batch", "row", "col"), _steps(m, shared))
    sums, first = "vf v", ""
    if kernel.params.get("precision") == "int8":
        scales = [_lanes(epilogue, node.operand(1)) for node in dequantizations(kernel.anchor)]
        sums, first = "vi sum", f"const vf v = scaled(sum, {' * '.join(scales)});"
    struct = epilogue.struct(
        "Epilogue", f"apply({sums}, int64_t batch, int64_t row, int64_t col, int lanes)",
        after(kernel.body, kernel.anchor),
        {kernel.anchor.result: "v"}, kernel.body.outputs[0], first,
    )  # fmt: skip
    return struct, f"  const Epilogue epilogue{epilogue.instance};\n"


def _lanes(functor: Functor, value: Value) -> str:
    return constant_text(value.constant, True) if value.constant is not None else functor.load(value)


def _start(unit: KernelUnit, kernel: Kernel, m: Dim, shared: bool) -> tuple[str, str]:
    """What gives sums of integers their first value, and the statement that makes one."""
    assert kernel.anchor is not None
    zero = zero_point(kernel)
    if zero is None or zero.constant is not None:
        text = "struct Start {\n  OPCEL_INLINE vi start(vi head, int64_t, int64_t) const { return head; }\n};\n"
        return text, "  const Start start{};\n"
    view = kernel.inputs[kernel.body.inputs.index(zero)]
    batch, row, _ = _steps(m, shared)(view)
    fields = [unit.pointer(view, "uint8_t"), unit.integer(batch), unit.integer(row)]
    text = (
        "struct Start {\n  const uint8_t* zero;\n  int64_t by_batch, by_row;\n"
        "  OPCEL_INLINE vi start(vi head, int64_t batch, int64_t row) const {\n"
        "    return head * set_i(zero[batch * by_batch + row * by_row]);\n  }\n};\n"
    )
    return text, f"  const Start start{{{', '.join(fields)}}};\n"


def emit_gemm(kernel: Kernel, target: Target) -> KernelUnit:
    """C = epilogue(A·B), B in panels of `params["panel"]` columns, in f32, bf16 or integers."""
    unit = KernelUnit()
    (a, b), c = operands(kernel), kernel.outputs[0]
    width = target.vector.width_f32 if target.vector else 1
    panel: int = kernel.params["panel"]
    n, k = b.shape[-1], b.shape[-2]
    precision = kernel.params.get("precision", "f32")
    shared = len(b.shape) == 2
    if shared:
        batch: Dim = 1
        m = product(a.shape[:-1])
        a_row, a_batch, b_batch = row_step(a), 0, 0  # type: tuple[Dim, Dim, Dim]
        c_row, c_batch = row_step(c), 0  # type: tuple[Dim, Dim]
    else:
        batch, m = product(c.shape[:-2]), c.shape[-2]
        wide = batches(kernel, a)
        a_row, a_batch = wide.strides[-2], row_step(wide, 2)
        per_batch = ceildiv(n, panel) * panel * (ceildiv(k, 2) * 2 if precision == "bf16" else k)
        lead = View(b.buffer, b.shape[:-2], b.strides[:-2])
        b_batch = per_batch if product(lead.shape) != 1 else 0
        c_row, c_batch = c.strides[-2], row_step(c, 2)

    struct, make = matrix_epilogue(unit, kernel, m, shared)
    rows_per_task, panels_per_task = kernel.params["rows_per_task"], kernel.params["panels_per_task"]
    unit.tasks = batch * ceildiv(ceildiv(n, panel), panels_per_task) * ceildiv(m, rows_per_task)
    result = stored_type(c)
    fields = [
        unit.pointer(a, stored_type(a)), *map(unit.integer, (a_batch, a_row)), unit.pointer(b, stored_type(b)),
        unit.integer(b_batch), unit.pointer(c, result, const=False),
        *map(unit.integer, (c_batch, c_row, batch, m, n, k, rows_per_task, panels_per_task)),
    ]  # fmt: skip
    numbers = ", ".join(map(str, (panel // width, *kernel.params["rows"])))
    if precision == "f32":
        return unit.finish(
            ["kernels/gemm/packed.h", "base/vmath.h"], struct,
            f"  const GemmArgs args{{{', '.join(fields)}}};\n{make}"
            f"  gemm_tasks<{numbers}>(args, epilogue, begin, end);\n",
        )  # fmt: skip
    start = "NoStart{}"
    if precision == "int8":
        (first, made), start = _start(unit, kernel, m, shared), "start"
        struct, make = struct + first, make + made
    return unit.finish(
        ["kernels/gemm/dots.h", "base/vmath.h"], struct,
        f"  const GemmDotArgs<{stored_type(a)}, {result}> args{{{', '.join(fields)}}};\n{make}"
        f"  gemm_dot_tasks<{numbers}>(args, epilogue, {start}, begin, end);\n",
    )  # fmt: skip


def emit_pack(kernel: Kernel, target: Target) -> KernelUnit:
    """Panels of a B that is known only at run time."""
    unit = KernelUnit()
    b, packed = kernel.inputs[0], kernel.outputs[0]
    width = target.vector.width_f32 if target.vector else 1
    panel = packed.buffer.layout.block
    batch, k, n = product(b.shape[:-2]), b.shape[-2], b.shape[-1]
    panels = ceildiv(n, panel)
    unit.tasks = batch * panels
    fields = [
        unit.pointer(b), *map(unit.integer, (row_step(b, 2), b.strides[-2], b.strides[-1])),
        unit.pointer(packed, const=False), *map(unit.integer, (panels * panel * k, batch, k, n)),
    ]  # fmt: skip
    return unit.over_tasks(["kernels/gemm/packed.h"], "PackArgs", fields, f"pack_b_tasks<{panel // width}>")


def emit_grouped(kernel: Kernel, target: Target) -> KernelUnit:
    """Rows of f32 to bf16, padded to pairs, or of bytes, padded to quads."""
    unit = KernelUnit()
    x, y = kernel.inputs[0], kernel.outputs[0]
    rows, k = product(x.shape[:-1]), x.shape[-1]
    per_task = dim_max(1, floordiv(MAX_TASK_WORK, dim_max(1, k)))
    unit.tasks = ceildiv(rows, per_task)
    read, written = stored_type(x), stored_type(y)
    fields = [
        unit.pointer(x, read), unit.integer(row_step(x)), unit.pointer(y, written, const=False),
        *map(unit.integer, (rows, k, per_task)),
    ]  # fmt: skip
    args = f"GroupRowsArgs<{read}, {written}>"
    return unit.over_tasks(["kernels/gemm/dots.h"], args, fields, "group_rows_tasks")


def emit_reference(kernel: Kernel, target: Target) -> KernelUnit:
    """Any arithmetic type, any strides, 1-D operands too."""
    assert kernel.anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    a, b, y = inputs[kernel.anchor.operand(0)], inputs[kernel.anchor.operand(1)], kernel.outputs[0]
    ctype = CTYPES[y.dtype]
    if len(a.shape) == 1:
        a = View(a.buffer, (1, *a.shape), (0, *a.strides), a.offset)
    if len(b.shape) == 1:
        b = View(b.buffer, (*b.shape, 1), (*b.strides, 0), b.offset)
    lead = (
        len(y.shape) - (len(kernel.anchor.operand(0).tensor.dims) > 1) - (len(kernel.anchor.operand(1).tensor.dims) > 1)
    )
    batch = y.shape[:lead]
    wide_a, wide_b = a.expand((*batch, *a.shape[-2:])), b.expand((*batch, *b.shape[-2:]))

    def six(values: Sequence[Dim]) -> str:
        return "{" + ", ".join([*["0"] * 0, *(unit.integer(v) for v in values), *["1"] * (6 - len(values))]) + "}"

    fields = [
        unit.pointer(a, ctype), *map(unit.integer, a.strides[-2:]), unit.pointer(b, ctype),
        *map(unit.integer, b.strides[-2:]), unit.pointer(y, ctype, const=False),
        *map(unit.integer, (a.shape[-2], b.shape[-1], a.shape[-1])), str(lead), six(batch),
        six(wide_a.strides[:lead]), six(wide_b.strides[:lead]),
    ]  # fmt: skip
    unit.tasks = product(batch) * a.shape[-2]
    return unit.over_tasks(
        ["kernels/matmul/reference.h"], f"MatmulReferenceArgs<{ctype}>", fields, "matmul_reference_tasks"
    )


EMITTERS = {
    "gemm": emit_gemm, "gemm.bf16": emit_gemm, "gemm.int8": emit_gemm, "round": emit_grouped, "quads": emit_grouped,
    "pack": emit_pack, "matmul.reference": emit_reference,
}  # fmt: skip
