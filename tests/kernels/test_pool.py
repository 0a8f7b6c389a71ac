from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from harness import ISAS, WIDTH, build, integers, pointers

SOURCE = """
#include "kernels/pool/blocked.h"
#include "kernels/pool/reference.h"
using namespace opcel;
struct Epi {
  template <bool Tail> vf apply(vf v, int64_t n, int64_t cb, int64_t y, int64_t x, int) const {
    return v + set(100.0f * n + 10 * cb + y / 8.0f + x / 64.0f);
  }
};
extern "C" void blocked(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  PoolArgs<> a{(float*)p[0], d[0], d[1], d[2], (float*)p[1], d[3], d[4], d[5], d[6], d[7], d[8], d[9], d[10], d[11],
             d[12], d[13], d[14], d[15], d[16], d[17], d[18], d[19], d[20], d[21], d[22] != 0, d[23]};
  if (end < 0) end = pool_task_count(a);
  if (d[24]) pool_tasks<Pool::largest>(a, Epi{}, begin, end); else pool_tasks<Pool::mean>(a, Epi{}, begin, end);
}
extern "C" void reference(void* const* p, const int64_t* d) {
  PoolReferenceArgs<> a{(float*)p[0], (float*)p[1], (int64_t*)p[2], d[0], int(d[1]),
                      {}, {}, {}, {}, {}, {}, {}, d[2] != 0};
  int64_t* to[] = {a.in, a.out, a.kernel, a.stride, a.dilation, a.pad, a.pad_end};
  for (int i = 0; i < 7 * a.rank; ++i) to[i / a.rank][i % a.rank] = d[4 + i];
  if (d[3]) pool_reference_tasks<true>(a, 0, a.planes); else pool_reference_tasks<false>(a, 0, a.planes);
}
"""


def pool(
    x: np.ndarray,
    maximum: bool,
    out: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[tuple[int, int]],
    include_pad: bool,
) -> np.ndarray:
    """Pooling over the trailing axes in float64, window by window."""
    lead = x.ndim - len(kernel)
    y = np.empty((*x.shape[:lead], *out))
    for at in itertools.product(*map(range, out)):
        taps = []
        counted = 1
        for i, position in enumerate(at):
            places = [position * stride[i] - pads[i][0] + t * dilation[i] for t in range(kernel[i])]
            inside = [q for q in places if 0 <= q < x.shape[lead + i]]
            counted *= len([q for q in places if q < x.shape[lead + i] + pads[i][1]]) if include_pad else len(inside)
            taps.append(inside)
        window = x.astype(np.float64)[(..., *np.ix_(*taps))].reshape(*x.shape[:lead], -1)
        y[(..., *at)] = window.max(-1) if maximum else window.sum(-1) / counted
    return y


CASES = [
    # size, out, kernel, stride, dilation, pads
    ((9, 11), (5, 6), (3, 3), (2, 2), (1, 1), [(1, 1), (1, 1)]),
    ((7, 7), (1, 1), (7, 7), (1, 1), (1, 1), [(0, 0), (0, 0)]),
    ((6, 13), (4, 3), (2, 5), (1, 3), (2, 1), [(0, 0), (1, 0)]),
    ((5, 8), (3, 5), (3, 2), (2, 2), (1, 1), [(1, 1), (1, 2)]),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("maximum", "include_pad"), [(True, False), (False, False), (False, True)])
def test_blocked(isa: str, case: tuple, maximum: bool, include_pad: bool) -> None:
    size, out, kernel, stride, dilation, pads = case
    width = WIDTH[isa]
    lib = build(SOURCE, isa)
    x = (np.random.default_rng(0).normal(size=(2, 3, *size, width)) - 3).astype(np.float32)
    halo = np.pad(x, [(0, 0), (0, 0), (1, 1), (2, 2), (0, 0)])
    base = halo[:, :, 1:, 2:]
    want = pool(x.transpose(0, 1, 4, 2, 3), maximum, out, kernel, stride, dilation, pads, include_pad).transpose(
        0, 1, 3, 4, 2
    )
    want += 100 * np.arange(2).reshape(2, 1, 1, 1, 1) + 10 * np.arange(3).reshape(3, 1, 1, 1)
    want += np.arange(out[0]).reshape(-1, 1, 1) / 8 + np.arange(out[1]).reshape(-1, 1) / 64
    y = np.full(want.shape, np.nan, np.float32)
    d = integers(
        *[s // 4 for s in halo.strides[:3]],
        *[s // 4 for s in y.strides[:3]],
        2,
        3,
        *size,
        *out,
        *kernel,
        *stride,
        *dilation,
        pads[0][0],
        pads[1][0],
        pads[0][1],
        pads[1][1],
        include_pad,
        2,
        maximum,
    )
    lib.blocked(pointers(base, y), d, ctypes.c_int64(3), ctypes.c_int64(-1))
    lib.blocked(pointers(base, y), d, ctypes.c_int64(0), ctypes.c_int64(3))
    np.testing.assert_allclose(y, want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_blocked_maximum_propagates_nan(isa: str) -> None:
    width = WIDTH[isa]
    x = np.zeros((1, 1, 1, 9, width), np.float32)
    y = np.empty((1, 1, 1, 3, width), np.float32)
    for at in range(9):
        x[:] = -1
        x[0, 0, 0, at, 1] = np.nan
        d = integers(0, 0, 9 * width, 0, 0, 3 * width, 1, 1, 1, 9, 1, 3, 1, 5, 1, 2, 1, 1, 0, 0, 0, 0, 0, 1, 1)
        build(SOURCE, isa).blocked(pointers(x, y), d, ctypes.c_int64(0), ctypes.c_int64(1))
        np.testing.assert_array_equal(np.isnan(y[0, 0, 0, :, 1]), [2 * i <= at < 2 * i + 5 for i in range(3)])
        assert not np.isnan(y[..., 0]).any()


@pytest.mark.parametrize(
    "case",
    [
        *CASES,
        ((12,), (7,), (3,), (2,), (1,), [(1, 2)]),
        ((4, 5, 6), (2, 3, 3), (2, 3, 2), (2, 1, 2), (1, 1, 1), [(0, 0), (0, 0), (0, 0)]),
    ],
)
@pytest.mark.parametrize(("maximum", "include_pad"), [(True, False), (False, False), (False, True)])
def test_reference(case: tuple, maximum: bool, include_pad: bool) -> None:
    size, out, kernel, stride, dilation, pads = case
    x = np.random.default_rng(0).permutation(6 * int(np.prod(size))).reshape(6, *size).astype(np.float32)
    want = pool(x, maximum, out, kernel, stride, dilation, pads, include_pad)
    y = np.full(want.shape, np.nan, np.float32)
    indices = np.zeros(want.shape, np.int64)
    d = integers(
        6,
        len(size),
        include_pad,
        maximum,
        *size,
        *out,
        *kernel,
        *stride,
        *dilation,
        *[low for low, _ in pads],
        *[high for _, high in pads],
    )
    build(SOURCE, ISAS[-1]).reference(pointers(x, y, indices if maximum else None), d)
    np.testing.assert_allclose(y, want, rtol=1e-6)
    if maximum:
        np.testing.assert_array_equal(x.ravel()[indices], y)
