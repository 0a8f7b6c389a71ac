"""Convolutions on blocked channels: register tiles, and how images are cut into tasks."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.dims import Dim, ceildiv, equal, product
from opcel_compiler.ir.program import Kernel, View
from opcel_compiler.schedule.choice.context import TASKS, Choosing, heights


def choose_conv(kernel: Kernel, choosing: Choosing) -> None:
    """A direct convolution on blocked channels."""
    anchor, y = kernel.anchor, kernel.outputs[0]
    assert anchor is not None
    w = anchor.operand(1).tensor.static_shape
    groups = anchor.attrs["groups"]
    planar = kernel.params["kind"] == "planar"
    in_block = 1 if planar else choosing.width
    ocb, icb = -(-w[0] // groups // choosing.width), -(-w[1] // in_block)
    vectors, tallest = _image_tile(ocb, choosing)
    oh, ow = y.shape[2:] if len(y.shape) == 4 else (1, y.shape[2])
    flat = all(d == 1 for d in w[2:]) and all(s == 1 for s in anchor.attrs["strides"])
    flat = flat and not any(any(sum(h) for h in v.buffer.layout.halo) for v in (*kernel.inputs, y)) and _dense(y)
    image = product(kernel.inputs[0].shape[1:]) * 4
    weights = 4 * w[0] * w[1] * int(np.prod(w[2:]))
    tile_rows, rows_per_task, panels_per_task = 1, 1, 1  # type: tuple[int, Dim, int]
    panels = groups * (ocb // vectors)
    if isinstance(oh, int) and isinstance(ow, int) and isinstance(image, int):
        n = y.shape[0] if isinstance(y.shape[0], int) else 1
        slices = _slices(n, oh, image, weights, panels, choosing.cache)
        if flat:
            parts = next(p for p in range(slices, 0, -1) if oh % p == 0)
            oh, ow = parts, ow * (oh // parts)
        else:
            tile_rows = max(1, min(tallest // max(1, ow), oh, 2))
            rows_per_task = max(tile_rows, -(-oh // slices) // tile_rows * tile_rows)
        if slices > 1 and weights <= choosing.cache // 2:
            panels_per_task = max(1, ocb // vectors)
    elif flat:
        oh, ow = 1, product([oh, ow])
    else:
        rows_per_task = 8
    pref = choosing.target.kernel("conv")
    limit = tallest // tile_rows
    general = tuple(r for r in (pref.rows if pref else (4, 2, 1)) if r <= limit) or (1,)
    kernel.params.update(
        group_blocks=(ocb, icb), in_block=in_block, out_blocks=vectors, tile_rows=tile_rows,
        tile_widths=heights(ow, 14 if ow == 14 and vectors == 2 and tallest >= 12 else limit, ow, general),
        rows_per_task=rows_per_task, panels_per_task=panels_per_task, extent=(oh, ow),
    )  # fmt: skip
    weight = kernel.inputs[list(kernel.body.inputs).index(anchor.operand(1))].buffer
    weight.packing = f"conv:{groups}:{in_block}:{vectors * choosing.width}"


def choose_depthwise(kernel: Kernel) -> None:
    """A depthwise convolution on channels blocked by `width`."""
    y = kernel.outputs[0]
    n, oh, rows = y.shape[0], *_rows(y)
    blocks = ceildiv(y.shape[1], y.buffer.layout.block)
    kernel.params["rows_per_task"] = _split(oh, product([n, blocks]), rows)


def _image_tile(ocb: int, choosing: Choosing) -> tuple[int, int]:
    """(output blocks, pixels) of a register tile: accumulators fill the registers, blocks divide."""
    registers: int = choosing.target.vector.registers
    pref = choosing.target.kernel("conv")
    vectors = pref.vectors if pref is not None else 2
    while ocb % vectors:
        vectors -= 1
    if vectors == 1 and ocb % 3 == 0 and registers >= 32:
        vectors = 3
    return vectors, min((registers - vectors - 1) // vectors, 12)


def _slices(n: int, rows: int, image: int, weights: int, panels: int, cache: int) -> int:
    """Into how many row slices an image is cut: where the weights fit half a cache, slices are the tasks, and stay in
    the cache that the thread filled with the previous kernel; else only as many as an image needs to fit."""
    fits = -(-image // (cache // 2))
    wanted = (
        -(-TASKS // (2 * n))
        if weights <= cache // 2
        else 1
        if panels * n >= TASKS // 2
        else -(-TASKS // (2 * panels * n))
    )
    return max(1, min(rows, max(fits, wanted)))


def _dense(image: View) -> bool:
    """Whether the pixels of a blocked image lie end to end."""
    step: Dim = image.buffer.layout.block
    for extent, stride in reversed(list(zip(image.shape[2:], image.strides[2:], strict=True))):
        if equal(stride, step) is not True:
            return False
        step = step * extent
    return True


def _rows(view: View) -> tuple[Dim, int]:
    return (view.shape[2], 1) if len(view.shape) == 4 else (1, 1)


def _split(rows: Dim, outer: Dim, multiple: int) -> Dim:
    """Rows per task so that some TASKS tasks come out, a multiple of the tile's rows."""
    if not (isinstance(rows, int) and isinstance(outer, int)):
        return 8 * multiple
    parts = max(1, min(rows, -(-TASKS // max(1, outer))))
    per = -(-rows // parts)
    return max(multiple, -(-per // multiple) * multiple)
