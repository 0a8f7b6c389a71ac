"""Convolutions and pools: blocked by channels with fused epilogues, and the row-major references."""

from __future__ import annotations

from collections.abc import Sequence

from opcel_compiler.codegen.cpu.expressions import CTYPES, stored_type
from opcel_compiler.codegen.cpu.families.functors import Functor, between
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.ir.dims import Dim, ceildiv, product
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.ir.program_split import source
from opcel_compiler.ir.types import I8, U8
from opcel_compiler.schedule.choice.integers import constant_of, is_integer
from opcel_compiler.targets.schema import Target

Spatial = tuple[Dim, Dim, Dim, Dim]


def image_steps(view: View) -> Spatial:
    """Steps of an image [n, c, ...spatial]: image, channel (or block), row, pixel. A 1-D image is one row."""
    n, c, *space = view.strides
    if len(space) == 1:
        space = [0, *space]
    return n, c, space[0], space[1]


def extent(view: View) -> tuple[Dim, Dim]:
    """(height, width) of an image; 1-D images have height 1."""
    space = view.shape[2:]
    return (1, space[0]) if len(space) == 1 else (space[0], space[1])


def two(values: Sequence[int], fill: int) -> tuple[int, int]:
    """One value per spatial axis as (height, width)."""
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])


def begins(pads: Sequence[int]) -> tuple[int, int]:
    return two(pads[: len(pads) // 2], 0)


def ends(pads: Sequence[int]) -> tuple[int, int]:
    return two(pads[len(pads) // 2 :], 0)


def padded(view: View, pads: Sequence[int]) -> View:
    """The view moved to the first padded pixel, inside the buffer's halo."""
    _, _, row, pixel = image_steps(view)
    top, left = begins(pads)
    return View(view.buffer, view.shape, view.strides, view.offset - row * top - pixel * left)


def epilogue(unit: KernelUnit, kernel: Kernel, anchor: Node, row: Dim | None = None) -> tuple[str, str]:
    """(struct text, statement that makes the instance); `row` is the step of a row where rows are regrouped."""

    def steps(view: View) -> Sequence[Dim]:
        if product(view.shape) == 1:
            return 0, 0, 0, 0, 0
        if len(view.shape) == len(kernel.outputs[0].shape) and any(d != 1 for d in (view.shape[0], *view.shape[2:])):
            n, c, own_row, pixel = image_steps(view)
            return (n if view.shape[0] != 1 else 0), c, (own_row if row is None else row), pixel, 1
        return 0, view.buffer.layout.block, 0, 0, 1

    functor = Functor(unit, kernel, ("n", "cb", "y", "x", "0"), steps)
    functor.keep_channels(kernel.outputs[0].shape[1], kernel.outputs[0].buffer.layout.block)
    known = {anchor.result: "v"}
    extra = anchor.optional(2) if anchor.op == "conv" else None
    result = kernel.body.outputs[0]
    if (grid := _grid(kernel)) is not None:
        result, zero = grid
        functor.fields.append("int64_t zero;")
        functor.values.append(unit.integer(zero))
    nodes = between(kernel.body, [result], anchor.result)
    struct = functor.struct_with_bias(extra, nodes, known, result)
    return struct, f"  const Epilogue epilogue{functor.instance};\n"


def _grid(kernel: Kernel) -> tuple[Value, int] | None:
    """What a kernel of integers rounds to bytes, in steps of their scale, and the zero point; None for another end."""
    last = kernel.body.outputs[0].producer
    if not is_integer(kernel) or last is None or last.op != "quantize" or last.attrs["dtype"] not in (U8, I8):
        return None
    scale, *zero = (constant_of(kernel, v) for v in last.operands[1:] if v is not None)
    if scale is None or any(data is None or data.size != 1 for data in (scale, *zero)) or scale.reshape(-1)[0] != 1:
        return None
    return last.operand(0), int(zero[0].reshape(-1)[0]) if zero and zero[0] is not None else 0


def emit_conv(kernel: Kernel, target: Target) -> KernelUnit:
    """Direct convolution: `params` group_blocks (ocb, icb), in_block CB, out_blocks NV, the channels
    of the last blocks `last` (out, in), tile rows PH and widths PW."""
    anchor, p = kernel.anchor, kernel.params
    assert anchor is not None
    unit = KernelUnit()
    (x, w), y = _operands(kernel), kernel.outputs[0]
    regrouped = p["extent"] != extent(y)
    struct, make = epilogue(unit, kernel, anchor, p["extent"][1] * y.buffer.layout.block if regrouped else None)
    kh, kw = two([int(d) for d in anchor.operand(1).tensor.static_shape[2:]], 1)
    (sh, sw), (dh, dw) = two(anchor.attrs["strides"], 1), two(anchor.attrs["dilations"], 1)
    oh, ow = p["extent"]
    rows_per_task, panels_per_task = p["rows_per_task"], p["panels_per_task"]
    xn, xc, xr, _ = image_steps(x)
    yn, yc, yr, pixel = image_steps(y)
    groups = anchor.attrs["groups"] // p.get("together", 1)
    ocb, icb = p["group_blocks"]
    unit.tasks = x.shape[0] * groups * ceildiv(ocb // p["out_blocks"], panels_per_task) * ceildiv(oh, rows_per_task)
    if regrouped:
        xr, yr = ow * p["in_block"], ow * y.buffer.layout.block
    read, written = stored_type(x), stored_type(y)
    first, strides = unit.pointer(padded(x, anchor.attrs["pads"]), read), [*map(unit.integer, (xn, xc, xr))]
    if is_integer(kernel):
        sums, filters = _sums_and_filters(unit, w, groups * ocb * y.buffer.layout.block)
    else:
        sums, filters = "nullptr", unit.pointer(w, read)
    fields = [
        first, *strides, filters, unit.pointer(y, written, const=False),
        *map(unit.integer, (yn, yc, yr, x.shape[0], groups, ocb, icb, oh, ow)),
        *map(unit.integer, (rows_per_task, panels_per_task, pixel)), sums,
    ]  # fmt: skip
    (out_last, in_last), block = p["last"], p["in_block"]
    last = min(in_last, block)
    half = int(out_last < y.buffer.layout.block)
    numbers = (block, kh, kw, sh, sw, dh, dw, p["out_blocks"], last, half, p["tile_rows"], *p["tile_widths"])
    return unit.finish(
        ["kernels/conv/blocked.h", "base/vmath.h"], struct,
        f"  const ConvArgs<{read}, {written}> args{{{', '.join(fields)}}};\n{make}"
        f"  conv_tasks<{', '.join(map(str, numbers))}>(args, epilogue, begin, end);\n",
    )  # fmt: skip


def _operands(kernel: Kernel) -> tuple[View, View]:
    """A convolution's image and filters."""
    assert kernel.anchor is not None
    x, w = (kernel.inputs[kernel.body.inputs.index(source(kernel.anchor.operand(i)))] for i in (0, 1))
    return x, w


def _sums_and_filters(unit: KernelUnit, w: View, count: int) -> tuple[str, str]:
    """The addresses of the `count` first sums and of the filters that lie behind them."""
    whole = unit.pointer(w, "int8_t")
    at = whole.removeprefix("static_cast<const int8_t*>")
    return f"static_cast<const int32_t*>{at}", f"{whole} + {unit.integer(4 * count)}"


def _emit_depthwise_integers(kernel: Kernel) -> KernelUnit:
    """Depthwise convolution of bytes: `params` quads: those of a row, outputs that share them, rows of a tile."""
    anchor, p = kernel.anchor, kernel.params
    assert anchor is not None
    unit = KernelUnit()
    (x, w), y = _operands(kernel), kernel.outputs[0]
    struct, make = epilogue(unit, kernel, anchor)
    kh, kw = two([int(d) for d in anchor.operand(1).tensor.static_shape[2:]], 1)
    oh, ow = extent(y)
    cb = -(-anchor.operand(1).tensor.static_shape[0] // y.buffer.layout.block)
    unit.tasks = x.shape[0] * ceildiv(cb, p["blocks_per_task"]) * ceildiv(oh, p["rows_per_task"])
    written = stored_type(y)
    first, strides = unit.pointer(padded(x, anchor.attrs["pads"]), "uint8_t"), map(unit.integer, image_steps(x)[:3])
    sums, filters = _sums_and_filters(unit, w, cb * y.buffer.layout.block)
    fields = [
        first, *strides, filters, sums, unit.pointer(y, written, const=False),
        *map(unit.integer, (*image_steps(y)[:3], x.shape[0], cb, oh, ow, p["rows_per_task"], p["blocks_per_task"])),
    ]  # fmt: skip
    numbers = (kh, kw, *two(anchor.attrs["strides"], 1), min(p["quads"][2], oh) if isinstance(oh, int) else 1)
    return unit.finish(
        ["kernels/conv/depthwise_int8.h", "base/vmath.h"], struct,
        f"  const DepthwiseInt8Args<{written}> args{{{', '.join(fields)}}};\n{make}"
        f"  depthwise_int8_tasks<{', '.join(map(str, numbers))}>(args, epilogue, begin, end);\n",
    )  # fmt: skip


def emit_depthwise(kernel: Kernel, target: Target) -> KernelUnit:
    """Depthwise convolution: `params` tile, where padding is skipped: width, columns of padding left and right."""
    if is_integer(kernel):
        return _emit_depthwise_integers(kernel)
    anchor, p = kernel.anchor, kernel.params
    assert anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    x, w, y = inputs[anchor.operand(0)], inputs[anchor.operand(1)], kernel.outputs[0]
    struct, make = epilogue(unit, kernel, anchor)
    kh, kw = two([int(d) for d in anchor.operand(1).tensor.static_shape[2:]], 1)
    (sh, sw), (dh, dw) = two(anchor.attrs["strides"], 1), two(anchor.attrs["dilations"], 1)
    oh, ow = extent(y)
    pads = anchor.attrs["pads"]
    if (tile := p.get("tile")) is not None:
        first, top, ih = x, begins(pads)[0], extent(x)[0]
    else:
        first, top, ih, tile = padded(x, pads), 0, (oh - 1) * sh + (kh - 1) * dh + 1, (0, 0, 0)
    numbers = (kh, kw, sh, sw, dh, dw, *tile[1:], tile[0], anchor.operand(1).tensor.static_shape[1])
    rows_per_task, blocks_per_task = p["rows_per_task"], p["blocks_per_task"]
    cb = ceildiv(y.shape[1], y.buffer.layout.block)
    unit.tasks = x.shape[0] * ceildiv(cb, blocks_per_task) * ceildiv(oh, rows_per_task)
    read, written = stored_type(x), stored_type(y)
    fields = [
        unit.pointer(first, read), *map(unit.integer, image_steps(x)[:3]), unit.pointer(w),
        unit.pointer(y, written, const=False),
        *map(unit.integer, (*image_steps(y)[:3], x.shape[0], cb, oh, ow, rows_per_task, blocks_per_task, top, ih)),
    ]  # fmt: skip
    return unit.finish(
        ["kernels/conv/depthwise.h", "base/vmath.h"], struct,
        f"  const DepthwiseArgs<{read}, {written}> args{{{', '.join(fields)}}};\n{make}"
        f"  depthwise_tasks<{', '.join(map(str, numbers))}>(args, epilogue, begin, end);\n",
    )  # fmt: skip


REDUCED = {"reduce_mean": "mean", "reduce_max": "largest", "reduce_min": "least"}


def emit_pool(kernel: Kernel, target: Target) -> KernelUnit:
    """Blocked pools; what is reduced over all pixels is a pool with the image as its window."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    x, y = kernel.inputs[0], kernel.outputs[0]
    struct, make = epilogue(unit, kernel, anchor)
    ih, iw = extent(x)
    if anchor.op in REDUCED:
        oh, ow = 1, 1  # type: tuple[Dim, Dim]
        window: tuple[Dim, ...] = (ih, iw, 1, 1, 1, 1, 0, 0, 0, 0, 0)
        yn, yc, yr = y.strides[0], y.strides[1], 0  # type: tuple[Dim, Dim, Dim]
    else:
        oh, ow = extent(y)
        a = anchor.attrs
        window = (
            *two(a["kernel"], 1), *two(a["strides"], 1), *two(a["dilations"], 1), *begins(a["pads"]), *ends(a["pads"]),
            int(a.get("count_include_pad", False)),
        )  # fmt: skip
        yn, yc, yr, _ = image_steps(y)
    cb = ceildiv(y.shape[1], y.buffer.layout.block)
    rows_per_task = kernel.params.get("rows_per_task", 8)
    unit.tasks = x.shape[0] * cb * ceildiv(oh, rows_per_task)
    *sizes, include = window
    read, written = stored_type(x), stored_type(y)
    fields = [
        unit.pointer(x, read), *map(unit.integer, image_steps(x)[:3]), unit.pointer(y, written, const=False),
        *map(unit.integer, (yn, yc, yr, x.shape[0], cb, ih, iw, oh, ow, *sizes)), "true" if include else "false",
        unit.integer(rows_per_task),
    ]  # fmt: skip
    kind = REDUCED.get(anchor.op) or ("largest" if anchor.op == "max_pool" else "mean")
    return unit.finish(
        ["kernels/pool/blocked.h", "base/vmath.h"], struct,
        f"  const PoolArgs<{read}, {written}> args{{{', '.join(fields)}}};\n{make}"
        f"  pool_tasks<Pool::{kind}>(args, epilogue, begin, end);\n",
    )  # fmt: skip


def _padded_list(unit: KernelUnit, values: Sequence[Dim], size: int, fill: int) -> str:
    """Spatial values as a C array of `size`, missing leading axes filled."""
    return "{" + ", ".join([str(fill)] * (size - len(values)) + [unit.integer(v) for v in values]) + "}"


def emit_conv_reference(kernel: Kernel, target: Target) -> KernelUnit:
    """Any conv or conv_transpose in f32 or f64 on dense row-major tensors."""
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    inputs = dict(zip(kernel.body.inputs, kernel.inputs, strict=True))
    x, w, y = inputs[anchor.operand(0)], inputs[anchor.operand(1)], kernel.outputs[0]
    bias = anchor.optional(2)
    a, t = anchor.attrs, CTYPES[y.dtype]
    fields = [
        unit.pointer(x, t), unit.pointer(w, t), unit.pointer(inputs[bias], t) if bias is not None else "nullptr",
        unit.pointer(y, t, const=False), *map(unit.integer, (x.shape[0], x.shape[1], y.shape[1], a["groups"])),
        _padded_list(unit, x.shape[2:], 3, 1), _padded_list(unit, y.shape[2:], 3, 1),
        _padded_list(unit, w.shape[2:], 3, 1), _padded_list(unit, a["strides"], 3, 1),
        _padded_list(unit, a["dilations"], 3, 1), _padded_list(unit, a["pads"][: len(a["pads"]) // 2], 3, 0),
    ]  # fmt: skip
    unit.tasks = product(y.shape[:-1])
    transposed = anchor.op == "conv_transpose"
    header, tasks = ("transposed", "conv_transpose") if transposed else ("reference", "conv_reference")
    return unit.over_tasks([f"kernels/conv/{header}.h"], f"ConvReferenceArgs<{t}>", fields, f"{tasks}_tasks")


def emit_pool_reference(kernel: Kernel, target: Target) -> KernelUnit:
    anchor = kernel.anchor
    assert anchor is not None
    unit = KernelUnit()
    x, y, a = kernel.inputs[0], kernel.outputs[0], anchor.attrs
    half = len(a["pads"]) // 2
    lists = [x.shape[2:], y.shape[2:], a["kernel"], a["strides"], a["dilations"], a["pads"][:half], a["pads"][half:]]

    def six(values: Sequence[Dim]) -> str:
        return "{" + ", ".join([*(unit.integer(v) for v in values), *["1"] * (6 - len(values))]) + "}"

    unit.tasks = x.shape[0] * x.shape[1]
    ctype = CTYPES[x.dtype]
    pixels = unit.pointer(x, ctype)
    if anchor.op == "arg_max_pool":
        results = ["nullptr", unit.pointer(y, "int64_t", const=False)]
    else:
        results = [unit.pointer(y, ctype, const=False), "nullptr"]
    fields = [
        pixels, *results, unit.integer(unit.tasks), str(half),
        *map(six, lists), "true" if a.get("count_include_pad") else "false",
    ]  # fmt: skip
    kind = "false" if anchor.op == "avg_pool" else "true"
    return unit.over_tasks(
        ["kernels/pool/reference.h"], f"PoolReferenceArgs<{ctype}>", fields, f"pool_reference_tasks<{kind}>"
    )


EMITTERS = {
    "conv.blocked": emit_conv, "conv.depthwise": emit_depthwise, "pool.blocked": emit_pool,
    "conv.reference": emit_conv_reference, "conv_transpose": emit_conv_reference, "pool.reference": emit_pool_reference,
    "arg_max_pool": emit_pool_reference,
}  # fmt: skip
