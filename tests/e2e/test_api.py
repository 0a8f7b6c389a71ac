"""`compile` and `run` as a user calls them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import opcel_compiler as oc
from opcel_compiler.errors import OpcelError

from .builder import Net
from .conftest import GetTwin, assert_same, reference
from .twins import feeds, mlp


def test_a_path_bytes_and_a_proto(tmp_path: Path) -> None:
    model = mlp()
    given = feeds(model)
    want = reference(model, given)
    onnx.save(model, tmp_path / "model.onnx")
    for form in (tmp_path / "model.onnx", str(tmp_path / "model.onnx"), model.SerializeToString(), model):
        with oc.compile(form) as compiled:
            assert_same(compiled.run(given), want)
        assert compiled.closed


def test_external_data(tmp_path: Path) -> None:
    model = mlp()
    given = feeds(model)
    want = reference(model, given)
    onnx.save(mlp(), tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0, location="model.data")
    with oc.compile(tmp_path / "model.onnx") as compiled:
        assert_same(compiled.run(given), want)


def test_scalars_and_arrays_that_are_not_dense() -> None:
    net = Net("scalars")
    x, s = net.input("x", "n", 6), net.input("s")
    net.output("y", net("Mul", x, s))
    net.output("t", net("Add", s, 1.0))
    with oc.compile(net.model(), fallback="error") as compiled:
        base = np.arange(48, dtype=np.float32).reshape(6, 8)
        for view in (base.T, base[:, ::-1].T, base.reshape(8, 6)[::2], np.broadcast_to(base.reshape(8, 6)[3], (5, 6))):
            got = compiled.run({"x": view, "s": np.array(2, np.float32)})
            np.testing.assert_array_equal(got["y"], view * 2)
            assert got["t"].shape == () and got["t"] == 3


def test_results_belong_to_the_caller(twin: GetTwin) -> None:
    model = mlp("batch")
    compiled = twin("mlp-symbolic")
    first, second = (feeds(model, {"batch": 6}, seed) for seed in (1, 2))
    one = compiled.run(first)["y"]
    kept = one.copy()
    two = compiled.run(second)["y"]
    np.testing.assert_array_equal(one, kept)
    assert not np.array_equal(one, two) and one.flags.writeable
    one[:] = 0
    np.testing.assert_array_equal(compiled.run(first)["y"], kept)


def test_bound_outputs(twin: GetTwin) -> None:
    compiled = twin("mlp-symbolic")
    given = feeds(mlp("batch"), {"batch": 3})
    y = np.empty((3, 10), np.float32)
    assert compiled.run(given, outputs={"y": y})["y"] is y
    np.testing.assert_array_equal(y, compiled.run(given)["y"])


def test_outputs_that_are_inputs_constants_or_each_other() -> None:
    net = Net("outputs")
    x = net.input("x", "n", 3)
    y = net("Relu", x)
    net.output("same", x)
    net.output("again", x)
    net.output("y", y)
    net.output("y2", y)
    net.output("flat", net("Reshape", y, np.array([-1])))
    net.output("turned", net("Transpose", y))
    net.output("part", net("Slice", y, np.array([1]), np.array([2]), np.array([1])))
    net.output("constant", net.const(np.arange(4, dtype=np.float32)))
    net.output("shape", net("Shape", x), onnx.TensorProto.INT64)
    model = net.model()
    with oc.compile(model, fallback="error") as compiled:
        for n in (1, 4):
            given = feeds(model, {"n": n})
            got = compiled.run(given)
            assert_same(got, reference(model, given))
            got["same"][:] = 7
            assert not np.array_equal(got["again"], got["same"])


def test_signature_and_report(twin: GetTwin) -> None:
    compiled = twin("mlp-symbolic")
    assert [(s.name, s.dtype, s.shape) for s in compiled.inputs] == [("x", np.dtype("float32"), ("batch", 20))]
    assert [(s.name, s.shape) for s in compiled.outputs] == [("y", ("batch", 10))]
    report = compiled.report
    assert report["model"]["nodes"] > 0 and report["memory"]["weights_bytes"] > 4 * (20 * 48 + 48 * 48 + 480)
    assert {p["name"] for p in report["passes"]} >= {"fuse"}


def test_names_that_are_no_identifiers() -> None:
    net = Net("na me/ü")
    x = net.input("in/0:x y", "batch size", 3)
    net.output('out"put\\', net("Add", net("Relu", x), 1.0))
    model = net.model()
    with oc.compile(model, fallback="error") as compiled:
        given = feeds(model, {"batch size": 2})
        assert_same(compiled.run(given), reference(model, given))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "no-such-chip"}, "no-such-chip"),
        ({"fallback": "maybe"}, "allow, warn, error"),
        ({"pipeline": "no-such-pass"}, "no-such-pass"),
    ],
)  # fmt: skip
def test_wrong_options(tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(OpcelError, match=message):
        oc.compile(mlp(), output=tmp_path / "out", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_artifact_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OpcelError, match="mine"):
        oc.compile(mlp(), output=tmp_path / "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


def test_an_artifact_of_an_earlier_compile_is_replaced(tmp_path: Path) -> None:
    oc.compile(mlp(2), output=tmp_path / "out").close()
    with oc.compile(mlp(3), output=tmp_path / "out") as compiled:
        assert compiled.inputs[0].shape == (3, 20)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_artifact_may_take_the_place_of_one_that_is_open(tmp_path: Path) -> None:
    def scaled(factor: float) -> oc.CompiledModel:
        net = Net("scaled")
        net.output("y", net("Mul", net.input("x", 4), factor))
        return oc.compile(net.model(), output=tmp_path / "model.opcel")

    x = np.arange(4, dtype=np.float32)
    with scaled(2.0) as first, scaled(3.0) as second:
        np.testing.assert_array_equal(first.run({"x": x})["y"], 2 * x)
        np.testing.assert_array_equal(second.run({"x": x})["y"], 3 * x)
        with oc.load(tmp_path / "model.opcel") as again:
            second.close()
            with scaled(5.0) as last:
                np.testing.assert_array_equal(last.run({"x": x})["y"], 5 * x)
            np.testing.assert_array_equal(again.run({"x": x})["y"], 3 * x)
