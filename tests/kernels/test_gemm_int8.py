from __future__ import annotations

import ctypes
from math import ceil

import numpy as np
import pytest
from harness import INT8_ISAS, WIDTH, build, integers, pointers

from opcel_compiler.codegen.cpu.pack import quad_panels

ROWS = {"avx512-vnni": "12, 8, 4, 2, 1", "avx512": "8, 4, 2, 1", "avx2": "4, 2, 1", "baseline": "4, 2, 1"}

SOURCE = """
#include "kernels/gemm/dots.h"
using namespace opcel;
struct Sums {  // the sums themselves, as the bits of floats
  template <bool Tail> vf apply(vi sum, int64_t, int64_t, int64_t, int) const { return as_float(sum); }
};
struct Bytes {  // cut to bytes after a step of 1000
  template <bool Tail> vf apply(vi sum, int64_t, int64_t, int64_t, int) const {
    return min(set(255.0f), max(round_even(scaled(sum, set(0.001f))) + 128.0f, vf{}));
  }
};
struct Start {  // zero points by row; null: they are in the heads
  const uint8_t* zero;
  vi start(vi head, int64_t, int64_t row) const { return zero ? head * set_i(zero[row]) : head; }
};
template <class C, class Epi> void gemm(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  GemmDotArgs<uint8_t, C> g{(uint8_t*)p[0], 0, d[0], (int8_t*)p[1], 0, (C*)p[2], 0,
                            d[1], 1, d[2], d[3], d[4], d[5], d[6]};
  gemm_dot_tasks<NV, ROWS>(g, Epi{}, Start{(uint8_t*)p[3]}, begin, end < 0 ? gemm_task_count<NV>(g) : end);
}
extern "C" void sums(void* const* p, const int64_t* d, int64_t b, int64_t e) { gemm<float, Sums>(p, d, b, e); }
extern "C" void bytes(void* const* p, const int64_t* d, int64_t b, int64_t e) { gemm<uint8_t, Bytes>(p, d, b, e); }
"""


def library(isa: str, nv: int = 2, rows: str = "") -> ctypes.CDLL:
    return build(SOURCE.replace("NV", str(nv)).replace("ROWS", rows or ROWS[isa]), isa)


def check(
    lib: ctypes.CDLL, nr: int, x: np.ndarray, w: np.ndarray, zero: int | np.ndarray, rows: int, panels: int,
    dtype: type = np.int32,
) -> None:  # fmt: skip
    """The sums of x - zero and w, by tasks in reverse; bytes a row of x padded with others than zero."""
    (m, k), n = x.shape, w.shape[1]
    quads = ceil(k / 4) * 4
    a = np.full((m, quads + 4), 201, np.uint8)
    a[:, :k] = x
    by_row = isinstance(zero, np.ndarray)
    packed = quad_panels(w, nr, 1 if by_row else int(zero))
    guard = 77
    c = np.full((m, n + 1), guard, dtype)
    p = pointers(a, packed, c, zero if by_row else None)
    d = integers(quads + 4, n + 1, m, n, k, rows, panels)
    call = lib.sums if dtype == np.int32 else lib.bytes
    for task in reversed(range(ceil(ceil(n / nr) / panels) * ceil(m / rows))):
        call(p, d, ctypes.c_int64(task), ctypes.c_int64(task + 1))
    offset = zero.reshape(-1, 1) if by_row else zero
    want = (x.astype(np.int64) - offset) @ w.astype(np.int64)
    assert np.abs(want).max(initial=0) < 2**31
    if dtype == np.uint8:
        want = np.clip(np.rint(want.astype(np.float32) * np.float32(0.001)) + 128, 0, 255)
    np.testing.assert_array_equal(c[:, :n], want)
    assert (c[:, n] == guard).all(), "wrote past the last column"


def data(m: int, k: int, n: int) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(m * 1000 + n + k)
    return rng.integers(0, 256, (m, k), dtype=np.uint8), rng.integers(-128, 128, (k, n), dtype=np.int8), rng


SHAPES = [(1, 1, 1), (12, 16, 32), (29, 33, 70), (197, 7, 64), (5, 50, 17), (26, 65, 96), (3, 4097, 40)]


@pytest.mark.parametrize("isa", INT8_ISAS)
def test_sums_and_bytes(isa: str) -> None:
    for m, k, n in SHAPES:
        x, w, rng = data(m, k, n)
        for dtype in (np.int32, np.uint8):
            for zero in (0, 255, rng.integers(0, 256, m, dtype=np.uint8)):
                for rows, panels in ((m, 1000), (12, 1), (5, 2)):
                    check(library(isa), 2 * WIDTH[isa], x, w, zero, rows, panels, dtype)


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize(("nv", "rows"), [(1, "4, 1"), (4, "4, 3, 2, 1")])
def test_other_tiles(isa: str, nv: int, rows: str) -> None:
    for m, k, n in ((7, 77, 100), (4, 257, 5)):
        x, w, _ = data(m, k, n)
        check(library(isa, nv, rows), nv * WIDTH[isa], x, w, 100, m, 100)


@pytest.mark.parametrize("isa", INT8_ISAS)
def test_the_longest_sums(isa: str) -> None:
    """65,536 products, random and as large as they get; a sum may wrap around on its way."""
    x, w, _ = data(2, 65536, 40)
    check(library(isa), 2 * WIDTH[isa], x, w, 128, 2, 1)
    check(library(isa), 2 * WIDTH[isa], np.full_like(x, 255), np.full_like(w, -128), 0, 2, 1)
    check(library(isa), 2 * WIDTH[isa], np.zeros_like(x), np.full_like(w, -128), 255, 2, 1)
