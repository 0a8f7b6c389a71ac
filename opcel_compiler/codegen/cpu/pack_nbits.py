"""Weights of 4 and 8 bits as csrc/kernels/gemm/nbits.h reads them."""

from __future__ import annotations

import numpy as np

DEPTH = 8
"""What the elements of a group along k are padded to a multiple of."""


def unsigned(w: np.ndarray, signed: bool, bits: int) -> np.ndarray:
    """The numbers of `bits` bits as bytes, signed ones shifted up by half of their range."""
    return (w.astype(np.int8).view(np.uint8) + np.uint8(1 << (bits - 1))) if signed else w.astype(np.uint8)


def nbits_panels(w: np.ndarray, bits: int, group: int, panel: int) -> np.ndarray:
    """[k, n] of unsigned numbers → [n / panel][group][step][panel][4] bytes; a step is 4 elements of 8 bits along k, or
    8 of 4 bits, the element i of a byte in its lower half and i + 4 in its upper one. Zero padded."""
    k, n = w.shape
    tiles, groups = -(-n // panel), -(-k // group)
    cut = -(-group // DEPTH) * DEPTH
    depth = (groups - 1) * cut + -(-(k - (groups - 1) * group) // DEPTH) * DEPTH if k else 0
    steps = depth * bits // 32
    out = np.empty((tiles, steps, panel, 4), np.uint8)
    padded = np.zeros((groups, cut, panel), np.uint8)
    for tile in range(tiles):
        part = w[:, tile * panel : (tile + 1) * panel]
        tall = np.zeros((groups * group, panel), np.uint8)
        tall[:k, : part.shape[1]] = part
        padded[:, :group] = tall.reshape(groups, group, panel)
        flat = padded.reshape(groups * cut, panel)[:depth]
        if bits == 4:
            halves = flat.reshape(steps, 2, 4, panel)
            flat = halves[:, 0] | halves[:, 1] << np.uint8(4)
        out[tile] = flat.reshape(steps, 4, panel).transpose(0, 2, 1)
    return out.reshape(-1)
