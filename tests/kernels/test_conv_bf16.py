"""Image kernels whose buffers are stored as bf16, against float64 on the rounded operands."""

from __future__ import annotations

import ctypes

import ml_dtypes
import numpy as np
import pytest
from harness import BF16_ISAS, WIDTH, build, integers, pointers
from test_conv import blocked, convolve, epilogue, unblocked
from test_pool import pool

BF16 = np.dtype(ml_dtypes.bfloat16)

SOURCE = """
#include "kernels/conv/blocked.h"
#include "kernels/conv/depthwise.h"
#include "kernels/movement/relayout.h"
#include "kernels/pool/blocked.h"
using namespace opcel;
struct Epi {
  const float* bias;
  template <bool Tail> vf apply(vf v, int64_t n, int64_t cb, int64_t y, int64_t x, int) const {
    return v + load(bias + cb * W) + set(100.0f * n + y / 8.0f + x / 64.0f);
  }
};
struct Same {
  template <bool Tail> vf apply(vf v, int64_t, int64_t, int64_t, int64_t, int) const { return v; }
};
"""

CONV = """
extern "C" void conv(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  ConvArgs<bf16, OUT> a{(bf16*)p[0], d[0], d[1], d[2], (bf16*)p[1], (OUT*)p[2], d[3], d[4], d[5],
                        d[6], d[7], d[8], d[9], d[10], d[11], d[12], d[13]};
  conv_tasks<PARAMS>(a, Epi{(float*)p[3]}, begin, end);
}
"""

DEPTHWISE = """
extern "C" void conv(void* const* p, const int64_t* d) {
  DepthwiseArgs<bf16> a{(bf16*)p[0], d[0], d[1], d[2], (float*)p[1], (bf16*)p[2], d[3], d[4], d[5],
                        d[6], d[7], d[8], d[9], d[10]};
  depthwise_tasks<3, 3, STRIDE, STRIDE, 1, 1, 0, 0, 0>(a, Epi{(float*)p[3]}, 0, depthwise_task_count(a));
}
"""

POOL = """
extern "C" void pool(void* const* p, const int64_t* d) {
  PoolArgs<bf16, OUT> a{(bf16*)p[0], d[0], d[1], d[2], (OUT*)p[1], d[3], d[4], d[5], 2, 2, 7, 9, 4, 5,
                        3, 3, 2, 2, 1, 1, 1, 1, 1, 1, false, 3};
  pool_tasks<MAXIMUM>(a, Same{}, 0, pool_task_count(a));
}
"""

RELAYOUT = """
extern "C" void to_blocked(void* const* p, const int64_t* s) {
  RelayoutArgs<float, bf16> a{(float*)p[0], (bf16*)p[1], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9],
                              s[10], s[11], s[12], s[13], s[14]};
  to_blocked_tasks(a, 0, to_blocked_task_count(a));
}
extern "C" void from_blocked(void* const* p, const int64_t* s) {
  RelayoutArgs<bf16, float> a{(bf16*)p[0], (float*)p[1], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9],
                              s[10], s[11], s[12], s[13], s[14]};
  from_blocked_tasks(a, 0, from_blocked_task_count(a));
}
extern "C" void to_planar(void* const* p, const int64_t* s) {
  RelayoutArgs<float, bf16> a{(float*)p[0], (bf16*)p[1], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9],
                              s[10], s[11], s[12], s[13], s[14]};
  to_planar_tasks(a, 0, to_planar_task_count(a));
}
"""


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def steps(array: np.ndarray) -> list[int]:
    return [s // array.itemsize for s in array.strides[:3]]


def guarded(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A blocked output with one pixel more in each row, which must stay NaN."""
    n, cb, h, w, width = shape
    return np.full((n, cb, h, w + 1, width), np.nan, dtype)


def check(y: np.ndarray, want: np.ndarray, channels: int) -> None:
    assert np.isnan(y[:, :, :, -1].astype(np.float32)).all(), "wrote past the last pixel"
    got = unblocked(y[:, :, :, :-1].astype(np.float64), channels)
    rounding = 2.0**-8 if y.dtype == BF16 else 2e-5
    np.testing.assert_allclose(got, want, rtol=rounding, atol=1e-3)


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize(
    ("groups", "ic", "oc", "kernel", "stride", "dilation", "pad", "nv", "tile", "out"),
    [
        (1, 2, 2, (3, 3), 1, 1, 1, 2, "1, 4, 2, 1", "bf16"),
        (1, 70, 2, (1, 1), 1, 1, 0, 1, "2, 6, 1", "float"),
        (3, 1, 2, (3, 2), 2, 1, 2, 2, "1, 4, 1", "bf16"),
        (2, 1, 1, (3, 3), 1, 2, 2, 1, "1, 5, 1", "bf16"),
    ],
    ids=["3x3", "1x1-long-sum", "groups-stride", "dilation"],
)
def test_blocked(
    isa: str, groups: int, ic: int, oc: int, kernel: tuple[int, int], stride: int, dilation: int, pad: int, nv: int,
    tile: str, out: str,
) -> None:  # fmt: skip
    """ic, oc: channels of one group in blocks."""
    width = WIDTH[isa]
    params = f"{width}, {kernel[0]}, {kernel[1]}, {stride}, {stride}, {dilation}, {dilation}, {nv}, {width}, 0, {tile}"
    lib = build(SOURCE + CONV.replace("PARAMS", params).replace("OUT", out), isa)
    x, w = normal(2, groups * ic * width, 7, 13).astype(BF16), normal(groups * oc * width, ic * width, *kernel)
    w = (w / 8).astype(BF16)
    bias = normal(groups * oc * width)
    pads = [(pad, pad)] * 2
    packed = w.reshape(groups, oc // nv, nv * width, ic, width // 2, 2, *kernel).transpose(0, 1, 3, 6, 7, 4, 2, 5)
    run(lib, x, blocked(x, width, pads), np.ascontiguousarray(packed), w, bias, groups, stride, dilation, pads, nv, out)


def run(lib, x, xb, packed, w, bias, groups, stride, dilation, pads, nv, out) -> None:  # type: ignore[no-untyped-def]
    want = epilogue(convolve(x, w, groups, (stride, stride), (dilation, dilation), pads), bias)
    n, channels, oh, ow = want.shape
    width = packed.shape[-2] // nv
    y = guarded((n, channels // width, oh, ow, width), BF16 if out == "bf16" else np.dtype(np.float32))
    ocb, icb = channels // width // groups, xb.shape[1] // groups
    d = integers(*steps(xb), *steps(y), n, groups, ocb, icb, oh, ow, 2, 1)
    tasks = n * groups * (ocb // nv) * -(-oh // 2)
    for begin, end in ((tasks // 2, tasks), (0, tasks // 2)):
        lib.conv(pointers(xb, packed, y, bias), d, ctypes.c_int64(begin), ctypes.c_int64(end))
    check(y, want, channels)


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize(("kernel", "stride"), [((7, 7), 2), ((3, 3), 1), ((4, 4), 4)])
def test_planar(isa: str, kernel: tuple[int, int], stride: int) -> None:
    """Pairs along a row of a plane: behind the window of an odd width one more pixel is read, times zero."""
    width, channels, nv = WIDTH[isa], 3, 2
    params = f"1, {kernel[0]}, {kernel[1]}, {stride}, {stride}, 1, 1, {nv}, 1, 0, 1, 4, 1"
    lib = build(SOURCE + CONV.replace("PARAMS", params).replace("OUT", "bf16"), isa)
    x = normal(2, channels, 11, 17).astype(BF16)
    w = (normal(nv * width, channels, *kernel) / 4).astype(BF16)
    pad = kernel[0] % 2 * (kernel[0] // 2)
    xb = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad + 1)])
    taps = np.pad(w, [(0, 0), (0, 0), (0, 0), (0, kernel[1] % 2)]).reshape(nv * width, channels, kernel[0], -1, 2)
    packed = np.ascontiguousarray(taps.transpose(1, 2, 3, 0, 4))
    run(lib, x, xb, packed, w, normal(nv * width), 1, stride, 1, [(pad, pad)] * 2, nv, "bf16")


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(isa: str, stride: int) -> None:
    width = WIDTH[isa]
    lib = build(SOURCE + DEPTHWISE.replace("STRIDE", str(stride)), isa)
    channels = 2 * width
    x, w, bias = normal(2, channels, 6, 17).astype(BF16), normal(channels, 1, 3, 3), normal(channels)
    pads = [(1, 1)] * 2
    xb, packed = blocked(x, width, pads), blocked(w.transpose(1, 0, 2, 3), width, [(0, 0)] * 2)[0]
    want = epilogue(convolve(x, w, channels, (stride, stride), (1, 1), pads), bias)
    y = guarded((2, 2, *want.shape[2:], width), BF16)
    lib.conv(pointers(xb, packed, y, bias), integers(*steps(xb), *steps(y), 2, 2, *want.shape[2:], 2))
    check(y, want, channels)


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize("maximum", [True, False])
@pytest.mark.parametrize("out", ["bf16", "float"])
def test_pool(isa: str, maximum: bool, out: str) -> None:
    width = WIDTH[isa]
    lib = build(SOURCE + POOL.replace("MAXIMUM", "Pool::largest" if maximum else "Pool::mean").replace("OUT", out), isa)
    x = normal(2, 2 * width, 7, 9).astype(BF16)
    want = pool(x, maximum, (4, 5), (3, 3), (2, 2), (1, 1), [(1, 1)] * 2, False)
    xb, y = blocked(x, width, [(0, 0)] * 2), guarded((2, 2, 4, 5, width), BF16 if out == "bf16" else np.dtype("f4"))
    lib.pool(pointers(xb, y), integers(*steps(xb), *steps(y)))
    check(y, want, 2 * width)


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize(("channels", "w"), [(7, 5), (33, 35), (16, 16)])
def test_relayout_converts(isa: str, channels: int, w: int) -> None:
    """Into bf16 every element is the rounded one and the border is zero; back is exact."""
    width = WIDTH[isa]
    lib = build(SOURCE + RELAYOUT, isa)
    x, halo = normal(2, channels, 4, w), [(1, 2), (3, 1)]
    rounded = x.astype(BF16)
    for call, want in (
        ("to_blocked", blocked(rounded, width, halo)),
        ("to_planar", np.pad(rounded, [(0, 0)] * 2 + halo)),
    ):
        y = np.full(want.shape, 7, BF16)
        sizes = integers(*steps(x), *steps(y), 2, channels, 4, w, 1, 3, 2, 1, 3)
        getattr(lib, call)(pointers(x, y), sizes)
        np.testing.assert_array_equal(y, want)
    source, y = blocked(rounded, width, [(0, 0)] * 2), np.full(x.shape, 7, np.float32)
    lib.from_blocked(pointers(source, y), integers(*steps(source), *steps(y), 2, channels, 4, w, 0, 0, 0, 0, 3))
    np.testing.assert_array_equal(y, rounded.astype(np.float32))
