"""Strassen's products in artifacts: proved, the same bits on any threads, refused by --small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import opcel_compiler as oc
from opcel_compiler.runtime.model import _cpu_features
from opcel_compiler.targets import load_target

from .builder import Net


def network() -> onnx.ModelProto:
    """An odd number of rows, columns that fill no panel, and an axis of sums in several blocks."""
    net = Net("strassen", 17)
    x = net.input("x", 1, 201, 512)
    y = net("Relu", net("Add", net("MatMul", x, net.weight(512, 2030)), net.weight(2030)))
    net.output("y", net("Add", x, net("MatMul", y, net.weight(2030, 512))))
    return net.model()


@pytest.mark.parametrize("level", ["x86-64-avx512"])
def test_proved_and_the_same_on_any_threads(level: str, tmp_path: Path) -> None:
    isa = load_target(level).isa
    assert isa is not None
    if missing := set(isa.features) - _cpu_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    feeds = {"x": np.random.default_rng(0).normal(size=(1, 201, 512)).astype(np.float32)}
    with oc.compile(network(), level, tmp_path / "net.opcel", threads=1) as model:
        assert model.report["proof"]["status"] == "proved"
        assert [k["family"] for k in model.report["kernels"]].count("gemm.strassen") == 2
        want = model.run(feeds)["y"]
    for threads in (2, 3):
        with oc.load(tmp_path / "net.opcel", threads=threads) as model:
            assert np.array_equal(model.run(feeds)["y"].view(np.uint32), want.view(np.uint32))


def test_small(tmp_path: Path) -> None:
    isa = load_target("x86-64-avx512").isa
    assert isa is not None
    if missing := set(isa.features) - _cpu_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    with oc.compile(network(), "x86-64-avx512", tmp_path / "large.opcel", proof=False) as large:
        memory = large.report["memory"]
    with oc.compile(network(), "x86-64-avx512", tmp_path / "small.opcel", small=True, proof=False) as small:
        assert not {"gemm.strassen"} & {k["family"] for k in small.report["kernels"]}
        assert small.report["memory"]["transformed_bytes"] == 0
        added = memory["weights_bytes"] - small.report["memory"]["weights_bytes"]
    assert 0.74 < memory["transformed_bytes"] / (4 * 2 * 512 * 2030) < 0.79
    assert abs(added - memory["transformed_bytes"]) < 1 << 20


def test_one_artifact_is_plain_for_few_rows(tmp_path: Path) -> None:
    isa = load_target("x86-64-avx512").isa
    assert isa is not None
    if missing := set(isa.features) - _cpu_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    net = Net("rows", 17)
    x, w = net.input("x", "rows", 512), net.weight(512, 1530)
    net.output("y", net("Relu", net("MatMul", x, w)))
    with oc.compile(net.model(), "x86-64-avx512", tmp_path / "net.opcel") as model:
        assert [k["family"] for k in model.report["kernels"]] == ["gemm.strassen"]
        for rows in (0, 1, 3, 95, 96, 97, 128, 131, 400):
            given = np.random.default_rng(rows).normal(size=(rows, 512)).astype(np.float32)
            want = np.maximum(given.astype(np.float64) @ w, 0)
            np.testing.assert_allclose(model.run({"x": given})["y"], want, rtol=1e-4, atol=1e-4)
