"""Whether outputs are right: the suite's own rules, and others where those cannot be met: for operators that draw
random numbers, and for expected values that are themselves off by more than the tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.conformance.cases import Case

RANDOM = {
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
}  # fmt: skip
DEVIATIONS = 5.0
"""How many standard deviations a mean of random numbers may be off."""


ROUNDING = 1e-5
"""What sums in float32 may be off, as a part of the largest value."""


def is_random(case: Case) -> bool:
    """Whether the model's result is a random one, so that the suite's data only shows its form."""
    return bool(RANDOM & set(case.ops)) or (case.ops == ["Dropout"] and _trains(case))


def wrong(case: Case, inputs: Sequence[Any], want: Sequence[Any], got: Sequence[Any]) -> str | None:
    """What is wrong with the outputs `got` where the suite has `want`; None if nothing."""
    try:
        if is_random(case):
            _random(case, inputs, want, got)
        else:
            _similar(case, list(want), list(got))
    except (AssertionError, TypeError, ValueError, AttributeError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return None


def right_beside_exact(case: Case, inputs: Sequence[Any], want: Sequence[Any], got: Sequence[Any]) -> bool:
    """Whether `got` is within the suite's tolerance of what ONNX's reference computes in float64, and `want` is not,
    for no more than the rounding of float32."""
    from onnx.reference import ReferenceEvaluator

    def wide(value: Any) -> Any:
        return value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype == np.float32 else value

    try:
        exact = ReferenceEvaluator(case.model).run(None, case.feeds([wide(v) for v in inputs]))
    except Exception:  # the reference has no such operator, or not in float64
        return False

    def near(values: Sequence[Any]) -> bool:
        pairs = list(zip(exact, values, strict=True))
        same = all(isinstance(v, np.ndarray) and v.shape == np.shape(e) and v.dtype == np.float32 for e, v in pairs)
        return same and all(np.allclose(v, e, rtol=case.rtol, atol=case.atol) for e, v in pairs)

    def rounded(e: np.ndarray, w: np.ndarray) -> bool:
        return float(np.abs(w - e).max(initial=0)) <= ROUNDING * float(np.abs(e).max(initial=0))

    return near(got) and not near(want) and all(rounded(e, w) for e, w in zip(exact, want, strict=True))


def _similar(case: Case, want: Any, got: Any) -> None:
    """The suite's own comparison of arrays; sequences have as many elements, absent optionals are None."""
    from onnx.backend.test.runner import Runner

    if isinstance(want, list):
        assert isinstance(got, (list, tuple)) and len(got) == len(want), f"{len(want)} values, and not {got!r}"
        for w, g in zip(want, got, strict=True):
            _similar(case, w, g)
    elif want is None:
        assert got is None, f"no value, and not {got!r}"
    else:
        Runner.assert_similar_outputs([np.asarray(want)], [got], case.rtol, case.atol)


def _trains(case: Case) -> bool:
    for inputs, _ in case.data_sets:
        named = case.feeds(inputs)
        node = case.model.graph.node[0]
        if len(node.input) > 2 and bool(np.all(named.get(node.input[2], False))):
            return True
    return False


def _random(case: Case, inputs: Sequence[Any], want: Sequence[Any], got: Sequence[Any]) -> None:
    """Types and shapes as the suite has them, and values such as the operator may draw."""
    for value, expected in zip(got, want, strict=True):
        assert value.shape == expected.shape, f"shape {value.shape}, not {expected.shape}"
        assert value.dtype == expected.dtype, f"{value.dtype}, not {expected.dtype}"
    if case.ops == ["Dropout"]:
        ratio = float(inputs[1]) if len(inputs) > 1 else 0.5
        kept = got[1] if len(got) > 1 else got[0] != 0
        scaled = np.where(kept, inputs[0] / (1 - ratio) if ratio < 1 else 0, 0)
        np.testing.assert_allclose(got[0], scaled, rtol=case.rtol, atol=case.atol)
        if ratio == 0:
            assert np.all(kept), "an element was dropped"
        else:
            _mean(kept, 1 - ratio, (ratio * (1 - ratio)) ** 0.5)
    elif "bernoulli" in case.name:
        p = np.asarray(inputs[0], np.float64)
        assert np.isin(got[0], (0, 1)).all(), "a value is neither 0 nor 1"
        _mean(got[0], float(p.mean()), float((p * (1 - p)).mean() ** 0.5))


def _mean(values: np.ndarray, mean: float, deviation: float) -> None:
    off = abs(float(np.mean(values, dtype=np.float64)) - mean)
    limit = DEVIATIONS * deviation / max(values.size, 1) ** 0.5
    assert off <= limit, f"the mean is {off:.3g} off, more than {DEVIATIONS:g} standard deviations ({limit:.3g})"
