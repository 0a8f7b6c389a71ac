"""Strassen's products beside products in float64: halves of any size, edges, blocks of the summed axis, and tasks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from harness import ISAS, WIDTH, build, integers, pointers
from test_gemm import ROWS

from opcel_compiler.codegen.cpu.pack import strassen_panels

SOURCE = """
#include "base/vmath.h"
#include "kernels/gemm/strassen.h"
using namespace opcel;
struct Epi {  // gelu(c + bias[col]) + residual[row][col]
  const float *bias, *residual;
  int64_t step;
  template <bool Tail> vf apply(vf v, int64_t batch, int64_t row, int64_t col, int lanes) const {
    return gelu_erf(v + load_t<Tail>(bias + col, lanes)) + load_t<Tail>(residual + row * step + col, lanes) +
           set(float(batch));
  }
  void prefetch(int64_t, int64_t row, int64_t col) const { __builtin_prefetch(residual + row * step + col); }
};
extern "C" void product(void* const* p, const int64_t* d, int64_t begin, int64_t end) {
  StrassenArgs a{(float*)p[0], d[0], (float*)p[1], (float*)p[2], d[1], d[2], d[3], d[4], d[5], d[6], d[7], d[8]};
  strassen_tasks<2, TALL, DEPTH, PAIRS, ROWS>(a, Epi{(float*)p[3], (float*)p[4], d[1]}, begin, end);
}
"""


def run(
    isa: str, m: int, n: int, k: int, *, rows: int = 0, blocks: int = 1, parts: int = 1, heights: str = "",
    tasks_apart: bool = False, plain: bool = False,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(what the kernel computes, the same in float64) for an epilogue with bias, GELU and residual."""
    erf = np.vectorize(math.erf)
    panel, upper = 2 * WIDTH[isa], m if plain else -(-m // 2)
    rows, pairs = rows or upper, -(-n // (2 * panel))
    text = SOURCE.replace("TALL", str(rows)).replace("DEPTH", str(-(-k // 2 // blocks)))
    text = text.replace("PAIRS", str(-(-pairs // parts) if blocks > 1 else 1)).replace("ROWS", heights or ROWS[isa])
    library = build(text, isa)
    rng = np.random.default_rng(m * 1000 + n)
    a = np.full((m, k + 3), np.nan, np.float32)
    a[:, :k] = rng.normal(size=(m, k))
    b = (rng.normal(size=(k, n)) / k**0.5).astype(np.float32)
    bias = rng.normal(size=n).astype(np.float32)
    residual = rng.normal(size=(m, n + 1)).astype(np.float32)
    c = np.full((m + 1, n + 1), np.nan, np.float32)
    packed = strassen_panels(b, blocks, panel)
    p, tasks = pointers(a, packed, c, bias, residual), parts * -(-upper // rows)
    d = integers(k + 3, n + 1, m, n, k, rows, parts, blocks, int(plain))
    for first, last in [(t, t + 1) for t in reversed(range(tasks))] if tasks_apart else [(0, tasks)]:
        library.product(p, d, *integers(first, last))
    assert np.isnan(c[m]).all() and np.isnan(c[:, n]).all(), "wrote past the last row or column"
    want = a[:, :k].astype(np.float64) @ b + bias
    want = want / 2 * (1 + erf(want / 2**0.5)) + residual[:, :n]
    return c[:m, :n], want


def error(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("m", "n", "k", "options"),
    [
        (28, 128, 64, {}), (29, 70, 66, {}), (1, 65, 2, {}), (2, 1, 6, {}), (57, 130, 46, {"blocks": 2}),
        (31, 200, 70, {"blocks": 3, "parts": 2, "rows": 14}), (60, 300, 34, {"parts": 3, "rows": 12}),
        (1, 130, 64, {"plain": True}), (29, 70, 66, {"plain": True, "rows": 12}),
        (31, 200, 70, {"plain": True, "blocks": 3, "parts": 2, "rows": 14}),
    ],
    ids=[
        "even", "odd", "one-row", "one-column", "blocks", "blocks-parts", "parts", "plain-row", "plain-rows",
        "plain-blocks",
    ],
)  # fmt: skip
def test_shapes(isa: str, m: int, n: int, k: int, options: dict[str, int]) -> None:
    got, want = run(isa, m, n, k, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("k", "blocks"), [(768, 1), (3072, 4)])
def test_accuracy(isa: str, k: int, blocks: int) -> None:
    got, want = run(isa, 64, 128, k, blocks=blocks, parts=2)
    assert error(got, want) < 2e-6


@pytest.mark.parametrize("isa", ISAS)
def test_results_do_not_depend_on_tasks(isa: str) -> None:
    whole, _ = run(isa, 75, 260, 90, blocks=2)
    for rows, parts in ((38, 3), (14, 2), (5, 1)):
        got, _ = run(isa, 75, 260, 90, blocks=2, rows=rows, parts=parts, tasks_apart=True)
        np.testing.assert_array_equal(got, whole)


def test_right_factors_are_rounded_once() -> None:
    """The sum of two quarters, exact in float64."""
    rng = np.random.default_rng(0)
    b = rng.normal(size=(8, 16)).astype(np.float32)
    first = strassen_panels(b, 1, 4).reshape(2, 7, 4, 4)[1, 0]
    np.testing.assert_array_equal(first, (b[:4, 4:8].astype(np.float64) + b[4:, 12:16]).astype(np.float32))
