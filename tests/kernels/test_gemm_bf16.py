from __future__ import annotations

import ctypes
from math import ceil

import ml_dtypes
import numpy as np
import pytest
from harness import BF16_ISAS, WIDTH, build, integers, pointers

from opcel_compiler.codegen.cpu.pack import group_panels

BF16 = np.dtype(ml_dtypes.bfloat16)
ROWS = {"avx512-bf16": "14, 8, 4, 2, 1", "avx512": "14, 8, 4, 2, 1", "avx2": "6, 4, 2, 1", "baseline": "4, 2, 1"}

SOURCE = """
#include "kernels/gemm/dots.h"
using namespace opcel;
struct Epi {  // c + bias[col] + 100 * batch + row
  const float* bias;
  template <bool Tail> vf apply(vf v, int64_t batch, int64_t row, int64_t col, int lanes) const {
    return v + load_t<Tail>(bias + col, lanes) + set(100.0f * batch + row);
  }
};
template <class C> void gemm(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  GemmDotArgs<bf16, C> g{(bf16*)p[0], d[0], d[1], (bf16*)p[1], d[2], (C*)p[2], d[3], d[4],
                    d[5], d[6], d[7], d[8], d[9], d[10]};
  gemm_dot_tasks<NV, ROWS>(g, Epi{(float*)p[3]}, NoStart{}, begin, end < 0 ? gemm_task_count<NV>(g) : end);
}
extern "C" void gemm_f32(void* const* p, const int64_t* d, int64_t b, int64_t e) { gemm<float>(p, d, b, e); }
extern "C" void gemm_bf16(void* const* p, const int64_t* d, int64_t b, int64_t e) { gemm<bf16>(p, d, b, e); }
extern "C" void round_rows(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  group_rows_tasks(GroupRowsArgs<float, bf16>{(float*)p[0], d[0], (bf16*)p[1], d[1], d[2], d[3]}, begin, end);
}
"""


def library(isa: str, nv: int = 2, rows: str = "") -> ctypes.CDLL:
    return build(SOURCE.replace("NV", str(nv)).replace("ROWS", rows or ROWS[isa]), isa)


def run(
    lib: ctypes.CDLL, nr: int, shape: tuple[int, int, int, int], rows: int, panels: int, whole: bool = True,
    dtype: np.dtype = BF16,
) -> np.ndarray:  # fmt: skip
    """C with a guard column on the right, computed in one call or task by task in reverse. A's rows are padded."""
    batch, m, n, k = shape
    even = k + k % 2
    rng = np.random.default_rng(m * 1000 + n)
    a = np.full((batch, m, even + 4), np.nan, BF16)
    a[:, :, :even] = 0
    a[:, :, :k] = rng.normal(size=(batch, m, k))
    b = rng.normal(size=(batch, k, n)).astype(BF16)
    bias = rng.normal(size=n).astype(np.float32)
    c = np.full((batch, m, n + 1), np.nan, dtype)
    packed = group_panels(b, nr, 2)
    per_batch = packed.size // batch
    p = pointers(a, packed, c, bias)
    d = integers(m * (even + 4), even + 4, per_batch, m * (n + 1), n + 1, batch, m, n, k, rows, panels)
    call = lib.gemm_f32 if dtype == np.float32 else lib.gemm_bf16
    if whole:
        call(p, d, ctypes.c_int64(0), ctypes.c_int64(-1))
    else:
        for task in reversed(range(batch * ceil(ceil(n / nr) / panels) * ceil(m / rows))):
            call(p, d, ctypes.c_int64(task), ctypes.c_int64(task + 1))
    want = np.matmul(a[:, :, :k].astype(np.float64), b.astype(np.float64)) + bias
    want += 100 * np.arange(batch)[:, None, None] + np.arange(m)[None, :, None]
    assert np.isnan(c[:, :, n].astype(np.float32)).all(), "wrote past the last column"
    got = c[:, :, :n].astype(np.float64)
    relative = 1e-5 if dtype == np.float32 else 2**-8
    np.testing.assert_allclose(got, want, rtol=relative, atol=2e-5 * max(k, 1) ** 0.5)
    return got


SHAPES = [
    (1, 1, 1, 1),
    (1, 14, 32, 16),
    (2, 29, 70, 33),
    (1, 197, 64, 7),
    (3, 5, 17, 50),
    (1, 26, 96, 65),
    (1, 3, 129, 0),
]


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16])
def test_gemm(isa: str, shape: tuple[int, int, int, int], dtype: np.dtype) -> None:
    run(library(isa), 2 * WIDTH[isa], shape, rows=shape[1], panels=1000, dtype=dtype)


@pytest.mark.parametrize("isa", BF16_ISAS)
def test_results_do_not_depend_on_tasks(isa: str) -> None:
    lib, nr = library(isa), 2 * WIDTH[isa]
    whole = run(lib, nr, (2, 37, 90, 45), rows=37, panels=99, dtype=np.dtype(np.float32))
    for rows, panels in ((14, 1), (5, 2), (1, 3)):
        part = run(lib, nr, (2, 37, 90, 45), rows, panels, whole=False, dtype=np.dtype(np.float32))
        np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize(("nv", "rows"), [(1, "4, 1"), (4, "4, 3, 2, 1")])
def test_other_tiles(isa: str, nv: int, rows: str) -> None:
    for shape in ((1, 7, 100, 77), (1, 4, 5, 257)):
        run(library(isa, nv, rows), nv * WIDTH[isa], shape, rows=shape[1], panels=100)


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize("k", [1, 6, 37, 64])
def test_round(isa: str, k: int) -> None:
    x = np.random.default_rng(k).normal(size=(7, k + 5)).astype(np.float32)
    y = np.full((8, k + k % 2), np.nan, BF16)
    library(isa).round_rows(pointers(x, y), integers(k + 5, 7, k, 2), ctypes.c_int64(0), ctypes.c_int64(4))
    np.testing.assert_array_equal(y[:7, :k], x[:, :k].astype(BF16))
    assert (y[:7, k:] == 0).all() and np.isnan(y[7].astype(np.float32)).all()
