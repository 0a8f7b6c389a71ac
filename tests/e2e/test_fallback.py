"""Operators without a native kernel: kept, reported, run in ONNX Runtime, or refused."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

import opcel_compiler as oc
from opcel_compiler.driver import FallbackError, FallbackWarning
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.frontend.importer import import_model

from .builder import Net
from .conftest import assert_same, reference
from .twins import feeds

pytestmark = pytest.mark.usefixtures("det_falls_back")


def _unknown(typed: bool = True) -> onnx.ModelProto:
    net = Net("unknown", com_acme=3)
    x = net("Relu", net.input("x", 2, 6))
    y = net("Frobnicate", x, domain="com_acme", strength=2.5)
    net.output("y", net("MatMul", y, net.weight(6, 4)), shape=[2, 4])
    model = net.model()
    if typed:
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(y, onnx.TensorProto.FLOAT, [2, 6]))
    return model


def _determinant() -> onnx.ModelProto:
    """Native, ONNX Runtime alone, native."""
    net = Net("determinant")
    x = net("Mul", net("Relu", net.input("x", "batch", 4, 4)), 0.5)
    y = net("Add", net("Det", x), 1.0)
    net.output("y", net("Exp", net("Neg", net("Abs", y))))
    net.output("x2", net("MatMul", x, net.weight(4, 3)))
    return net.model()


@pytest.mark.parametrize("typed", [True, False])
def test_an_unknown_domain_survives_the_round_trip(typed: bool) -> None:
    imported = import_model(_unknown(typed))
    (node,) = [n for n in imported.foreign if n.attrs["domain"]]
    assert node.attrs["reason"]
    assert (node.attrs["domain"], node.attrs["op_type"]) == ("com_acme", "Frobnicate")
    back = export_model(imported.graph, names=imported)
    (kept,) = [n for n in back.graph.node if n.domain == "com_acme"]
    assert kept.op_type == "Frobnicate"
    assert onnx.helper.get_attribute_value(kept.attribute[0]) == 2.5
    assert {o.domain: o.version for o in back.opset_import}["com_acme"] == 3
    assert [n.attrs["op_type"] for n in import_model(back).foreign if n.attrs["domain"]] == ["Frobnicate"]


@pytest.mark.parametrize("typed", [True, False])
def test_an_unknown_domain_is_refused_by_name(tmp_path: Path, typed: bool) -> None:
    with pytest.raises(FallbackError, match=r"com_acme::Frobnicate|Frobnicate \(node_frobnicate_1\)"):
        oc.compile(_unknown(typed), output=tmp_path / "out", fallback="error")
    with pytest.raises(OpcelError, match=r"node_frobnicate_1|Frobnicate"):
        oc.compile(_unknown(typed), output=tmp_path / "out", fallback="allow")
    assert list(tmp_path.iterdir()) == []


def test_one_region_runs_in_onnx_runtime(tmp_path: Path) -> None:
    model = _determinant()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = oc.compile(model, output=tmp_path / "out", fallback="allow")
    assert compiled.regions == 1
    (entry,) = compiled.report["fallback"]
    assert entry["op"] == "Det" and entry["origin"] == ["node_det_2"] and entry["reason"]
    assert compiled.report["coverage"]["fallback_nodes"] == 1
    (module,) = [m for m in compiled.manifest["modules"] if m["kind"] == "onnxruntime"]
    onnx.checker.check_model(tmp_path / "out" / module["file"])
    assert entry["reason"] in module["reason"]
    assert compiled.manifest["proof"]["status"] == "proved"
    for batch in (1, 5):
        given = feeds(model, {"batch": batch}, batch)
        assert_same(compiled.run(given), reference(model, given))
    compiled.close()
    with oc.load(tmp_path / "out", threads=1) as again:
        assert_same(again.run(given), reference(model, given))


def test_a_warning_names_the_node() -> None:
    with pytest.warns(FallbackWarning, match=r"1 node cannot run natively.*Det \(node_det_2\)") as caught:
        oc.compile(_determinant())
    assert [w.filename for w in caught] == [__file__]


def test_refusal_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(FallbackError, match=r"Det \(node_det_2\).*--fallback=allow"):
        oc.compile(_determinant(), output=tmp_path / "out", fallback="error")
    assert list(tmp_path.iterdir()) == []


def test_regions_are_as_few_as_dependencies_allow() -> None:
    net = Net("regions")
    x = net.input("x", 2, 4, 4)
    first, second = net("Det", x), net("Det", net("Relu", x))
    net.output("y", net("Mul", first, second))
    net.output("z", net("Det", net("Exp", net("Mul", x, net("Unsqueeze", second, np.array([1, 2]))))))
    model = net.model()
    compiled = oc.compile(model, fallback="allow")
    assert compiled.regions == 2
    given = feeds(model)
    given["x"] *= np.float32(0.3)
    assert_same(compiled.run(given), reference(model, given))
