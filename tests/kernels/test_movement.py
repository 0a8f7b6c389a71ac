"""Copies, layout changes and gathers are bit-exact and write nothing else."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable

import numpy as np
import pytest
from harness import ISAS, WIDTH, build

SOURCE = """
#include "kernels/movement/copy.h"
#include "kernels/movement/gather.h"
#include "kernels/movement/relayout.h"
using namespace opcel;
extern "C" void copy(const void* x, void* y, long bytes, long axes, const long* size, const long* xs, const long* ys,
                     long tasks, long begin, long end) {
  CopyArgs a{}; a.x = x; a.y = y; a.axes = axes; a.tasks = tasks;
  for (long i = 0; i < axes; ++i) { a.size[i] = size[i]; a.x_stride[i] = xs[i]; a.y_stride[i] = ys[i]; }
  if (bytes == 1) copy_tasks<1>(a, begin, end);
  if (bytes == 2) copy_tasks<2>(a, begin, end);
  if (bytes == 4) copy_tasks<4>(a, begin, end);
  if (bytes == 8) copy_tasks<8>(a, begin, end);
}
extern "C" int gather(const void* x, const void* index, void* y, long outer, long axis, long count, long inner,
                      bool wide, long per_task) {
  std::int32_t error = 0;
  GatherArgs a{x, index, y, outer, axis, count, inner, &error, per_task};
  if (wide) gather_tasks<std::int64_t>(a, 0, gather_task_count(a));
  else gather_tasks<std::int32_t>(a, 0, gather_task_count(a));
  return error;
}
extern "C" void relayout(const float* x, float* y, const long* s, int kind) {
  RelayoutArgs<> a{x, y, s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12], s[13], s[14]};
  if (kind == 0) to_blocked_tasks(a, 0, to_blocked_task_count(a));
  if (kind == 1) from_blocked_tasks(a, 0, from_blocked_task_count(a));
  if (kind == 2) to_planar_tasks(a, 0, to_planar_task_count(a));
}
"""


def numbers(values: list[int]) -> ctypes.Array[ctypes.c_long]:
    return (ctypes.c_long * len(values))(*values)


def pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def copy(isa: str, x: np.ndarray, y: np.ndarray, tasks: int) -> None:
    """y[...] = x, both strided views of one shape, as `tasks` tasks in three calls."""
    cuts = sorted({0, tasks // 3, tasks // 2, tasks})
    size = x.itemsize
    for begin, end in itertools.pairwise(cuts):
        build(SOURCE, isa).copy(
            pointer(x),
            pointer(y),
            *map(ctypes.c_long, (size, x.ndim)),
            numbers(list(x.shape)),
            numbers([s // size for s in x.strides]),
            numbers([s // size for s in y.strides]),
            *map(ctypes.c_long, (tasks, begin, end)),
        )


def elements(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8).view(dtype)[..., 0]


VIEWS: dict[str, Callable[[str], np.ndarray]] = {
    "scalar": (lambda dtype: elements((), dtype)),
    "contiguous": (lambda dtype: elements((3, 50, 7), dtype)),
    "transposed": (lambda dtype: elements((37, 131), dtype).T),
    "transposed-large": (lambda dtype: elements((200, 64), dtype).T),
    "heads": (lambda dtype: elements((2, 19, 3, 40), dtype).transpose(0, 2, 1, 3)),
    "heads-keys": (lambda dtype: elements((2, 19, 3, 40), dtype).transpose(0, 2, 3, 1)),
    "channels-last": (lambda dtype: elements((2, 5, 9, 33), dtype).transpose(0, 2, 3, 1)),
    "reversed": (lambda dtype: elements((9, 70), dtype)[::-1, ::-1]),
    "steps": (lambda dtype: elements((9, 71, 3), dtype)[1:8:2, 3::3]),
    "broadcast": (lambda dtype: np.broadcast_to(elements((5, 1, 40, 1), dtype), (5, 6, 40, 3))),
    "broadcast-first": (lambda dtype: np.broadcast_to(elements((70,), dtype), (4, 70))),
    "eight-axes": (lambda dtype: elements((2, 3, 2, 3, 2, 1, 3, 4), dtype).transpose(7, 1, 5, 3, 2, 4, 6, 0)),
    "empty": (lambda dtype: elements((3, 0, 5), dtype).transpose(2, 1, 0)),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "u8"])
@pytest.mark.parametrize("view", VIEWS)
def test_copy_gathers_a_strided_source(isa: str, view: str, dtype: str) -> None:
    x = VIEWS[view](dtype)
    for tasks in (1, 7, 1000):
        y = np.zeros(x.size + 1, dtype)
        y[-1] = 77
        copy(isa, x, y[:-1].reshape(x.shape), tasks)
        np.testing.assert_array_equal(y[:-1].reshape(x.shape), x)
        assert y[-1] == 77


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["u1", "u4", "u8"])
def test_copy_into_a_part_of_a_tensor(isa: str, dtype: str) -> None:
    for part in (np.s_[:, 2:5], np.s_[:, :, 3:40], np.s_[::2, ::-1, 1::2], np.s_[:, 1]):
        whole = np.full((4, 7, 41), 77, dtype)
        want = whole.copy()
        x = elements(whole[part].shape, dtype)
        want[part] = x
        copy(isa, x, whole[part], 5)
        np.testing.assert_array_equal(whole, want)


@pytest.mark.parametrize("isa", ISAS)
def test_transposition_keeps_the_bits_of_nan(isa: str) -> None:
    x = np.full((32, 32), 0x7FA00001, np.uint32)
    y = np.zeros_like(x)
    copy(isa, x.T, y, 2)
    np.testing.assert_array_equal(x, y)


IMAGES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 16, 4, 16), (2, 33, 3, 35), (1, 20, 1, 49), (2, 37, 1, 1)]
HALOS = [(0, 0, 0, 0), (1, 1, 1, 1), (0, 2, 3, 1)]


def blocked(x: np.ndarray, width: int) -> np.ndarray:
    n, c, h, w = x.shape
    padded = np.zeros((n, -(-c // width) * width, h, w), np.float32)
    padded[:, :c] = x
    return np.ascontiguousarray(padded.reshape(n, -1, width, h, w).transpose(0, 1, 3, 4, 2))


def relayout(
    isa: str, kind: int, x: np.ndarray, y: np.ndarray, shape: tuple[int, ...], halo: tuple[int, ...], rows: int
) -> None:
    strides = [s // 4 for a in (x, y) for s in a.strides[:3]]
    build(SOURCE, isa).relayout(pointer(x), pointer(y), numbers([*strides, *shape, *halo, rows]), ctypes.c_int(kind))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("halo", HALOS)
def test_padding_is_zeroed(isa: str, shape: tuple[int, ...], halo: tuple[int, int, int, int]) -> None:
    x = np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)
    top, left, bottom, right = halo
    around = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    want = blocked(around, WIDTH[isa])
    for rows in (1, 3, 1000):
        y = np.full(want.shape, np.nan, np.float32)
        relayout(isa, 0, x, y, shape, halo, rows)
        np.testing.assert_array_equal(y, want)
        z = np.full(around.shape, np.nan, np.float32)
        relayout(isa, 2, x, z, shape, halo, rows)
        np.testing.assert_array_equal(z, around)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("halo", HALOS)
def test_from_blocked_reads_behind_the_halo(isa: str, shape: tuple[int, ...], halo: tuple[int, int, int, int]) -> None:
    want = np.random.default_rng(2).normal(0, 1, shape).astype(np.float32)
    top, left, bottom, right = halo
    x = blocked(np.pad(want, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=np.nan), WIDTH[isa])
    for rows in (1, 3, 1000):
        y = np.full((*shape[:3], shape[3] + 2 * (shape[3] > 1)), -77, np.float32)
        relayout(isa, 1, x[:, :, top:, left:], y[..., : shape[3]], shape, (0, 0, 0, 0), rows)
        np.testing.assert_array_equal(y[..., : shape[3]], want)
        assert (y[..., shape[3] :] == -77).all()


def gather(isa: str, x: np.ndarray, index: np.ndarray, y: np.ndarray, per_task: int) -> int:
    """Gathers x [outer, axis, inner] along its middle axis into y; the error flag."""
    outer, axis, inner = x.shape
    numbers = map(ctypes.c_long, (outer, axis, len(index), inner * x.itemsize))
    wide = ctypes.c_bool(index.dtype == np.int64)
    return int(
        build(SOURCE, isa).gather(pointer(x), pointer(index), pointer(y), *numbers, wide, ctypes.c_long(per_task))
    )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("index_type", [np.int32, np.int64])
@pytest.mark.parametrize(
    ("inner", "dtype"), [(1, "u1"), (1, "u2"), (1, "u4"), (1, "u8"), (3, "u1"), (40, "u4"), (5, "u8")]
)
def test_gather(isa: str, inner: int, dtype: str, index_type: type[np.signedinteger]) -> None:
    x = elements((3, 11, inner), dtype)
    index = np.random.default_rng(4).integers(-11, 11, 23).astype(index_type)
    for per_task in (1, 10, 1000):
        y = np.zeros((3, 23, inner), dtype)
        error = gather(isa, x, index, y, per_task)
        assert error == 0
        np.testing.assert_array_equal(y, np.take(x, index, axis=1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bad", [11, -12, 2**31 - 1, -(2**31)])
def test_gather_reports_an_index_out_of_range(isa: str, bad: int) -> None:
    x = elements((2, 11, 6), "u4")
    index = np.array([1, bad, 2], np.int32)
    y = np.full((2, 3, 6), 77, "u4")
    error = gather(isa, x, index, y, 2)
    assert error == 1
    np.testing.assert_array_equal(y[:, 1], 0)
    np.testing.assert_array_equal(y[:, [0, 2]], x[:, [1, 2]])


@pytest.mark.parametrize("isa", ISAS)
def test_gather_of_nothing(isa: str) -> None:
    x, index, y = elements((2, 11, 6), "u4"), np.zeros(0, np.int32), np.full(1, 77, "u4")
    assert gather(isa, x, index, y, 2) == 0
    assert y[0] == 77
