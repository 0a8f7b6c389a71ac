"""Quantized numbers at random: products and convolutions between dequantizations, and what surrounds them.

Most scales are powers of two, with which no float rounds: bytes must then be the same after every stage. Others end in
floats, which may differ by a rounding.
"""

from __future__ import annotations

import numpy as np

from benchmarks.random_graphs.contractions import window
from benchmarks.random_graphs.samplers import any_value, samples
from benchmarks.random_graphs.values import Sample
from opcel_compiler.ir.dims import Dim, Expr
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import DTYPES, F32, DType

U8, I8, I32 = DTYPES["u8"], DTYPES["i8"], DTYPES["i32"]


def _last(s: Sample) -> Value:
    return next(reversed(s.arrays))


def _scale(s: Sample, shape: tuple[int, ...], exact: bool, log2: int = -5) -> Value:
    """Positive numbers about 2**log2, as a constant or, sometimes, an input."""
    data = 2.0 ** (log2 + s.rng.integers(-1, 2, shape)) * (1 if exact else s.rng.uniform(0.6, 1.4, shape))
    data = np.asarray(data, np.float32)
    return s.input(shape, F32, data) if s.chance(0.1) else s.constant(data, F32)


def _bytes(s: Sample, dims: tuple[Dim, ...], dtype: DType, constant: bool) -> Value:
    """Bytes of the whole range, or near its ends."""
    low, high = (0, 256) if dtype == U8 else (-128, 128)
    shape = s.concrete(dims)
    data = np.asarray(s.rng.integers(low, high, shape))
    if s.chance(0.3):
        data = np.where(s.rng.random(shape) < 0.3, s.rng.choice([low, high - 1], shape), data)
    data = np.asarray(data.astype(dtype.numpy))
    return s.constant(data, dtype) if constant else s.input(dims, dtype, data)


def _zero(s: Sample, dtype: DType, share: float) -> Value | None:
    low, high = (0, 256) if dtype == U8 else (-128, 128)
    if not s.chance(share):
        return None
    zero = int(s.pick((0, 128, 255, int(s.rng.integers(256))))) if dtype == U8 else int(s.rng.integers(low, high))  # type: ignore[call-overload]
    return s.constant(np.asarray(zero, dtype.numpy), dtype)


def _dequantized(
    s: Sample, x: Value, exact: bool, share: float = 0.8, scale: tuple[int, ...] = (), log2: int = -5
) -> Value | None:
    """`x` from its grid; a zero point in `share` of the cases."""
    zero = _zero(s, x.tensor.dtype, share)
    operands = [x, _scale(s, scale, exact, log2), *([] if zero is None else [zero])]
    return _last(s) if s.add("dequantize", operands, exact=exact, dtype=F32) else None


def _quantized(s: Sample, x: Value) -> bool:
    dtype = U8 if s.chance(0.7) else I8
    zero = _zero(s, dtype, 0.8)
    largest = float(np.abs(s.arrays[x]).max(initial=0.0))
    log2 = int(np.ceil(np.log2(max(largest, 2.0**-6) / 128))) + int(s.rng.integers(-1, 2))
    scale = _scale(s, (), True, log2)
    return s.add("quantize", [x, scale, *([] if zero is None else [zero])], dtype=dtype)


@samples("dequantize")
def dequantize(s: Sample) -> bool:
    """A tensor, or each part along an axis, from its grid."""
    x = s.recent([v for v in s.values("iu") if v.tensor.dtype.bits <= 32 and s.chance(0.7)])
    if x is None or x.tensor.dtype.name not in ("u8", "i8", "i32", "u16", "i16"):
        x = _bytes(s, s.shape(), U8 if s.chance(0.6) else I8, s.chance(0.3))
    dims = x.tensor.dims
    shape: tuple[int, ...] = ()
    if dims and s.chance(0.4):
        axis = int(s.rng.integers(len(dims)))
        if isinstance(dims[axis], int):
            shape = (dims[axis], *[1] * (len(dims) - 1 - axis))
    return _dequantized(s, x, True, 0.6 if x.tensor.dtype.bits == 8 else 0, shape) is not None


@samples("quantize")
def quantize(s: Sample) -> bool:
    """A float on a grid, or a product or a convolution of numbers that lie on grids."""
    if s.chance(0.25):
        x = any_value(s, "f")
        return x is not None and x in s.exact and x.tensor.dtype == F32 and _quantized(s, x)
    exact = s.chance(0.8)
    made = _convolution(s, exact) if s.chance(0.5) else _product(s, exact)
    if made is None:
        return False
    for _ in range(int(s.rng.integers(3))):
        made = _after(s, made, exact) or made
    if exact and s.chance(0.6):
        return _quantized(s, made) or True
    return True


def _source(s: Sample, rank: tuple[int, int], shape: tuple[Dim, ...]) -> Value:
    """Bytes that are there already, or an input of that shape."""
    found = s.recent([v for v in s.values(dtype=U8) if rank[0] <= len(v.tensor.dims) <= rank[1]])
    if found is not None and s.chance(0.6):
        return found
    return _bytes(s, shape, U8 if s.chance(0.85) else I8, False)


def _product(s: Sample, exact: bool) -> Value | None:
    rows: Dim = s.symbol() if s.chance(0.2) else s.size()
    lead = (int(s.rng.integers(1, 4)),) if s.chance(0.3) else ()
    x = _source(s, (2, 3), (*lead, rows, int(s.pick((1, 3, 4, 8, 13, 16, 32, 37, 64)))))  # type: ignore[call-overload]
    k = x.tensor.dims[-1]
    if isinstance(k, Expr):
        return None
    n = int(s.pick((1, 2, 3, 8, 16, 17, 31, 32, 48)))  # type: ignore[call-overload]
    a = _dequantized(s, x, exact)
    w = _bytes(s, (k, n), I8 if s.chance(0.85) else U8, s.chance(0.95))
    b = _dequantized(s, w, exact, 0.15, (n,) if s.chance(0.5) else (), -8)
    if a is None or b is None or not s.add("matmul", [a, b], exact=exact):
        return None
    if s.chance(0.5):
        made = _last(s)
        s.add("add", [made, s.constant(np.asarray(s.rng.integers(-64, 65, (n,)) / 8, np.float32), F32)], exact=exact)
    return _last(s)


def _convolution(s: Sample, exact: bool) -> Value | None:
    channels = int(s.pick((1, 2, 3, 4, 8, 16, 17, 32)))  # type: ignore[call-overload]
    spatial = tuple(int(s.pick((1, 3, 4, 5, 7, 8))) for _ in range(2 if s.chance(0.85) else 1))  # type: ignore[call-overload]
    x = _source(s, (3, 4), (int(s.pick((1, 1, 2))), channels, *spatial))  # type: ignore[call-overload]
    found, rank = x.tensor.dims[1], len(x.tensor.dims) - 2
    if isinstance(found, Expr) or not found:
        return None
    groups = int(s.pick((1, 1, found)))  # type: ignore[call-overload]
    out = groups * int(s.pick((1, 2))) if groups > 1 else int(s.pick((1, 3, 8, 16, 17, 32)))  # type: ignore[call-overload]
    kernel = tuple(int(s.pick((1, 1, 2, 3, 3))) for _ in range(rank))  # type: ignore[call-overload]
    w = _bytes(s, (out, found // groups, *kernel), I8 if s.chance(0.85) else U8, s.chance(0.95))
    a = _dequantized(s, x, exact)
    b = _dequantized(s, w, exact, 0.15, (out, *[1] * (rank + 1)) if s.chance(0.5) else (), -8)
    if a is None or b is None:
        return None
    operands = [a, b]
    if s.chance(0.5):
        operands.append(s.constant(np.asarray(s.rng.integers(-64, 65, (out,)) / 8, np.float32), F32))
    return _last(s) if s.add("conv", operands, exact=exact, **window(s, rank), groups=groups) else None


def _after(s: Sample, x: Value, exact: bool) -> Value | None:
    """Elementwise work on a result."""
    kind = int(s.rng.integers(3))
    if kind == 0:
        kept = s.add("relu", [x], exact=exact)
    elif kind == 1:
        low, high = (s.constant(np.float32(v), F32) for v in (0.0, 6.0))
        kept = s.add("max", [x, low], exact=exact) and s.add("min", [_last(s), high], exact=exact)
    else:
        other = _bytes(s, x.tensor.dims, U8, False)
        y = _dequantized(s, other, exact)
        kept = y is not None and s.add("add", [x, y], exact=exact)
    return _last(s) if kept else None
