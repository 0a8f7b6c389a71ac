"""Loops over elementwise bodies, reductions and sizes: what has no template because the code itself is the fusion."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.codegen.cpu.expressions import (
    CTYPES,
    computing_type,
    emit_body,
    lane_load,
    lane_store,
    lane_type,
    literal,
    stored_type,
)
from opcel_compiler.codegen.cpu.unit import MAX_TASK_WORK, KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, equal, floordiv, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.ops.reduction import highest, lowest
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.targets.cpu.lanes import vectorizable
from opcel_compiler.targets.schema import Target


def iteration(kernel: Kernel) -> tuple[list[Dim], list[list[Dim]]]:
    """(extents, strides per view) of the loops over the first output's elements, neighbours merged where every view
    lets them be. A blocked output adds the innermost axis within the block; if its last block is not full, a last row
    of strides is that of the block's number."""
    out = kernel.outputs[0]
    block = out.buffer.layout.block
    extents: list[Dim] = list(out.shape)
    strides = [list(aligned(v, out)) for v in kernel.views]
    if block > 1:
        axis = out.buffer.layout.block_axis
        extents[axis] = ceildiv(extents[axis], block)
        extents.append(block)
        for row, v in zip(strides, kernel.views, strict=True):
            row.append(1 if v.buffer.layout.block > 1 else 0)
        if _ragged(out):
            strides.append([int(i == axis) for i in range(len(extents))])
    return merge(extents, strides)


def aligned(view: View, out: View) -> tuple[Dim, ...]:
    """The view's strides along the axes of `out`, 0 where it is broadcast."""
    return view.expand(out.shape).strides


def merge(extents: list[Dim], strides: list[list[Dim]]) -> tuple[list[Dim], list[list[Dim]]]:
    """The same iteration with axes of extent 1 dropped and mergeable neighbours merged; at least one axis remains."""
    kept = [i for i, e in enumerate(extents) if e != 1]
    outer: list[Dim] = []
    rows: list[list[Dim]] = [[] for _ in strides]
    for i in kept:
        fits = outer and all(equal(r[-1], s[i] * extents[i]) is True for r, s in zip(rows, strides, strict=True))
        if fits:
            outer[-1] = outer[-1] * extents[i]
            for r, s in zip(rows, strides, strict=True):
                r[-1] = s[i]
        else:
            outer.append(extents[i])
            for r, s in zip(rows, strides, strict=True):
                r.append(s[i])
    if not outer:
        return [1], [[1] for _ in strides]
    return outer, rows


def split_tasks(unit: KernelUnit, outer: Dim, inner: Dim) -> tuple[str, str, str]:
    """Cut outer x inner elements into tasks of some `MAX_TASK_WORK`; returns the C++ expressions (rows of the outer
    loop per task, elements of the inner loop per task, chunks of the inner loop)."""
    chunk = MAX_TASK_WORK
    per_task = dim_max(1, floordiv(chunk, dim_max(1, inner)))
    chunks = ceildiv(inner, chunk)
    unit.tasks = ceildiv(outer, per_task) * chunks
    return unit.integer(per_task), str(chunk), unit.integer(chunks)


def emit_elementwise(kernel: Kernel, target: Target) -> KernelUnit:
    """One pass over the outputs, everything in between in registers."""
    unit = KernelUnit()
    extents, strides = iteration(kernel)
    n = len(extents)
    out = kernel.outputs[0]
    ragged = _ragged(out)
    block_steps = strides.pop() if ragged else []
    inner_strides = [s[-1] for s in strides]
    vector = vectorizable(kernel.body) and all(s in (0, 1) for s in inner_strides)
    vector = vector and all(s == 1 for s in inner_strides[len(kernel.inputs) :])
    bases, lines = [], []
    for i, view in enumerate(kernel.views):
        bases.append(unit.pointer(view, stored_type(view), const=i < len(kernel.inputs)))
    sizes = [unit.integer(e) for e in extents]
    outer = product(extents[:-1])
    rows, chunk, chunks = split_tasks(unit, outer, extents[-1])
    steps = [[unit.integer(s) if s not in (0, 1) else str(s) for s in row] for row in strides]
    lines.append(f"  const int64_t outer = {' * '.join(sizes[:-1]) or '1'}, n = {sizes[-1]};")
    lines.append(f"  const int64_t rows = {rows}, chunks = {chunks};")
    lines.append("  for (int64_t t = begin; t < end; ++t) {")
    lines.append(f"    const int64_t first = t % chunks * {chunk}, last = first + {chunk} < n ? first + {chunk} : n;")
    lines.append(
        "    const int64_t o_first = t / chunks * rows, o_last = o_first + rows < outer ? o_first + rows : outer;"
    )
    lines.append("    for (int64_t o = o_first; o < o_last; ++o) {")
    lines.append("      int64_t rest = o;")
    for axis in reversed(range(n - 1)):
        if axis:
            lines.append(f"      const int64_t i{axis} = rest % {sizes[axis]};")
            lines.append(f"      rest /= {sizes[axis]};")
        else:
            lines.append("      const int64_t i0 = rest;")
    if n == 1:
        lines.append("      (void)rest;")
    for k, (view, base) in enumerate(zip(kernel.views, bases, strict=True)):
        where = "".join(f" + i{a} * {steps[k][a]}" for a in range(n - 1) if steps[k][a] != "0")
        const = "const " if k < len(kernel.inputs) else ""
        lines.append(f"      {const}{stored_type(view)}* const x{k} = {base}{where};")
    left = ""
    if ragged:
        # Lanes past the last channel stay zero: 0 times an infinity or NaN would reach all channels of a convolution.
        block = out.buffer.layout.block
        at = "".join(f" - i{a} * {block}" for a, s in enumerate(block_steps) if s == 1)
        lines.append(f"      const int64_t left = {unit.integer(out.shape[out.buffer.layout.block_axis])}{at};")
        left = "first_lanes(static_cast<int>(left))" if vector else f"i % {block} < left"
    if vector:
        lines += _vector_loop(kernel, steps, left)
    else:
        lines += _scalar_loop(kernel, steps, "first", "last", left)
    lines += ["    }", "  }"]
    return unit.finish(["base/scalar.h", "base/vec.h", "base/vmath.h"], "", "\n".join(lines) + "\n")


def _ragged(view: View) -> bool:
    """Whether the last block of a blocked buffer may hold fewer elements than the others."""
    layout = view.buffer.layout
    size = view.shape[layout.block_axis] if layout.block > 1 else 0
    return type(size) is not int or size % layout.block != 0


def _vector_loop(kernel: Kernel, steps: Sequence[Sequence[str]], kept: str) -> list[str]:
    """`kept`: the mask of the lanes that may differ from zero; empty for all. Vectors then are whole blocks."""
    lines = []
    for tail in (False, True):
        known: dict[Value, str] = {}
        loads = []
        for k, value in enumerate(kernel.body.inputs):
            dtype, broadcast = value.tensor.dtype, steps[k][-1] != "1"
            load = lane_load(dtype, f"x{k}" if broadcast else f"x{k} + i", broadcast, str(tail).lower())
            loads.append(f"        const {lane_type(dtype)} v{k} = {load};")
            known[value] = f"v{k}"
        body = emit_body(list(kernel.body.nodes), known, True, "        ")
        stores = [
            "        "
            + lane_store(
                v.tensor.dtype,
                f"x{len(kernel.inputs) + j} + i",
                f"select({kept}, {known[v]}, vf{{}})" if kept else known[v],
                str(tail).lower(),
            )
            for j, v in enumerate(kernel.body.outputs)
        ]
        if tail:
            lines += ["      if (i < last) {", "        const int lanes = static_cast<int>(last - i);"]
        else:
            lines += [
                "      int64_t i = first;",
                "      for (; i + W <= last; i += W) {",
                "        constexpr int lanes = W;",
            ]
            lines.append("        (void)lanes;")
        lines += [*loads, *body, *stores, "      }"]
    return lines


def _scalar_loop(kernel: Kernel, steps: Sequence[Sequence[str]], first: str, last: str, kept: str) -> list[str]:
    known: dict[Value, str] = {}
    lines = [f"      for (int64_t i = {first}; i < {last}; ++i) {{"]
    for k, value in enumerate(kernel.body.inputs):
        lines.append(f"        const {computing_type(value.tensor.dtype)} v{k} = x{k}[i * {steps[k][-1]}];")
        known[value] = f"v{k}"
    lines += emit_body(list(kernel.body.nodes), known, False, "        ")
    for j, v in enumerate(kernel.body.outputs):
        k = len(kernel.inputs) + j
        at, value_ = f"i * {steps[k][-1]}", f"{kept} ? {known[v]} : 0" if kept else known[v]
        lines.append(f"        x{k}[{at}] = static_cast<{stored_type(kernel.outputs[j])}>({value_});")
    lines.append("      }")
    return lines


_REDUCE = {
    "reduce_sum": ("0", "{acc} + {x}"), "reduce_mean": ("0", "{acc} + {x}"), "reduce_prod": ("1", "{acc} * {x}"),
    "reduce_max": (None, "scalar::max<T>({acc}, {x})"), "reduce_min": (None, "scalar::min<T>({acc}, {x})"),
}  # fmt: skip
REDUCTIONS = frozenset(_REDUCE)


def emit_reduce(kernel: Kernel, target: Target) -> KernelUnit:
    """Any reduction over any axes of any arithmetic type, one output element at a time."""
    assert kernel.anchor is not None
    unit = KernelUnit()
    x, y = kernel.inputs[0], kernel.outputs[0]
    axes: tuple[int, ...] = kernel.anchor.attrs["axes"]
    ctype = CTYPES[x.dtype]
    kept = [i for i in range(len(x.shape)) if i not in axes]
    start, step = _REDUCE[kernel.anchor.op]
    if start is None:
        start = literal((lowest if kernel.anchor.op == "reduce_max" else highest)(x.dtype.numpy), x.dtype)
    source = unit.pointer(x, ctype)
    target_ = unit.pointer(y, ctype, const=False)
    unit.tasks = product([x.shape[i] for i in kept])
    lines = [f"  for (int64_t t = begin; t < end; ++t) {{\n    const {ctype}* src = {source};\n    int64_t rest = t;"]
    for i in reversed(kept):
        e, s = unit.integer(x.shape[i]), unit.integer(x.strides[i])
        lines.append(f"    src += rest % {e} * {s}, rest /= {e};")
    lines.append(f"    {ctype} acc = static_cast<{ctype}>({start});\n    (void)rest;")
    counts: list[str] = []
    for i in axes:
        e, s = unit.integer(x.shape[i]), unit.integer(x.strides[i])
        counts.append(e)
        lines.append(f"    const {ctype}* const p{i} = src;")
        lines.append(f"    for (int64_t j{i} = 0; j{i} < {e}; ++j{i}) {{\n      src = p{i} + j{i} * {s};")
    lines.append(f"    acc = static_cast<{ctype}>({step.format(acc='acc', x='src[0]').replace('<T>', f'<{ctype}>')});")
    lines.append("    " + "}" * len(axes))
    total = "acc"
    if kernel.anchor.op == "reduce_mean":
        total = f"scalar::mean<{ctype}>(acc, {' * '.join(counts) or '1'})"
    lines.append(f"    {target_}[t] = static_cast<{ctype}>({total});\n  }}")
    return unit.finish(["base/scalar.h"], "", "\n".join(lines) + "\n")


def emit_dims(kernel: Kernel, target: Target) -> KernelUnit:
    """Write the run-time values of symbolic dims."""
    unit = KernelUnit()
    node = next(n for n in kernel.body.nodes if n.op == "dims")
    y = unit.pointer(kernel.outputs[0], "int64_t", const=False)
    lines = ["  (void)begin, (void)end;"]
    for i, dim in enumerate(node.attrs["values"]):
        lines.append(f"  {y}[{i}] = {unit.integer(dim)};")
    return unit.finish(["base/vec.h"], "", "\n".join(lines) + "\n")


def emit_range(kernel: Kernel, target: Target) -> KernelUnit:
    """start, start + step, … of any arithmetic type."""
    assert kernel.anchor is not None
    unit = KernelUnit()
    a, y = kernel.anchor.attrs, kernel.outputs[0]
    ctype = CTYPES[y.dtype]
    out = unit.pointer(y, ctype, const=False)
    start, step = unit.integer(a["start"][0]), unit.integer(a["step"])
    line = f"{out}[i] = static_cast<{ctype}>({start} + i * {step});"
    unit.integers.append(y.shape[0])
    n = f"d[{len(unit.integers) - 1}]"
    return unit.finish(["base/vec.h"], "", f"  (void)begin, (void)end;\n  for (int64_t i = 0; i < {n}; ++i) {line}\n")


def emit_arg(kernel: Kernel, target: Target) -> KernelUnit:
    """arg_max and arg_min along one axis, any arithmetic type."""
    assert kernel.anchor is not None
    unit = KernelUnit()
    x, y, a = kernel.inputs[0], kernel.outputs[0], kernel.anchor.attrs
    ctype, axis = CTYPES[x.dtype], a["axis"]
    source, out = unit.pointer(x, ctype), unit.pointer(y, "int64_t", const=False)
    inner, n = unit.integer(product(x.shape[axis + 1 :])), unit.integer(x.shape[axis])
    unit.tasks = product(x.shape[:axis]) * product(x.shape[axis + 1 :])
    v, b = f"src[i * {inner}]", f"src[best * {inner}]"
    better = f"{v} {'>' if kernel.anchor.op == 'arg_max' else '<'}{'=' if a['last'] else ''} {b}"
    if x.dtype.is_float:  # NaN is the largest, and the smallest
        better += f" || {v} != {v}" if a["last"] else f" || ({v} != {v} && {b} == {b})"
    text = (
        "  for (int64_t t = begin; t < end; ++t) {\n"
        f"    const {ctype}* src = {source} + t / {inner} * {n} * {inner} + t % {inner};\n"
        f"    int64_t best = 0;\n    for (int64_t i = 1; i < {n}; ++i)\n"
        f"      if ({better}) best = i;\n    {out}[t] = best;\n  }}\n"
    )
    return unit.finish(["base/vec.h"], "", text)


EMITTERS = {
    "elementwise": emit_elementwise, **dict.fromkeys(REDUCTIONS, emit_reduce), "dims": emit_dims, "range_": emit_range,
    "arg_max": emit_arg, "arg_min": emit_arg,
}  # fmt: skip
