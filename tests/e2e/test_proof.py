"""The proof: a wrong kernel or pass stops the compile, names what is wrong, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import opcel_compiler as oc
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.passes.dead_code import DeadCode
from opcel_compiler.proof import Bound, ProofError, candidates, compare, sample_inputs
from opcel_compiler.targets.kernels import ElementwiseRow, kernel_table

from .builder import Net
from .twins import TWINS, feeds, mlp


def test_a_wrong_kernel_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two nodes that use the broken kernel, the first is named."""
    net = Net("wrong")
    x = net("Tanh", net("Add", net("MatMul", net.input("x", 3, 8), net.weight(8, 8)), net.weight(8)))
    net.output("y", net("Tanh", net("MatMul", x, net.weight(8, 5))))
    row = ElementwiseRow("tanh({0})", "tanh({0}) * 1.01f", ("f32",))
    monkeypatch.setitem(kernel_table().elementwise, "tanh", row)
    with pytest.raises(ProofError, match=r"output 'y'.*largest error.*The first node that is off is .*node_tanh_2"):
        oc.compile(net.model(), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_proof_leaves_the_artifact_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    oc.compile(mlp(), output=output).close()
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    monkeypatch.setitem(kernel_table().elementwise, "relu", ElementwiseRow("{0}", "{0} * {0}"))
    with pytest.raises(ProofError):
        oc.compile(mlp(), output=output)
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before


def test_a_wrong_pass_is_blamed_on_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net("pass")
    x, y = net.input("x", 3, 8), net.input("y", 3, 8)
    net.output("z", net("Exp", net("Sub", x, y)))

    def swap(self: DeadCode, graph: Graph, ctx: Any) -> None:
        node: Node
        for node in graph.nodes:
            if node.op == "sub":
                a, b = node.operand(0), node.operand(1)
                node.set_operand(0, b)
                node.set_operand(1, a)

    monkeypatch.setattr(DeadCode, "run", swap)
    with pytest.raises(ProofError, match=r"output 'z'.*a pass changed what the graph computes"):
        oc.compile(net.model(), output=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_without_proof_the_artifact_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernel_table().elementwise, "relu", ElementwiseRow("{0}", "{0} * {0}"))
    compiled = oc.compile(mlp(), output=tmp_path / "out", proof=False)
    assert compiled.manifest["proof"]["status"] == "unproved"
    assert compiled.report["proof"]["status"] == "unproved" and compiled.report["proof"]["reason"]


def test_a_stamp_says_what_was_compared(tmp_path: Path) -> None:
    model = TWINS["digits"].build()
    given = feeds(model, {"batch": 4})
    np.savez(tmp_path / "inputs.npz", x=given["x"])
    for inputs in (None, given, tmp_path / "inputs.npz", str(tmp_path / "inputs.npz")):
        proof = oc.compile(model, inputs=inputs).report["proof"]
        assert proof["status"] == "proved" and proof["reference"].startswith("ONNX Runtime")
        assert [row["name"] for row in proof["outputs"]] == ["p", "label"]
        assert proof["outputs"][0]["max_abs"] < 1e-5 and proof["outputs"][1]["max_abs"] == 0


def test_given_inputs_are_what_is_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is wrong for large values alone is caught by inputs that hold some."""
    net = Net("large")
    net.output("y", net("Abs", net.input("x", 50)))
    row = ElementwiseRow("scalar::abs({0})", "select({0} > 100.0f, -{0}, abs({0}))")
    monkeypatch.setitem(kernel_table().elementwise, "abs", row)
    assert oc.compile(net.model()).manifest["proof"]["status"] == "proved"
    with pytest.raises(ProofError, match="node_abs_0"):
        oc.compile(net.model(), inputs={"x": np.linspace(0, 200, 50, dtype=np.float32)})


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    cases: list[tuple[Any, str]] = [
        ({"z": np.zeros((4, 20), np.float32)}, r"lack.*x"),
        ({"x": np.zeros((4, 21), np.float32)}, "x"),
        (tmp_path / "missing.npz", "missing.npz"),
    ]
    for inputs, message in cases:
        with pytest.raises(OpcelError, match=message):
            oc.compile(mlp(), output=tmp_path / "out", inputs=inputs)
    assert list(tmp_path.iterdir()) == []


def test_integers_have_no_tolerance() -> None:
    want = np.array([10**9, 5])
    assert compare("i", want, want, Bound()).within
    assert not compare("i", want + 1, want, Bound()).within
    assert not compare("i", want.astype(np.int32), want, Bound()).within


def test_the_absolute_error_is_that_of_an_output_of_its_size() -> None:
    bound = Bound(norm=1.0)
    for scale, error, within in [(1000, 0.05, True), (1000, 0.1, False), (0.1, 9e-5, True), (0.1, 2e-4, False)]:
        want = np.array([scale, 0.0], np.float32)
        assert compare("f", want + np.array([0, error], np.float32), want, bound).within == within, (scale, error)


def test_special_values_have_to_match() -> None:
    want = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    assert compare("f", want, want, Bound()).within
    for i, other in [(0, 0), (1, np.nan), (2, np.inf), (3, np.nan), (3, np.inf), (3, 1.01)]:
        got = want.copy()
        got[i] = other
        assert not compare("f", got, want, Bound()).within, (i, other)


def _indexed() -> Net:
    """A table read at the product of two inputs, and images that a pooling window must fit."""
    net = Net("samples", 13)
    ids, mask = (net.input(n, "batch", "length", dtype=TensorProto.INT64) for n in ("ids", "mask"))
    net.output("rows", net("Gather", net.weight(9, 4), net("Mul", ids, mask)))
    return net


def test_samples_stay_within_tables_and_windows() -> None:
    proof = oc.compile(_indexed().model()).report["proof"]
    assert proof["reference"].startswith("ONNX Runtime")
    net = Net("window")
    x = net.input("x", "n", 2, "h", "w")
    net.output("y", net("MaxPool", net("Conv", x, net.weight(3, 2, 3, 3)), kernel_shape=[9, 9]))
    graph = import_model(net.model()).graph
    given = sample_inputs(graph, ["x"])["x"]
    assert min(given.shape[2:]) >= 11
    assert sample_inputs(graph, ["x"], sizes={"h": 40, "w": 41})["x"].shape[2:] == (40, 41)
    assert oc.compile(net.model()).manifest["proof"]["status"] == "proved"


def test_no_reference_no_proof(tmp_path: Path) -> None:
    """Inputs that the model itself refuses."""
    given = {"ids": np.full((2, 3), 100), "mask": np.ones((2, 3), np.int64)}
    with pytest.raises(ProofError, match=r"no reference could run.*--inputs.*--no-proof"):
        oc.compile(_indexed().model(), output=tmp_path / "out", inputs=given)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_become_sizes_are_sampled_as_such() -> None:
    net = Net("sized", 17)
    x, shape, factors = net.input("x", 2, 3, 4, 4), net.input("shape", 3, dtype=TensorProto.INT64), net.input("by", 4)
    net.output("reshaped", net("Reshape", x, shape))
    net.output("resized", net("Resize", x, None, factors, mode="nearest"))
    few = net.input("few", 3)
    net.output("places", net("NonZero", few), TensorProto.INT64)
    graph = import_model(net.model()).graph
    samples = list(candidates(graph, ["x", "shape", "by", "few"]))
    assert [list(s["shape"]) for s in samples[:2]] == [[1, 1, 1], [-1, 1, 1]]
    assert list(samples[0]["by"]) == [1, 1, 1, 1]
    assert not np.array_equal(samples[0]["few"], np.ones(3)), "what is only counted is data"
    with oc.compile(net.model(), fallback="error") as model:
        assert model.report["proof"]["status"] == "proved"


def test_sizes_are_such_as_the_nodes_take_for_granted() -> None:
    """A convolution that halves an odd size, and its transposed twin that doubles it, do not give the size back."""
    graph = parse_graph(
        "symbol n in 1..\ngraph g(%x: f32[1, 4, n, n], %w: f32[4, 4, 3, 3]) {\n"
        "  %a = conv(%x, %w){strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1], groups=1}\n"
        "  %b = conv_transpose(%a, %w){strides=[2, 2], pads=[1, 1, 1, 1], dilations=[1, 1], groups=1, "
        "output_padding=[1, 1]}\n  %y = add(%x, %b)\n  return %y\n}\n"
    )
    assert sample_inputs(graph, ["x", "w"])["x"].shape[2] % 2 == 0
    (free,) = parse_graph("symbol n in 1..\ngraph g(%x: f32[n]) {\n  %y = neg(%x)\n  return %y\n}\n").inputs
    assert sample_inputs(free.graph, ["x"])["x"].shape == (3,)
