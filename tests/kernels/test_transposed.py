"""The transposed convolution of last resort against the operator's evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from harness import ISAS, build, integers, pointers

from opcel_compiler.ir.opdef import op_def

SOURCE = """
#include "kernels/conv/transposed.h"
using namespace opcel;
extern "C" void conv(void* const* p, const int64_t* d) {
  ConvReferenceArgs<float> a{(float*)p[0], (float*)p[1], (float*)p[2], (float*)p[3], d[0], d[1], d[2], d[3],
                      {}, {}, {}, {}, {}, {}};
  int64_t* to[] = {a.in, a.out, a.kernel, a.stride, a.dilation, a.pad};
  for (int i = 0; i < 18; ++i) to[i / 3][i % 3] = d[4 + i];
  const int64_t tasks = conv_transpose_task_count(a);
  conv_transpose_tasks(a, tasks / 2, tasks);
  conv_transpose_tasks(a, 0, tasks / 2);
}
"""
CASES: list[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = [
    ((5, 6), (2, 2), {"strides": (2, 2)}),
    ((5, 4), (3, 2), {"strides": (3, 3), "pads": (1, 0, 0, 1), "output_padding": (0, 2)}),
    ((4, 5), (3, 3), {"strides": (2, 1), "dilations": (2, 3), "pads": (2, 1, 1, 2)}),
    ((7,), (4,), {"strides": (2,), "pads": (3, 2), "groups": 2}),
    ((2, 3, 4), (2, 3, 2), {"strides": (1, 2, 3), "groups": 3}),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sizes, kernel, attrs", CASES, ids=str)
def test_any_case(isa: str, bias: bool, sizes: tuple[int, ...], kernel: tuple[int, ...], attrs: dict[str, Any]) -> None:
    rank, groups = len(sizes), attrs.get("groups", 1)
    ones, zeros = (1,) * rank, (0,) * rank
    full = {"strides": ones, "pads": 2 * zeros, "dilations": ones, "output_padding": zeros, **attrs}
    op = op_def("conv_transpose")
    rng = np.random.default_rng(rank)
    x = rng.standard_normal((2, 6, *sizes)).astype(np.float32)
    w = rng.standard_normal((6, 4, *kernel)).astype(np.float32)
    b = rng.standard_normal(4 * groups).astype(np.float32) if bias else None
    assert op.evaluate is not None
    (want,) = op.evaluate([None if a is None else a.astype(np.float64) for a in (x, w, b)], op.complete(full))
    y = np.full(want.shape, np.nan, np.float32)

    def three(values: Any, fill: int) -> list[int]:
        return [fill] * (3 - rank) + list(values)

    numbers = [2, 6, 4 * groups, groups, *three(sizes, 1), *three(want.shape[2:], 1), *three(kernel, 1)]
    numbers += [*three(full["strides"], 1), *three(full["dilations"], 1), *three(full["pads"][:rank], 0)]
    build(SOURCE, isa).conv(pointers(x, w, b, y), integers(*numbers))
    np.testing.assert_allclose(y, want, 1e-5, 1e-5)
