"""The element types that C++ lacks, against ml_dtypes: every code decoded, and every neighbourhood rounded."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest
from harness import ISAS, WIDTH, build, pointers
from onnx.numpy_helper import to_float8e8m0

FLOATS = {
    "f16": np.float16, "bf16": ml_dtypes.bfloat16, "f8e4m3fn": ml_dtypes.float8_e4m3fn,
    "f8e4m3fnuz": ml_dtypes.float8_e4m3fnuz, "f8e5m2": ml_dtypes.float8_e5m2,
    "f8e5m2fnuz": ml_dtypes.float8_e5m2fnuz, "f8e8m0": ml_dtypes.float8_e8m0fnu, "f4e2m1": ml_dtypes.float4_e2m1fn,
    "f6e2m3": ml_dtypes.float6_e2m3fn, "f6e3m2": ml_dtypes.float6_e3m2fn,
}  # fmt: skip
SATURATING = [n for n in FLOATS if n.startswith("f8") and n != "f8e8m0"]
INTS = {"i4": ml_dtypes.int4, "u4": ml_dtypes.uint4, "i2": ml_dtypes.int2, "u2": ml_dtypes.uint2}
LANES = {**FLOATS, **INTS, "uint8_t": np.uint8, "int8_t": np.int8, "uint16_t": np.uint16, "int16_t": np.int16}

SOURCE = '#include "base/narrow.h"\nusing namespace opcel;\n' + "".join(
    f"""extern "C" void {t}_decode(void* const* p, int64_t n) {{
  for (int64_t i = 0; i < n; ++i) ((float*)p[1])[i] = ((const {t}*)p[0])[i];
}}
extern "C" void {t}_encode(void* const* p, int64_t n) {{
  for (int64_t i = 0; i < n; ++i) (({t}*)p[1])[i] = {t}(((const double*)p[0])[i]);
}}
extern "C" void {t}_lanes(void* const* p, int64_t n) {{
  const {t}* x = (const {t}*)p[0];
  int64_t i = 0;
  for (; i + W <= n; i += W) {{
    const vf v = load_t<false>(x + i, W);
    store_t<false>((float*)p[1] + i, v, W);
    store_t<false>(({t}*)p[2] + i, v, W);
  }}
  const int rest = (int)(n - i);
  const vf v = load_t<true>(x + i, rest);
  store_t<true>((float*)p[1] + i, v, rest);
  store_t<true>(({t}*)p[2] + i, v, rest);
}}
"""
    for t in LANES
) + "".join(
    f"""extern "C" void {t}_rounded(void* const* p, int64_t n) {{
  for (int64_t i = 0; i + W <= n; i += W) store((float*)p[1] + i, rounded<{t}>(load((const float*)p[0] + i)));
}}
"""
    for t in FLOATS
) + "".join(
    f"""extern "C" void {t}_saturated(void* const* p, int64_t n) {{
  for (int64_t i = 0; i + W <= n; i += W) store((float*)p[1] + i, saturated<{t}>(load((const float*)p[0] + i)));
}}
"""
    for t in SATURATING
) + """extern "C" void scale_rounded(void* const* p, int64_t n, int rounding, int saturate) {
  for (int64_t i = 0; i < n; ++i)
    ((f8e8m0*)p[1])[i] = f8e8m0::rounded(((const float*)p[0])[i], static_cast<Rounding>(rounding), saturate);
}
extern "C" void masks(void* const* p, int n) {
  store_mask<true>((bool*)p[1], load_mask<true>((const bool*)p[0], n) & set_mask(true), n);
  if (n == W) store_mask<false>((bool*)p[1], load_mask<false>((const bool*)p[0], n) & set_mask(true), n);
}
"""  # fmt: skip


@pytest.fixture(scope="module", params=ISAS)
def lib(request: pytest.FixtureRequest) -> tuple[ctypes.CDLL, int]:
    return build(SOURCE, request.param), WIDTH[request.param]


def codes(dtype: np.dtype) -> np.ndarray:
    bits = 16 if dtype.itemsize == 2 else 8
    if dtype.name in ("int4", "uint4", "float4_e2m1fn"):
        bits = 4
    if dtype.name in ("int2", "uint2"):
        bits = 2
    if dtype.name.startswith("float6"):
        bits = 6
    return np.arange(1 << bits, dtype=np.uint16 if bits == 16 else np.uint8).view(dtype)


def wide(x: np.ndarray) -> np.ndarray:
    return (
        x.astype(np.int32).astype(np.float32)
        if x.dtype.name in ("int4", "uint4", "int2", "uint2")
        else x.astype(np.float32)
    )


@pytest.mark.parametrize("name", LANES)
def test_every_value_is_read_and_written(lib: tuple[ctypes.CDLL, int], name: str) -> None:
    x = codes(np.dtype(LANES[name]))
    want = wide(x)
    got, again = np.empty(len(x), np.float32), np.zeros(len(x) + 1, x.dtype)
    getattr(lib[0], f"{name}_decode")(pointers(x, got), ctypes.c_int64(len(x)))
    np.testing.assert_array_equal(got, want)
    for n in (len(x), len(x) - 1):
        getattr(lib[0], f"{name}_lanes")(pointers(x, got, again), ctypes.c_int64(n))
        np.testing.assert_array_equal(got[:n], want[:n])
        np.testing.assert_array_equal(wide(again[:n]), want[:n])
        assert again.view(np.uint8)[n * x.dtype.itemsize] == 0 or n < len(x)


def neighbourhoods(dtype: np.dtype) -> np.ndarray:
    """All numbers of a type, the points halfway to the next, their neighbours, and what lies outside, in f64."""
    with np.errstate(all="ignore"):
        x = np.unique(codes(dtype).astype(np.float64))
    x = x[np.isfinite(x)]
    middle = (x[1:] + x[:-1]) / 2
    outside = np.array([x.max() * 1.05, x.max() * 1.5, x.max() * 3, 1e300, np.inf, 0.0, -0.0, 5e-324])
    near = np.concatenate([np.nextafter(middle, np.inf), np.nextafter(middle, -np.inf)])
    return np.concatenate([x, middle, near, outside, -outside, [np.nan]])


@pytest.mark.parametrize("name", [n for n in FLOATS if n != "f8e8m0"])
def test_rounds_once(lib: tuple[ctypes.CDLL, int], name: str) -> None:
    dtype = np.dtype(FLOATS[name])
    x = neighbourhoods(dtype)
    got = np.empty(len(x), dtype)
    getattr(lib[0], f"{name}_encode")(pointers(x, got), ctypes.c_int64(len(x)))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(got.astype(np.float64), exact(x, dtype))
        narrow = x.astype(np.float32)
        narrow = np.resize(narrow, -(-len(narrow) // 16) * 16)
        want = narrow.astype(dtype).astype(np.float32)
    lanes = np.empty_like(narrow)
    getattr(lib[0], f"{name}_rounded")(pointers(narrow, lanes), ctypes.c_int64(len(narrow)))
    np.testing.assert_array_equal(lanes, want)
    if name in SATURATING:
        getattr(lib[0], f"{name}_saturated")(pointers(narrow, lanes), ctypes.c_int64(len(narrow)))
        top = float(ml_dtypes.finfo(dtype).max)
        np.testing.assert_array_equal(lanes, np.clip(narrow, -top, top).astype(dtype).astype(np.float32))


def exact(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """x as `dtype` and back. ml_dtypes goes through float32: there what decides is put where float32 sees it."""
    with np.errstate(all="ignore"):
        if dtype == np.float16:
            return x.astype(dtype).astype(np.float64)
        near = x.astype(np.float32)
        beyond = np.where(near.astype(np.float64) < x, np.inf, -np.inf).astype(np.float32)
        moved = np.where(near.astype(np.float64) == x, near, np.nextafter(near, beyond))
        return np.where(np.isfinite(near), moved, near).astype(dtype).astype(np.float64)


@pytest.mark.parametrize("name", INTS)
def test_integers_wrap(lib: tuple[ctypes.CDLL, int], name: str) -> None:
    x = np.arange(-40, 40).astype(np.float64)
    got = np.empty(len(x), INTS[name])
    getattr(lib[0], f"{name}_encode")(pointers(x, got), ctypes.c_int64(len(x)))
    np.testing.assert_array_equal(got.astype(np.int32), x.astype(np.int32).astype(INTS[name]).astype(np.int32))


@pytest.mark.parametrize("saturate", [True, False])
@pytest.mark.parametrize("rounding", ["nearest", "up", "down"])
def test_powers_of_two(lib: tuple[ctypes.CDLL, int], rounding: str, saturate: bool) -> None:
    x = np.float32([0, 1, 1.25, 1.5, 1.75, 3, 6, 1e-40, 2e-38, 3.4e38, 2.0**127, np.inf, np.nan, 5e-39, 0.7, -2.5])
    got = np.empty(len(x), ml_dtypes.float8_e8m0fnu)
    number = ["nearest", "up", "down"].index(rounding)
    lib[0].scale_rounded(pointers(x, got), ctypes.c_int64(len(x)), number, int(saturate))
    np.testing.assert_array_equal(got.view(np.uint8), to_float8e8m0(x, saturate, rounding).view(np.uint8))


def test_booleans_are_masks(lib: tuple[ctypes.CDLL, int]) -> None:
    library, width = lib
    x = np.resize([True, False, True, True, False], width)
    for n in range(width + 1):
        got = np.zeros(width, bool)
        library.masks(pointers(x, got), n)
        np.testing.assert_array_equal(got[:n], x[:n])
        assert not got[n:].any()
