"""Data movement: strided copies, layout conversions, zero borders, gathers."""

from __future__ import annotations

from opcel_compiler.codegen.cpu.expressions import CTYPES, stored_type
from opcel_compiler.codegen.cpu.families.convolution import extent, image_steps
from opcel_compiler.codegen.cpu.families.loops import merge
from opcel_compiler.codegen.cpu.unit import MAX_TASK_WORK, KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, dim_min, floordiv, product
from opcel_compiler.ir.program import Buffer, Kernel, View, whole
from opcel_compiler.ir.types import F32
from opcel_compiler.targets.schema import Target


def _with_block_axis(view: View) -> View:
    """A view of a blocked buffer with the position inside a block as its last axis, padding included."""
    layout = view.buffer.layout
    if layout.block == 1:
        return view
    shape = list(view.shape)
    shape[layout.block_axis] = ceildiv(shape[layout.block_axis], layout.block)
    return View(view.buffer, (*shape, layout.block), (*view.strides, 1), view.offset)


def emit_copy(kernel: Kernel, target: Target) -> KernelUnit:
    """A strided copy of any element type."""
    unit = KernelUnit()
    x, y = map(_with_block_axis, (kernel.inputs[0], kernel.outputs[0]))
    size = x.buffer.element_bytes
    if size != y.buffer.element_bytes:
        raise ValueError(f"a copy from {x.buffer!r} to {y.buffer!r} would have to convert")
    extents, (from_x, to_y) = merge(list(y.shape), [list(x.expand(y.shape).strides), list(y.strides)])
    unit.tasks = dim_max(1, dim_min(64, ceildiv(product(y.shape), MAX_TASK_WORK)))
    fields = [
        unit.pointer(x, "char"), unit.pointer(y, "char", const=False), str(len(extents)),
        *("{" + ", ".join(map(unit.integer, row)) + "}" for row in (extents, from_x, to_y)), unit.integer(unit.tasks),
    ]  # fmt: skip
    return unit.over_tasks(["kernels/movement/copy.h"], "CopyArgs", fields, f"copy_tasks<{size}>")


def _halo(buffer: Buffer) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of an image buffer."""
    space = list(buffer.layout.halo[2:]) or [(0, 0)] * 2
    if len(space) == 1:
        space = [(0, 0), *space]
    return space[0][0], space[1][0], space[0][1], space[1][1]


def emit_relayout(kernel: Kernel, target: Target) -> KernelUnit:
    """Row-major ↔ blocked by channels, or row-major into a buffer with a halo."""
    unit = KernelUnit()
    x, y = kernel.inputs[0], kernel.outputs[0]
    if len(x.shape) == 2:
        x, y = (View(v.buffer, (*v.shape, 1), (*v.strides, 1), v.offset) for v in (x, y))
    into, out_of = y.buffer.layout.block, x.buffer.layout.block
    kind = "from_blocked" if out_of > 1 else "to_planar" if into == 1 else "to_blocked"
    if into == 4 and target.vector is not None and target.vector.width_f32 != 4:
        kind = "to_quads"
    top, left, bottom, right = _halo(y.buffer)
    h, w = extent(y)
    _, _, row, pixel = image_steps(y)
    if not any((top, left, bottom, right)) and _narrow(x, y):
        h, w = 1, h * w
    corner = View(y.buffer, y.shape, y.strides, y.offset - row * top - pixel * left)
    per_task = 8
    slabs = y.shape[0] * ceildiv(y.shape[1], max(into, out_of))
    unit.tasks = slabs * ceildiv(h + top + bottom, per_task)
    read, written = stored_type(x), stored_type(y)
    fields = [
        unit.pointer(x, read), unit.pointer(corner, written, const=False), *map(unit.integer, image_steps(x)[:3]),
        *map(unit.integer, image_steps(y)[:3]),
        *map(unit.integer, (y.shape[0], y.shape[1], h, w, top, left, bottom, right, per_task)),
        *([str(int(y.buffer.layout.pad_value))] if y.dtype != F32 else []),
    ]  # fmt: skip
    return unit.over_tasks(["kernels/movement/relayout.h"], f"RelayoutArgs<{read}, {written}>", fields, f"{kind}_tasks")


def _narrow(*views: View) -> bool:
    """Whether rows are shorter than a vector and follow each other without a gap: an image is as well one row."""
    h, w = extent(views[0])
    if not (isinstance(h, int) and isinstance(w, int) and h > 1 and w < 16):
        return False
    return all(row == w * pixel for _, _, row, pixel in map(image_steps, views))


def halo_unit(view: View) -> KernelUnit:
    """The kernel that zeroes the border of the buffer that `view` shows."""
    unit = KernelUnit()
    b = view.buffer
    view = whole(b)
    slabs: Dim = b.type.dims[0] * ceildiv(b.type.dims[1], b.layout.block)
    h, w = extent(view)
    pixel = b.layout.block * b.element_bytes
    fields = [
        unit.pointer(View(b, (), ()), "char", const=False),
        *map(unit.integer, (slabs, h, w, pixel, *_halo(b))),
        str(int(b.layout.pad_value)),
    ]
    return unit.finish(
        ["kernels/movement/halo.h"], "",
        f"  const HaloArgs args{{{', '.join(fields)}}};\n  (void)begin, (void)end;\n  halo_tasks(args, 0, d[0]);\n",
    )  # fmt: skip


def emit_bit_cast(kernel: Kernel, target: Target) -> KernelUnit:
    """The bytes of a dense operand."""
    unit = KernelUnit()
    x, y = kernel.inputs[0], kernel.outputs[0]
    bytes_ = unit.integer(product(y.shape) * y.buffer.element_bytes)
    unit.tasks = ceildiv(product(y.shape), MAX_TASK_WORK)
    chunk = MAX_TASK_WORK * y.buffer.element_bytes
    return unit.finish(
        ["kernels/movement/copy.h"], "",
        f"  const int64_t first = begin * {chunk}, last = end * {chunk} < {bytes_} ? end * {chunk} : {bytes_};\n"
        f"  if (first < last) std::memcpy({unit.pointer(y, 'char', const=False)} + first, "
        f"{unit.pointer(x, 'char')} + first, static_cast<std::size_t>(last - first));\n",
    )  # fmt: skip


def emit_gather(kernel: Kernel, target: Target) -> KernelUnit:
    """Slices of a dense operand along one axis."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit(fallible=True)
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    x, y = inputs[anchor.operand(0)], kernel.outputs[0]
    axis: int = anchor.attrs["axis"]
    indices = inputs[anchor.operand(1)]
    inner = product(x.shape[axis + 1 :]) * ((x.dtype.bits + 7) // 8)
    count, outer = product(indices.shape), product(x.shape[:axis])
    per_task = dim_max(1, floordiv(MAX_TASK_WORK, dim_max(1, inner)))
    unit.tasks = ceildiv(outer * count, per_task)
    fields = [
        unit.pointer(x, "char"), unit.pointer(indices, "char"), unit.pointer(y, "char", const=False),
        *map(unit.integer, (outer, x.shape[axis], count, inner)), f"static_cast<int32_t*>(p[{len(unit.pointers)}])",
        unit.integer(per_task),
    ]  # fmt: skip
    return unit.over_tasks(
        ["kernels/movement/gather.h"], "GatherArgs", fields, f"gather_tasks<{CTYPES[indices.dtype]}>"
    )


def emit_gather_nd(kernel: Kernel, target: Target) -> KernelUnit:
    """Slices of a dense operand at index tuples: [batch..., n..., r] indices into the axes after the batch axes."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit(fallible=True)
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    x, indices, y = inputs[anchor.operand(0)], inputs[anchor.operand(1)], kernel.outputs[0]
    batch: int = anchor.attrs["batch_dims"]
    depth = indices.shape[-1]
    assert isinstance(depth, int)
    size = (x.dtype.bits + 7) // 8
    source, index, out = (
        unit.pointer(x, "char"),
        unit.pointer(indices, CTYPES[indices.dtype]),
        unit.pointer(y, "char", const=False),
    )
    inner = unit.integer(product(x.shape[batch + depth :]) * size)
    per_batch = unit.integer(product(indices.shape[batch:-1]))
    stride = unit.integer(product(x.shape[batch:]) * size)
    unit.tasks = product(indices.shape[:-1])
    lines = [
        f"  for (int64_t t = begin; t < end; ++t) {{\n    const auto* at = {index} + t * {depth};",
        "    int64_t offset = 0;\n    bool inside = true;",
    ]  # fmt: skip
    for i in range(depth):
        extent = unit.integer(x.shape[batch + i])
        lines.append(f"    {{\n      int64_t i = at[{i}];\n      i += i < 0 ? {extent} : 0;")
        lines.append(f"      inside = inside && i >= 0 && i < {extent};")
        lines.append(f"      offset = offset * {extent} + (inside ? i : 0);\n    }}")
    lines.append(f"    char* to = {out} + t * {inner};")
    lines.append(f"    if (inside) std::memcpy(to, {source} + t / {per_batch} * {stride} + offset * {inner}, {inner});")
    lines.append(
        f"    else {{\n      std::memset(to, 0, {inner});\n"
        f"      __atomic_store_n(static_cast<int32_t*>(p[{len(unit.pointers)}]), 1, __ATOMIC_RELAXED);\n    }}\n  }}\n"
    )
    return unit.finish(["kernels/movement/copy.h"], "", "\n".join(lines))


def emit_gather_elements(kernel: Kernel, target: Target) -> KernelUnit:
    """One element per index, at the index's own place but for one axis."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit(fallible=True)
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    x, indices, y = inputs[anchor.operand(0)], inputs[anchor.operand(1)], kernel.outputs[0]
    axis: int = anchor.attrs["axis"]
    ctype = f"uint{(x.dtype.bits + 7) // 8 * 8}_t"
    source = f"reinterpret_cast<const {ctype}*>({unit.pointer(x, 'char')})"
    index = unit.pointer(indices, CTYPES[indices.dtype])
    out = f"reinterpret_cast<{ctype}*>({unit.pointer(y, 'char', const=False)})"
    count, chunk = product(y.shape), MAX_TASK_WORK // 8
    unit.tasks = ceildiv(count, chunk)
    extent = unit.integer(x.shape[axis])
    lines = [
        f"  const int64_t last = end * {chunk} < {(n := unit.integer(count))} ? end * {chunk} : {n};",
        f"  for (int64_t t = begin * {chunk}; t < last; ++t) {{\n    int64_t rest = t, offset = 0, i = {index}[t];",
        f"    i += i < 0 ? {extent} : 0;\n    const bool inside = i >= 0 && i < {extent};\n    if (!inside) i = 0;",
    ]  # fmt: skip
    for a in reversed(range(len(y.shape))):
        step = unit.integer(x.strides[a])
        if a == axis:
            lines.append(f"    offset += i * {step};")
        else:
            lines.append(f"    offset += rest % {unit.integer(y.shape[a])} * {step};")
        lines.append(f"    rest /= {unit.integer(y.shape[a])};")
    lines.append(f"    {out}[t] = inside ? {source}[offset] : {ctype}(0);")
    lines.append(
        f"    if (!inside) __atomic_store_n(static_cast<int32_t*>(p[{len(unit.pointers)}]), 1, "
        "__ATOMIC_RELAXED);\n  }\n"
    )
    return unit.finish(["base/vec.h"], "", "\n".join(lines))


EMITTERS = {
    "gather_elements": emit_gather_elements,
    "gather_nd": emit_gather_nd,
    "bit_cast": emit_bit_cast,
    "copy": emit_copy,
    "relayout": emit_relayout,
    "gather": emit_gather,
}
