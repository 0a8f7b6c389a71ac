"""Models that no compiled program can take or give the values of: they run whole in ONNX Runtime, and say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import opcel_compiler as oc
from opcel_compiler.check import check
from opcel_compiler.driver import FallbackError
from opcel_compiler.frontend.older import at_older_opsets
from opcel_compiler.regions import EngineError
from opcel_compiler.runtime import FeedError
from opcel_compiler.runtime.whole import WholeModel


def tensor(name: str, kind: int, shape: list[int | str] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto], opset: int = 17
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def strings() -> onnx.ModelProto:
    """Strings pass, and a number is computed beside them."""
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Exp", ["a"], ["b"], "an_exp")]
    ends = [tensor("x", TensorProto.STRING, ["n"]), tensor("a", TensorProto.FLOAT, [2])]
    return model(nodes, ends, [tensor("y", TensorProto.STRING, ["n"]), tensor("b", TensorProto.FLOAT, [2])])


GIVEN = {"x": np.array(["one", "", "drei"], object), "a": np.float32([0.0, 1.0])}


def test_strings_run_and_are_reported(tmp_path: Path) -> None:
    compiled = oc.compile(strings(), output=tmp_path / "out", fallback="allow")
    assert isinstance(compiled, WholeModel)
    (module,) = [m for m in compiled.manifest["modules"] if m["kind"] == "onnxruntime"]
    assert module["whole"] and module["reason"] == "the input 'x' is string[n], which no kernel takes"
    assert compiled.manifest["proof"]["status"] == "unproved"
    assert compiled.report["coverage"]["native_nodes"] == 0
    assert {tuple(f["origin"]) for f in compiled.report["fallback"]} >= {("an_exp",)}
    compiled.close()
    with oc.load(tmp_path / "out") as again:
        assert [(s.name, s.dtype, s.shape) for s in again.inputs] == [("x", object, ("n",)), ("a", np.float32, (2,))]
        got = again.run(dict(GIVEN))
        assert got["y"].tolist() == ["one", "", "drei"]
        np.testing.assert_allclose(got["b"], np.exp(GIVEN["a"]), rtol=1e-6)
        into = np.empty(2, np.float32)
        assert again.run(dict(GIVEN), {"b": into})["b"] is into and into[0] == 1.0
        assert len(again.profile(dict(GIVEN))) == 1
        with pytest.raises(FeedError, match="input 'a' is missing"):
            again.run({"x": GIVEN["x"]})
        with pytest.raises(FeedError, match="there is no input 'c'"):
            again.run({**GIVEN, "c": GIVEN["a"]})


def test_it_can_be_forbidden(tmp_path: Path) -> None:
    with pytest.raises(FallbackError, match="the whole model runs in ONNX Runtime, as the input 'x' is string"):
        oc.compile(strings(), output=tmp_path / "out", fallback="error")
    assert not list(tmp_path.iterdir())
    found = check(strings())
    assert not found.refused and found.share == 0 and [f["origin"] for f in found.fallbacks] == [["an_exp"]]


def test_sequences_and_open_ranks_run() -> None:
    split = [
        helper.make_node("SplitToSequence", ["x"], ["s"], axis=0),
        helper.make_node("SequenceLength", ["s"], ["n"]),
    ]
    out = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    x = tensor("x", TensorProto.FLOAT, None)
    sequences = model(split, [x], [out, tensor("n", TensorProto.INT64, [])])
    with oc.compile(sequences, fallback="allow") as compiled:
        got = compiled.run({"x": np.arange(6, dtype=np.float32).reshape(2, 3)})
        assert [part.tolist() for part in got["s"]] == [[[0, 1, 2]], [[3, 4, 5]]] and got["n"] == 2


def test_what_no_engine_runs_is_refused_with_both_reasons(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("StringNormalizer", ["x"], ["y"], "the_node", locale="no_SUCH", case_change_action="UPPER")
    ]
    ends = [tensor("x", TensorProto.STRING, ["n"])], [tensor("y", TensorProto.STRING, ["m"])]
    with pytest.raises(
        EngineError, match=r"StringNormalizer \(the_node\).*ONNX Runtime cannot run it either: .*locale"
    ):
        oc.compile(model(nodes, *ends), output=tmp_path / "out", fallback="allow")
    assert not list(tmp_path.iterdir())
    assert "locale" in check(model(nodes, *ends)).refused[0]["reason"]


@pytest.mark.parametrize(
    ("op", "attributes", "opset", "oldest"),
    [
        ("Relu", {}, 17, 7),
        ("Softmax", {"axis": 1}, 17, 13),  # before, it took all axes from that one on
    ],
)
def test_older_opsets_mean_the_same(op: str, attributes: dict[str, int], opset: int, oldest: int) -> None:
    ends = [tensor("x", TensorProto.FLOAT, [2, 3])], [tensor("y", TensorProto.FLOAT, [2, 3])]
    forms = list(at_older_opsets(model([helper.make_node(op, ["x"], ["y"], **attributes)], *ends, opset=opset)))
    versions = [form.opset_import[0].version for form in forms]
    assert versions[0] == opset and versions == sorted(versions, reverse=True)
    assert versions[-1] == oldest
    for form in forms:
        onnx.checker.check_model(form, full_check=True)
