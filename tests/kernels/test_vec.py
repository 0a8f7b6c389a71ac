from __future__ import annotations

import ctypes

import numpy as np
import pytest
from harness import ISAS, WIDTH, build

SOURCE = """
#include "base/vec.h"
using namespace opcel;
#define UNARY(NAME, EXPR) \\
  extern "C" void NAME(const float* x, float* y, int n) { \\
    for (int i = 0; i < n; i += W) { vf v = load(x + i); store(y + i, EXPR); } \\
  }
UNARY(v_abs, abs(v))
UNARY(v_sqrt, sqrt(v))
UNARY(v_floor, floor(v))
UNARY(v_ceil, ceil(v))
UNARY(v_round, round_even(v))
UNARY(v_trunc, to_float(to_int(v)))
UNARY(v_negate, copysign(v, set(-1.0f)))
extern "C" void v_copy_n(const float* x, float* y, int n) { store_n(y, load_n(x, n), n); }
extern "C" void v_load_n(const float* x, float* y, int n) { store(y, load_n(x, n)); }
extern "C" void v_max(const float* a, const float* b, float* y) { store(y, max(load(a), load(b))); }
extern "C" void v_min(const float* a, const float* b, float* y) { store(y, min(load(a), load(b))); }
extern "C" void v_select(const float* a, const float* b, float* y) {
  store(y, select(load(a) < load(b), load(a), load(b)));
}
extern "C" void v_fma(const float* a, const float* b, float* y) { store(y, fma(load(a), load(b), set(1.5f))); }
extern "C" float h_sum(const float* a) { return hsum(load(a)); }
extern "C" float h_max(const float* a) { return hmax(load(a)); }
extern "C" float h_min(const float* a) { return hmin(load(a)); }
extern "C" int v_width() { return W; }
"""


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


@pytest.fixture(params=ISAS)
def lib(request: pytest.FixtureRequest) -> ctypes.CDLL:
    library = build(SOURCE, request.param)
    for name in ("h_sum", "h_max", "h_min"):
        getattr(library, name).restype = ctypes.c_float
    assert library.v_width() == WIDTH[request.param]
    return library


SPECIALS = [0.0, -0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.3, -0.3, -0.7, 8388607.5, -8388607.5, 1e30, -1e30, 1e-40]
SPECIALS += [np.inf, -np.inf, np.nan]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("v_abs", np.abs),
        ("v_sqrt", np.sqrt),
        ("v_floor", np.floor),
        ("v_ceil", np.ceil),
        ("v_round", np.rint),
        ("v_negate", lambda x: -np.abs(x)),
    ],
)
def test_unary_is_bit_exact(lib: ctypes.CDLL, name: str, function: object) -> None:
    x = np.concatenate([np.array(SPECIALS), np.random.default_rng(0).normal(0, 100, 78)]).astype(np.float32)
    y = np.empty_like(x)
    getattr(lib, name)(pointer(x), pointer(y), len(x))
    with np.errstate(invalid="ignore"):
        want = function(x)  # type: ignore[operator]
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    finite = ~np.isnan(want)
    np.testing.assert_array_equal(y[finite].view(np.int32), want[finite].view(np.int32))


def test_truncation(lib: ctypes.CDLL) -> None:
    x = np.linspace(-70000.7, 70000.3, 64).astype(np.float32)
    y = np.empty_like(x)
    lib.v_trunc(pointer(x), pointer(y), len(x))
    np.testing.assert_array_equal(y, np.trunc(x))


def test_partial_load_and_store_stay_inside(lib: ctypes.CDLL) -> None:
    width = lib.v_width()
    for n in range(width + 1):
        x = np.arange(1, width + 1, dtype=np.float32)
        y = np.full(width, -7, np.float32)
        lib.v_load_n(pointer(x), pointer(y), n)
        np.testing.assert_array_equal(y, np.where(np.arange(width) < n, x, 0))
        y[:] = -7
        lib.v_copy_n(pointer(x), pointer(y), n)
        np.testing.assert_array_equal(y, np.where(np.arange(width) < n, x, -7))


def test_max_min_propagate_nan_of_the_second_operand(lib: ctypes.CDLL) -> None:
    width = lib.v_width()
    a = np.resize(np.array([1, np.nan, 3, -0.0], np.float32), width)
    b = np.resize(np.array([np.nan, 2, 2, 0.0], np.float32), width)
    y = np.empty(width, np.float32)
    lib.v_max(pointer(a), pointer(b), pointer(y))
    np.testing.assert_array_equal(y, np.resize(np.array([np.nan, 2, 3, 0], np.float32), width))
    lib.v_min(pointer(a), pointer(b), pointer(y))
    np.testing.assert_array_equal(y, np.resize(np.array([np.nan, 2, 2, 0], np.float32), width))


def test_select_and_fma(lib: ctypes.CDLL) -> None:
    width = lib.v_width()
    a, b = np.random.default_rng(1).normal(size=(2, width)).astype(np.float32)
    y = np.empty(width, np.float32)
    lib.v_select(pointer(a), pointer(b), pointer(y))
    np.testing.assert_array_equal(y, np.minimum(a, b))
    lib.v_fma(pointer(a), pointer(b), pointer(y))
    np.testing.assert_allclose(y, a.astype(np.float64) * b + 1.5, rtol=1e-6)


def test_horizontal(lib: ctypes.CDLL) -> None:
    width = lib.v_width()
    for lane in range(width):
        x = np.zeros(width, np.float32)
        x[lane] = 3
        assert (lib.h_sum(pointer(x)), lib.h_max(pointer(x)), lib.h_min(pointer(-x))) == (3, 3, -3)
        x[lane] = np.nan
        assert np.isnan(lib.h_sum(pointer(x))) and np.isnan(lib.h_max(pointer(x))) and np.isnan(lib.h_min(pointer(x)))
