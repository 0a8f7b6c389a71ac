"""Decode steps whose caches grow in place, against ONNX Runtime with caches that are copied."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import opcel_compiler as oc
from opcel_compiler.proof import Bound, compare
from opcel_compiler.runtime import Decoder, FeedError, load
from opcel_compiler.schedule.states import StateError, StateSpec

from .builder import Net
from .twins_more import gpt, llama

STATE = ["past_key_*=key_*:32", "past_value_*=value_*:32"]


def caches(model: onnx.ModelProto, length: int) -> dict[str, np.ndarray]:
    """Random caches of this length."""
    random = np.random.default_rng(length)
    found = {}
    for value in model.graph.input:
        if value.name.startswith("past_"):
            dims = [d.dim_value or {"batch": 1, "past": length}[d.dim_param] for d in value.type.tensor_type.shape.dim]
            found[value.name] = random.normal(size=dims).astype(np.float32)
    return found


def reference_step(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("build", [gpt, llama])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_twenty_steps(tmp_path: Path, build: type, batch: int | str) -> None:
    model = build(batch, "past")
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    with oc.compile(model, output=tmp_path / "out", state=STATE, fallback="error") as step:
        assert isinstance(step, Decoder) and step.manifest["proof"]["status"] == "proved"
        past = caches(model, 5)
        sent = dict(past)
        for i in range(20):
            ids = np.full((1, 1), i % 7, np.int64)
            got = step.run({"ids": ids, **sent})
            want = reference_step(session, {"ids": ids, **past})
            assert list(got) == ["logits"] and step.length == 6 + i
            assert compare("logits", got["logits"], want["logits"], Bound()).within
            past = {name: want[name.removeprefix("past_")] for name in past}
            sent = {}
        for name, value in past.items():
            np.testing.assert_allclose(step.cache(name), value, rtol=1e-4, atol=1e-5)
        step.length = 9  # back some steps: what was there stays
        again = step.run({"ids": np.full((1, 1), 4, np.int64)})["logits"]
        short = {name: value[:, :, :9] for name, value in past.items()}
        want = reference_step(session, {"ids": np.full((1, 1), 4, np.int64), **short})
        assert compare("logits", again, want["logits"], Bound()).within


def test_a_sequence_from_nothing_to_a_full_cache(tmp_path: Path) -> None:
    model = gpt(1, "past")
    ids = np.zeros((1, 1), np.int64)
    with oc.compile(model, output=tmp_path / "out", state=["past_*:4"], proof=False) as step:
        assert isinstance(step, Decoder) and step.capacity == 4
        first = [step.run({"ids": ids})["logits"] for _ in range(4)]
        with pytest.raises(FeedError, match="hold 4 of 4 places"):
            step.run({"ids": ids})
        step.reset()
        np.testing.assert_array_equal(step.run({"ids": ids})["logits"], first[0])
        assert len(step.profile({"ids": ids}, 2)) and step.length == 1
    with load(tmp_path / "out", threads=2) as other, load(tmp_path / "out", threads=1) as one:
        for want in first:
            np.testing.assert_array_equal(other.run({"ids": ids})["logits"], want)
        assert isinstance(one, Decoder) and one.length == 0, "each has a sequence of its own"


def test_feeds_that_do_not_fit(tmp_path: Path) -> None:
    model = gpt(1, "past")
    ids = np.zeros((1, 1), np.int64)
    with oc.compile(model, output=tmp_path / "out", state=["past_*:8"], proof=False) as step:
        assert isinstance(step, Decoder)
        past = caches(model, 3)
        name = next(iter(past))
        with pytest.raises(FeedError, match="there is no cache"):
            step.cache(name)
        with pytest.raises(FeedError, match="all together or not at all; past_"):
            step.run({"ids": ids, name: past[name]})
        with pytest.raises(FeedError, match="different lengths: 2, 3"):
            step.run({"ids": ids, **past, name: past[name][:, :, :2]})
        with pytest.raises(FeedError, match="float64"):
            step.run({"ids": ids, **past, name: past[name].astype(np.float64)})
        with pytest.raises(FeedError, match="a length of 9"):
            step.run({"ids": ids, **caches(model, 9)})
        with pytest.raises(FeedError, match="input 'ids' is missing"):
            step.run(past)
        step.run({"ids": ids, **past})
        assert step.length == 4


def test_memory_that_is_not_the_caches_is_refused(tmp_path: Path) -> None:
    """The interface below `Decoder`, as a C program uses it: strides, places and aliasing are checked."""
    model = gpt(1, "past")
    oc.compile(model, output=tmp_path / "out", state=["past_*:8"], proof=False).close()
    from opcel_compiler.runtime.model import CompiledModel

    with CompiledModel(tmp_path / "out", threads=1) as raw:
        whole = {n: np.zeros((*a.shape[:2], 8, a.shape[3]), np.float32) for n, a in caches(model, 3).items()}
        feeds = {"ids": np.zeros((1, 1), np.int64), **{n: a[:, :, :3] for n, a in whole.items()}}
        outputs = {n.removeprefix("past_"): a[:, :, :4] for n, a in whole.items()}
        raw.run(feeds, outputs)
        name = next(iter(whole))
        with pytest.raises(FeedError, match="the memory of its input is to be given"):
            raw.run(feeds)
        with pytest.raises(FeedError, match="is state: an input and an output with the same data"):
            raw.run({**feeds, name: feeds[name].copy()}, outputs)
        with pytest.raises(FeedError, match="is state"):
            raw.run(feeds, {**outputs, name.removeprefix("past_"): np.zeros_like(whole[name])[:, :, :4]})


@pytest.mark.parametrize("text", ["past_*", "past_*:0", "a=b=c:4", "past_*:many", ":4"])
def test_texts_that_say_no_state(text: str) -> None:
    with pytest.raises(StateError, match="is no INPUTS=OUTPUTS:CAPACITY"):
        StateSpec.parse(text)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("past_*=next_*:8", "grows into output 'key_0"),
        ("cache_*:8", "no input's name matches 'cache_\\*'"),
        ("ids:8", "input 'ids' is not appended to"),
        ("past_*:5", "grows to 10 places, and the capacity is 5"),
    ],
)
def test_states_that_cannot_be(tmp_path: Path, state: str, reason: str) -> None:
    with pytest.raises(StateError, match=reason):
        oc.compile(gpt(), output=tmp_path / "out", state=[state])
    assert not (tmp_path / "out").exists()


def test_a_cache_that_is_needed_dense_is_refused(tmp_path: Path) -> None:
    net = Net("dense")
    past, new = net.input("past_0", 1, 2, "past", 4), net.input("x", 1, 2, 1, 4)
    grown = net("Concat", past, new, axis=2)
    net.output("present_0", grown)
    net.output("flat", net("Relu", net("Reshape", grown, np.array([-1, 4]))))
    with pytest.raises(StateError, match=r"cannot be appended to in place: .* needs it in dense memory"):
        oc.compile(net.model(), output=tmp_path / "out", state=["past_*:8"])
