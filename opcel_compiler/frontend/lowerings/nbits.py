"""Products with weights of a few bits, which stay integers."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import DTYPES


def _constant(c: Lowering, i: int, what: str) -> np.ndarray | None:
    value = c.opt(i)
    if value is None:
        return None
    if value.constant is None:
        raise Unsupported(f"its {what} (%{value.name}) are computed")
    array: np.ndarray = value.constant.array
    return array


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """[rows, bytes] of unsigned integers, the low bits first, as [rows, count]."""
    per_byte = 8 // bits
    shifts = np.arange(per_byte, dtype=np.uint8) * bits
    split = (packed[:, :, None] >> shifts) & np.uint8((1 << bits) - 1)
    flat: np.ndarray = split.reshape(len(packed), -1)
    return flat[:, :count]


@lowers("MatMulNBits", domain="com.microsoft", first=1)
def matmul_n_bits(c: Lowering) -> Value:
    """Weights without zero points become signed, which moves them by half of their range; those of 2 bits lie in 4."""
    x = c.x()
    k, n, bits, block = (c.attr_int(name) for name in ("K", "N", "bits", "block_size"))
    rounded = c.attr_int("accuracy_level", 0) == 4
    if bits not in (2, 4, 8) or block < 1 or k < 1 or n < 1:
        raise Unsupported(f"weights of {bits} bits in blocks of {block} have no lowering")
    weights, scales, zeros = (_constant(c, i, what) for i, what in ((1, "weights"), (2, "scales"), (3, "zero points")))
    if c.opt(4) is not None:
        raise Unsupported("weights in another order (g_idx) have no lowering")
    blocks = -(-k // block)
    if weights is None or scales is None:
        raise ModelError(f"node {c.origin!r} (MatMulNBits) lacks its weights or scales")
    if weights.size * (8 // bits) != n * blocks * block or scales.size != n * blocks:
        raise ModelError(f"node {c.origin!r} (MatMulNBits): its weights or scales are not {n} rows of {blocks} blocks")
    values = _unpacked(weights.reshape(n, -1).view(np.uint8), bits, blocks * block)[:, :k]
    scale = scales.reshape(n, blocks).astype(np.float32).T
    middle, width = 1 << (bits - 1), max(bits, 4)
    if zeros is not None and zeros.dtype != np.uint8:
        points = np.repeat(zeros.reshape(n, blocks).astype(np.float32), block, 1)[:, :k]
        floats = (values.astype(np.float32) - points) * np.repeat(scale.T, block, 1)[:, :k]
        dtype = c.dtype(x)
        y = c.emit("matmul", x, c.constant(np.ascontiguousarray(floats.T).astype(dtype.numpy), dtype))
    else:
        signed, unsigned = DTYPES[f"i{width}"], DTYPES[f"u{width}"]
        if zeros is None:
            held = [c.constant((values.T - np.uint8(middle)).view(np.int8).astype(signed.numpy), signed)]
        else:
            held = [c.constant(values.T.astype(unsigned.numpy), unsigned)]
        held.append(c.constant(np.ascontiguousarray(scale)))
        if zeros is not None:
            points = _unpacked(zeros.reshape(n, -1), bits, blocks)
            held.append(c.constant(np.ascontiguousarray(points.T).astype(unsigned.numpy), unsigned))
        y = c.emit("matmul_nbits", x, *held, group=block, rounded=rounded)
    bias = c.opt(5)
    return y if bias is None else c.emit("add", y, bias)
