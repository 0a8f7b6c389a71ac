"""Products of a few rows with packed weights in f32 and bf16."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from harness import BF16_ISAS, WIDTH, build, integers, pointers
from ml_dtypes import bfloat16

SOURCE = """
#include "kernels/gemm/vector.h"
using namespace opcel;
struct Epi {  // c + bias[col] + 100 * row
  const float* bias;
  template <bool Tail> vf apply(vf v, int64_t, int64_t row, int64_t col, int lanes) const {
    return v + load_t<Tail>(bias + col, lanes) + set(100.0f * row);
  }
};
extern "C" void product(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  const VectorArgs<T> args{(float*)p[0], d[0], (T*)p[1], (float*)p[2], d[1], d[2], d[3], d[4]};
  vector_tasks<ROWS, NV>(args, Epi{(float*)p[3]}, begin, end);
}
"""


def run(isa: str, dtype: type, rows: int, vectors: int, n: int, k: int, per_task: int) -> None:
    held = "bf16" if dtype is bfloat16 else "float"
    text = SOURCE.replace("VectorArgs<T>", f"VectorArgs<{held}>").replace("(T*)", f"({held}*)")
    lib: ctypes.CDLL = build(text.replace("ROWS", str(rows)).replace("NV", str(vectors)), isa)
    panel = vectors * WIDTH[isa]
    panels = -(-n // panel)
    rng = np.random.default_rng(n * k)
    a = rng.normal(size=(rows, k + 3)).astype(np.float32)
    b = rng.normal(size=(k, n)).astype(dtype)
    bias = rng.normal(size=n).astype(np.float32)
    padded = np.zeros((k, panels * panel), dtype)
    padded[:, :n] = b
    packed = np.ascontiguousarray(padded.reshape(k, panels, panel).transpose(1, 0, 2))
    c = np.full((rows, n + 1), np.nan, np.float32)
    p, d = pointers(a, packed, c, bias), integers(k + 3, n + 1, n, k, per_task)
    tasks = -(-panels // per_task)
    lib.product(p, d, ctypes.c_int64(0), ctypes.c_int64(tasks))
    want = a[:, :k].astype(np.float64) @ b.astype(np.float64) + bias + 100 * np.arange(rows)[:, None]
    assert np.isnan(c[:, n]).all(), "wrote past the last column"
    np.testing.assert_allclose(c[:, :n], want, rtol=1e-5, atol=2e-5 * k**0.5)
    whole = c.copy()
    c[:] = np.nan
    for task in reversed(range(tasks)):
        lib.product(p, d, ctypes.c_int64(task), ctypes.c_int64(task + 1))
    np.testing.assert_array_equal(c, whole)


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize("dtype", [np.float32, bfloat16])
@pytest.mark.parametrize(("rows", "vectors"), [(1, 8), (1, 1), (2, 4), (3, 2), (4, 1)])
def test_few_rows(isa: str, dtype: type, rows: int, vectors: int) -> None:
    width = vectors * WIDTH[isa]
    for n, k in ((1, 3), (3 * width, 64), (2 * width + 5, 77), (width - 1, 1100), (width, 0)):
        run(isa, dtype, rows, vectors, n, k, per_task=2)
