"""Softmax, normalization and reductions over rows, against float64."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable

import ml_dtypes
import numpy as np
import pytest
from harness import ISAS, build

FUNCTORS = """
struct Load {
  const float* x; long stride;
  template <bool Tail> opcel::vf load(long row, long col, int lanes) const {
    return opcel::load_t<Tail>(x + row * stride + col, lanes);
  }
};
struct Add {  // adds side[row * stride + col]; null: nothing
  const float* side; long stride;
  template <bool Tail> opcel::vf apply(opcel::vf v, long row, long col, int lanes) const {
    return side ? v + opcel::load_t<Tail>(side + row * stride + col, lanes) : v;
  }
};
"""

SOURCE = (
    """
#include "kernels/rows/layer_norm.h"
#include "kernels/rows/reduce.h"
#include "kernels/rows/softmax.h"
"""
    + FUNCTORS
    + """
using namespace opcel;
extern "C" void softmax(const float* x, const float* side, float* y, long stride, long rows, long n, long per_task,
                        bool log, long begin, long end) {
  RowArgs<> a{y, stride, rows, n, per_task};
  if (end < 0) end = row_task_count(a);
  if (log) log_softmax_tasks(a, Load{x, stride}, ::Add{side, stride}, NoNarrow{}, begin, end);
  else softmax_tasks(a, Load{x, stride}, ::Add{side, stride}, NoNarrow{}, begin, end);
}
extern "C" void norm(const float* x, const float* side, float* y, long stride, long rows, long n, long per_task,
                     const float* gamma, const float* beta, float* mean, float* inv, bool center) {
  NormArgs<> a{{y, stride, rows, n, per_task}, gamma, beta, 1e-5f, mean, inv};
  const long tasks = row_task_count(a.row);
  Load l{x, stride}; ::Add e{side, stride};
  if (center && gamma && beta) layer_norm_tasks<true, true>(a, l, e, NoNarrow{}, 0, tasks);
  else if (center && gamma) layer_norm_tasks<true, false>(a, l, e, NoNarrow{}, 0, tasks);
  else if (center && beta) layer_norm_tasks<false, true>(a, l, e, NoNarrow{}, 0, tasks);
  else if (center) layer_norm_tasks<false, false>(a, l, e, NoNarrow{}, 0, tasks);
  else if (gamma) rms_norm_tasks<true, false>(a, l, e, NoNarrow{}, 0, tasks);
  else rms_norm_tasks<false, false>(a, l, e, NoNarrow{}, 0, tasks);
}
struct Scaled {  // narrows factor * v
  float factor;
  template <bool Tail> vf apply(vf v, long, long, int) const { return round_even(v * factor); }
};
struct Same {
  template <bool Tail> vf apply(vf v, long, long, int) const { return v; }
};
extern "C" void rounded_norm(const float* x, const float* side, float* y, bf16* z, long stride, long rows, long n,
                             const float* gamma, bool center) {
  NormArgs<bf16> a{{y, stride, rows, n, 3, z}, gamma, gamma, 1e-5f, nullptr, nullptr};
  Load l{x, stride}; ::Add e{side, stride};
  if (center) layer_norm_tasks<true, true>(a, l, e, Same{}, 0, row_task_count(a.row));
  else rms_norm_tasks<true, true>(a, l, e, Same{}, 0, row_task_count(a.row));
}
extern "C" void narrow_softmax(const float* x, float* y, uint8_t* z, long stride, long rows, long n) {
  RowArgs<uint8_t> a{y, stride, rows, n, 3, z};
  softmax_tasks(a, Load{x, stride}, ::Add{nullptr, stride}, Scaled{255}, 0, row_task_count(a));
}
"""
)

KINDS = ["sum", "mean", "max", "min", "product", "sum_squares"]
REDUCE_SOURCE = (
    '#include "kernels/rows/reduce.h"\n'
    + FUNCTORS
    + "using namespace opcel;\n"
    + "\n".join(
        f"""
extern "C" void last_{kind}(const float* x, const float* side, float* y, long outer, long n, long per_task) {{
  ReduceArgs a{{y, outer, n, 1, per_task}};
  reduce_last_tasks<Reduction::{kind}>(a, Load{{x, n}}, ::Add{{side, 0}}, 0, reduce_last_task_count(a));
}}
extern "C" void middle_{kind}(const float* x, const float* side, float* y, long outer, long n, long inner,
                              long per_task) {{
  ReduceArgs a{{y, outer, n, inner, per_task}};
  reduce_middle_tasks<Reduction::{kind}>(a, Load{{x, inner}}, ::Add{{side, inner}}, 0, reduce_middle_task_count(a));
}}"""
        for kind in KINDS
    )
)

LENGTHS = [1, 3, 4, 7, 16, 17, 31, 64, 67, 129, 768, 1001]


def pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if array is None else array.ctypes.data)


def long(*values: int) -> list[ctypes.c_long]:
    return [ctypes.c_long(v) for v in values]


def guarded(rows: int, n: int, stride: int) -> np.ndarray:
    """A [rows, stride] buffer of -77; elements past n of a row must stay so."""
    return np.full((rows, stride), -77, np.float32)


def softmax(
    isa: str, x: np.ndarray, n: int, *, side: np.ndarray | None = None, per_task: int = 2, log: bool = False
) -> np.ndarray:
    y = guarded(len(x), n, x.shape[1])
    build(SOURCE, isa).softmax(
        pointer(x), pointer(side), pointer(y), *long(x.shape[1], len(x), n, per_task), ctypes.c_bool(log), *long(0, -1)
    )
    assert (y[:, n:] == -77).all()
    return y[:, :n]


def reference_softmax(x: np.ndarray, log: bool) -> np.ndarray:
    x = x.astype(np.float64)
    with np.errstate(all="ignore"):
        z = x - x.max(-1, keepdims=True)
        total = np.exp(z).sum(-1, keepdims=True)
        out: np.ndarray = z - np.log(total) if log else np.exp(z) / total
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("n", LENGTHS)
def test_softmax(isa: str, n: int, log: bool) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(0, 4, (5, n + 3)).astype(np.float32)
    side = rng.normal(0, 1, x.shape).astype(np.float32)
    want = reference_softmax(x[:, :n], log)
    np.testing.assert_allclose(softmax(isa, x, n, log=log), want, rtol=1e-6, atol=1e-6 if log else 1e-12)
    np.testing.assert_allclose(softmax(isa, x, n, log=log, side=side), want + side[:, :n], atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("place", [0, 20, 34])
@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf, 3e38, -3.4e38])
def test_softmax_of_special_values(isa: str, log: bool, place: int, special: float) -> None:
    x = np.random.default_rng(1).normal(0, 1, (3, 35)).astype(np.float32)
    x[0, place] = special
    x[1] = special
    got = softmax(isa, x, 35, log=log)
    np.testing.assert_allclose(got, reference_softmax(x, log), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("isa", ISAS)
def test_softmax_does_not_depend_on_the_split_into_tasks(isa: str) -> None:
    x = np.random.default_rng(2).normal(0, 1, (13, 77)).astype(np.float32)
    whole = softmax(isa, x, 77, per_task=13)
    for per_task in (1, 2, 5):
        np.testing.assert_array_equal(whole, softmax(isa, x, 77, per_task=per_task))
    y = guarded(13, 77, 77)
    build(SOURCE, isa).softmax(
        pointer(x), pointer(None), pointer(y), *long(77, 13, 77, 3), ctypes.c_bool(False), *long(1, 3)
    )
    np.testing.assert_array_equal(y[3:9], whole[3:9])
    assert (y[:3] == -77).all() and (y[9:] == -77).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("center", "with_gamma", "with_beta"),
    [(True, *pair) for pair in itertools.product([True, False], repeat=2)]
    + [(False, True, False), (False, False, False)],
)
@pytest.mark.parametrize("n", LENGTHS)
def test_normalization(isa: str, n: int, center: bool, with_gamma: bool, with_beta: bool) -> None:
    rng = np.random.default_rng(n)
    x = rng.normal(3, 2, (6, n + 2)).astype(np.float32)
    side = rng.normal(0, 1, x.shape).astype(np.float32)
    gamma = rng.normal(1, 1, n).astype(np.float32) if with_gamma else None
    beta = rng.normal(1, 1, n).astype(np.float32) if with_beta else None
    y, mean, inv = guarded(6, n, n + 2), np.empty(6, np.float32), np.empty(6, np.float32)
    build(SOURCE, isa).norm(
        pointer(x),
        pointer(side),
        pointer(y),
        *long(n + 2, 6, n, 4),
        *map(pointer, (gamma, beta, mean, inv)),
        ctypes.c_bool(center),
    )
    z = x[:, :n].astype(np.float64)
    want_mean = z.mean(-1) if center else np.zeros(6)
    want_inv = 1 / np.sqrt(((z - want_mean[:, None]) ** 2).mean(-1) + 1e-5)
    want = (z - want_mean[:, None]) * want_inv[:, None]
    want = want * (1 if gamma is None else gamma) + (0 if beta is None else beta) + side[:, :n]
    np.testing.assert_allclose(y[:, :n], want, atol=4e-6)
    np.testing.assert_allclose(mean, want_mean, atol=1e-6)
    np.testing.assert_allclose(inv, want_inv, rtol=1e-6)
    assert (y[:, n:] == -77).all()


@pytest.mark.parametrize("isa", ISAS)
def test_layer_norm_with_a_large_mean_and_special_rows(isa: str) -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(0, 1, (4, 300)) + 1000).astype(np.float32)
    x[1] = 5.0
    x[2, 7] = np.nan
    x[3, 299] = np.inf
    y = np.empty_like(x)
    nothing = pointer(None)
    build(SOURCE, isa).norm(pointer(x), nothing, pointer(y), *long(300, 4, 300, 1), *[nothing] * 4, ctypes.c_bool(True))
    z = x[0].astype(np.float64)
    np.testing.assert_allclose(y[0], (z - z.mean()) / np.sqrt(z.var() + 1e-5), atol=2e-4)
    np.testing.assert_array_equal(y[1], 0)
    assert np.isnan(y[2]).all() and np.isnan(y[3]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [5, 70, 300])
@pytest.mark.parametrize("center", [True, False])
def test_norm_rounded_to_bf16(isa: str, n: int, center: bool) -> None:
    """Beside the result in f32 or in place of it: the same values, rounded."""
    rng = np.random.default_rng(n)
    x, side = rng.normal(size=(2, 7, n)).astype(np.float32)
    gamma = rng.normal(size=n).astype(np.float32)
    both, alone = np.full((2, 8, n), 7, ml_dtypes.bfloat16)
    y = np.empty_like(x)
    norm = build(SOURCE, isa).rounded_norm
    norm(*map(pointer, (x, side, y, both)), *long(n, 7, n), pointer(gamma), ctypes.c_bool(center))
    norm(*map(pointer, (x, side, None, alone)), *long(n, 7, n), pointer(gamma), ctypes.c_bool(center))
    z = x.astype(np.float64) - (x.mean(1, keepdims=True, dtype=np.float64) if center else 0)
    want = z / np.sqrt((z * z).mean(1, keepdims=True) + 1e-5) * gamma + gamma + side
    np.testing.assert_allclose(y, want, atol=1e-5)
    for got in (both, alone):
        np.testing.assert_array_equal(got[:7], y.astype(ml_dtypes.bfloat16))
        assert (got[7] == 7).all()


REFERENCE: dict[str, Callable[..., np.ndarray]] = {
    "sum": np.sum,
    "mean": np.mean,
    "max": np.max,
    "min": np.min,
    "product": np.prod,
    "sum_squares": lambda x, axis: np.sum(x * x, axis=axis),
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", [None, np.nan, np.inf])
def test_reduction_over_the_last_axis(isa: str, kind: str, special: float | None) -> None:
    lib = build(REDUCE_SOURCE, isa)
    rng = np.random.default_rng(5)
    for outer, n, per_task in [(1, 1, 1), (5, 3, 2), (37, 67, 16), (18, 129, 32), (3, 1003, 1)]:
        x = np.abs(rng.normal(0, 0.1, (outer, n)) + 1).astype(np.float32)
        if special is not None:
            for place in (0, n // 2, n - 1):
                x[rng.integers(outer), place] = special
        side = rng.normal(0, 1, outer).astype(np.float32)
        y = guarded(1, outer, outer + 1)[0]
        getattr(lib, f"last_{kind}")(pointer(x), pointer(side), pointer(y), *long(outer, n, per_task))
        want = REFERENCE[kind](x.astype(np.float64), axis=1) + side
        np.testing.assert_allclose(y[:outer], want, rtol=3e-6, atol=1e-6)
        assert y[outer] == -77


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("special", [None, np.nan, np.inf])
def test_reduction_over_a_middle_axis(isa: str, kind: str, special: float | None) -> None:
    lib = build(REDUCE_SOURCE, isa)
    rng = np.random.default_rng(6)
    for outer, n, inner, per_task in [
        (1, 1, 1, 1),
        (2, 5, 3, 64),
        (3, 49, 67, 32),
        (1, 7, 301, 301),
        (2, 33, 129, 128),
    ]:
        x = np.abs(rng.normal(0, 0.1, (outer, n, inner)) + 1).astype(np.float32)
        if special is not None:
            for place in (0, inner // 2, inner - 1):
                x[rng.integers(outer), rng.integers(n), place] = special
        side = rng.normal(0, 1, (outer, inner)).astype(np.float32)
        y = guarded(1, outer * inner, outer * inner + 1)[0]
        getattr(lib, f"middle_{kind}")(pointer(x), pointer(side), pointer(y), *long(outer, n, inner, per_task))
        want = REFERENCE[kind](x.astype(np.float64), axis=1) + side
        np.testing.assert_allclose(y[:-1].reshape(outer, inner), want, rtol=3e-6, atol=1e-6)
        assert y[-1] == -77


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("kind", "want"), zip(KINDS, [0, np.nan, -np.inf, np.inf, 1, 0], strict=True))
def test_reduction_of_nothing(isa: str, kind: str, want: float) -> None:
    lib = build(REDUCE_SOURCE, isa)
    x, y, z = np.zeros(1, np.float32), np.empty(3, np.float32), np.empty(3, np.float32)
    getattr(lib, f"last_{kind}")(pointer(x), pointer(None), pointer(y), *long(3, 0, 2))
    getattr(lib, f"middle_{kind}")(pointer(x), pointer(None), pointer(z), *long(1, 0, 3, 2))
    np.testing.assert_array_equal(y, np.float32(want))
    np.testing.assert_array_equal(z, np.float32(want))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 15, 64, 77])
def test_softmax_as_bytes(isa: str, n: int) -> None:
    """Beside the result in f32 or in place of it: the same values, narrowed."""
    rows, stride = 7, n + 3
    x = np.random.default_rng(n).normal(size=(rows, stride)).astype(np.float32)
    call = build(SOURCE, isa).narrow_softmax
    results = []
    for y in (np.zeros_like(x), None):
        z = np.full((rows + 1, n), 7, np.uint8)
        call(pointer(x), pointer(y), pointer(z), *long(stride, rows, n))
        assert (z[rows] == 7).all(), "wrote past the end"
        results.append(z[:rows])
        if y is not None:
            np.testing.assert_array_equal(z[:rows], np.rint(y[:, :n] * np.float32(255)))
    np.testing.assert_array_equal(*results)
