"""Winograd convolutions beside a convolution in float64: both tiles, edges, batches, and what lies outside."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from harness import BF16_ISAS, ISAS, WIDTH, build, integers, pointers
from test_conv import blocked, convolve, unblocked

from opcel_compiler.codegen.cpu.pack import winograd_panels

SOURCE = """
#include "kernels/conv/winograd.h"
using namespace opcel;
struct Epi {  // relu(y + bias[channel] + residual)
  const float *bias, *residual;
  int64_t n_step, cb_step, y_step;
  void prefetch(int64_t n, int64_t cb, int64_t y, int64_t x) const {
    __builtin_prefetch(residual + n * n_step + cb * cb_step + y * y_step + x * W);
  }
  template <bool Tail> vf apply(vf v, int64_t n, int64_t cb, int64_t y, int64_t x, int lanes) const {
    static_assert(!Tail);
    const vf other = load(residual + n * n_step + cb * cb_step + y * y_step + x * W);
    return max(vf{}, v + load(bias + cb * W) + other + set(float(lanes - W)));
  }
};
extern "C" void conv(void* const* p, const int64_t* d) {
  WinogradArgs<IMAGE> a{(IMAGE*)p[0], d[0], d[1], d[2], (float*)p[1], (IMAGE*)p[2], d[3], d[4], d[5],
                        d[6], d[7], d[8], d[9], d[10], d[11], d[12], (float*)p[5]};
  Epi epi{(float*)p[3], (float*)p[4], d[3], d[4], d[5]};
  const int64_t groups = a.groups;
  if (a.v) {
    const int64_t tasks = a.ocb / NVS * groups;
    winograd_input_tasks<SIZE>(a, 1, groups * a.icb);
    winograd_input_tasks<SIZE>(a, 0, 1);
    winograd_product_tasks<SIZE, NVS, GROUP, ROWS>(a, epi, tasks / 2, tasks);
    winograd_product_tasks<SIZE, NVS, GROUP, ROWS>(a, epi, 0, tasks / 2);
  } else {
    constexpr int64_t elements = winograd_group_elements<SIZE>(GROUP, ICB);
    const int64_t tasks = groups * a.parts;
    winograd_tasks<SIZE, NVS, GROUP, elements, ROWS>(a, epi, tasks / 2, tasks);
    winograd_tasks<SIZE, NVS, GROUP, elements, ROWS>(a, epi, 0, tasks / 2);
  }
}
"""

BOUND = {2: 1e-6, 4: 5e-6}


def run(
    isa: str, m: int, x: np.ndarray, w: np.ndarray, pads: tuple[tuple[int, int], tuple[int, int]], *, nv: int = 2,
    groups: int = 3, rows: str = "3, 2, 1", parts: int = 1, staged: bool = True,
    image: str = "float",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(what the kernel computes, the same in float64) for an epilogue with bias, residual and ReLU."""
    width = WIDTH[isa]
    oc, ic = w.shape[:2]
    ocb, icb = -(-oc // (width * nv)) * nv, -(-ic // width)
    n, oh, ow = len(x), *(s + sum(p) - 2 for s, p in zip(x.shape[2:], pads, strict=True))
    group = -(-n * -(-oh // m) * -(-ow // m) // groups)
    stored = np.dtype(ml_dtypes.bfloat16) if image == "bf16" else np.dtype(np.float32)
    text = SOURCE.replace("IMAGE", image).replace("SIZE", str(m)).replace("NVS", str(nv)).replace("ICB", str(icb))
    lib = build(text.replace("GROUP", str(group)).replace("ROWS", rows), isa)
    rng = np.random.default_rng(1)
    want = convolve(x, w, 1, (1, 1), (1, 1), pads)
    bias = np.zeros(ocb * width, np.float32)
    bias[:oc] = rng.normal(size=oc)
    residual = rng.normal(size=want.shape).astype(np.float32)
    want = want + bias[:oc, None, None] + residual
    want = np.where(want < 0, 0, want)
    # A frame of NaN around the images: reading there would show, and so would writing.
    xb = np.pad(blocked(x, width, pads), [(0, 0), (0, 0), (0, 1), (0, 1), (0, 0)], constant_values=np.nan)
    other = np.zeros((n, ocb, oh + 1, ow + 1, width), np.float32)
    other[:, : -(-oc // width), :oh, :ow] = blocked(residual, width, [(0, 0)] * 2)
    xb, y = xb.astype(stored), np.full(other.shape, np.nan, stored)
    v = np.full((groups, (m + 2) ** 2, icb * group * width + width), np.nan, np.float32)
    steps = [s // a.itemsize for a in (xb, y) for s in a.strides[:3]]
    u = winograd_panels(w, m, width, nv * width)
    lib.conv(
        pointers(xb, u, y, bias, other, v if staged else None),
        integers(*steps, n, ocb, icb, oh, ow, groups, parts),
    )
    outside = np.isnan(y.astype(np.float32))
    assert outside[:, :, oh:].all() and outside[:, :, :, ow:].all(), "wrote past the image"
    return unblocked(y[:, :, :oh, :ow], oc).astype(np.float32), want


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("staged", [True, False])
def test_images_stored_as_bf16(isa: str, m: int, staged: bool) -> None:
    """The sums are those of f32: a result differs from the exact one by its own rounding."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 2 * WIDTH[isa], 7, 9)).astype(ml_dtypes.bfloat16)
    w = rng.normal(size=(2 * WIDTH[isa], 2 * WIDTH[isa], 3, 3)).astype(np.float32)
    got, want = run(isa, m, x, w, ((1, 1), (1, 1)), staged=staged, image="bf16")
    np.testing.assert_allclose(got, want, rtol=2.0**-8, atol=1e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize(
    ("n", "ic", "oc", "size", "pads", "options"),
    [
        (1, 2, 4, (8, 12), ((1, 1), (1, 1)), {}),
        (2, 1, 2, (7, 9), ((1, 1), (1, 1)), {"staged": False}),
        (3, 1, 1, (5, 6), ((0, 1), (2, 0)), {"nv": 1, "groups": 2, "rows": "5, 4, 1"}),
        (1, 3, 6, (3, 4), ((0, 0), (0, 0)), {"parts": 2, "groups": 1, "rows": "1", "staged": False}),
        (1, 3, 3, (10, 3), ((1, 1), (1, 1)), {"nv": 3, "groups": 1, "rows": "2, 1", "staged": False}),
    ],
    ids=["even", "fused-edges", "batch-pads", "one-tile", "three-vectors"],
)  # fmt: skip
def test_shapes(isa: str, m: int, n: int, ic: int, oc: int, size: tuple, pads: tuple, options: dict) -> None:
    """ic, oc: in units of W, less one channel of the input and of the output."""
    width = WIDTH[isa]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, ic * width - 1, *size)).astype(np.float32)
    w = rng.normal(size=(oc * width - 1, ic * width - 1, 3, 3)).astype(np.float32)
    got, want = run(isa, m, x, w, pads, **options)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-4)
    assert error(got, want) < BOUND[m]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", [2, 4])
def test_accuracy(isa: str, m: int) -> None:
    """Sums over 576 channels, more than one chunk."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1, 576, 8, 8)).astype(np.float32)
    w = rng.normal(size=(2 * WIDTH[isa], 576, 3, 3)).astype(np.float32)
    got, want = run(isa, m, x, w, ((1, 1), (1, 1)), groups=1, rows="4")
    assert error(got, want) < BOUND[m]


def test_grouping_changes_no_bit() -> None:
    isa = ISAS[0]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3 * WIDTH[isa], 11, 13)).astype(np.float32)
    w = rng.normal(size=(4 * WIDTH[isa], x.shape[1], 3, 3)).astype(np.float32)
    results = [
        run(isa, 4, x, w, ((1, 1), (1, 1)), **options)[0]
        for options in (
            {}, {"groups": 1, "rows": "12"}, {"groups": 7, "rows": "4, 3", "staged": False},
            {"parts": 2, "staged": False},
        )
    ]  # fmt: skip
    for other in results[1:]:
        assert np.array_equal(results[0], other)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_not_finite_stays_in_its_tiles(m: int, bad: float) -> None:
    """A NaN or infinity reaches only tiles whose input it lies in; there it may spread."""
    isa = ISAS[0]
    x = np.ones((1, WIDTH[isa], 12, 12), np.float32)
    w = np.ones((2 * WIDTH[isa], WIDTH[isa], 3, 3), np.float32)
    x[0, 3, 6, 6] = bad
    with np.errstate(invalid="ignore"):
        got, want = run(isa, m, x, w, ((1, 1), (1, 1)))
    near = np.zeros((12, 12), bool)
    for first in np.ndindex(12 // m, 12 // m):
        low, high = np.array(first) * m - 1, np.array(first) * m + m
        if (low <= 6).all() and (high >= 6).all():
            near[first[0] * m : first[0] * m + m, first[1] * m : first[1] * m + m] = True
    assert not np.isfinite(got[:, :, 6, 6]).any()
    np.testing.assert_allclose(got[:, :, ~near], want[:, :, ~near], rtol=1e-4)
