"""Products with weights of 4 and 8 bits, rows rounded to 8 bits and rows as they are, at every level."""

from __future__ import annotations

import ctypes
import itertools

import numpy as np
import pytest
from harness import INT8_ISAS, WIDTH, build, integers, pointers

from opcel_compiler.codegen.cpu.pack_nbits import nbits_panels

SOURCE = r"""
#include "kernels/gemm/nbits.h"
using namespace opcel;
struct Epi {  // c + bias[col] + 100 * row
  const float* bias;
  template <bool Tail> vf apply(vf v, int64_t, int64_t row, int64_t col, int lanes) const {
    return v + load_t<Tail>(bias + col, lanes) + set(100.0f * row);
  }
};
template <class Rows, int Bits>
void product(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  const NbitsArgs args{(float*)p[0], d[0], (uint8_t*)p[1], (float*)p[2], (uint8_t*)p[3], (float*)p[4], d[1], 1,
                       d[2], d[3], d[4], d[5], d[6], d[7], d[8], d[9]};
  nbits_tasks<Rows, Bits, NV, HEIGHTS>(args, Epi{(float*)p[5]}, begin, end);
}
#define PRODUCT(Rows, Bits)                                                                            \
  extern "C" void Rows##Bits(void* const* p, const int64_t* d, int64_t begin, int64_t end) {           \
    product<detail::Rows, Bits>(p, d, begin, end);                                                     \
  }
PRODUCT(RoundedRows, 4) PRODUCT(RoundedRows, 8) PRODUCT(PlainRows, 4) PRODUCT(PlainRows, 8)
"""


def rounded(x: np.ndarray, group: int) -> np.ndarray:
    """x of f64 after each group of a row was rounded to 8 bits."""
    out = np.empty(x.shape)
    for at in range(0, x.shape[1], group):
        part = x[:, at : at + group]
        scale = np.abs(part).max(1, keepdims=True).astype(np.float32) / np.float32(127)
        inverse = np.float32(127) / np.abs(part).max(1, keepdims=True)
        out[:, at : at + group] = np.rint(part * inverse) * scale.astype(np.float64)
    return out


def floats(w: np.ndarray, scale: np.ndarray, zero: np.ndarray | int, size: int) -> np.ndarray:
    of = np.arange(len(w)) // size
    points = zero if isinstance(zero, int) else zero[of].astype(np.float64)
    return (w.astype(np.float64) - points) * scale[of]


def panels(a: np.ndarray, panel: int) -> np.ndarray:
    """[groups, n] → [n / panel][groups][panel]."""
    padded = np.zeros((len(a), -(-a.shape[1] // panel) * panel), a.dtype)
    padded[:, : a.shape[1]] = a
    return np.ascontiguousarray(padded.reshape(len(a), -1, panel).transpose(1, 0, 2))


def run(
    isa: str, rows: str, bits: int, vectors: int, heights: tuple[int, ...],
    m: int, n: int, k: int, group: int, shared: int, zeros: bool, cut: tuple[int, int],
) -> np.ndarray:  # fmt: skip
    text = SOURCE.replace("NV", str(vectors)).replace("HEIGHTS", ", ".join(map(str, heights)))
    product = getattr(build(text, isa), f"{rows}{bits}")
    panel = vectors * WIDTH[isa]
    rng = np.random.default_rng(n * k + bits)
    x = rng.normal(size=(m, k + 3)).astype(np.float32)
    w = rng.integers(0, 1 << bits, (k, n)).astype(np.uint8)
    scale = rng.uniform(0.5, 1.5, (-(-k // (group * shared)), n)).astype(np.float32) / np.float32(1 << bits)
    zero = rng.integers(0, 1 << bits, scale.shape).astype(np.uint8) if zeros else None
    middle = 1 << (bits - 1)
    bias = rng.normal(size=n).astype(np.float32)
    c = np.full((m, n + 1), np.nan, np.float32)
    held = [nbits_panels(w, bits, group, panel), panels(scale, panel), panels(zero, panel) if zeros else None]
    p = pointers(x, *held, c, bias)
    d = integers(k + 3, n + 1, m, n, k, group, shared, middle, *cut)
    count = -(-n // panel)
    tasks = -(-m // cut[0]) * -(-count // cut[1])
    product(p, d, ctypes.c_int64(0), ctypes.c_int64(tasks))
    read = rounded(x[:, :k], group) if rows == "RoundedRows" else x[:, :k].astype(np.float64)
    real = floats(w, scale, zero if zeros else middle, group * shared)
    want = read @ real + bias + 100 * np.arange(m)[:, None]
    assert np.isnan(c[:, n]).all(), "wrote past the last column"
    np.testing.assert_allclose(c[:, :n], want, rtol=2e-6, atol=2e-5 * k**0.5)
    whole = c.copy()
    c[:] = np.nan
    for task in reversed(range(tasks)):
        product(p, d, ctypes.c_int64(task), ctypes.c_int64(task + 1))
    np.testing.assert_array_equal(c, whole)
    return whole


SIZES = [(0, 64, 32, 1), (5, 77, 32, 1), (-3, 200, 128, 1), (3, 77, 30, 1), (7, 300, 128, 4), (1, 3, 16, 1)]
"""Columns beyond whole panels, k, group, groups that share a scale."""


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize("rows", ["RoundedRows", "PlainRows"])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("vectors", "heights"), [(4, (1,)), (2, (5, 2, 1)), (1, (3, 2))])
def test_against_floats(isa: str, rows: str, bits: int, vectors: int, heights: tuple[int, ...]) -> None:
    width = vectors * WIDTH[isa]
    counts = (1,) if heights == (1,) else (3, 8) if heights == (3, 2) else (1, 6, 23)
    for (more, k, group, shared), m, zeros in itertools.product(SIZES, counts, (False, True)):
        run(isa, rows, bits, vectors, heights, m, 2 * width + more, k, group, shared, zeros, (13 if m > 13 else m, 2))


@pytest.mark.parametrize("bits", [4, 8])
def test_sums_are_the_same_on_every_level(bits: int) -> None:
    """Whatever the level, the tile and the panel: what is rounded is rounded alike, and sums of integers are exact."""
    results = [
        run(isa, "RoundedRows", bits, 2, heights, 6, 40, 200, 64, 1, True, (6, 1))
        for isa in INT8_ISAS for heights in ((5, 2, 1), (6,))
    ]  # fmt: skip
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize("bits", [4, 8])
def test_extreme_numbers_and_zero(isa: str, bits: int) -> None:
    """All weights at their ends, x at its ends: the sums of a group stay within s32; a row of zeros gives the bias."""
    text = SOURCE.replace("NV", "1").replace("HEIGHTS", "3, 2")
    product = getattr(build(text, isa), f"RoundedRows{bits}")
    k, n = 4096, WIDTH[isa]
    x = np.zeros((2, k), np.float32)
    x[0] = np.where(np.arange(k) % 2, -3.0, 3.0)
    w = np.where(np.arange(k)[:, None] % 2, 0, (1 << bits) - 1).astype(np.uint8) * np.ones((1, n), np.uint8)
    scale, c, bias = np.ones((1, n), np.float32), np.empty((2, n), np.float32), np.zeros(n, np.float32)
    held = nbits_panels(w, bits, k, n)
    product(
        pointers(x, held, scale, None, c, bias), integers(k, n, 2, n, k, k, 1, 1 << (bits - 1), 2, 1),
        ctypes.c_int64(0), ctypes.c_int64(1),
    )  # fmt: skip
    np.testing.assert_allclose(c[0], 3.0 * k / 2 * ((1 << bits) - 1), rtol=1e-6)
    np.testing.assert_array_equal(c[1], 100)
    x[1, 5] = np.nan
    product(
        pointers(x, held, scale, None, c, bias), integers(k, n, 2, n, k, k, 1, 1 << (bits - 1), 2, 1),
        ctypes.c_int64(0), ctypes.c_int64(1),
    )  # fmt: skip
    assert np.isnan(c[1]).all() and np.isfinite(c[0]).all()
