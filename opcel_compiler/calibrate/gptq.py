"""GPTQ: weights rounded one row after another, each time moving what is left to make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2022). With
H = XᵀX and U the upper Cholesky factor of H⁻¹ (H⁻¹ = UᵀU), rounding row i of W [k, n] leaves e = (w - q) / U[i, i], and
row j > i gets w - U[i, j] e. Blocks of rows are finished before the rows after them are moved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opcel_compiler.ir.nbits import GroupedWeights, WeightScheme, best_grid, grouped, rounded

BLOCK = 128
DAMPING = 0.01
"""What is added to H's diagonal, of its mean."""
TRIES = 4
"""How often H is tried, with ten times the damping each time."""

Log = Callable[[str], None]


def inverse_factor(h: np.ndarray, damping: float) -> np.ndarray | None:
    """U of f32 for H [k, k] with `damping` times the mean of its diagonal added to that; None where H is not positive
    definite even so."""
    with np.errstate(all="ignore"):
        damped = h.astype(np.float64)
        damped[np.diag_indices(len(h))] += damping * np.diag(h).mean()
        try:
            # H = R Rᵀ for an upper R is the Cholesky factorization of H with its rows and columns in reverse.
            lower = np.linalg.cholesky(damped[::-1, ::-1])
            upper = np.linalg.inv(lower)[::-1, ::-1]
        except np.linalg.LinAlgError:
            return None
    # A pivot that is nothing but the rounding of larger numbers says as little as a negative one.
    pivots = np.diag(lower)
    if not np.isfinite(upper).all() or pivots.min() ** 2 <= len(h) * np.finfo(np.float64).eps * pivots.max() ** 2:
        return None
    return np.ascontiguousarray(np.triu(upper).astype(np.float32))


def gptq(
    w: np.ndarray, h: np.ndarray, bits: int, scheme: WeightScheme, log: Log, name: str = ""
) -> GroupedWeights | None:
    """Weights [k, n] of f32 for rows of x with H = XᵀX [k, k]; None, after a log, where H does not allow it.

    Rows of W whose column of X is zero in all samples become zero.
    """
    k, n = w.shape
    w, h = w.astype(np.float32).copy(), h.astype(np.float64).copy()
    dead = np.diag(h) <= 0
    h[dead, dead] = 1
    w[dead] = 0
    if dead.all():
        log(f"{name}: every column of its input is zero in all samples; its weights are rounded to nearest")
        return None
    factor = None
    for i in range(TRIES):
        factor = inverse_factor(h, DAMPING * 10**i)
        if factor is not None:
            break
        log(f"{name}: its inputs span fewer dimensions than it has; damped by {DAMPING * 10 ** (i + 1):g}")
    if factor is None:
        log(f"{name}: no damping helps; its weights are rounded to nearest")
        return None
    group = min(scheme.group, k)
    codes = np.empty((k, n), np.float32)
    scale = np.empty((-(-k // group), n), np.float32)
    zero = np.empty(scale.shape, np.float32)
    size = group if group >= BLOCK else BLOCK // group * group
    for start in range(0, k, size):
        stop = min(start + size, k)
        errors = np.empty((stop - start, n), np.float32)
        for i in range(start, stop):
            g = i // group
            if i % group == 0:
                scale[g], zero[g] = best_grid(w[i : i + group], bits, scheme.symmetric, scheme.clip)
            codes[i] = rounded(w[i], scale[g], zero[g], bits, scheme.symmetric)
            errors[i - start] = (w[i] - (codes[i] - zero[g]) * scale[g]) / factor[i, i]
            w[i + 1 : stop] -= factor[i, i + 1 : stop, None] * errors[i - start]
        w[stop:] -= factor[start:stop, stop:].T @ errors
    if scheme.symmetric:
        return GroupedWeights(codes.astype(np.int8), scale, None, bits, group)
    return GroupedWeights(codes.astype(np.uint8), scale, zero.astype(np.uint8), bits, group)


def output_error(w: np.ndarray, made: GroupedWeights, h: np.ndarray) -> float:
    """‖X (W - W')‖² for H = XᵀX."""
    difference = w.astype(np.float32) - made.floats()
    return float(np.einsum("kn,kn->", h.astype(np.float32) @ difference, difference, dtype=np.float64))


def improved(
    w: np.ndarray, seen: np.ndarray, held_out: np.ndarray, bits: int, scheme: WeightScheme, log: Log, name: str = "",
) -> GroupedWeights:  # fmt: skip
    """The best of rounding to nearest, of clipped ranges and of GPTQ, of which `seen` is H. What raises the error of
    the layer's output on data that was held out, whose H is `held_out`, is dropped, and that is logged."""
    best = grouped(w, bits, scheme.group, scheme.symmetric, False)
    least = output_error(w, best, held_out)
    tried: list[tuple[str, GroupedWeights | None]] = []
    if scheme.clip:
        tried.append(("clipping", grouped(w, bits, scheme.group, scheme.symmetric, True)))
    tried.append(("GPTQ", gptq(w, seen, bits, scheme, log, name)))
    for what, made in tried:
        if made is None:
            continue
        error = output_error(w, made, held_out)
        if error <= least:
            best, least = made, error
        else:
            log(f"{name}: {what} is dropped, as it raises the error on held-out data {error / least:.5g} times")
    return best
