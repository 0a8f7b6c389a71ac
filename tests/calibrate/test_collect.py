"""Statistics that our own code collects, against the interpreter's values; data that is bad."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from small import network, sample, samples

import opcel_compiler as oc
from opcel_compiler.calibrate.accumulate import Accumulator, NonfiniteError, Observed
from opcel_compiler.calibrate.data import Data
from opcel_compiler.calibrate.errors import CalibrationError, CalibrationWarning
from opcel_compiler.calibrate.samples import Sample
from opcel_compiler.calibration import Observing, collect, observed_graph, observing, over
from opcel_compiler.ir.calibration import CHANNELS, COUNTS, SEEN
from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.ops.observe import EVERY, counted_positions
from opcel_compiler.ir.statistics import BINS, Histogram, Statistics, StatisticsError, statistics_text
from opcel_compiler.quantization.recipe import Recipe
from opcel_compiler.targets import load_target

Feeds = dict[str, np.ndarray]
keep = contextlib.ExitStack()


@functools.cache
def opened(threads: int = 2) -> Observing:
    return keep.enter_context(observing(network(), threads=threads))


def statistics(data: Any, threads: int = 2, **options: Any) -> Statistics:
    return over(opened(threads), Data(data, **options)).statistics


@pytest.fixture(scope="module", autouse=True)
def close() -> Iterator[None]:
    yield
    keep.close()
    opened.cache_clear()


@pytest.fixture(scope="module")
def known() -> dict[str, list[np.ndarray]]:
    """The interpreter's values of each observed tensor, sample by sample."""
    graph, names, wanted = observed_graph(network(), load_target("host"))
    found: dict[str, list[np.ndarray]] = {name: [] for name in wanted}

    def see(node: Node, results: tuple[np.ndarray, ...]) -> None:
        for value, array in zip(node.results, results, strict=True):
            if value.name in found:
                found[value.name].append(array)

    for feeds in samples(ragged=True):
        given = {v.name: feeds[n] for n, v in zip(names, graph.inputs, strict=True)}
        run(graph, given, observe=see)
    return found


@pytest.mark.parametrize("threads", [1, 2])
def test_statistics_are_those_of_the_values(known: dict[str, list[np.ndarray]], threads: int) -> None:
    found = statistics(lambda: samples(ragged=True), threads=threads)
    assert set(found.tensors) == set(known) and len(known) >= 5
    assert found.samples == 32 and not found.random and len(found.model_hash) == len(found.data_hash) == 64
    for name, arrays in known.items():
        t, flat = found[name], np.concatenate([a.reshape(-1) for a in arrays])
        assert (t.count, t.samples, t.nonfinite) == (flat.size, 32, 0), name
        np.testing.assert_allclose([t.minimum, t.maximum], [flat.min(), flat.max()], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(t.mean_maximum, np.mean([a.max() for a in arrays]), rtol=1e-5)
        want = Histogram.of(flat)
        assert (t.histogram.exponent, t.histogram.start) == (want.exponent, want.start)
        # Values at an edge may be rounded to the next bin, but to no other.
        moved = np.abs(np.cumsum(t.histogram.counts - want.counts))
        assert moved.max() <= 0.002 * flat.size, name
        if t.axis is not None:
            assert t.absmax is not None and t.mean is not None
            lead = [np.moveaxis(a, t.axis, 0).reshape(t.absmax.size, -1) for a in arrays]
            rows = np.concatenate(lead, axis=1)
            np.testing.assert_allclose(t.absmax, np.abs(rows).max(axis=1), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(t.mean, rows.mean(axis=1), rtol=1e-4, atol=1e-5)
    assert sum(t.axis is not None for t in found.tensors.values()) >= 4


def test_a_part_of_the_positions_of_large_images_is_counted() -> None:
    sizes = {"n": 1, "h": 12, "w": 10}
    graph, names, wanted = observed_graph(network(), load_target("host"), None, sizes)
    made: dict[str, list[np.ndarray]] = {name: [] for name in wanted}

    def see(node: Node, results: tuple[np.ndarray, ...]) -> None:
        for value, array in zip(node.results, results, strict=True):
            if value.name in made:
                made[value.name].append(array)

    for feeds in samples(8):
        run(graph, {v.name: feeds[n] for n, v in zip(names, graph.inputs, strict=True)}, observe=see)
    with pytest.warns(CalibrationWarning, match="8 samples are few"):
        found = collect(network(), Data(lambda: samples(8)), dims=sizes).statistics
    parts = 0
    for name, arrays in made.items():
        x = np.concatenate(arrays)
        every = EVERY if x.ndim == 4 and x.shape[2] * x.shape[3] == 120 else 1
        kept = np.broadcast_to(counted_positions(x.shape, 1, every), x.shape)
        t, parts = found[name], parts + (every > 1)
        assert t.count == kept.sum(), name
        np.testing.assert_allclose([t.minimum, t.maximum], [x.min(), x.max()], rtol=1e-5, atol=1e-6)
        moved = np.abs(
            np.cumsum(t.histogram.counts - Histogram.of(x[kept]).at(t.histogram.exponent, t.histogram.start).counts)
        )
        assert moved.max() <= 0.002 * t.count, name
        if every > 1:
            assert t.absmax is not None and t.mean is not None
            np.testing.assert_allclose(t.absmax, np.abs(x).max(axis=(0, 2, 3)), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(t.mean, x.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert parts == 2


def test_the_number_of_threads_and_the_run_change_no_byte(tmp_path: Path) -> None:
    for i, threads in enumerate((1, 2, 2)):
        statistics(lambda: samples(), threads=threads).write(tmp_path / f"{i}.json")
    texts = {(tmp_path / f"{i}.json").read_bytes() for i in range(3)}
    assert len(texts) == 1
    assert Statistics.read(tmp_path / "0.json").samples == 32


class Tells:
    """An observing model of one value: element counts by bin, the last of those not finite, and what else is seen."""

    def __init__(self) -> None:
        self.counts, self.seen = np.zeros(BINS + 1, np.uint32), np.zeros(5, np.float32)

    def run(self, feeds: Feeds) -> Feeds:
        return {COUNTS: self.counts, SEEN: self.seen, CHANNELS: np.array([2, 5], np.float32)}


def test_counters_grow_before_they_overflow() -> None:
    model, sums = Tells(), Accumulator([Observed("x", None, 1)])
    model.counts[3], model.seen[:] = 3 << 30, (0, 0, 3, 1100, 3 << 30)
    for _ in range(3):
        sums.run(model, Sample(0, "here", {}))
    model.counts[:], model.seen[:] = 0, (1, 0, 36, 3000, 5)
    model.counts[9] = 5
    sums.run(model, Sample(1, "here", {}))
    found = sums.tensors()["x"].histogram
    assert found.total == 9 * 2**30 + 5 and found.counts[found.counts > 0].tolist() == [9 << 30, 5]


def test_a_sample_that_is_not_finite_adds_nothing() -> None:
    model, sums = Tells(), Accumulator([Observed("x", None, 1)])
    model.counts[3], model.seen[:] = 5, (0, 0, 3, 1100, 5)
    sums.run(model, Sample(0, "here", {}))
    model.counts[BINS], model.seen[:] = 2, (0, 0, -9, 2000, 5)
    with pytest.raises(NonfiniteError, match=r"sample 1 \(here\) makes 2 elements of %x NaN or infinite"):
        sums.run(model, Sample(1, "here", {}))
    found = sums.tensors()["x"]
    assert (sums.samples, found.count, found.minimum, found.maximum) == (1, 5, 3, 1100)


def test_the_order_of_samples_changes_no_histogram() -> None:
    ahead = statistics(list(samples()))
    back = statistics(list(samples())[::-1])
    assert ahead.data_hash != back.data_hash
    for name, t in ahead.tensors.items():
        u = back[name]
        assert (t.minimum, t.maximum, t.histogram.exponent) == (u.minimum, u.maximum, u.histogram.exponent)
        np.testing.assert_array_equal(t.histogram.counts, u.histogram.counts)


def test_the_first_samples_are_kept() -> None:
    with pytest.warns(CalibrationWarning, match="19 samples are few"):
        made = collect(network(), lambda: samples(19))
    assert len(made.samples) == 16
    for i, feeds in enumerate(made.samples):
        np.testing.assert_array_equal(feeds["x"], sample(i)["x"])


# -- bad data ----------------------------------------------------------------------------------------------------------


def changed(index: int, change: Callable[[Feeds], Any], count: int = 12) -> Iterator[Feeds]:
    for i, feeds in enumerate(samples(count)):
        if i == index:
            change(feeds)
        yield feeds


def put(name: str, at: tuple[int, ...], value: float) -> Callable[[Feeds], None]:
    def change(feeds: Feeds) -> None:
        feeds[name][at] = value

    return change


def convert(name: str, to: Callable[[np.ndarray], np.ndarray]) -> Callable[[Feeds], None]:
    def change(feeds: Feeds) -> None:
        feeds[name] = to(feeds[name])

    return change


BAD: dict[str, tuple[Callable[[Feeds], Any], str, str, tuple[int, ...] | None]] = {
    "NaN": (put("x", (0, 2, 3, 4), np.nan), r"input 'x' is nan at \[0, 2, 3, 4\]", "x", (0, 2, 3, 4)),
    "infinity": (put("y", (0, 1), -np.inf), r"input 'y' is -inf at \[0, 1\]", "y", (0, 1)),
    "dtype": (convert("x", lambda x: x.astype(np.float64)), r"float64.*takes f32.*data to float32", "x", None),
    "rank": (convert("x", lambda x: x[0]), r"of rank 3, and the model takes .* of rank 4", "x", None),
    "dim": (convert("x", lambda x: x[:, :2]), r"is 2 along axis 1 and the model takes 3", "x", None),
    "sizes that differ": (convert("y", lambda y: np.repeat(y, 2, 0)), r"is 2 along axis 0 .*takes 1 \(n", "y", None),
    "name": (lambda feeds: feeds.pop("y"), r"has no array 'y'; the model takes x: .*the sample has 'x'", "y", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", sorted(BAD))
def test_a_bad_sample_is_named_and_can_be_skipped(kind: str) -> None:
    change, text, tensor, coordinate = BAD[kind]
    with pytest.raises(CalibrationError, match=f"(?s)sample 7 .*{text}") as caught:
        statistics(changed(7, change))
    assert (caught.value.sample, caught.value.tensor, caught.value.coordinate) == (7, tensor, coordinate)
    found = statistics(changed(7, change), on_bad_sample="skip")
    assert (found.samples, found.skipped) == (11, 1)
    assert any("1 bad samples were left out: sample 7" in w for w in found.warnings)


def test_the_node_that_first_makes_a_nan_is_named() -> None:
    change = put("x", (0, 1, 2, 3), -1.0)
    with pytest.raises(
        CalibrationError, match=r"node root \(sqrt\) made the first: .* nan at \[0, 1, 2, 3\]"
    ) as caught:
        statistics(changed(5, change))
    error = caught.value
    assert (error.sample, error.node) == (5, "root") and error.coordinate is not None and error.tensor
    found = statistics(changed(5, change), on_bad_sample="skip")
    assert (found.samples, found.skipped) == (11, 1)
    clean = statistics([f for i, f in enumerate(samples(12)) if i != 5])
    for name, t in clean.tensors.items():
        np.testing.assert_array_equal(t.histogram.counts, found[name].histogram.counts)


@pytest.mark.parametrize(("count", "text"), [(0, "holds no samples"), (7, "holds 7 samples, and at least 8")])
def test_too_few_samples_are_refused(count: int, text: str) -> None:
    with pytest.raises(CalibrationError, match=text):
        statistics(lambda: samples(count))


def test_only_bad_samples_are_no_samples() -> None:
    def bad() -> Iterator[Feeds]:
        for feeds in samples(9):
            yield {"x": feeds["x"]}

    with pytest.raises(CalibrationError, match="holds no samples: all 9 are bad, the first: sample 0"):
        statistics(bad, on_bad_sample="skip")


def told(data: Any, **options: Any) -> list[str]:
    found = over(opened(), Data(data, **options)).statistics
    assert found.warnings
    return list(found.warnings)


def test_few_and_identical_samples_warn() -> None:
    texts = told([sample(i % 9) for i in range(12)])
    assert any(t.startswith("12 samples are few") for t in texts)
    assert any("3 samples are the same as earlier ones: 9 like 0, 10 like 1, 11 like 2" in t for t in texts)


@pytest.mark.parametrize("shape", [(5,), (700,), (1, 3, 224, 224)])
def test_samples_are_told_apart(shape: tuple[int, ...]) -> None:
    """One bit, two elements that change places, a picture that is shifted; names, types and shapes count, too."""
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    flat = x.reshape(-1)
    bit, swapped = flat.copy(), flat.copy()
    bit.view(np.uint32)[-1] ^= 1
    swapped[[0, flat.size // 2]] = swapped[[flat.size // 2, 0]]
    others = [bit, swapped, np.roll(flat, 1), np.roll(flat, flat.size // 2), -flat]
    feeds = [{"x": x}, *({"x": other.reshape(shape)} for other in others)]
    feeds += [{"y": x}, {"x": x.view(np.int32)}, {"x": x[None]}, {"x": x, "y": x}]
    assert len({Sample(0, "here", each).digest for each in feeds}) == len(feeds)
    assert Sample(1, "there", {"x": np.asfortranarray(x)}).digest == Sample(0, "here", {"x": x}).digest


def test_good_data_warns_of_nothing() -> None:
    assert over(opened(), lambda: samples(32)).statistics.warnings == ()


def test_a_sample_at_another_scale_warns() -> None:
    def scaled(feeds: Feeds) -> None:
        feeds["x"] *= 255

    (text,) = (t for t in told(changed(20, scaled, 32)) if "'x'" in t)
    assert "first sample 20" in text and "scaled as the model expects" in text


def test_a_sample_outside_the_stated_range_warns() -> None:
    texts = told(lambda: samples(32), ranges={"x": (0.0, 1.0)})
    (text,) = (t for t in texts if "'x'" in t)
    assert "outside the range 0 to 1" in text and "first sample 1:" in text


def test_constant_values_and_outliers_warn() -> None:
    def odd() -> Iterator[Feeds]:
        for i, feeds in enumerate(samples(32)):
            feeds["x"][...] = 0.0
            if i % 4 == 3:
                feeds["x"][0, 0, 0, 0] = 1e9
            yield feeds

    texts = told(odd)
    assert any("times what 99.9 %" in t and "SmoothQuant" in t for t in texts)
    zeros = [{**f, "x": np.zeros_like(f["x"])} for f in samples(32)]
    assert any("is 0 in all samples: a constant" in t for t in told(zeros))


def test_random_numbers_only_where_allowed() -> None:
    with pytest.raises(CalibrationError, match="--allow-random-calibration"):
        statistics(None)


# -- in a compile ------------------------------------------------------------------------------------------------------


def test_a_compile_takes_data_or_statistics_and_says_so(tmp_path: Path) -> None:
    def made(name: str, recipe: Recipe) -> oc.CompiledModel:
        return oc.compile(
            network(), output=tmp_path / name, precision="int8", recipe=recipe, max_error=1.0, inputs=sample(0)
        )

    with pytest.warns(CalibrationWarning, match="12 samples are few"), made("a", Recipe(lambda: samples(12))) as model:
        told = model.manifest["quantization"]
        assert (told["samples"], told["skipped"], "random" in told) == (12, 0, False)
        assert model.report["calibration"]["warnings"]
    statistics(lambda: samples(12)).write(tmp_path / "stats.json")
    manifests = []
    for name, recipe in (("b", Recipe(tmp_path / "stats.json")), ("c", Recipe(statistics=tmp_path / "stats.json"))):
        with made(name, recipe) as model:
            manifests.append(model.manifest)
    assert manifests[0] == manifests[1] and manifests[0]["quantization"] == told


def test_statistics_of_another_model_are_refused(tmp_path: Path) -> None:
    replace(statistics(lambda: samples(12)), model_hash="0" * 64).write(tmp_path / "stats.json")
    with pytest.raises(StatisticsError, match=r"stats\.json: made from another model"):
        oc.compile(network(), precision="int8", recipe=Recipe(tmp_path / "stats.json"))


def test_random_calibration_is_stamped() -> None:
    model = onnx.load_from_string(network())
    model.graph.node[0].op_type = "Abs"
    recipe = Recipe(allow_random=True)
    with (
        pytest.warns(CalibrationWarning, match="random numbers"),
        oc.compile(model, precision="int8", recipe=recipe, max_error=1.0) as made,
    ):
        assert made.manifest["quantization"]["random"] is True


# -- in a process of its own -------------------------------------------------------------------------------------------


def saved(folder: Path, data: Iterator[Feeds]) -> Path:
    folder.mkdir()
    for i, feeds in enumerate(data):
        np.savez(folder / f"{i:03}.npz", **feeds)
    return folder


def test_data_of_a_path_give_the_same_statistics(tmp_path: Path) -> None:
    path = saved(tmp_path / "data", samples(12, ragged=True))
    counts: list[int] = []
    apart = over(opened(), path, lambda what, done, of: counts.append(done))
    near = over(opened(), lambda: samples(12, ragged=True))
    assert counts == list(range(1, 13))
    assert statistics_text(apart.statistics) == statistics_text(near.statistics)
    for a, b in zip(apart.samples, near.samples, strict=True):
        np.testing.assert_array_equal(a["x"], b["x"])


def test_errors_and_warnings_of_a_path_are_the_same(tmp_path: Path) -> None:
    path = saved(tmp_path / "nan", changed(5, put("x", (0, 1, 2, 3), -1.0)))
    with pytest.raises(
        CalibrationError, match=r"sample 5 \(005\.npz\) makes .*node root \(sqrt\) made the first"
    ) as caught:
        over(opened(), path)
    assert (caught.value.sample, caught.value.node) == (5, "root")
    path = saved(tmp_path / "more", ({**f, "label": f["y"]} for f in samples(9)))
    with pytest.warns(CalibrationWarning, match="label is no input"):
        assert over(opened(), path).statistics.samples == 9
    (tmp_path / "reader.py").write_text("import os\ndef die():\n    print('loud')\n    os._exit(3)\n")
    with pytest.raises(CalibrationError, match="ended with status 3"):
        over(opened(), f"{tmp_path / 'reader.py'}:die")
    (tmp_path / "loud.py").write_text("def fail():\n    print('loud')\n    raise RuntimeError('no disk')\n")
    with pytest.raises(CalibrationError, match="ended with status 1: RuntimeError: no disk"):
        over(opened(), f"{tmp_path / 'loud.py'}:fail")
