"""Histograms of tensors against the operator's definition: every layout, any division into parts, one after another."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import numpy as np
import pytest
from harness import ISAS, WIDTH, build, integers, pointers

from opcel_compiler.ir.opdef import op_def
from opcel_compiler.ir.ops.observe import EVERY, MOST_PARTS, PART_COUNTS, part_channels
from opcel_compiler.ir.statistics import Histogram

SOURCE = """
#include "kernels/observe/histogram.h"
using namespace opcel;
extern "C" void observe(int kind, bool all, void* const* p, const int64_t* d, bool backwards) {
  const ObserveArgs args{static_cast<const float*>(p[0]), static_cast<const float*>(p[1]), static_cast<uint32_t*>(p[2]),
                         static_cast<float*>(p[3]), static_cast<float*>(p[4]), static_cast<uint32_t*>(p[5]),
                         static_cast<float*>(p[6]), {d[0], d[1], d[2]}, {d[3], d[4], d[5]}, d[6], d[7], d[8],
                         d[9], d[10], d[11]};
  for (int64_t i = 0; i < args.parts; ++i) {
    const int64_t t = backwards ? args.parts - 1 - i : i;
    if (kind == 0) observe_tasks<Channels::along, 1>(args, t, t + 1);
    else if (kind == 1 && all) observe_tasks<Channels::one, 1>(args, t, t + 1);
    else if (kind == 1) observe_tasks<Channels::one, EVERY>(args, t, t + 1);
    else if (all) observe_tasks<Channels::block, 1>(args, t, t + 1);
    else observe_tasks<Channels::block, EVERY>(args, t, t + 1);
  }
  merge_parts(args);
}
""".replace("EVERY", str(EVERY))
ALONG, ONE, BLOCK = 0, 1, 2
NO_WINDOW = (-127.0, 0.0)


@dataclass
class Case:
    """A value [.., channels, ..], its elements in memory, and the rows in which they lie."""

    kind: int
    x: np.ndarray
    axis: int
    memory: np.ndarray
    offset: int
    extents: tuple[int, int, int]
    steps: tuple[int, int, int]
    n: int
    total: int
    numbered: int
    every: int = 1


def values(shape: tuple[int, ...], kind: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(shape) * 3).astype(np.float32)
    if kind == "relu":
        x = np.maximum(x, 0)
    flat = x.reshape(-1)
    if kind == "bad" and flat.size:
        flat[rng.integers(0, flat.size, 5)] = np.float32([np.nan, np.inf, -np.inf, np.nan, -np.inf])
    if kind == "zeros":
        flat[:] = 0.0
        flat[1::2] = -0.0
    if kind == "wide" and flat.size:
        flat[:: max(1, flat.size // 7)] *= np.float32(1e30)
    if kind == "small":
        x *= np.float32(1e-41)
        flat[::5] = flat[::5] * np.float32(1e38) * np.float32(1e7)
    return x


def blocked(
    x: np.ndarray, w: int, halo: int
) -> tuple[np.ndarray, int, tuple[int, int, int], tuple[int, int, int], int]:
    n, c, height, width = x.shape
    blocks = -(-c // w)
    memory = np.full((n, blocks, height + 2 * halo, width + 2 * halo, w), 1e9, np.float32)
    inner = memory[:, :, halo : halo + height, halo : halo + width]
    inner[...] = 1e8  # lanes of no channel
    for i in range(c):
        inner[:, i // w, ..., i % w] = x[:, i]
    row = (width + 2 * halo) * w
    plane = row * (height + 2 * halo)
    offset = halo * row + halo * w
    if not halo:
        return memory, 0, (1, n, blocks), (0, blocks * plane, plane), height * width * w
    return memory, offset, (n, blocks, height), (blocks * plane, plane, row), width * w


def cases(kind: str, w: int) -> list[Case]:
    out = []
    for rows, c, gap in ((1, 1, 0), (5, 3, 0), (40, 37, 0), (300, 128, 16), (0, 5, 0)):
        x = values((rows, c), kind, rows)
        memory = np.full((rows, c + gap), 1e9, np.float32)
        memory[:, :c] = x
        out.append(Case(ALONG, x, 1, memory, 0, (1, 1, rows), (0, 0, c + gap), c, rows * c, -1))
    for n, c, inner in ((1, 3, 5000), (2, 19, 33), (1, 1, 1)):
        x = values((n, c, inner), kind, c)
        out.append(Case(ONE, x, 1, x, 0, (1, n, c), (0, c * inner, inner), inner, x.size, 2))
    for size in (1, 15, 16, 4096, 70001):
        x = values((size,), kind, size)
        out.append(Case(ONE, x, -1, x, 0, (1, 1, -(-size // 4096)), (0, 0, 4096), 4096, size, -1))
    for shape, halo in (((2, 2 * w, 5, 7), 0), ((1, w + 3, 6, 9), 0), ((2, 2 * w + 1, 6, 5), 2)):
        x = values(shape, kind, shape[1])
        memory, offset, extents, steps, n = blocked(x, w, halo)
        rows = int(np.prod(extents))
        out.append(Case(BLOCK, x, 1, memory, offset, extents, steps, n, rows * n, 1 if halo else 2))
    images = [c for c in out if c.kind != ALONG and c.axis == 1]
    return out + [replace(c, every=EVERY) for c in images]


def observe(
    library: ctypes.CDLL, case: Case, window: tuple[float, float], parts: int, backwards: bool
) -> list[np.ndarray]:
    count = case.x.shape[case.axis] if case.axis >= 0 else 1
    out = [
        np.full(2049, 77, np.uint32), np.full(5, 77, np.float32), np.full((2, count), 77, np.float32),
        np.full((MOST_PARTS, PART_COUNTS), 77, np.uint32), np.full((MOST_PARTS, part_channels(count)), 77, np.float32),
    ]  # fmt: skip
    given = np.float32(window)
    addresses = pointers(case.memory, given, *out)
    addresses[0] = (case.memory.ctypes.data or 0) + 4 * case.offset
    sizes = integers(*case.extents, *case.steps, case.n, case.total, case.numbered, count, parts, case.x.size)
    library.observe(case.kind, case.every == 1, addresses, sizes, backwards)
    assert (out[3][parts:] == 77).all() and (out[4][parts:] == 77).all()
    return out[:3]


def windows(x: np.ndarray) -> list[tuple[float, float]]:
    """None, one that just fits, one of other values, one that is too wide."""
    finite = x[np.isfinite(x)].astype(np.float64)
    fits = Histogram.fitting(float(finite.min(initial=0)), float(finite.max(initial=0)))
    return [NO_WINDOW, fits, Histogram.fitting(0.0, 1e-3), Histogram.fitting(-1e33, 5.0)]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["normal", "relu", "zeros", "bad", "wide", "small"])
def test_counts_extremes_and_channels(isa: str, kind: str) -> None:
    library = build(SOURCE, isa)
    for case in cases(kind, WIDTH[isa]):
        for window in windows(case.x):
            attrs = {"axis": case.axis, "every": case.every}
            counts, seen, channels, *_ = op_def("observe").evaluate([case.x, np.float32(window)], attrs)
            results = [observe(library, case, window, parts, parts == 5) for parts in (1, 3, 5, 16)]
            for found in results:
                where = (case.kind, case.x.shape, case.every, window)
                np.testing.assert_array_equal(found[0], counts, str(where))
                np.testing.assert_array_equal(found[1], seen, str(where))
                np.testing.assert_array_equal(found[2][0], channels[0], str(where))
                scale = np.abs(np.where(np.isfinite(case.x), case.x, 0)).sum() + 1e-30
                np.testing.assert_allclose(found[2][1], channels[1], rtol=0, atol=2e-6 * scale)


@pytest.mark.parametrize("isa", ISAS)
def test_the_order_of_tasks_changes_no_bit(isa: str) -> None:
    library = build(SOURCE, isa)
    for case in cases("normal", WIDTH[isa]):
        ahead, back = (observe(library, case, NO_WINDOW, 16, b) for b in (False, True))
        for a, b in zip(ahead, back, strict=True):
            np.testing.assert_array_equal(a, b)
