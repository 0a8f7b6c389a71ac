from __future__ import annotations

import ctypes

import numpy as np
import pytest
from harness import INT8_ISAS, WIDTH, build, pointers

SOURCE = """
#include "base/int8.h"
using namespace opcel;
extern "C" void dots(void* const* p, int64_t count) {  // y[i] += sum over steps: x[step][.] w[step][i][.]
  vi acc = load_i((const int32_t*)p[2]), all = acc;
  for (int64_t s = 0; s < count; ++s) {
    dot(acc, set_quads((const uint8_t*)p[0] + 4 * s), load_quads((const int8_t*)p[1] + 4 * s * W));
    dot(all, load_quads((const uint8_t*)p[3] + 4 * s * W), load_quads((const int8_t*)p[1] + 4 * s * W));
  }
  store_i((int32_t*)p[4], acc);
  store_i((int32_t*)p[4] + W, all);
}
"""


def check(isa: str, count: int, x: np.ndarray, w: np.ndarray, many: np.ndarray) -> None:
    """x: [count, 4] bytes for all lanes, many: [count, lanes, 4] for each, w: [count, lanes, 4]."""
    lanes = WIDTH[isa]
    start = np.arange(lanes, dtype=np.int32) * 1000 - 3000
    y = np.full((2, lanes), 7, np.int32)
    build(SOURCE, isa).dots(pointers(x, w, start, many, y), ctypes.c_int64(count))
    wide = w.astype(np.int64)
    np.testing.assert_array_equal(y[0], start + (x.astype(np.int64)[:, None] * wide).sum((0, 2)))
    np.testing.assert_array_equal(y[1], start + (many.astype(np.int64) * wide).sum((0, 2)))


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize("count", [0, 1, 2, 7, 192, 16384])
def test_random_sums(isa: str, count: int) -> None:
    rng, lanes = np.random.default_rng(count), WIDTH[isa]
    x, many = (rng.integers(0, 256, (count, *n, 4), dtype=np.uint8) for n in ((), (lanes,)))
    check(isa, count, x, rng.integers(-128, 128, (count, lanes, 4), dtype=np.int8), many)


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize("weight", [-128, 127])
def test_the_largest_sums(isa: str, weight: int) -> None:
    """All bytes as large as they get, 65,536 products a sum: nothing saturates on the way."""
    count, lanes = 16384, WIDTH[isa]
    x, many = (np.full((count, *n, 4), 255, np.uint8) for n in ((), (lanes,)))
    check(isa, count, x, np.full((count, lanes, 4), weight, np.int8), many)


@pytest.mark.parametrize("isa", INT8_ISAS)
def test_each_byte_meets_its_own(isa: str) -> None:
    lanes = WIDTH[isa]
    for i in range(4):
        x, many = (np.zeros((1, *n, 4), np.uint8) for n in ((), (lanes,)))
        w = np.zeros((1, lanes, 4), np.int8)
        x[..., i], many[..., i], w[..., i] = 200, np.arange(lanes) + 200, np.arange(lanes) - 100
        check(isa, 1, x, w, many)
