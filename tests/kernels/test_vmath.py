"""Accuracy and special values of the vector functions, against float64."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import numpy as np
import pytest
from harness import ISAS, build

Function = Callable[[np.ndarray], np.ndarray]

UNARY = "reciprocal rsqrt exp exp_nonpositive log tanh sigmoid silu softplus erf gelu_erf gelu_tanh sin cos".split()
UNARY += "asin acos atan sinh cosh asinh acosh atanh".split()

SOURCE = (
    """
#include "base/vmath.h"
using opcel::W; using opcel::load; using opcel::store;
#define UNARY(NAME) \\
  extern "C" void v_##NAME(const float* x, float* y, int n) { \\
    for (int i = 0; i < n; i += W) store(y + i, opcel::NAME(load(x + i))); \\
  } \\
  extern "C" void s_##NAME(const float* x, float* y, int n) { \\
    for (int i = 0; i < n; ++i) y[i] = opcel::NAME(x[i]); \\
  }
extern "C" void v_pow(const float* a, const float* b, float* y, int n) {
  for (int i = 0; i < n; i += W) store(y + i, opcel::pow(load(a + i), load(b + i)));
}
extern "C" void s_pow(const float* a, const float* b, float* y, int n) {
  for (int i = 0; i < n; ++i) y[i] = opcel::pow(a[i], b[i]);
}
"""
    + "\n".join(f"UNARY({name})" for name in UNARY)
    + "\n"
)

_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])
_sin = np.vectorize(math.sin, otypes=[np.float64])
_cos = np.vectorize(math.cos, otypes=[np.float64])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(x))
    out: np.ndarray = np.where(x < 0, e, 1.0) / (1 + e)
    return out


REFERENCE: dict[str, Function] = {
    "reciprocal": lambda x: 1 / x,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "exp": np.exp,
    "exp_nonpositive": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
    "softplus": lambda x: np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x))),
    "erf": _erf,
    "gelu_erf": lambda x: x * _erfc(-x / math.sqrt(2)) / 2,
    "gelu_tanh": lambda x: x * _sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    "sin": _sin,
    "cos": _cos,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
}


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def call(isa: str, name: str, *inputs: np.ndarray) -> np.ndarray:
    """Function `name` of the library over arrays of any length (padded here to whole vectors)."""
    size = len(inputs[0])
    padded = [np.resize(np.asarray(x, np.float32), -(-size // 16) * 16) for x in inputs]
    y = np.empty_like(padded[0])
    getattr(build(SOURCE, isa), name)(*map(pointer, padded), pointer(y), len(y))
    return y[:size]


def ulps(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """|got - want| in units of the spacing of float32 at want."""
    spacing = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    error: np.ndarray = np.abs(got.astype(np.float64) - want) / spacing
    return error


def spread(low: float, high: float, count: int = 60_000) -> np.ndarray:
    """Samples of [low, high]: even ones, and magnitudes from 1e-38 up evenly in the logarithm."""
    magnitudes = np.exp(np.linspace(math.log(1e-38), math.log(max(abs(low), abs(high))), count))
    x = np.concatenate([np.linspace(low, high, count), magnitudes, -magnitudes]).astype(np.float32)
    return x[(x >= low) & (x <= high)]


RANGES: list[tuple[str, float, float, float]] = [
    # name, low, high, largest error in ulp
    ("reciprocal", 1e-30, 1e30, 0.51),
    ("rsqrt", 1e-30, 1e30, 1.5),
    ("exp", -103, 88.7, 1.2),
    ("exp_nonpositive", -87, 0, 1.2),
    ("log", 1e-44, 3e38, 1.0),
    ("tanh", -12, 12, 2.5),
    ("sigmoid", -103, 90, 2.5),
    ("silu", -87, 90, 3.5),
    ("softplus", -103, 90, 2.5),
    ("erf", -5, 5, 2.5),
    ("gelu_erf", -1, 20, 3.0),
    ("gelu_erf", -5.5, -1, 60.0),
    ("gelu_tanh", -1, 20, 3.0),
    ("gelu_tanh", -5.5, -1, 60.0),
    ("sin", -1.5, 1.5, 1.5),
    ("cos", -1.5, 1.5, 1.5),
    ("asin", -1, 1, 2.5),
    ("acos", -1, 1, 2.5),
    ("atan", -8, 8, 2.5),
    ("atan", -1e30, 1e30, 2.5),
    ("sinh", -89.4, 89.4, 4.0),
    ("cosh", -89.4, 89.4, 4.0),
    ("asinh", -20, 20, 3.0),
    ("asinh", -3e38, 3e38, 3.0),
    ("acosh", 1, 20, 4.0),
    ("acosh", 1, 3e38, 4.0),
    ("atanh", -1 + 1e-7, 1 - 1e-7, 2.5),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("name", "low", "high", "bound"), RANGES)
def test_error_stays_within_the_stated_ulps(isa: str, name: str, low: float, high: float, bound: float) -> None:
    x = spread(low, high)
    want = REFERENCE[name](x.astype(np.float64))
    got = call(isa, f"v_{name}", x)
    error = ulps(got, want)
    worst = int(np.argmax(error))
    assert error[worst] <= bound, (x[worst], got[worst], want[worst], error[worst])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["gelu_erf", "gelu_tanh"])
@pytest.mark.parametrize(("low", "high", "bound"), [(-5.5, -1, 5e-8), (-60, -5.5, 1e-12)])
def test_absolute_error_of_negative_gelu(isa: str, name: str, low: float, high: float, bound: float) -> None:
    x = np.linspace(low, high, 50_000).astype(np.float32)
    assert np.abs(call(isa, f"v_{name}", x) - REFERENCE[name](x.astype(np.float64))).max() <= bound


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["sin", "cos"])
def test_sine_of_large_arguments(isa: str, name: str) -> None:
    rng = np.random.default_rng(3)
    multiples = (np.arange(1, 3800) * (math.pi / 2)).astype(np.float32)
    spread_out = [rng.uniform(-7000, 7000, 20_000), rng.uniform(-1e30, 1e30, 500)]
    x = np.concatenate([multiples, -multiples, *spread_out]).astype(np.float32)
    want = REFERENCE[name](x.astype(np.float64))
    got = call(isa, f"v_{name}", x)
    excess = np.abs(got - want) - 2.0 * np.spacing(np.abs(want).astype(np.float32))
    assert excess.max() <= 2.0**-30


@pytest.mark.parametrize("isa", ISAS)
def test_pow_matches_float64(isa: str) -> None:
    rng = np.random.default_rng(4)
    bases = [np.exp(rng.uniform(-80, 80, 30_000)), rng.uniform(0.5, 2, 20_000), -np.exp(rng.uniform(-3, 3, 10_000))]
    powers = [rng.uniform(-3, 3, 30_000), rng.uniform(-120, 120, 20_000), rng.integers(-9, 9, 10_000)]
    x, y = np.concatenate(bases).astype(np.float32), np.concatenate(powers).astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64))
        narrow = want.astype(np.float32)
    got = call(isa, "v_pow", x, y)
    finite = np.isfinite(narrow)
    np.testing.assert_array_equal(got[~finite], narrow[~finite])
    assert ulps(got[finite], want[finite]).max() <= 0.6


@pytest.mark.parametrize("isa", ISAS)
def test_pow_special_cases_are_those_of_c(isa: str) -> None:
    finite = [0.0, -0.0, 1, -1, 2, -2, 3, -3, 0.5, -0.5, 1.5, 16777217, 1e30, -1e30, 1e-40]
    values = np.array([*finite, np.inf, -np.inf, np.nan], np.float32)
    x, y = (grid.ravel() for grid in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        want = np.power(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    for form in ("v_pow", "s_pow"):
        got = call(isa, form, x, y)
        np.testing.assert_allclose(got, want, rtol=1e-7)
        number = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(want[number]))


INF, NAN = math.inf, math.nan
SPECIALS: dict[str, list[tuple[float, float]]] = {
    "reciprocal": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (-INF, -0.0)],
    "rsqrt": [(0.0, INF), (INF, 0.0), (-1.0, NAN)],
    "exp": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (89.0, INF), (-104.0, 0.0), (1e30, INF), (-1e30, 0.0)],
    "exp_nonpositive": [(0.0, 1.0), (-INF, 0.0), (-1e30, 0.0), (-88.0, 0.0)],
    "log": [(0.0, -INF), (-0.0, -INF), (1.0, 0.0), (INF, INF), (-1.0, NAN), (-INF, NAN), (-1e-40, NAN)],
    "tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e-40, 1e-40), (30.0, 1.0), (-1e30, -1.0)],
    "sigmoid": [(0.0, 0.5), (INF, 1.0), (-INF, 0.0)],
    "silu": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, NAN)],
    "softplus": [(INF, INF), (-INF, 0.0), (200.0, 200.0)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (9.0, 1.0)],
    "gelu_erf": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, NAN), (1e30, 1e30), (-1e30, -0.0), (-50.0, -0.0)],
    "gelu_tanh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, NAN), (1e30, 1e30), (-1e30, -0.0), (-50.0, -0.0)],
    "sin": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN)],
    "cos": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN)],
    "asin": [(0.0, 0.0), (-0.0, -0.0), (1.5, NAN), (-INF, NAN), (1e-40, 1e-40)],
    "acos": [(1.0, 0.0), (1.5, NAN), (INF, NAN)],
    "atan": [(0.0, 0.0), (-0.0, -0.0), (INF, math.pi / 2), (-INF, -math.pi / 2), (-1e-40, -1e-40)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (100.0, INF), (1e-40, 1e-40)],
    "cosh": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, INF), (-100.0, INF)],
    "asinh": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -INF), (-1e-40, -1e-40)],
    "acosh": [(1.0, 0.0), (0.5, NAN), (-1.0, NAN), (-INF, NAN), (INF, INF)],
    "atanh": [(0.0, 0.0), (-0.0, -0.0), (1.0, INF), (-1.0, -INF), (2.0, NAN), (-INF, NAN), (1e-40, 1e-40)],
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", UNARY)
def test_special_values(isa: str, name: str) -> None:
    x = np.array([a for a, _ in SPECIALS[name]] + [NAN], np.float32)
    want = np.array([b for _, b in SPECIALS[name]] + [NAN], np.float32)
    for form in ("v_", "s_"):
        got = call(isa, form + name, x)
        np.testing.assert_array_equal(got, want)
        number = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got[number]), np.signbit(want[number]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", UNARY)
def test_scalar_form_gives_the_bits_of_a_lane(isa: str, name: str) -> None:
    x = np.random.default_rng(5).normal(0, 4, 4000).astype(np.float32)
    x = -np.abs(x) if name == "exp_nonpositive" else x
    np.testing.assert_array_equal(call(isa, f"v_{name}", x).view(np.int32), call(isa, f"s_{name}", x).view(np.int32))
