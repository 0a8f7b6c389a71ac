"""Convolutions on blocked channels: register tiles, and how images are cut into tasks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opcel_compiler.ir.dims import Dim, ceildiv, equal, product
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.ir.program_split import source, zero_number
from opcel_compiler.schedule.choice.context import Choosing, heights
from opcel_compiler.schedule.choice.integers import is_integer
from opcel_compiler.schedule.choice.sharing import Cut, share_out


def choose_conv(kernel: Kernel, choosing: Choosing) -> None:
    """A direct convolution on blocked channels."""
    anchor, y = kernel.anchor, kernel.outputs[0]
    assert anchor is not None
    w = anchor.operand(1).tensor.static_shape
    together = kernel.params.get("together", 1)
    groups = anchor.attrs["groups"] // together
    w = (w[0], w[1] * together, *w[2:])
    planar = kernel.params["kind"] == "planar"
    integers = is_integer(kernel)
    in_block = (4 if integers else 1) if planar else choosing.width
    ocb, icb = -(-w[0] // groups // choosing.width), -(-w[1] // in_block)
    vectors, tallest = image_tile(ocb, choosing)
    oh, ow = y.shape[2:] if len(y.shape) == 4 else (1, y.shape[2])
    flat = all(d == 1 for d in w[2:]) and all(s == 1 for s in anchor.attrs["strides"])
    flat = flat and not any(any(sum(h) for h in v.buffer.layout.halo) for v in (*kernel.inputs, y)) and _dense(y)
    x, filters = (kernel.inputs[kernel.body.inputs.index(source(anchor.operand(i)))] for i in (0, 1))
    image = product(x.shape[1:]) * x.buffer.element_bytes
    weights = x.buffer.element_bytes * w[0] * w[1] * int(np.prod(w[2:]))
    tile_rows, rows_per_task, panels_per_task = 1, 1, 1  # type: tuple[int, Dim, int]
    if isinstance(oh, int) and isinstance(ow, int) and isinstance(image, int):
        n = y.shape[0] if isinstance(y.shape[0], int) else 1
        if not flat:
            tile_rows = max(1, min(tallest // max(1, ow), oh, 2))
        by_rows = weights <= choosing.cache // 2
        best, cut, share = None, Cut(1, 1), -1.0
        for nv in dict.fromkeys((vectors, 1)):
            panels = ocb // nv
            rows = (oh * ow, 0) if flat else (oh, tile_rows)
            found = share_out(*rows, n * groups, panels, 1 if flat else ow, by_rows, -(-image // (choosing.cache // 2)))
            if best is None or found[0] > share + 0.05:
                (share, cut), best = found, nv
        if best != vectors:
            vectors, tallest = 1, min(choosing.target.vector.registers - 2, 12)
        panels_per_task = cut.panels
        if flat:
            oh, ow = oh * ow // cut.rows, cut.rows
        else:
            rows_per_task = cut.rows
        if cut.panels == ocb // vectors:
            choosing.by_rows.add(y.buffer)
    elif flat:
        oh, ow = 1, product([oh, ow])
    else:
        rows_per_task = 8
    pref = choosing.target.kernel("conv")
    limit = tallest // tile_rows
    general = tuple(r for r in (pref.rows if pref else (4, 2, 1)) if r <= limit) or (1,)
    kernel.params.update(
        group_blocks=(ocb, icb), in_block=in_block, last=(_last(w[0] // groups, choosing), _last(w[1], choosing)),
        out_blocks=vectors, tile_rows=tile_rows,
        tile_widths=heights(ow, 14 if ow == 14 and vectors == 2 and tallest >= 12 else limit, ow, general),
        rows_per_task=rows_per_task, panels_per_task=panels_per_task, extent=(oh, ow),
    )  # fmt: skip
    weight = filters.buffer
    if x.buffer.layout.storage == "bf16":
        kernel.params["precision"] = "bf16"
        weight.layout = weight.layout.stored_as("bf16")
    start = f"{(zero_number(kernel) or 0)}:" if integers else ""
    weight.packing = f"conv:{groups}:{in_block}:{together}:{start}{vectors * choosing.width}"


def choose_depthwise(kernel: Kernel, choosing: Choosing) -> None:
    """A depthwise convolution on channels blocked by `width`: a task has the rows that its thread has of the input."""
    x, y = kernel.inputs[0], kernel.outputs[0]
    if is_integer(kernel):
        assert kernel.anchor is not None
        kernel.params["quads"] = (
            *(quads := depthwise_quads(kernel))[:2],
            4 if choosing.target.vector.registers >= 32 else 1,
        )
        weight = kernel.inputs[kernel.body.inputs.index(source(kernel.anchor.operand(1)))].buffer
        step = kernel.anchor.attrs["strides"][-1]
        weight.packing = f"depthwise:{choosing.width}:{quads.quads}:{quads.group}:{step}:{(zero_number(kernel) or 0)}"
    n, oh = y.shape[0], y.shape[2] if len(y.shape) == 4 else 1
    blocks = ceildiv(y.shape[1], y.buffer.layout.block)
    cut = Cut(8, 1)
    if isinstance(oh, int) and isinstance(blocks, int):
        images = n if isinstance(n, int) else 1
        _, cut = share_out(oh, 1, images, blocks, y.shape[-1], x.buffer in choosing.by_rows, 1)
    if cut.panels == blocks:
        choosing.by_rows.add(y.buffer)
    kernel.params.update(rows_per_task=cut.rows, blocks_per_task=cut.panels)


class DepthwiseQuads(NamedTuple):
    """How a depthwise convolution of integers reads a row: groups of so many outputs share so many quads of pixels, and
    the image needs `right` columns behind it."""

    quads: int
    group: int
    right: int


def depthwise_quads(kernel: Kernel) -> DepthwiseQuads:
    """As csrc/kernels/conv/depthwise_int8.h says."""
    anchor, ow = kernel.anchor, kernel.outputs[0].shape[-1]
    assert anchor is not None
    step, pads = anchor.attrs["strides"][-1], anchor.attrs["pads"]
    taps, image = anchor.operand(1).tensor.static_shape[-1], anchor.operand(0).tensor.dims[-1]
    left, right = pads[len(pads) // 2 - 1], pads[-1]
    quads = -(-taps // 4)
    group = min(4, (4 * quads - taps) // step + 1)
    tile = group * (4 // group)
    if isinstance(ow, int) and isinstance(image, int):
        behind = (max(ow, tile) - group) * step + 4 * quads - left - image
    else:
        behind = max(right - taps + step - group * step, (tile - group) * step - left - 1) + 4 * quads
    return DepthwiseQuads(quads, group, max(0, behind))


def depthwise_tile(kernel: Kernel, registers: int) -> tuple[int, int, int] | None:
    """(outputs of a tile, columns of padding to the left and right) of a depthwise convolution that skips its padding.

    The first and the last tile of a row alone touch it. None where that is so for no width, or sizes are symbolic.
    """
    anchor, width = kernel.anchor, kernel.outputs[0].shape[-1]
    assert anchor is not None
    attrs = anchor.attrs
    kernel_width, image = anchor.operand(1).tensor.dims[-1], anchor.operand(0).tensor.dims[-1]
    if not (isinstance(width, int) and isinstance(image, int) and isinstance(kernel_width, int)) or width < 1:
        return None
    step, left = attrs["strides"][-1], attrs["pads"][len(attrs["pads"]) // 2 - 1]
    right = max(0, (width - 1) * step + (kernel_width - 1) * attrs["dilations"][-1] + 1 - left - image)
    widest = min(8, registers - kernel_width - 2)
    fitting = [
        w for w in range(1, min(widest, width) + 1) if w == width or (width % w or w) * step >= max(left, right)
    ]  # fmt: skip
    if not fitting or max(left, right) > image:
        return None
    return min(fitting, key=lambda w: (-(-width // w) * (w + 1), -w)), left, right


def _last(channels: int, choosing: Choosing) -> int:
    """Channels of the last of their blocks that are computed, zeros included: all, or half of a wide block."""
    width = choosing.width
    return width // 2 if width >= 16 and 0 < channels % width <= width // 2 else width


def image_tile(ocb: int, choosing: Choosing) -> tuple[int, int]:
    """(output blocks, pixels) of a register tile: accumulators fill the registers, blocks divide."""
    registers: int = choosing.target.vector.registers
    pref = choosing.target.kernel("conv")
    vectors = pref.vectors if pref is not None else 2
    while ocb % vectors:
        vectors -= 1
    if vectors == 1 and ocb % 3 == 0 and registers >= 32:
        vectors = 3
    return vectors, min((registers - vectors - 1) // vectors, 24 if vectors == 1 else 12)


def _dense(image: View) -> bool:
    """Whether the pixels of a blocked image lie end to end."""
    step: Dim = image.buffer.layout.block
    for extent, stride in reversed(list(zip(image.shape[2:], image.strides[2:], strict=True))):
        if equal(stride, step) is not True:
            return False
        step = step * extent
    return True
