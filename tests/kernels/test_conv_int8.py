"""Image kernels on bytes: convolutions exactly as the sums of integers say, pools, ways from and to other layouts."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
import pytest
from harness import INT8_ISAS, WIDTH, build, integers, pointers
from test_conv import blocked, convolve, unblocked
from test_pool import pool

HEAD = """
#include "kernels/conv/blocked.h"
#include "kernels/conv/depthwise_int8.h"
#include "kernels/movement/halo.h"
#include "kernels/movement/relayout.h"
#include "kernels/pool/blocked.h"
using namespace opcel;
struct Exact {
  template <bool Tail> vf apply(vf v, int64_t n, int64_t, int64_t y, int64_t x, int) const {
    return v + set(1.0f * n + 2 * y + 3 * x);
  }
};
struct Bytes {  // an eighth, to nearest, cut to a byte
  template <bool Tail> vf apply(vf v, int64_t, int64_t, int64_t, int64_t, int) const {
    return min(set(255.0f), max(round_even(v * set(1.0f / 8.0f)) + set(100.0f), set(0.0f)));
  }
};
struct Grid {  // the same, rounded and cut as it is stored
  int64_t zero;
  template <bool Tail> vf apply(vf v, int64_t, int64_t, int64_t, int64_t, int) const { return v * set(1.0f / 8.0f); }
};
struct Half {
  vf apply(vf v) const { return min(set(255.0f), max(round_even(v * set(0.5f)) + set(100.0f), set(0.0f))); }
};
"""

CONV = """
extern "C" void conv_NAME(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  ConvArgs<uint8_t, float> a{(uint8_t*)p[0], d[0], d[1], d[2], (int8_t*)p[1], (float*)p[2], d[3], d[4], d[5],
                             d[6], d[7], d[8], d[9], d[10], d[11], d[12], d[13], W, (int32_t*)p[3]};
  conv_tasks<PARAMS>(a, Exact{}, begin, end);
}
extern "C" void bytes_NAME(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  ConvArgs<uint8_t, uint8_t> a{(uint8_t*)p[0], d[0], d[1], d[2], (int8_t*)p[1], (uint8_t*)p[2], d[3], d[4], d[5],
                               d[6], d[7], d[8], d[9], d[10], d[11], d[12], d[13], d[14], (int32_t*)p[3]};
  if (d[15])
    conv_tasks<PARAMS>(a, Grid{100}, begin, end);
  else
    conv_tasks<PARAMS>(a, Bytes{}, begin, end);
}
"""

DEPTHWISE = """
extern "C" void depthwise_NAME(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  DepthwiseInt8Args<float> a{(uint8_t*)p[0], d[0], d[1], d[2], (int8_t*)p[1], (int32_t*)p[3], (float*)p[2], d[3], d[4],
                             d[5], d[6], d[7], d[8], d[9], d[10], d[11]};
  depthwise_int8_tasks<PARAMS>(a, Exact{}, begin, end < 0 ? depthwise_int8_task_count(a) : end);
}
"""

MOVES = """
extern "C" void max_pool(void* const* p, const int64_t* d) {
  PoolArgs<uint8_t> a{(uint8_t*)p[0], d[0], d[1], d[2], (uint8_t*)p[1], d[3], d[4], d[5], 2, 2, 7, 9, 4, 5,
                      3, 3, 2, 2, 1, 1, 1, 1, 1, 1, false, 3};
  pool_tasks<Pool::largest>(a, Exact{}, 0, pool_task_count(a));
}
extern "C" void mean(void* const* p, const int64_t* d) {
  PoolArgs<uint8_t, float> a{(uint8_t*)p[0], d[0], d[1], d[2], (float*)p[1], d[3], d[4], d[5], 2, 2, 7, 9, 1, 1,
                             7, 9, 1, 1, 1, 1, 0, 0, 0, 0, false, 3};
  pool_tasks<Pool::mean>(a, Exact{}, 0, pool_task_count(a));
}
#define RELAYOUT(NAME, FUNCTION, T, U, ...)                                                                       \\
  extern "C" void NAME(void* const* p, const int64_t* s) {                                                        \\
    RelayoutArgs<T, U> a{(T*)p[0], (U*)p[1], s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10],   \\
                         s[11], s[12], s[13], s[14], (U)s[15]};                                                   \\
    FUNCTION##_tasks(a, 0, FUNCTION##_task_count(a) __VA_ARGS__);                                                 \\
  }
RELAYOUT(blocked_of_bytes, to_blocked, uint8_t, uint8_t)
RELAYOUT(blocked_of_floats, to_blocked, float, uint8_t, , Half{})
RELAYOUT(quads_of_bytes, to_quads, uint8_t, uint8_t)
RELAYOUT(quads_of_floats, to_quads, float, uint8_t, , Half{})
RELAYOUT(planes_of_bytes, to_planar, uint8_t, uint8_t)
RELAYOUT(bytes_of_blocked, from_blocked, uint8_t, uint8_t)
RELAYOUT(floats_of_blocked, from_blocked, uint8_t, float)
#define GRID(NAME, T, ZERO)                                       \\
  extern "C" void NAME(void* const* p, int64_t step) {            \\
    vf v[7];                                                      \\
    for (int i = 0; i < 7; ++i) v[i] = load((float*)p[0] + i * W); \\
    store_results(Grid{ZERO}, (T*)p[1], step, v);                 \\
  }
GRID(unsigned_0, uint8_t, 0)
GRID(unsigned_131, uint8_t, 131)
GRID(signed_0, int8_t, 0)
GRID(signed_m5, int8_t, -5)
extern "C" void halo(void* const* p) {
  HaloArgs a{(char*)p[0], 2, 3, 4, 5, 1, 2, 3, 4, 77};
  halo_tasks(a, 0, 2);
}
"""


@dataclass(frozen=True)
class Case:
    """ic, oc: channels of a group; block: input channels of a block, or the vector width."""

    groups: int
    ic: int
    oc: int
    kernel: tuple[int, int]
    stride: int
    dilation: int
    pad: int
    nv: int
    tile: str
    block: int = 0
    last: int = 0


CASES = {
    "3x3": Case(1, 2, 2, (3, 3), 1, 1, 1, 2, "1, 6, 4, 1"),
    "1x1": Case(1, 5, 2, (1, 1), 1, 1, 0, 1, "2, 6, 1"),
    "stride": Case(3, 1, 2, (3, 2), 2, 1, 2, 2, "1, 4, 1"),
    "dilation": Case(2, 1, 1, (3, 3), 1, 2, 2, 1, "1, 5, 1"),
    "quads": Case(1, 1, 2, (7, 7), 2, 1, 3, 2, "1, 7, 4, 1", block=4),
    "two-quads": Case(1, 2, 1, (3, 3), 1, 1, 1, 1, "2, 4, 1", block=4),
}
DEPTHWISE_CASES = {
    "3x3": ((3, 3), 1, 4), "3x3s2": ((3, 3), 2, 2), "5x5": ((5, 5), 1, 2), "5x5s2": ((5, 5), 2, 1),
    "2x7": ((2, 7), 1, 3),
}  # fmt: skip


def name(case: str) -> str:
    return case.replace("-", "_")


def source(isa: str) -> str:
    out = HEAD + MOVES
    for key, c in CASES.items():
        block = c.block or WIDTH[isa]
        params = (block, *c.kernel, *[c.stride] * 2, *[c.dilation] * 2, c.nv, block, 0)
        out += CONV.replace("NAME", name(key)).replace("PARAMS", ", ".join(map(str, params)) + ", " + c.tile)
    for key, (kernel, stride, rows) in DEPTHWISE_CASES.items():
        params = (*kernel, stride, stride, rows)
        out += DEPTHWISE.replace("NAME", name(key)).replace("PARAMS", ", ".join(map(str, params)))
    return out


def steps(array: np.ndarray) -> list[int]:
    return [s // array.itemsize for s in array.strides[:3]]


def places(n: int, h: int, w: int) -> np.ndarray:
    """What the epilogue adds."""
    y, x = np.arange(h)[:, None], np.arange(w)
    return np.arange(n)[:, None, None, None] + 2 * y + 3 * x


def operands(channels: int, *weights: int) -> tuple[np.ndarray, np.ndarray, int]:
    """An image, filters, both with their extremes, and the zero point."""
    rng = np.random.default_rng(sum(weights))
    x = rng.choice([0, 255, *range(0, 256, 5)], (2, channels, 7, 13)).astype(np.uint8)
    return x, rng.choice([-128, 127, *range(-128, 128, 3)], weights).astype(np.int8), 91


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize("key", CASES)
def test_blocked(isa: str, key: str) -> None:
    c, width, lib = CASES[key], WIDTH[isa], build(source(isa), isa)
    block = c.block or width
    x, w, zero = operands(c.groups * c.ic * block, c.groups * c.oc * width, c.ic * block, *c.kernel)
    if block == 4:
        x[:, -1], w[:, -1] = 0, 0
    pads = [(c.pad, c.pad)] * 2
    centred = x.astype(np.int64) - zero
    want = convolve(centred, w, c.groups, (c.stride,) * 2, (c.dilation,) * 2, pads)
    n, channels, oh, ow = want.shape
    xb = blocked_with(x, block, pads, zero)
    packed = w.reshape(c.groups, c.oc // c.nv, c.nv * width, c.ic, block // 4, 4, *c.kernel)
    packed = np.ascontiguousarray(packed.transpose(0, 1, 3, 6, 7, 4, 2, 5))
    start = (-zero * w.astype(np.int64).sum((1, 2, 3))).astype(np.int32)
    sizes = (n, c.groups, c.oc, c.ic, oh, ow, 2, 1)
    tasks = n * c.groups * (c.oc // c.nv) * -(-oh // 2)
    y = np.full((n, channels // width, oh, ow + 1, width), np.nan, np.float32)
    for begin, end in ((tasks // 2, tasks), (0, tasks // 2)):
        call = getattr(lib, f"conv_{name(key)}")
        call(
            pointers(xb, packed, y, start), integers(*steps(xb), *steps(y), *sizes), *map(ctypes.c_int64, (begin, end))
        )
    assert np.isnan(y[:, :, :, -1]).all(), "wrote past the last pixel"
    np.testing.assert_array_equal(unblocked(y[:, :, :, :-1], channels), want + places(n, oh, ow))
    grid = np.clip(np.rint(want / 8) + 100, 0, 255)
    for apart, as_stored in ((1, 0), (2, 0), (1, 1), (2, 1)):
        bytes_ = np.full((n, channels // width, oh, apart * ow + 1, width), 33, np.uint8)
        call = getattr(lib, f"bytes_{name(key)}")
        d = integers(*steps(xb), *steps(bytes_), *sizes, apart * width, as_stored)
        call(pointers(xb, packed, bytes_, start), d, ctypes.c_int64(0), ctypes.c_int64(tasks))
        rest = bytes_[:, :, :, 1:-1:2] if apart == 2 else bytes_[:, :, :, -1]
        assert (rest == 33).all(), "wrote between pixels"
        np.testing.assert_array_equal(unblocked(bytes_[:, :, :, : apart * ow : apart], channels), grid)


def blocked_with(x: np.ndarray, block: int, pads: list[tuple[int, int]], zero: int) -> np.ndarray:
    return blocked(np.pad(x, [(0, 0)] * 2 + pads, constant_values=zero), block, [(0, 0)] * 2)


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize("key", DEPTHWISE_CASES)
@pytest.mark.parametrize("size", [(7, 13), (4, 3)])
def test_depthwise(isa: str, key: str, size: tuple[int, int]) -> None:
    (kernel, stride, _), width, lib = DEPTHWISE_CASES[key], WIDTH[isa], build(source(isa), isa)
    x, w, zero = operands(2 * width, 2 * width, 1, *kernel)
    x = np.ascontiguousarray(x[:, :, : size[0], : size[1]])
    before = [k // 2 for k in kernel]
    pads = [(b, k - 1 - b) for b, k in zip(before, kernel, strict=True)]
    want = convolve(x.astype(np.int64) - zero, w, 2 * width, (stride, stride), (1, 1), pads)
    n, _, oh, ow = want.shape
    quads, packed = depthwise_panels(w, width, stride)
    group, tile = packed.shape[2], packed.shape[2] * (4 // packed.shape[2])
    columns = (max(ow, tile) - group) * stride + 4 * quads
    wide = [pads[0], (before[1], max(pads[1][1], columns - before[1] - x.shape[3]))]
    xb = blocked_with(x, width, wide, zero)
    start = (-zero * w.astype(np.int64).sum((1, 2, 3))).astype(np.int32)
    y = np.full((n, 2, oh, ow + 1, width), np.nan, np.float32)
    call = getattr(lib, f"depthwise_{name(key)}")
    d = integers(*steps(xb), *steps(y), n, 2, oh, ow, 3, 1)
    call(pointers(xb, packed, y, start), d, ctypes.c_int64(0), ctypes.c_int64(-1))
    assert np.isnan(y[:, :, :, -1]).all(), "wrote past the last pixel"
    np.testing.assert_array_equal(unblocked(y[:, :, :, :-1], 2 * width), want + places(n, oh, ow))


def depthwise_panels(w: np.ndarray, width: int, stride: int) -> tuple[int, np.ndarray]:
    """(quads of a row, [block][kh][output of a group][quad][lane][4])."""
    channels, _, kh, kw = w.shape
    quads = -(-kw // 4)
    group = min(4, (4 * quads - kw) // stride + 1)
    rows = np.zeros((channels, kh, group, 4 * quads), np.int8)
    for output in range(group):
        rows[:, :, output, output * stride : output * stride + kw] = w[:, 0]
    split = rows.reshape(channels // width, width, kh, group, quads, 4)
    return quads, np.ascontiguousarray(split.transpose(0, 2, 3, 4, 1, 5))


@pytest.mark.parametrize("isa", INT8_ISAS)
def test_pools(isa: str) -> None:
    width, lib = WIDTH[isa], build(source(isa), isa)
    x = np.random.default_rng(1).integers(0, 256, (2, 2 * width, 7, 9), dtype=np.uint8)
    xb, y = blocked(x, width, [(0, 0)] * 2), np.full((2, 2, 4, 6, width), 33, np.uint8)
    lib.max_pool(pointers(xb, y), integers(*steps(xb), *steps(y)))
    assert (y[:, :, :, -1] == 33).all()
    want = pool(x, True, (4, 5), (3, 3), (2, 2), (1, 1), [(1, 1)] * 2, False)
    np.testing.assert_array_equal(unblocked(y[:, :, :, :-1], 2 * width), want)
    z = np.full((2, 2, 1, 1, width), np.nan, np.float32)
    lib.mean(pointers(xb, z), integers(*steps(xb), *steps(z)))
    want = x.mean((2, 3), dtype=np.float64, keepdims=True).astype(np.float32) + places(2, 1, 1).astype(np.float32)
    np.testing.assert_allclose(unblocked(z, 2 * width), want, rtol=1e-6)


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize(("channels", "h", "w"), [(3, 4, 5), (33, 4, 35), (16, 4, 16), (6, 4, 40), (37, 1, 1)])
def test_relayout(isa: str, channels: int, h: int, w: int) -> None:
    """Into bytes the border and the channels past the last have the padding value; back is exact."""
    width, lib = WIDTH[isa], build(source(isa), isa)
    rng, pad, halo = np.random.default_rng(w), 91, [(1, 2), (3, 1)]
    floats = rng.normal(0, 300, (2, channels, h, w)).astype(np.float32)
    codes = np.clip(np.rint(floats / 2) + 100, 0, 255).astype(np.uint8)
    for call, block, source_ in (
        ("blocked_of_bytes", width, codes), ("blocked_of_floats", width, floats), ("quads_of_bytes", 4, codes),
        ("quads_of_floats", 4, floats), ("planes_of_bytes", 1, codes),
    ):  # fmt: skip
        blocks = -(-channels // block)
        full = np.full((2, blocks * block, h, w), pad, np.uint8)
        full[:, :channels] = codes
        want = blocked_with(full, block, halo, pad)
        y = np.full(want.shape, 7, np.uint8)
        step = steps(y) if block > 1 else [s // y.itemsize for s in y.reshape(y.shape[:4]).strides[:3]]
        sizes = integers(*steps(source_), *step, 2, channels, h, w, 1, 3, 2, 1, 3, pad)
        getattr(lib, call)(pointers(source_, y), sizes)
        np.testing.assert_array_equal(y, want, err_msg=call)
    xb = blocked(codes, width, [(0, 0)] * 2)
    for call, dtype in (("bytes_of_blocked", np.uint8), ("floats_of_blocked", np.float32)):
        y = np.full(codes.shape, 7, dtype)
        sizes = integers(*steps(xb), *steps(y), 2, channels, h, w, 0, 0, 0, 0, 3, 0)
        getattr(lib, call)(pointers(xb, y), sizes)
        np.testing.assert_array_equal(y, codes)


@pytest.mark.parametrize("isa", INT8_ISAS)
@pytest.mark.parametrize("key", ["unsigned_0", "unsigned_131", "signed_0", "signed_m5"])
def test_results_on_a_grid(isa: str, key: str) -> None:
    """Ties go to even before the zero point is added; what is too large or small, infinite or no number, to an end."""
    width, zero = WIDTH[isa], int(key.split("_")[1].replace("m", "-"))
    dtype = np.dtype(np.int8 if key.startswith("signed") else np.uint8)
    special = [
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        -0.0,
        1e30,
        -1e30,
        np.inf,
        -np.inf,
        np.nan,
        3e9,
        -3e9,
        40000,
        -40000,
        254.5,
        127.5,
    ]
    x = np.random.default_rng(3).uniform(-300, 300, 7 * width).astype(np.float32)
    x[: len(special)] = special
    info = np.iinfo(dtype)
    grid = np.rint(np.nan_to_num(x.astype(np.float64), nan=-np.inf)) + zero
    want = np.clip(grid, info.min, info.max).astype(dtype).reshape(7, width)
    for step in (width, width + 3):
        y = np.full(7 * step + 1, 77, dtype)
        getattr(build(source(isa), isa), key)(pointers(x, y), ctypes.c_int64(step))
        got = y[: 7 * step].reshape(7, step)
        np.testing.assert_array_equal(got[:, :width], want)
        assert (got[:, width:] == 77).all() and y[-1] == 77


@pytest.mark.parametrize("isa", INT8_ISAS)
def test_halo(isa: str) -> None:
    y = np.full((2, 1 + 3 + 3, 2 + 4 + 4, 5), 9, np.uint8)
    build(source(isa), isa).halo(pointers(y))
    want = np.full_like(y, 77)
    want[:, 1:4, 2:6] = 9
    np.testing.assert_array_equal(y, want)
