from __future__ import annotations

import ctypes

import numpy as np
import pytest
from harness import ISAS, WIDTH, build, integers, pointers

ROWS = {"avx512": "14, 8, 4, 2, 1", "avx2": "6, 4, 2, 1", "baseline": "4, 2, 1"}

SOURCE = """
#include "kernels/gemm/packed.h"
#include "kernels/matmul/reference.h"
using namespace opcel;
struct Epi {  // c + bias[col] + 100 * batch + row
  const float* bias;
  template <bool Tail> vf apply(vf v, int64_t batch, int64_t row, int64_t col, int lanes) const {
    return v + load_t<Tail>(bias + col, lanes) + set(100.0f * batch + row);
  }
  void prefetch(int64_t, int64_t row, int64_t) const { reads[row]++; }
  int64_t* reads;
};
extern "C" void gemm(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  GemmArgs g{(float*)p[0], d[0], d[1], (float*)p[1], d[2], (float*)p[2], d[3], d[4],
             d[5], d[6], d[7], d[8], d[9], d[10]};
  gemm_tasks<NV, ROWS>(g, Epi{(float*)p[3], (int64_t*)p[4]}, begin, end < 0 ? gemm_task_count<NV>(g) : end);
}
extern "C" int width() { return W; }
extern "C" void pack(void* const* p, const int64_t* d) {
  PackArgs a{(float*)p[0], d[0], d[1], d[2], (float*)p[1], d[3], d[4], d[5], d[6]};
  pack_b_tasks<NV>(a, 0, pack_b_task_count<NV>(a));
}
template <class T> void product(void* const* p, const int64_t* d) {
  MatmulReferenceArgs<T> a{(T*)p[0], d[0], d[1], (T*)p[1], d[2], d[3], (T*)p[2], d[4], d[5], d[6], 2,
                           {d[7], d[8]}, {d[9], d[10]}, {d[11], d[12]}};
  matmul_reference_tasks(a, 0, matmul_reference_task_count(a));
}
extern "C" void product_f64(void* const* p, const int64_t* d) { product<double>(p, d); }
extern "C" void product_i32(void* const* p, const int64_t* d) { product<int32_t>(p, d); }
extern "C" void product_u8(void* const* p, const int64_t* d) { product<uint8_t>(p, d); }
"""


def library(isa: str, nv: int = 2, rows: str = "") -> ctypes.CDLL:
    return build(SOURCE.replace("NV", str(nv)).replace("ROWS", rows or ROWS[isa]), isa)


def pack_columns(b: np.ndarray, nr: int) -> np.ndarray:
    """[batch, k, n] to [batch, ceil(n / nr), k, nr]."""
    batch, k, n = b.shape
    padded = np.zeros((batch, k, -(-n // nr) * nr), np.float32)
    padded[:, :, :n] = b
    return np.ascontiguousarray(padded.reshape(batch, k, padded.shape[2] // nr, nr).transpose(0, 2, 1, 3))


def run(
    lib: ctypes.CDLL, nr: int, shape: tuple[int, int, int, int], rows: int, panels: int, whole: bool = True
) -> np.ndarray:
    """C with a guard column on the right, computed in one call or task by task in reverse."""
    batch, m, n, k = shape
    rng = np.random.default_rng(m * 1000 + n)
    a = rng.normal(size=(batch, m, k + 3)).astype(np.float32)
    b = rng.normal(size=(batch, k, n)).astype(np.float32)
    bias = rng.normal(size=n).astype(np.float32)
    c = np.full((batch, m, n + 1), np.nan, np.float32)
    packed = pack_columns(b, nr)
    reads = np.zeros(m, np.int64)
    p = pointers(a, packed, c, bias, reads)
    d = integers(m * (k + 3), k + 3, packed[0].size, m * (n + 1), n + 1, batch, m, n, k, rows, panels)
    if whole:
        lib.gemm(p, d, ctypes.c_int64(0), ctypes.c_int64(-1))
    else:
        tasks = batch * -(-packed.shape[1] // panels) * -(-m // rows)
        for task in reversed(range(tasks)):
            lib.gemm(p, d, ctypes.c_int64(task), ctypes.c_int64(task + 1))
    want = np.matmul(a[:, :, :k].astype(np.float64), b) + bias
    want += 100 * np.arange(batch)[:, None, None] + np.arange(m)[None, :, None]
    assert (reads == packed.shape[0] * packed.shape[1] * (nr // lib.width())).all(), "each vector is announced once"
    assert np.isnan(c[:, :, n]).all(), "wrote past the last column"
    np.testing.assert_allclose(c[:, :, :n], want, rtol=1e-5, atol=2e-5 * k**0.5)
    return c[:, :, :n].copy()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (1, 14, 32, 16), (2, 29, 70, 33), (1, 197, 64, 7), (3, 5, 17, 50), (1, 128, 96, 64), (1, 3, 129, 0)],
)
def test_gemm(isa: str, shape: tuple[int, int, int, int]) -> None:
    lib, nr = library(isa), 2 * WIDTH[isa]
    run(lib, nr, shape, rows=shape[1], panels=1000)


@pytest.mark.parametrize("isa", ISAS)
def test_gemm_results_do_not_depend_on_tasks(isa: str) -> None:
    lib, nr = library(isa), 2 * WIDTH[isa]
    whole = run(lib, nr, (2, 37, 90, 45), rows=37, panels=99)
    for rows, panels in ((14, 1), (5, 2), (1, 3)):
        np.testing.assert_array_equal(run(lib, nr, (2, 37, 90, 45), rows, panels, whole=False), whole)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("nv", "rows"), [(1, "1"), (2, "4, 2, 1"), (4, "2, 1"), (4, "4, 3, 2, 1")])
def test_few_rows(isa: str, nv: int, rows: str) -> None:
    lib, nr = library(isa, nv, rows), nv * WIDTH[isa]
    for m in (1, 2, 3, 4):
        for n, k in ((1, 3), (64, 64), (100, 77), (5, 257)):
            run(lib, nr, (1, m, n, k), rows=m, panels=100)


@pytest.mark.parametrize("isa", ISAS)
def test_two_heights_one_apart_cut_exactly(isa: str) -> None:
    """ceil(m / tallest) tiles of h or h - 1 rows, h = ceil(m / tiles), cover any m without smaller tiles."""
    for height in (3, 4):
        lib = library(isa, 1, f"{height}, {height - 1}")
        for m in (m for m in range(1, 40) if -(-m // -(-m // 4)) == height):
            run(lib, WIDTH[isa], (1, m, 5, 3), rows=m, panels=9)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("transposed", [False, True])
def test_pack(isa: str, transposed: bool) -> None:
    lib, nr = library(isa), 2 * WIDTH[isa]
    b = np.random.default_rng(0).normal(size=(3, 19, 71)).astype(np.float32)
    want = pack_columns(b, nr)
    source = np.ascontiguousarray(b.transpose(0, 2, 1)) if transposed else b
    strides = (1, 19) if transposed else (71, 1)
    packed = np.full_like(want, np.nan)
    lib.pack(pointers(source, packed), integers(19 * 71, *strides, want[0].size, 3, 19, 71))
    np.testing.assert_array_equal(packed, want)


@pytest.mark.parametrize(("name", "dtype"), [("f64", np.float64), ("i32", np.int32), ("u8", np.uint8)])
def test_reference_product(name: str, dtype: type) -> None:
    lib = library(ISAS[0])
    rng = np.random.default_rng(1)
    a = (rng.normal(size=(2, 1, 5, 7)) * 1e5).astype(np.int64).astype(dtype)
    b = (rng.normal(size=(3, 4, 7)) * 1e5).astype(np.int64).astype(dtype)
    c = np.zeros((2, 3, 5, 4), dtype)
    getattr(lib, f"product_{name}")(pointers(a, b, c), integers(7, 1, 1, 7, 5, 4, 7, 2, 3, 35, 0, 0, 28))
    np.testing.assert_array_equal(c, np.matmul(a, b.transpose(0, 2, 1)))
