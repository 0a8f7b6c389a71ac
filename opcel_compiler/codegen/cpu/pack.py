"""Weights as the kernels read them: a constant's data in its buffer's layout or packing."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from opcel_compiler.codegen.cpu.pack_nbits import nbits_panels, unsigned
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer
from opcel_compiler.ir.types import BF16


def _ordered(buffer: Buffer) -> np.ndarray:
    assert buffer.data is not None
    array = buffer.data.array.reshape(tuple(int(d) for d in buffer.type.dims))  # type: ignore[arg-type]
    if buffer.packing.startswith("conv:"):
        groups, block, together, *zero, panel = map(int, buffer.packing.split(":")[1:])
        array = merged_groups(array, groups, together)
        if zero:
            sums = first_sums(array.reshape(groups, -1, *array.shape[1:]), zero[0], panel)
            return np.concatenate([sums, conv_panels(array, groups, block, panel, 4)])
        return conv_panels(array, groups, block, panel, 2 if buffer.layout.storage == "bf16" else 1)
    if buffer.packing.startswith("depthwise:"):
        width, quads, group, step, zero_point = map(int, buffer.packing.split(":")[1:])
        sums = first_sums(array.reshape(1, *array.shape), zero_point, width)
        return np.concatenate([sums, depthwise_quads(array, width, quads, group, step)])
    if buffer.packing.startswith("winograd:"):
        return winograd_panels(array, *map(int, buffer.packing.split(":")[1:]))
    if buffer.packing.startswith("strassen:"):
        return strassen_panels(array, *map(int, buffer.packing.split(":")[1:]))
    if buffer.packing.startswith("recurrent:"):
        width = int(buffer.packing.split(":")[1])
        if array.dtype == np.int8:
            return recurrent_bytes(array, width)
        return recurrent_panels(array, width, 2 if buffer.layout.storage == "bf16" else 1)
    if buffer.packing.startswith("nbits:"):
        dtype = buffer.type.dtype
        group, panel = map(int, buffer.packing.split(":")[1:])
        return nbits_panels(unsigned(array, dtype.kind == "i", dtype.bits), dtype.bits, group, panel)
    if buffer.packing.startswith("pairs:"):
        return group_panels(array, int(buffer.packing.split(":")[1]), 2)
    if buffer.packing.startswith("quads:"):
        return quad_panels(array, *map(int, buffer.packing.split(":")[1:]))
    return laid_out(array, buffer.layout)


def packed(buffer: Buffer) -> np.ndarray:
    """The bytes of a weight buffer as a flat array, in the buffer's order and storage, padding included."""
    array = _ordered(buffer)
    return array.astype(BF16.numpy) if buffer.layout.storage == "bf16" else array


def laid_out(array: np.ndarray, layout: Layout) -> np.ndarray:
    """A row-major array in `layout`, flat."""
    if layout.halo:
        array = np.pad(array, layout.halo, constant_values=layout.pad_value)
    order = layout.order or tuple(range(array.ndim))
    if layout.block == 1:
        return np.ascontiguousarray(array.transpose(order)).reshape(-1)
    axis, block = layout.block_axis, layout.block
    blocks = -(-array.shape[axis] // block)
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, blocks * block - array.shape[axis])
    if widths[axis][1]:
        array = np.pad(array, widths, constant_values=layout.pad_value)
    split = array.reshape(*array.shape[:axis], blocks, block, *array.shape[axis + 1 :])
    outer = [a if a <= axis else a + 1 for a in order]
    return np.ascontiguousarray(split.transpose(*outer, axis + 1)).reshape(-1)


def merged_groups(w: np.ndarray, groups: int, together: int) -> np.ndarray:
    """The filters of `groups` groups that each hold `together` of w's, zero between those."""
    if together == 1:
        return w
    filters, channels, *kernel = w.shape
    per_group = filters // groups // together
    out = np.zeros((groups, together, per_group, together, channels, *kernel), w.dtype)
    split = w.reshape(groups, together, per_group, channels, *kernel)
    for i in range(together):
        out[:, i, :, i] = split[:, i]
    return out.reshape(filters, together * channels, *kernel)


def conv_panels(w: np.ndarray, groups: int, block: int, panel: int, pair: int = 1) -> np.ndarray:
    """[filters, channels, kh, kw] → [group][filters / panel][channels / block][kh][kw][block / pair][panel][pair]; with
    a block of 1 pairs are neighbours of a kernel row, …[kh][kw / pair][panel][pair]. Zero padded."""
    if w.ndim == 3:
        w = w[:, :, None, :]
    if block == 1:
        w = np.pad(w, [(0, 0), (0, 0), (0, 0), (0, -w.shape[3] % pair)])
    filters, channels, kh, kw = w.shape
    per_group = filters // groups
    tiles, blocks = -(-per_group // panel), -(-channels // block)
    out = np.zeros((groups, tiles * panel, blocks * block, kh, kw), w.dtype)
    out[:, :per_group, :channels] = w.reshape(groups, per_group, channels, kh, kw)
    if block == 1:
        split = out.reshape(groups, tiles, panel, blocks, kh, kw // pair, pair, 1)
        return np.ascontiguousarray(split.transpose(0, 1, 3, 4, 5, 7, 2, 6)).reshape(-1)
    split = out.reshape(groups, tiles, panel, blocks, block // pair, pair, kh, kw)
    return np.ascontiguousarray(split.transpose(0, 1, 3, 6, 7, 4, 2, 5)).reshape(-1)


def first_sums(w: np.ndarray, zero: int, panel: int) -> np.ndarray:
    """What sums of products with s8 filters [groups, filters, ...] begin with where images have this zero point: minus
    `zero` times the filter's sum, s32 as bytes; filters padded to whole panels."""
    sums = -zero * w.reshape(*w.shape[:2], -1).sum(2, dtype=np.int64)
    return np.pad(sums, [(0, 0), (0, -w.shape[1] % panel)]).astype(np.int32).reshape(-1).view(np.int8)


def depthwise_quads(w: np.ndarray, width: int, quads: int, group: int, step: int) -> np.ndarray:
    """[channels, 1, kh, kw] → [channels / width][kh][group][quads][width][4]: a row's taps for each output of a group,
    `step` further from one to the next. Zero padded."""
    if w.ndim == 3:
        w = w[:, :, None, :]
    channels, _, kh, kw = w.shape
    blocks = -(-channels // width)
    out = np.zeros((blocks * width, kh, group, 4 * quads), w.dtype)
    for i in range(group):
        out[:channels, :, i, i * step : i * step + kw] = w[:, 0]
    split = out.reshape(blocks, width, kh, group, quads, 4)
    return np.ascontiguousarray(split.transpose(0, 2, 3, 4, 1, 5)).reshape(-1)


def group_panels(b: np.ndarray, panel: int, group: int) -> np.ndarray:
    """[..., k, n] → [...][n / panel][k / group][panel][group], zero padded."""
    *lead, k, n = b.shape
    tiles, steps = -(-n // panel), -(-k // group)
    out = np.zeros((*lead, group * steps, tiles * panel), b.dtype)
    out[..., :k, :n] = b
    split = out.reshape(int(np.prod(lead)), steps, group, tiles, panel)
    return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2)).reshape(-1)


def quad_panels(b: np.ndarray, panel: int, zero: int) -> np.ndarray:
    """`group_panels` of s8 in quads, each panel after a head: `panel` of s32, minus `zero` times its columns' sums."""
    n = b.shape[1]
    tiles = -(-n // panel)
    heads = np.zeros(tiles * panel, np.int64)
    heads[:n] = -zero * b.sum(0, dtype=np.int64)
    parts = [heads.astype(np.int32).view(np.int8).reshape(tiles, -1), group_panels(b, panel, 4).reshape(tiles, -1)]
    return np.concatenate(parts, 1).reshape(-1)


def recurrent_panels(r: np.ndarray, width: int, together: int = 1) -> np.ndarray:
    """[directions, gates · n, n] → [directions][n / width][n / together][gates][width][together], zero padded."""
    directions, rows, n = r.shape
    gates, blocks, depth = rows // n, -(-n // width), -(-n // together)
    out = np.zeros((directions, gates, blocks * width, depth * together), r.dtype)
    out[:, :, :n, :n] = r.reshape(directions, gates, n, n)
    split = out.reshape(directions, gates, blocks, width, depth, together)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 1, 3, 5)).reshape(-1)


def recurrent_bytes(r: np.ndarray, width: int) -> np.ndarray:
    """As recurrent_panels of four together, each block after its sums over all k in s32, [gates][width]."""
    directions, _, n = r.shape
    blocks = -(-n // width)
    sums = recurrent_panels(np.broadcast_to(r.sum(2, dtype=np.int32)[..., None], r.shape), width)
    first = sums.reshape(directions * blocks, n, -1)[:, 0].copy().view(np.int8)
    panels = recurrent_panels(r, width, 4).reshape(directions * blocks, -1)
    return np.concatenate([first, panels], 1).reshape(-1)


WINOGRAD_FILTERS = {
    2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
    4: np.array([
        [256 / 225, 0, 0],
        *([1 / f, p / f, p * p / f] for p, q in ((0.625, 1.5), (1.5, 0.625)) for f in [2 * p * p * (p * p - q * q)]
          for p in (p, -p)),
        [0, 0, 1],
    ]),
}  # fmt: skip
"""The transform G of 3-tap filters for an output tile of so many pixels: of csrc/kernels/conv/winograd.h's points."""


def winograd_panels(w: np.ndarray, m: int, block: int, panel: int) -> np.ndarray:
    """[filters, channels, 3, 3] → [filters / panel][(m + 2)²][channels][panel] of G w Gᵀ, channels padded with zeros to
    blocks and filters to panels; computed in float64 and rounded once."""
    filters, channels = w.shape[:2]
    tiles, padded = -(-filters // panel), -(-channels // block) * block
    transform = np.kron(WINOGRAD_FILTERS[m], WINOGRAD_FILTERS[m])
    out = np.zeros((tiles, len(transform), padded, panel), w.dtype)
    for tile in range(tiles):
        part = w[tile * panel : (tile + 1) * panel].reshape(-1, channels, 9)
        moved = part.transpose(2, 1, 0).astype(np.float64)
        out[tile, :, :channels, : len(part)] = np.tensordot(transform, moved, 1)
    return out.reshape(-1)


STRASSEN_FACTORS = np.array([
    [1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1],
], np.float64)  # fmt: skip
"""The right factors of csrc/kernels/gemm/strassen.h's products: coefficients of the quarters B11, B12, B21, B22."""


def strassen_panels(b: np.ndarray, blocks: int, panel: int) -> np.ndarray:
    """[k, n] → [pair of panels][k / 2 in blocks][7][the block's depth][panel] of the right factors, columns padded with
    zeros to pairs; computed in float64 and rounded once."""
    k, n = b.shape
    half, pairs = k // 2, -(-n // (2 * panel))
    out = np.zeros((pairs, 7 * half * panel), b.dtype)
    for pair in range(pairs):
        columns = np.zeros((2, half, 2, panel))
        for side in range(2):
            part = b[:, (side * pairs + pair) * panel :][:, :panel].reshape(2, half, -1)
            columns[:, :, side, : part.shape[2]] = part
        factors = np.tensordot(STRASSEN_FACTORS.reshape(7, 2, 2), columns, ([1, 2], [0, 2]))
        cuts = [half * i // blocks for i in range(blocks + 1)]
        out[pair] = np.concatenate([factors[:, i:j].reshape(-1) for i, j in pairwise(cuts)])
    return out.reshape(-1)
