from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest
from harness import BF16_ISAS, WIDTH, build, pointers

SOURCE = """
#include "base/bf16.h"
#include "base/vmath.h"
using namespace opcel;
extern "C" void narrow(void* const* p, int64_t n) { round_row((bf16*)p[1], (const float*)p[0], n); }
extern "C" void widen(void* const* p, int n) {
  store_n((float*)p[1], load_n((const bf16*)p[0], n), n);
  if (n == W) store((float*)p[1] + W, load((const bf16*)p[0]));
}
extern "C" void pairs_of(void* const* p) {
  const pairs v = interleave(load((const float*)p[0]), load((const float*)p[1]));
  store_pairs((bf16*)p[2], v);
  store((float*)p[3], first_of(v));
  store((float*)p[4], second_of(v));
}
extern "C" void dot_of(void* const* p) {
  vf acc = load((const float*)p[2]), one = acc;
  dot(acc, load_pairs((const bf16*)p[0]), load_pairs((const bf16*)p[1]));
  dot(one, set_pair((const bf16*)p[0] + 2), load_pairs((const bf16*)p[1]));
  store((float*)p[3], acc);
  store((float*)p[4], one);
}
"""
BF16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture(params=BF16_ISAS)
def lib(request: pytest.FixtureRequest) -> tuple[ctypes.CDLL, int]:
    return build(SOURCE, request.param), WIDTH[request.param]


def narrow(lib: ctypes.CDLL, x: np.ndarray) -> np.ndarray:
    """x as bf16, after a guard that must stay as it is."""
    out = np.full(len(x) + 3, 7, BF16)
    lib.narrow(pointers(x, out), ctypes.c_int64(len(x)))
    assert (out[len(x) :] == 7).all(), "wrote past the end"
    return out[: len(x)]


def test_rounds_to_nearest_even(lib: tuple[ctypes.CDLL, int]) -> None:
    """Every bf16, the points halfway between neighbours, and those just beside them."""
    upper = np.arange(0x80, 0x7F80, 7, dtype=np.uint32) << 16
    bits = np.concatenate([upper + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    x = np.concatenate([bits, bits | 0x80000000]).astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(narrow(lib[0], x).view(np.uint16), x.astype(BF16).view(np.uint16))


def test_special_values(lib: tuple[ctypes.CDLL, int]) -> None:
    x = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1, -2.5] * 3, np.float32)
    np.testing.assert_array_equal(narrow(lib[0], x).astype(np.float32), x.astype(BF16).astype(np.float32))
    quiet = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.isnan(narrow(lib[0], np.resize(quiet, 16)).astype(np.float32)).all()


def test_tails(lib: tuple[ctypes.CDLL, int]) -> None:
    library, width = lib
    for n in range(2 * width + 1):
        x = np.random.default_rng(n).normal(size=n).astype(np.float32)
        np.testing.assert_array_equal(narrow(library, x), x.astype(BF16))
    x = np.random.default_rng(0).normal(size=width).astype(BF16)
    for n in range(width + 1):
        y = np.full(2 * width, -7, np.float32)
        library.widen(pointers(x, y), n)
        np.testing.assert_array_equal(y[:n], x[:n].astype(np.float32))
        if n == width:
            np.testing.assert_array_equal(y[width:], x.astype(np.float32))
        else:
            assert (y[n:] == -7).all()


def test_pairs(lib: tuple[ctypes.CDLL, int]) -> None:
    library, width = lib
    a, b = np.random.default_rng(0).normal(size=(2, width)).astype(np.float32)
    mixed, first, second = np.empty(2 * width, BF16), np.empty(width, np.float32), np.empty(width, np.float32)
    library.pairs_of(pointers(a, b, mixed, first, second))
    np.testing.assert_array_equal(mixed, np.stack([a, b], 1).reshape(-1).astype(BF16))
    np.testing.assert_array_equal(first, a.astype(BF16).astype(np.float32))
    np.testing.assert_array_equal(second, b.astype(BF16).astype(np.float32))


def test_dot(lib: tuple[ctypes.CDLL, int]) -> None:
    library, width = lib
    a, b = np.random.default_rng(1).normal(size=(2, width, 2)).astype(BF16)
    start = np.random.default_rng(2).normal(size=width).astype(np.float32)
    got, one = np.empty(width, np.float32), np.empty(width, np.float32)
    library.dot_of(pointers(a, b, start, got, one))
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    np.testing.assert_allclose(got, start + (a64 * b64).sum(1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(one, start + (a64[1] * b64).sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", BF16_ISAS)
def test_denormals_count_as_zero_only_with_the_instructions(isa: str) -> None:
    library, width = build(SOURCE, isa), WIDTH[isa]
    tiny = np.full(width, 1e-39, np.float32)
    kept = narrow(library, tiny).astype(np.float32)
    a, b = np.full((2, width, 2), 1e-39, BF16), np.full((2, width, 2), 1e30, BF16)
    got, one = np.empty(width, np.float32), np.empty(width, np.float32)
    library.dot_of(pointers(a[0], b[0], np.zeros(width, np.float32), got, one))
    if isa == "avx512-bf16":
        assert (kept == 0).all() and (got == 0).all()
    else:
        assert (kept > 0).all()
        np.testing.assert_allclose(got, 2 * float(a[0, 0, 0]) * 1e30, rtol=0.01)
