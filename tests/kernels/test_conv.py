from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from harness import ISAS, WIDTH, build, integers, pointers

BLOCKED = """
#include "kernels/conv/blocked.h"
using namespace opcel;
struct Epi {  // y + bias[channel] + 100 * n + y / 8 + x / 64
  const float* bias;
  template <bool Tail> vf apply(vf v, int64_t n, int64_t cb, int64_t y, int64_t x, int lanes) const {
    static_assert(!Tail);
    return v + load(bias + cb * W) + set(100.0f * n + y / 8.0f + x / 64.0f + (lanes - W));
  }
};
extern "C" void conv(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  ConvArgs<> a{(float*)p[0], d[0], d[1], d[2], (float*)p[1], (float*)p[2], d[3], d[4], d[5],
             d[6], d[7], d[8], d[9], d[10], d[11], d[12], d[13]};
  conv_tasks<PARAMS>(a, Epi{(float*)p[3]}, begin, end < 0 ? conv_task_count<PARAM_NV>(a) : end);
}
"""

DEPTHWISE = """
#include "kernels/conv/depthwise.h"
using namespace opcel;
struct Epi {
  const float* bias;
  template <bool Tail> vf apply(vf v, int64_t n, int64_t cb, int64_t y, int64_t x, int) const {
    return v + load(bias + cb * W) + set(100.0f * n + y / 8.0f + x / 64.0f);
  }
};
extern "C" void conv(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  DepthwiseArgs<> a{(float*)p[0], d[0], d[1], d[2], (float*)p[1], (float*)p[2], d[3], d[4], d[5],
                  d[6], d[7], d[8], d[9], d[10], d[11], d[12], d[13]};
  depthwise_tasks<PARAMS>(a, Epi{(float*)p[3]}, begin, end < 0 ? depthwise_task_count(a) : end);
}
"""

REFERENCE = """
#include "kernels/conv/reference.h"
using namespace opcel;
extern "C" void conv(void* const* p, const int64_t* d) {
  ConvReferenceArgs<float> a{(float*)p[0], (float*)p[1], (float*)p[2], (float*)p[3], d[0], d[1], d[2], d[3],
                      {}, {}, {}, {}, {}, {}};
  int64_t* to[] = {a.in, a.out, a.kernel, a.stride, a.dilation, a.pad};
  for (int i = 0; i < 18; ++i) to[i / 3][i % 3] = d[4 + i];
  int64_t tasks = conv_reference_task_count(a);
  conv_reference_tasks(a, tasks / 2, tasks);
  conv_reference_tasks(a, 0, tasks / 2);
}
"""


def convolve(
    x: np.ndarray,
    w: np.ndarray,
    groups: int,
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[tuple[int, int]],
) -> np.ndarray:
    """Convolution of any spatial rank in float64, tap by tap."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    n, _, *size = x.shape
    filters, per_group, *kernel = w.shape
    out = [(size[i] - (kernel[i] - 1) * dilation[i] - 1) // stride[i] + 1 for i in range(len(size))]
    y = np.zeros((n, groups, filters // groups, *out))
    grouped = x.reshape(n, groups, per_group, *size)
    weights = w.reshape(groups, filters // groups, per_group, *kernel).astype(np.float64)
    for tap in itertools.product(*map(range, kernel)):
        window = tuple(
            slice(t * d, t * d + (o - 1) * s + 1, s) for t, d, o, s in zip(tap, dilation, out, stride, strict=True)
        )
        y += np.einsum("ngc...,gfc->ngf...", grouped[(..., *window)], weights[(..., *tap)])
    return y.reshape(n, filters, *out)


def blocked(x: np.ndarray, width: int, halo: Sequence[tuple[int, int]]) -> np.ndarray:
    """[n, c, h, w] to [n, c / width, h, w, width] inside a zero halo."""
    n, c = x.shape[:2]
    x = np.pad(x, [(0, 0), (0, -c % width), *halo])
    return np.ascontiguousarray(x.reshape(n, -1, width, *x.shape[2:]).transpose(0, 1, 3, 4, 2))


def epilogue(y: np.ndarray, bias: np.ndarray) -> np.ndarray:
    n, _, h, w = y.shape
    return (
        y
        + bias[:, None, None]
        + 100 * np.arange(n)[:, None, None, None]
        + np.arange(h)[:, None] / 8
        + np.arange(w) / 64
    )


def unblocked(y: np.ndarray, channels: int) -> np.ndarray:
    n, cb, h, w, width = y.shape
    return y.transpose(0, 1, 4, 2, 3).reshape(n, cb * width, h, w)[:, :channels]


def run_blocked(
    isa: str,
    n: int,
    groups: int,
    ic: int,
    oc: int,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    pad: int,
    nv: int,
    tile: str,
    planar: bool = False,
    rows_per_task: int = 2,
    panels_per_task: int = 1,
    lack: tuple[int, int] = (0, 0),
) -> None:
    """ic, oc: channels of one group, in units of W for a blocked input.

    `lack`: halves of the last blocks (in, out) that are no channels.
    """
    width = WIDTH[isa]
    cb = 1 if planar else width
    ic, oc = (ic if planar else ic * width), oc * width
    lib = build(
        BLOCKED.replace("PARAM_NV", str(nv)).replace(
            "PARAMS",
            f"{cb}, {kernel[0]}, {kernel[1]}, {stride[0]}, {stride[1]}, {dilation[0]}, {dilation[1]}, {nv}, "
            f"{cb - lack[0] * width // 2}, {lack[1]}, {tile}",
        ),
        isa,
    )
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, groups * ic, *size)).astype(np.float32)
    w = rng.normal(size=(groups * oc, ic, *kernel)).astype(np.float32)
    bias = rng.normal(size=groups * oc).astype(np.float32)
    x.reshape(n, groups, ic, *size)[:, :, ic - lack[0] * width // 2 :] = 0
    w.reshape(groups, oc, ic, *kernel)[:, oc - lack[1] * width // 2 :] = 0
    pads = [(pad, pad)] * 2
    xb = blocked(x, cb, pads)
    packed = np.ascontiguousarray(
        w.reshape(groups, oc // (nv * width), nv * width, ic // cb, cb, *kernel).transpose(0, 1, 3, 5, 6, 4, 2)
    )
    want = epilogue(convolve(x, w, groups, stride, dilation, pads), bias)
    oh, ow = want.shape[2:]
    y = np.full((n, groups * oc // width, oh, ow + 1, width), np.nan, np.float32)
    items = [s // 4 for s in xb.strides], [s // 4 for s in y.strides]
    p = pointers(xb, packed, y, bias)
    d = integers(*items[0][:3], *items[1][:3], n, groups, oc // width, ic // cb, oh, ow, rows_per_task, panels_per_task)
    tasks = n * groups * -(-(oc // width // nv) // panels_per_task) * -(-oh // rows_per_task)
    lib.conv(p, d, ctypes.c_int64(tasks // 2), ctypes.c_int64(-1))
    lib.conv(p, d, ctypes.c_int64(0), ctypes.c_int64(tasks // 2))
    assert np.isnan(y[:, :, :, ow]).all(), "wrote past the last pixel"
    np.testing.assert_allclose(unblocked(y[:, :, :, :ow], groups * oc), want, rtol=2e-5, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "case",
    [
        dict(
            n=2,
            groups=1,
            ic=2,
            oc=2,
            size=(5, 17),
            kernel=(3, 3),
            stride=(1, 1),
            dilation=(1, 1),
            pad=1,
            nv=2,
            tile="1, 4, 2, 1",
        ),
        dict(
            n=1,
            groups=1,
            ic=1,
            oc=2,
            size=(7, 7),
            kernel=(3, 3),
            stride=(1, 1),
            dilation=(1, 1),
            pad=1,
            nv=1,
            tile="2, 7, 1",
            rows_per_task=7,
        ),
        dict(
            n=1,
            groups=1,
            ic=1,
            oc=1,
            size=(9, 12),
            kernel=(3, 3),
            stride=(2, 2),
            dilation=(1, 1),
            pad=1,
            nv=1,
            tile="1, 6",
        ),
        dict(
            n=1,
            groups=3,
            ic=2,
            oc=6,
            size=(6, 5),
            kernel=(3, 2),
            stride=(1, 2),
            dilation=(2, 1),
            pad=2,
            nv=2,
            tile="1, 4, 1",
            panels_per_task=2,
        ),
        dict(
            n=2,
            groups=1,
            ic=3,
            oc=2,
            size=(1, 23),
            kernel=(1, 1),
            stride=(1, 1),
            dilation=(1, 1),
            pad=0,
            nv=2,
            tile="1, 6, 4, 1",
        ),
        dict(
            n=1,
            groups=1,
            ic=1,
            oc=4,
            size=(5, 9),
            kernel=(1, 1),
            stride=(2, 2),
            dilation=(1, 1),
            pad=0,
            nv=4,
            tile="1, 3, 2, 1",
        ),
        dict(
            n=1,
            groups=1,
            ic=3,
            oc=2,
            size=(15, 14),
            kernel=(7, 7),
            stride=(2, 2),
            dilation=(1, 1),
            pad=3,
            nv=2,
            tile="1, 4, 2, 1",
            planar=True,
        ),
        dict(
            n=1,
            groups=2,
            ic=2,
            oc=4,
            size=(5, 9),
            kernel=(3, 3),
            stride=(1, 1),
            dilation=(1, 1),
            pad=1,
            nv=2,
            tile="1, 3, 2, 1",
            lack=(1, 1),
        ),
    ],
    ids=["3x3", "3x3-two-rows", "3x3-stride", "groups-dilation", "1x1", "1x1-stride", "stem", "half-blocks"],
)
def test_blocked(isa: str, case: dict) -> None:
    run_blocked(isa, **case)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "pad", "size", "tile"),
    [
        ((3, 3), (1, 1), (1, 1), 1, (5, 14), 0),
        ((3, 3), (2, 2), (1, 1), 1, (6, 11), 0),
        ((5, 5), (1, 1), (1, 1), 2, (4, 9), 0),
        ((3, 3), (1, 2), (2, 2), 2, (7, 23), 0),
        ((1, 3), (1, 3), (1, 1), 0, (2, 40), 0),
        ((3, 3), (1, 1), (1, 1), 1, (5, 14), 7),
        ((3, 3), (1, 1), (1, 1), 1, (1, 7), 7),
        ((3, 3), (2, 2), (1, 1), 1, (6, 11), 5),
        ((3, 3), (2, 2), (1, 1), 1, (7, 30), 8),
        ((5, 5), (1, 1), (1, 1), 2, (2, 9), 7),
        ((3, 3), (1, 2), (2, 2), 2, (7, 23), 5),
        ((7, 7), (1, 1), (1, 1), 3, (7, 7), 7),
    ],
)
@pytest.mark.parametrize(("blocks_per_task", "group"), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 4)])
def test_depthwise(
    isa: str,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    pad: int,
    size: tuple[int, int],
    tile: int,
    blocks_per_task: int,
    group: int,
) -> None:
    """`tile`: outputs of a tile where padding is skipped, 0 with a halo. `group`: channels of a group."""
    width = WIDTH[isa]
    channels = 2 * width + (3 if group == 1 else width // 2 // group * group)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, channels, *size)).astype(np.float32)
    w = rng.normal(size=(channels, group, *kernel)).astype(np.float32)
    bias = np.zeros(3 * width, np.float32)
    bias[:channels] = rng.normal(size=channels)
    pads = [(pad, pad)] * 2
    packed = np.ascontiguousarray(blocked(w.transpose(1, 0, 2, 3), width, [(0, 0)] * 2).transpose(1, 2, 3, 0, 4))
    want = epilogue(convolve(x, w, channels // group, stride, dilation, pads), bias[:channels])
    oh, ow = want.shape[2:]
    right = max(0, (ow - 1) * stride[1] + (kernel[1] - 1) * dilation[1] + 1 - pad - size[1])
    sides = (pad, right) if tile else (0, 0)
    params = ", ".join(map(str, (*kernel, *stride, *dilation, *sides, tile, group)))
    lib = build(DEPTHWISE.replace("PARAMS", params), isa)
    xb = blocked(x, width, [(0, 0)] * 2 if tile else pads)
    rows = (pad, size[0]) if tile else (0, xb.shape[2])
    y = np.full((2, 3, oh, ow + 1, width), np.nan, np.float32)
    steps = [s // 4 for s in (*xb.strides[:3], *y.strides[:3])]
    d = integers(*steps, 2, 3, oh, ow, 2, blocks_per_task, *rows)
    p = pointers(xb, packed, y, bias)
    lib.conv(p, d, ctypes.c_int64(2), ctypes.c_int64(-1))
    lib.conv(p, d, ctypes.c_int64(0), ctypes.c_int64(2))
    assert np.isnan(y[:, :, :, ow]).all(), "wrote past the last pixel"
    np.testing.assert_allclose(unblocked(y[:, :, :, :ow], channels), want, rtol=2e-5, atol=1e-4)
