"""Kernels that read images elsewhere than at their own pixels, against the operators' definitions."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from harness import ISAS, WIDTH, build

from opcel_compiler.ir.opdef import op_def

RNG = np.random.default_rng(0)

SOURCE = """
#include "kernels/columns/col2im.h"
#include "kernels/columns/deform.h"
#include "kernels/resample/blocked.h"
#include "kernels/resample/grid.h"
#include "kernels/resample/roi.h"
#include "kernels/rows/echelon.h"
using namespace opcel;
typedef const float* in;
typedef const std::int32_t* places;
typedef std::int64_t num;
extern "C" void planes(in x, float* y, const num* d, places ra, in rw, places ca, in cw) {
  const ResampleArgs args{x, y, d[0], d[1], d[2], {ra, rw, d[3], d[4]}, {ca, cw, d[5], d[6]}, d[7]};
  for (num t = resample_task_count(args); t-- > 0;) resample_tasks(args, t, t + 1);
}
extern "C" void blocks(in x, float* y, const num* d, places ra, in rw, places ca, in cw) {
  const num in_row = d[2] * W, out_row = d[6] * W;
  const ResampleBlockedArgs<> args{x, d[0] * d[1] * in_row, d[1] * in_row, in_row,
                                   y, d[0] * d[4] * out_row, d[4] * out_row, out_row, 1, d[0], d[1], d[2],
                                   {ra, rw, d[3], d[4]}, {ca, cw, d[5], d[6]}, d[7]};
  for (num t = resample_blocked_task_count(args); t-- > 0;) resample_blocked_tasks(args, t, t + 1);
}
extern "C" void grid(in x, in g, float* y, const num* d) {
  const GridArgs args{x, g, y, d[0], d[1], d[2], {d[3], d[4], 1}, false};
  for (num t = grid_task_count(args); t-- > 0;) grid_tasks<2, GridMode::cubic, GridPadding::reflection>(args, t, t + 1);
}
extern "C" int roi(in x, in rois, const num* images, float* y, const num* d, float scale) {
  std::int32_t error = 0;
  const RoiArgs args{x, rois, images, y, d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7], scale, 0.0f, 1.0f, &error};
  for (num t = roi_task_count(args); t-- > 0;) roi_tasks<false, num>(args, t, t + 1);
  return error;
}
extern "C" void deform(in x, in offset, in mask, float* y, const num* d) {
  const DeformArgs args{x, offset, mask, y, d[0], d[1], d[2], d[3], d[4], d[5], d[6], 2, 3, 1, 1, 1, 1, 1, 1};
  for (num t = deform_task_count(args); t-- > 0;) deform_tasks(args, t, t + 1);
}
extern "C" void col2im(in x, float* y, num planes) {
  const Col2ImArgs args{x, y, planes, 2, {5, 6}, {2, 3}, {3, 4}, {2, 1}, {1, 1}, {1, 0}};
  for (num t = col2im_task_count(args); t-- > 0;) col2im_tasks(args, t, t + 1);
}
extern "C" void echelon(const double* x, double* y, num n, num count) { echelon_tasks(x, y, n, 0, count); }
"""


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def address(x: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if x is None else x.ctypes.data)


def numbers(*values: int) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def expected(op: str, arrays: list[np.ndarray | None], **attrs: Any) -> np.ndarray:
    d = op_def(op)
    assert d.evaluate is not None
    return d.evaluate(arrays, d.complete(attrs))[0]


def table(taps: int, size: int, extent: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Places, some outside of the image, and weights; taps 0: none, 1: without weights."""
    if not taps:
        return None, None
    at = RNG.integers(-2, extent + 2, (taps, size)).astype(np.int32)
    at[:, 1] = at[:, 0]
    weights = floats(taps, size)
    weights[:, 1] = weights[:, 0]
    return at, None if taps == 1 else weights


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("columns", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("width", [21, 17000])
def test_resampled_planes(isa: str, rows: int, columns: int, width: int) -> None:
    x = floats(1, 2, 5, width)
    tables = [*table(rows, 7, 5), *table(columns, 19, width)]
    want = expected("resample", [x, *tables])
    y = np.full(want.shape, np.nan, np.float32)
    sizes = numbers(2, 5, width, rows or 1, want.shape[2], columns or 1, want.shape[3], 3)
    build(SOURCE, isa).planes(address(x), address(y), sizes, *map(address, tables))
    np.testing.assert_allclose(y, want, 1e-5, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "places",
    [np.arange(40) // 2, np.arange(80) // 4, np.arange(60) // 3, np.arange(20), np.arange(-3, 25),
     np.abs(np.arange(-5, 18)), np.arange(40)[::-1] // 2],
)  # fmt: skip
def test_patterns_of_single_places(isa: str, places: np.ndarray) -> None:
    x, at = floats(1, 2, 3, 20), places.astype(np.int32).reshape(1, -1)
    want = expected("resample", [x, None, None, at])
    y = np.full(want.shape, np.nan, np.float32)
    sizes = numbers(2, 3, 20, 1, 3, 1, at.shape[1], 2)
    build(SOURCE, isa).planes(address(x), address(y), sizes, *map(address, (None, None, at, None)))
    np.testing.assert_array_equal(y, want)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows, columns", [(0, 1), (1, 1), (2, 0), (2, 2), (4, 3), (0, 2)])
def test_resampled_blocks(isa: str, rows: int, columns: int) -> None:
    lanes = WIDTH[isa]
    x = floats(2, 5, 6, lanes)
    tables = [*table(rows, 7, 5), *table(columns, 9, 6)]
    want = expected("resample", [x.transpose(0, 3, 1, 2), *tables]).transpose(0, 2, 3, 1)
    y = np.full(want.shape, np.nan, np.float32)
    sizes = numbers(2, 5, 6, rows or 1, want.shape[1], columns or 1, want.shape[2], 3)
    build(SOURCE, isa).blocks(address(x), address(y), sizes, *map(address, tables))
    np.testing.assert_allclose(y, want, 1e-5, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_sampled_grid(isa: str) -> None:
    x, grid = floats(2, 3, 5, 6), 2 * floats(2, 7, 11, 2)
    want = expected("grid_sample", [x, grid], mode="cubic", padding="reflection", align_corners=False)
    y = np.full(want.shape, np.nan, np.float32)
    build(SOURCE, isa).grid(address(x), address(grid), address(y), numbers(2, 3, 77, 5, 6))
    np.testing.assert_allclose(y, want, 1e-3, 1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_positions_that_are_no_numbers_stay_within_the_image(isa: str) -> None:
    x, grid = floats(1, 1, 4, 4), np.full((1, 2, 2, 2), np.nan, np.float32)
    grid[0, 0, 0], grid[0, 1, 1] = np.inf, -1e38
    y = np.zeros((1, 1, 2, 2), np.float32)
    build(SOURCE, isa).grid(address(x), address(grid), address(y), numbers(1, 1, 4, 4, 4))


@pytest.mark.parametrize("isa", ISAS)
def test_regions(isa: str) -> None:
    x, images = floats(2, 3, 6, 7), np.array([0, 1, 1, 2])
    rois = np.array([[0, 0, 4, 3], [1.3, 2.1, 5.5, 4.9], [-30, -2, 90, 9], [0, 0, 1, 1]], np.float32)
    lib = build(SOURCE, isa)
    want = expected(
        "roi_align", [x, rois[:3], images[:3]], size=(2, 3), mode="avg", samples=0, scale=0.75, half_pixel=False
    )
    y = np.full((4, 3, 2, 3), np.nan, np.float32)
    for count, error in ((3, 0), (4, 1)):
        sizes = numbers(count, 2, 3, 6, 7, 2, 3, 0)
        found = lib.roi(address(x), address(rois), address(images), address(y), sizes, ctypes.c_float(0.75))
        assert found == error
    np.testing.assert_allclose(y[:3], want, 1e-3, 1e-4)
    assert not y[3].any()


@pytest.mark.parametrize("isa", ISAS)
def test_shifted_windows(isa: str) -> None:
    x, offset, mask = floats(2, 4, 5, 6), 2 * floats(2, 24, 6, 6), floats(2, 12, 6, 6)
    attrs = {"kernel": (2, 3), "strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1), "groups": 2}
    for factors in (mask, None):
        want = expected("deform_columns", [x, offset, factors], **attrs)
        y = np.full(want.shape, np.nan, np.float32)
        sizes = numbers(2, 4, 2, 5, 6, 6, 6)
        build(SOURCE, isa).deform(address(x), address(offset), address(factors), address(y), sizes)
        np.testing.assert_allclose(y, want, 1e-4, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_columns_to_images(isa: str) -> None:
    x = floats(2, 18, 12)
    attrs = {"size": (5, 6), "kernel": (2, 3), "strides": (2, 1), "pads": (1, 0, 0, 0), "dilations": (1, 1)}
    want = expected("col2im", [x], **attrs)
    y = np.full(want.shape, np.nan, np.float32)
    build(SOURCE, isa).col2im(address(x), address(y), ctypes.c_int64(6))
    np.testing.assert_allclose(y, want, 1e-5, 1e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_triangles(isa: str) -> None:
    x = RNG.standard_normal((4, 5, 5))
    x[1, :, 2] = x[1, :, 1]
    x[2, 0, 0] = 0
    y = np.empty_like(x)
    build(SOURCE, isa).echelon(address(x), address(y), ctypes.c_int64(5), ctypes.c_int64(4))
    regular = [0, 2, 3]
    np.testing.assert_allclose(y[regular], expected("echelon", [x])[regular], 1e-9, 1e-12)
    np.testing.assert_allclose(np.einsum("nii->ni", y).prod(1), np.linalg.det(x), 1e-9, 1e-9)
