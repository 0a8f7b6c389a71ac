"""The tables in 8 bits: their judgement, their figures, and one small network through both."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks import accuracy
from benchmarks.int8 import __main__ as speed
from benchmarks.int8 import data, found, judge, metrics, page, peers
from benchmarks.int8.cases import Case, arrays, cases_in, feeds, write
from opcel_compiler.bench.engines import PEERS

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One convolution and a product, with random data and labels of its own."""
    path = tmp_path_factory.mktemp("case")
    weights = {
        "w": RNG.standard_normal((16, 4, 3, 3)).astype(np.float32),
        "v": RNG.standard_normal((16, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["y"]),
    ]
    given, result = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 4, 12, 12]), ("y", [1, 8]))
    )
    initial = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "small", [given], [result], initial),
        opset_imports=[helper.make_opsetid("", 17)], ir_version=9,
    )  # fmt: skip
    onnx.save(model, path / "small.onnx")
    x = RNG.standard_normal((24, 1, 4, 12, 12)).astype(np.float32)
    labels = np.arange(16) % 8
    write(path, "small", {"x": x[:8]}, {"x": x[8:]}, metric="top1", about="a test", labels=labels)
    return path


def test_a_case_is_read_as_it_was_written(folder: Path) -> None:
    (case,) = cases_in(folder)
    assert case.name == "small" and case.facts == {"metric": "top1", "about": "a test"}
    assert case.evaluation["x"].shape == (16, 1, 4, 12, 12) and len(feeds(case.evaluation)) == 16
    first = arrays(folder / "small.npz")["x"]
    assert np.array_equal(first, case.evaluation["x"][0]) and case.labels is not None
    with pytest.raises(ValueError, match="samples"):
        write(folder, "bad", {"a": np.zeros(2), "b": np.zeros(3)}, {}, metric="top1", about="")


def test_one_network_through_both_tables(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = peers.make(Case(folder, "small"), tmp_path, ("MinMax",))
    if importlib.util.find_spec("nncf") is None:
        assert made == {"nncf.xml": "skipped: the package nncf is not installed"}
    assert "ort-minmax" in peers.paths(tmp_path, "small")
    work, short = str(tmp_path / "work"), ["--threads", "1", "--rounds", "2", "--block", "0.01"]
    common = [str(folder), "--peers", str(tmp_path), "--work", work, *short]
    for main, file in ((speed.main, "speed.json"), (accuracy.main, "accuracy.json")):
        extra = ["--markdown", str(tmp_path / "page.md"), "--speed", str(tmp_path / "speed.json")]
        argv = ["x", *common, "--json", str(tmp_path / file), *(extra if file == "accuracy.json" else [])]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0, capsys.readouterr().out
    (row,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert row["over_f32"] > 0 and row["best"] == "ort-int8"
    assert {e["engine"] for e in row["engines"] if "p50_s" in e} >= {"opcel", "opcel-f32", "ort-int8"}
    assert all(o["relative_l2"] < 0.1 for e in row["engines"] for o in e.get("outputs", ()))
    (row,) = json.loads((tmp_path / "accuracy.json").read_text())["rows"]
    assert row["figure"] == "accuracy" and row["samples"] == 16 and row["integer_share"] > 0.9
    assert row["engines"]["opcel"]["figures"]["sqnr_db"] > 20 and row["engines"]["opcel"]["p50_s"] > 0
    assert row["engines"]["ort-minmax"]["figures"]["agreement"] >= 0.8
    text = (tmp_path / "page.md").read_text()
    assert "| small | accuracy | 16 |" in text and "## Speed" in text
    monkeypatch.setattr(accuracy, "artifact", lambda *_: pytest.fail("a row is measured again"))
    with pytest.raises(SystemExit) as end:
        accuracy.main()
    assert end.value.code == 0 and json.loads((tmp_path / "accuracy.json").read_text())["rows"] == [row]


def test_a_missing_peer_is_a_row_that_says_so(folder: Path, tmp_path: Path) -> None:
    assert peers.paths(tmp_path, "small") == {}
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    failed: dict[str, str] = {}
    peers._make(tmp_path / "out.onnx", lambda path: onnx.load(broken), failed)
    assert list(failed) == ["out.onnx"]
    (tmp_path / peers.FAILED).write_text(json.dumps({"small.nncf.xml": "it\nbroke", "other.nncf.xml": "no"}))
    assert peers.failures(tmp_path, "small") == {"nncf": "it\nbroke"}
    facts = {"machine": {"cpu": "c", "cpus": 2}, "date": "d"}
    text = page.page({**facts, "rows": [row(network="n", short=[], failed={"nncf": "it\nbroke"})]}, None)
    assert "- n: NNCF: `it broke`" in text


def row(**given: object) -> dict[str, object]:
    engines = {"opcel": {"figures": {"accuracy": 0.99}}, "nncf": {"figures": {"accuracy": 0.99}}}
    return {
        "metric": "top1", "figure": "accuracy", "float": {"accuracy": 0.99}, "engines": engines, "samples": 800,
        "integer_share": 0.95,
    } | given  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, []),
        ({"float": {"accuracy": 0.996}}, ["0.60 points under float"]),
        ({"integer_share": 0.8}, ["80% of the MACs in integers"]),
        ({"error": "it broke"}, ["it broke"]),
        (
            {"engines": {"opcel": {"figures": {"accuracy": 0.99}}, "nncf": {"figures": {"accuracy": 0.995}}}},
            ["0.50 points behind NNCF"],
        ),
        (
            {
                "engines": {
                    "opcel": {"figures": {"accuracy": 0.99}},
                    "nncf": {"figures": {"accuracy": 0.99}, "speedup": 0.8},
                }
            },
            ["1.25 times NNCF's time"],
        ),
        (
            {"metric": "kl", "figure": "kl", "float": {"kl": 0.0}, "engines": {"opcel": {"figures": {"kl": 2e-3}}}},
            ["KL 0.002"],
        ),
    ],
)
def test_what_a_row_falls_short_of(given: dict[str, object], words: list[str]) -> None:
    assert judge.shortcomings(row(**given)) == words


def test_few_samples_allow_two_of_them() -> None:
    assert judge.behind("agreement", 0.98, 1.0, 100) == []
    assert judge.behind("agreement", 0.97, 1.0, 100) == ["3.00 points behind NNCF"]
    assert judge.behind("kl", 8e-4, 1e-4, 100) == [] and judge.behind("kl", 2e-3, 1e-4, 100)


def test_the_figures_of_equal_and_of_different_outputs() -> None:
    logits = RNG.standard_normal((6, 5, 7))
    labels = RNG.integers(0, 7, (6, 5))
    same = metrics.language(logits, logits, labels)
    assert same["kl"] == 0 and same["agreement"] == 1 and same["sqnr_db"] == 200
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (logits, logits + 0.1 * labels[..., None]))
    assert metrics.divergence(logits, logits + 3) == pytest.approx(0, abs=1e-12)
    other = RNG.standard_normal(logits.shape)
    want = (p * np.log(p / (np.exp(other) / np.exp(other).sum(-1, keepdims=True)))).sum(-1).mean()
    assert (
        metrics.divergence(logits, other) == pytest.approx(want) == pytest.approx(metrics.divergence(q, other), rel=1)
    )
    assert metrics.divergence(p, np.exp(other) / np.exp(other).sum(-1, keepdims=True)) == pytest.approx(want, rel=1e-6)


def test_boxes_agree_where_both_see_the_same_thing() -> None:
    places = np.zeros((1, 1, 3, 4 + 1 + 2), np.float32)
    places[..., 4] = 0.9
    places[..., 5] = (0.9, 0.9, 0.1)
    assert metrics.boxes(places, places, None)["agreement"] == 1.0
    moved = places.copy()
    moved[0, 0, 0, 5:] = (0.1, 0.9)  # another class
    moved[0, 0, 1, :2] = 0.5  # half a cell away, of boxes one cell wide
    found = metrics.boxes(places, moved, None)
    assert found["agreement"] == 0.5 and found["places"] == 2
    assert found["overlap"] == pytest.approx(0.25 / 1.75)


def test_the_nearest_text_and_the_mask() -> None:
    vectors = np.eye(4) + 0.1 * RNG.standard_normal((4, 4))
    assert metrics.embedding(vectors, vectors, None)["agreement"] == 1.0
    near, far = np.array([[0.5, 0.1]]), np.array([[0.5, 0.6]])
    assert metrics.mask(near, far, None)["overlap"] == 0.5


def test_digits_are_enlarged_between_their_pixels() -> None:
    ramp = np.tile(np.arange(8, dtype=np.float32), (1, 8, 1))
    large = data.enlarged(ramp)[0]
    assert large.shape == (32, 32) and np.allclose(large[0, 2:30], np.arange(0.125, 7, 0.25))


def test_text_is_windows_of_files_that_are_not_trained_on() -> None:
    assert data.encoded("\nA\té").tolist() == [0, data.CHARACTERS.index("A"), 96, 96]
    rng = np.random.default_rng(0)
    windows = data._windows([np.arange(50), np.arange(50, 100)], 10, 6, rng)
    assert windows.shape == (6, 10) and len({w[0] for w in windows}) == 6 and (windows[:, 0] % 10 == 0).all()


def test_magika_sees_the_ends_of_a_file_without_blanks() -> None:
    found_bytes = found.magika_bytes(b"  head" + b"x" * 5000 + b"tail \n")
    assert bytes(found_bytes[:4].astype(np.uint8)) == b"head" and bytes(found_bytes[-4:].astype(np.uint8)) == b"tail"
    short = found.magika_bytes(b"ab")
    assert short[:3].tolist() == [97, 98, 256] and short[-3:].tolist() == [256, 97, 98]


def test_attention_is_told_from_a_last_softmax() -> None:
    def model(*ops: str) -> onnx.ModelProto:
        nodes = [helper.make_node(op, [f"v{i}"], [f"v{i + 1}"]) for i, op in enumerate(ops)]
        return helper.make_model(helper.make_graph(nodes, "g", [], []))

    assert peers.attends(model("MatMul", "Softmax", "Transpose", "MatMul"))
    assert not peers.attends(model("MatMul", "Softmax", "Identity"))


def test_the_variants_compute_the_same_function() -> None:
    torch = pytest.importorskip("torch", reason="training needs torch")
    from benchmarks.int8 import trained, training

    torch.manual_seed(0)
    for net in (trained.Cnn().eval(), trained.Vit().eval()):
        x = torch.rand(2, 1, 32, 32)
        variants = training.variants("net", net, "about")
        assert len(variants) == 2
        with torch.no_grad():
            want, got = (variant(x) for _, variant, _ in variants)
        assert torch.allclose(want, got, rtol=1e-3, atol=1e-4)
        before, after = (
            torch.cat([p.flatten().abs() for p in variant.parameters()]).max() for _, variant, _ in variants
        )
        assert after > 10 * before


def test_the_page_names_what_falls_short() -> None:
    facts = {"machine": {"cpu": "c", "cpus": 2}, "date": "d", "rows": [row(network="n", short=["it is slow"])]}
    text = page.page(facts, None)
    assert "- n: it is slow" in text and "| n | accuracy | 800 | 99.00 % | 99.00 % | 99.00 % | - | 95% |" in text


def test_engines_of_integer_models_are_known() -> None:
    assert {"ort-int8", "openvino-int8", "openvino-int8-bf16"} <= set(PEERS)
    assert all(PEERS[name].precision == "int8" for name in ("ort-int8", "openvino-int8"))
