"""GPTQ on layers whose inputs are known: better than rounding, and what it does where the inputs say too little."""

from __future__ import annotations

import time

import numpy as np
import pytest

from opcel_compiler.calibrate.gptq import gptq, improved, inverse_factor, output_error
from opcel_compiler.ir.nbits import WeightScheme, grouped

RNG = np.random.default_rng(0)


def inputs(rows: int, k: int, rank: int) -> np.ndarray:
    """Rows of x whose columns are correlated: `rank` factors and a little noise."""
    return (RNG.normal(size=(rows, rank)) @ RNG.normal(size=(rank, k)) + 0.1 * RNG.normal(size=(rows, k))).astype("f")


def layer(k: int, n: int) -> np.ndarray:
    return RNG.normal(size=(k, n)).astype(np.float32)


def test_the_factor_is_that_of_the_inverse() -> None:
    x = inputs(300, 40, 8)
    h = (x.T @ x).astype(np.float64)
    factor = inverse_factor(h, 0.01)
    assert factor is not None and (np.tril(factor, -1) == 0).all()
    damped = h + 0.01 * np.diag(h).mean() * np.eye(40)
    np.testing.assert_allclose(factor.T.astype(float) @ factor @ damped, np.eye(40), atol=1e-3)


def test_rows_one_by_one_as_in_the_definition() -> None:
    """Against the plain loop over all of H, of other blocks."""
    k, n, x = 200, 7, inputs(500, 200, 40)
    w, h = layer(k, n), (x.T @ x).astype(np.float64)
    scheme = WeightScheme(group=40, symmetric=True, clip=False)
    made = gptq(w, h, 4, scheme, print)
    assert made is not None
    rest = w.astype(np.float64).copy()
    damped = h + 0.01 * np.diag(h).mean() * np.eye(k)
    u = np.linalg.cholesky(np.linalg.inv(damped)).T
    different = 0
    for i in range(k):
        if i % 40 == 0:
            scale = np.abs(rest[i : i + 40]).max(0) / 7
        q = np.clip(np.rint(rest[i] / scale), -7, 7)
        different += int((q != made.codes[i]).sum())
        rest[i + 1 :] -= np.outer(u[i, i + 1 :], (rest[i] - q * scale) / u[i, i])
    assert different <= k * n // 100, "more than roundings of sums in f32 explain"


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("k, group", [(256, 128), (200, 32), (300, 300)])
def test_it_is_better_than_rounding(symmetric: bool, k: int, group: int) -> None:
    x, w = inputs(2000, k, k // 4), layer(k, 64)
    h = (x.T @ x).astype(np.float64)
    scheme = WeightScheme(group=group, symmetric=symmetric)
    made = gptq(w, h, 4, scheme, print)
    assert (
        made is not None
        and made.codes.min() >= (-7 if symmetric else 0)
        and made.codes.max() <= (7 + 8 * (not symmetric))
    )
    plain = grouped(w, 4, group, symmetric, True)
    assert output_error(w, made, h) < 0.5 * output_error(w, plain, h)
    wide = np.square(x.astype(np.float64) @ (w - made.floats())).sum()
    assert output_error(w, made, h) == pytest.approx(wide, rel=1e-3)


def test_columns_that_are_never_seen() -> None:
    x, w = inputs(1000, 64, 16), layer(64, 8)
    x[:, [3, 40]] = 0
    made = gptq(w, (x.T @ x).astype(np.float64), 4, WeightScheme(group=32), print)
    assert made is not None
    assert (made.floats()[[3, 40]] == 0).all() and np.isfinite(made.floats()).all()


def test_fewer_samples_than_dimensions() -> None:
    """A Hessian of low rank is damped; one that no damping helps leaves the layer to rounding, with a log."""
    log: list[str] = []
    x, w = RNG.normal(size=(5, 64)).astype(np.float32), layer(64, 8)
    made = gptq(w, (x.T @ x).astype(np.float64), 4, WeightScheme(group=32), log.append, "layer")
    assert made is not None and np.isfinite(made.floats()).all() and not log
    broken = np.eye(64)
    broken[0, 1] = broken[1, 0] = -50
    assert gptq(w, broken, 4, WeightScheme(group=32), log.append, "layer") is None
    assert len(log) == 5 and all(line.startswith("layer: ") for line in log)
    log.clear()
    assert gptq(w, np.zeros((64, 64)), 4, WeightScheme(), log.append, "layer") is None and len(log) == 1
    slightly = np.eye(64)
    slightly[0, 1] = slightly[1, 0] = -1.05
    assert gptq(w, slightly, 4, WeightScheme(group=32), log.append, "layer") is not None
    assert "damped by 0.1" in log[-1]


def test_what_does_worse_on_held_out_data_is_dropped() -> None:
    """Data that were seen which say nothing of those that were held out: GPTQ fits to them and is dropped."""
    w, log = layer(128, 32), list[str]()
    seen, other = inputs(400, 128, 4), inputs(400, 128, 128)
    h, held = ((x.T @ x).astype(np.float64) for x in (seen, other))
    scheme = WeightScheme(group=64, clip=False)
    made = improved(w, h, held, 4, scheme, log.append, "layer")
    plain = grouped(w, 4, 64, False, False)
    assert len(log) == 1 and "GPTQ is dropped" in log[0]
    np.testing.assert_array_equal(made.codes, plain.codes)
    log.clear()
    better = improved(w, h, h, 4, scheme, log.append, "layer")
    assert not log and output_error(w, better, h) < 0.7 * output_error(w, plain, h)


def test_a_large_layer_in_seconds() -> None:
    k = 1024
    x, w = inputs(2048, k, 200), layer(k, k)
    h = (x.T @ x).astype(np.float64)
    begin = time.perf_counter()
    assert gptq(w, h, 4, WeightScheme(), print) is not None
    assert time.perf_counter() - begin < 60
