"""Histograms, thresholds and the statistics file."""

from __future__ import annotations

import math
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opcel_compiler.ir.statistics import BINS, Histogram, Statistics, StatisticsError, TensorStatistics
from opcel_compiler.ir.thresholds import THRESHOLDS, entropy, grid_of, minmax, mse, percentile, squared_errors

PARTS = st.lists(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False) | st.floats(-4, 4, width=32), max_size=20),
    min_size=1,
    max_size=5,
)


MAGNITUDES = st.floats(0, width=32, allow_infinity=False)


def seen(values: np.ndarray, name: str = "x") -> TensorStatistics:
    x = np.asarray(values, np.float32)
    low, high = float(x.min()), float(x.max())
    return TensorStatistics(name, Histogram.of(x), low, high, 1, mean_minimum=low, mean_maximum=high)


@given(PARTS)
@settings(max_examples=200, deadline=None)
def test_parts_merge_to_the_histogram_of_all(parts: list[list[float]]) -> None:
    arrays = [np.array(p, np.float32) for p in parts]
    whole = np.concatenate(arrays)
    merged, low, high = Histogram.of(arrays[0]), 0.0, 0.0
    for x in arrays:
        low, high = min(low, *x.tolist(), 0.0), max(high, *x.tolist(), 0.0)
    for x in arrays[1:]:
        merged = merged.merged(Histogram.of(x), low, high)
    merged = merged.at(*Histogram.fitting(low, high))
    want = Histogram.of(whole)
    assert (merged.exponent, merged.start) == (want.exponent, want.start)
    np.testing.assert_array_equal(merged.counts, want.counts)
    assert want.total == whole.size


@given(MAGNITUDES, MAGNITUDES)
@settings(deadline=None)
def test_bins_are_as_narrow_as_a_power_of_two_can_be(below: float, above: float) -> None:
    exponent, start = Histogram.fitting(-below, above)
    h = Histogram(exponent, start, np.zeros(BINS, np.int64))
    assert h.low <= -below and above < h.high
    if exponent > -126:
        half = math.ldexp(1, exponent - 1)
        assert math.floor(above / half) - math.floor(-below / half) >= BINS


def test_the_bins_of_single_values() -> None:
    h = Histogram.of(np.float32([0, 0, 1, -1, 2047, np.nan, np.inf]))
    assert (h.exponent, h.start, h.total) == (1, -1, 5)
    assert {int(b): int(h.counts[b]) for b in np.flatnonzero(h.counts)} == {0: 1, 1: 3, 1024: 1}


def test_narrower_bins_are_refused() -> None:
    h = Histogram.of(np.float32([1, 2, 3]))
    with pytest.raises(ValueError, match="do not go into"):
        h.at(h.exponent - 1, 0)
    with pytest.raises(ValueError, match="do not go into"):
        h.at(h.exponent, 1800)


def test_magnitudes_fold_about_zero() -> None:
    h = Histogram.of(np.float32([-3, -2.9, 3, 1]))
    counts = h.magnitudes()
    assert counts.sum() == 4
    edges = np.flatnonzero(counts) * h.width
    assert edges[0] == 1 and abs(edges[-1] - 3) <= h.width


# -- thresholds --------------------------------------------------------------------------------------------------------


def distribution(kind: str, size: int = 100_000) -> np.ndarray:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(size).astype(np.float32)
    if kind == "relu":
        return np.maximum(x, 0)
    if kind == "outliers":
        x[:20] *= 60
        return x
    return rng.laplace(size=size).astype(np.float32) if kind == "laplace" else x


KINDS = ("normal", "relu", "outliers", "laplace")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", sorted(THRESHOLDS))
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_threshold_lies_within_what_was_seen(kind: str, method: str, symmetric: bool) -> None:
    t = seen(distribution(kind))
    low, high = THRESHOLDS[method](t, symmetric)
    assert t.minimum <= low <= 0 <= high <= t.maximum and high > 0
    assert low == 0 if kind == "relu" else low < 0
    if method != "minmax" and kind == "outliers":
        assert high - low < 0.95 * (t.maximum - t.minimum)


def test_percentiles_are_those_of_the_values() -> None:
    x = distribution("normal")
    low, high = percentile(seen(x), share=99.0)
    np.testing.assert_allclose([low, high], np.quantile(x, [0.005, 0.995]), atol=2 * Histogram.of(x).width)
    _, reach = percentile(seen(x), True, 99.0)
    np.testing.assert_allclose(reach, np.quantile(np.abs(x), 0.99), atol=2 * Histogram.of(x).width)


def rounded(x: np.ndarray, low: float, high: float, symmetric: bool) -> np.ndarray:
    g = grid_of(low, high, symmetric)
    return (np.clip(np.rint(x.astype(np.float64) / g.scale) + g.zero, g.least, g.most) - g.zero) * g.scale


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_errors_of_histograms_are_those_of_the_values(kind: str, symmetric: bool) -> None:
    x = distribution(kind)
    x = x[x != 0]  # an exact zero has no error, a value within zero's bin has
    low, high = float(x.min()), float(x.max())
    ranges = [(low * c, high * c) for c in (0.3, 0.6, 1.0)]
    found = squared_errors(Histogram.of(x), ranges, symmetric)
    want = [np.mean((x - rounded(x, *r, symmetric)) ** 2) for r in ranges]
    np.testing.assert_allclose(found, want, rtol=0.04)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_mse_is_no_worse_than_any_other_threshold(kind: str, symmetric: bool) -> None:
    x = distribution(kind)
    errors = {
        method: np.mean((x - rounded(x, *choose(seen(x), symmetric), symmetric)) ** 2)
        for method, choose in THRESHOLDS.items()
    }
    assert errors["mse"] <= 1.03 * min(errors.values()), errors
    if kind == "outliers":
        assert errors["mse"] < 0.9 * errors["minmax"]


def plain_entropy(counts: np.ndarray, levels: int) -> list[float]:
    """The definition, bin by bin."""
    out = []
    for i in range(levels, counts.size + 1):
        p, q = counts[:i].astype(float), np.zeros(i)
        p[-1] += counts[i:].sum()
        for level in range(levels):
            part = slice(level * i // levels, (level + 1) * i // levels)
            filled = counts[part] > 0
            if filled.any():
                q[part][filled] = counts[part].sum() / filled.sum()
        q[(q == 0) & (p > 0)] = 1e-9 * max(1, counts[:i].sum())
        p, q = p / p.sum(), q / max(1, counts[:i].sum())
        out.append(float(np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / np.where(q > 0, q, 1)), 0))))
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_is_the_best_of_the_definition(kind: str) -> None:
    t = seen(distribution(kind, 5000))
    counts = t.histogram.magnitudes()
    levels = 256 if kind == "relu" else 128
    loss = plain_entropy(counts, levels)
    want = (levels + int(np.argmin(loss)) + 0.5) * t.histogram.width
    assert entropy(t)[1] == pytest.approx(min(want, t.maximum))


def test_entropy_cuts_outliers_off() -> None:
    t = seen(distribution("outliers"))
    assert entropy(t)[1] < 0.5 * minmax(t)[1]


def test_constants_and_empty_values_have_a_grid() -> None:
    for x in (np.zeros(5), np.full(5, 3.0), np.full(5, -3.0), np.full(3, 1e-42)):
        t = seen(x)
        assert t.constant
        for method, choose in THRESHOLDS.items():
            for symmetric in (False, True):
                low, high = choose(t, symmetric)
                g = grid_of(low, high, symmetric)
                assert g.scale > 0 and math.isfinite(low) and math.isfinite(high), method
                value = float(np.float32(x[0]))
                assert abs(rounded(np.float32([value]), low, high, symmetric)[0] - value) <= g.scale
    assert grid_of(0, 0).scale == 1


def test_zero_is_on_every_grid() -> None:
    for low, high in ((-1.3, 2.9), (0.5, 2.0), (-5.0, -1.0), (-1e-3, 7.0)):
        g = grid_of(low, high)
        assert 0 <= g.zero <= 255 and g.range[0] <= 0 <= g.range[1]
        assert g.range[0] == pytest.approx(min(low, 0), abs=g.scale) and g.range[1] == pytest.approx(
            max(high, 0), abs=g.scale
        )


def test_the_search_takes_milliseconds() -> None:
    t = seen(distribution("laplace", 1_000_000))
    for choose in (mse, entropy):
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            choose(t)
            times.append(time.perf_counter() - begin)
        assert min(times) < 0.060  # 20 ms where no other process runs


# -- the file ----------------------------------------------------------------------------------------------------------


def sample() -> Statistics:
    rng = np.random.default_rng(1)
    first, second = seen(rng.standard_normal(5000), "b/x"), seen(np.zeros(3), "a")
    channels = TensorStatistics(
        "c", first.histogram, first.minimum, first.maximum, 2, 1, -0.1, 0.2, -1,
        rng.random(7).astype(np.float32), rng.standard_normal(7).astype(np.float32) * np.float32(1e-20),
    )  # fmt: skip
    tensors = {t.name: t for t in (first, second, channels)}
    return Statistics("m" * 64, "d" * 64, 64, True, 2, ("sample 3 is like sample 1",), tensors)


def test_a_file_gives_the_same_statistics_and_bytes_again(tmp_path: Path) -> None:
    s = sample()
    s.write(tmp_path / "a.json")
    again = Statistics.read(tmp_path / "a.json")
    again.write(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (again.model_hash, again.samples, again.random, again.skipped) == (s.model_hash, 64, True, 2)
    assert again.warnings == s.warnings and set(again.tensors) == set(s.tensors)
    for name, t in s.tensors.items():
        u = again[name]
        assert (u.minimum, u.maximum, u.samples, u.nonfinite, u.axis) == (
            t.minimum,
            t.maximum,
            t.samples,
            t.nonfinite,
            t.axis,
        )
        assert (u.histogram.exponent, u.histogram.start) == (t.histogram.exponent, t.histogram.start)
        np.testing.assert_array_equal(u.histogram.counts, t.histogram.counts)
        for a, b in ((u.absmax, t.absmax), (u.mean, t.mean)):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                np.testing.assert_array_equal(a, b)


def test_another_model_is_refused() -> None:
    sample().check_model("m" * 64)
    with pytest.raises(StatisticsError, match="made from another model"):
        sample().check_model("n" * 64)


def test_a_value_that_was_not_observed_is_named() -> None:
    with pytest.raises(StatisticsError, match="no value 'y'"):
        sample()["y"]


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 2}', ""])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "s.json").write_text(damage)
    with pytest.raises(StatisticsError, match=r"s\.json is not a statistics file"):
        Statistics.read(tmp_path / "s.json")
    with pytest.raises(StatisticsError, match="cannot read"):
        Statistics.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"exponent":', '"exponent":9'), ('"start":', '"start":1'), ('"counts":[', '"counts":[-1,'),
        ('"minimum":', '"minimum":NaN,"m":'),
        ('"first":', '"first":2047'), ('"counts":[', '"counts":[99999999999999999999,'),
    ],
)  # fmt: skip
def test_a_file_with_impossible_numbers_is_refused(tmp_path: Path, old: str, new: str) -> None:
    sample().write(tmp_path / "s.json")
    text = (tmp_path / "s.json").read_text()
    (tmp_path / "s.json").write_text(text.replace(old, new, 1))
    with pytest.raises(StatisticsError, match=r"s\.json is not a statistics file"):
        Statistics.read(tmp_path / "s.json")
