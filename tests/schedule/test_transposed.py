"""Transposed convolutions as interleaved convolutions: every element once, each the sum that the definition says."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.opdef import op_def
from opcel_compiler.schedule.transposed import axis_phases, phases


def attributes(rank: int, **given: Any) -> dict[str, Any]:
    return {"strides": (1,) * rank, "pads": (0,) * 2 * rank, "dilations": (1,) * rank, "groups": 1, **given}


AXES = list(itertools.product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2), (1, 2, 3)))


@pytest.mark.parametrize("kernel, stride, pad, dilation", AXES)
@pytest.mark.parametrize("extra", [0, 1])
def test_one_axis(kernel: int, stride: int, pad: int, dilation: int, extra: int) -> None:
    attrs = attributes(1, strides=(stride,), pads=(pad, pad), dilations=(dilation,))
    size, extra = 6, min(extra, stride - 1)
    total = (size - 1) * stride + dilation * (kernel - 1) + 1 - 2 * pad + extra
    if total < 1:
        pytest.skip("nothing is left of the result")
    rng = np.random.default_rng(kernel)
    x, w = rng.standard_normal((2, 4, size)), rng.standard_normal((4, 3, kernel))
    conv, transposed = op_def("conv"), op_def("conv_transpose")
    assert conv.evaluate is not None and transposed.evaluate is not None
    (want,) = transposed.evaluate([x, w], transposed.complete({**attrs, "output_padding": (extra,)}))
    parts = phases((size,), want.shape[2:], w, attrs)
    if parts is None:
        taps = {(k * dilation - pad) % stride for k in range(kernel)}
        assert len(taps) < stride or pad > 0
        return
    got = np.full_like(want, np.nan)
    for part in parts:
        (y,) = conv.evaluate([x, part.weights], conv.complete(part.attrs))
        assert y.shape[2:] == part.sizes
        got[:, :, part.starts[0] :: stride] = y
    np.testing.assert_allclose(got, want, 1e-12, 1e-12)


def test_groups_and_two_axes() -> None:
    attrs = attributes(2, strides=(2, 3), pads=(1, 0, 0, 1), groups=2)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 4, 3, 5)), rng.standard_normal((4, 3, 4, 3))
    conv, transposed = op_def("conv"), op_def("conv_transpose")
    assert conv.evaluate is not None and transposed.evaluate is not None
    (want,) = transposed.evaluate([x, w], transposed.complete({**attrs, "output_padding": (0, 1)}))
    got = np.full_like(want, np.nan)
    for part in phases((3, 5), want.shape[2:], w, attrs) or ():
        (y,) = conv.evaluate([x, part.weights], conv.complete(part.attrs))
        got[:, :, part.starts[0] :: 2, part.starts[1] :: 3] = y
    np.testing.assert_allclose(got, want, 1e-12, 1e-12)


def test_weights_are_cut_and_not_copied_more_than_once() -> None:
    w = np.ones((4, 3, 4, 4))
    parts = phases((5, 5), (10, 10), w, attributes(2, strides=(2, 2), pads=(1, 1, 1, 1)))
    assert parts is not None and sum(p.weights.size for p in parts) == w.size


def test_a_symbolic_size_divides_into_phases() -> None:
    n = symbol("n", 1)
    found = axis_phases(n, 2 * n, 2, 2, 0, 1)
    assert found is not None and [p.count for p in found] == [n, n]
