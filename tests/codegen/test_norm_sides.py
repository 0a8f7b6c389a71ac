"""Norms whose scale and bias broadcast: to all rows, within a row, or only along it."""

from __future__ import annotations

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator

import opcel_compiler as oc
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.targets.constraints import violations
from opcel_compiler.targets.cpu.constraints import cpu_constraints
from tests.e2e.builder import Net

X = (4, 7, 33)
SIDES = ((), (1,), (33,), (7, 33), (7, 1), (4, 1, 33), (1, 1, 33), (4, 7, 1))


def test_sides_that_broadcast() -> None:
    net, rng, feeds = Net("sides", 23), np.random.default_rng(0), {}
    x = net.input("x", *X)
    feeds["x"] = rng.standard_normal(X).astype(np.float32)
    for i, shape in enumerate(SIDES):
        scale, bias = net.input(f"scale{i}", *shape), net.input(f"bias{i}", *shape)
        for name in (scale, bias):
            feeds[name] = np.asarray(rng.standard_normal(shape), np.float32)
        row = net.const(np.ones(33, np.float32))
        for axis in (-1, 1) if len(shape) < 3 or shape[0] == 1 else (-1,):
            net.output(f"layer{i}{axis}", net("LayerNormalization", x, scale, bias, axis=axis))
            net.output(f"rms{i}{axis}", net("RMSNormalization", x, scale, axis=axis))
        net.output(f"half{i}", net("LayerNormalization", x, row, bias, axis=-1))
    model = net.model()
    model.ir_version = 10
    want = ReferenceEvaluator(model).run(None, feeds)
    with oc.compile(model, fallback="error", proof=False) as compiled:
        got = compiled.run(feeds)
    for v, array in zip(model.graph.output, want, strict=True):
        np.testing.assert_allclose(got[v.name], array, rtol=1e-4, atol=1e-5, err_msg=v.name)


@pytest.mark.parametrize(
    ("scale", "fits"), [("f32[33]", True), ("f32[1]", False), ("f32[]", False), ("f32[7, 33]", False)]
)
def test_no_kernel_reads_past_a_side(scale: str, fits: bool) -> None:
    text = f"graph g(%x: f32[4, 7, 33], %s: {scale}) {{\n"
    text += '  %y = rms_norm(%x, %s){axis=2, epsilon=0.001} : f32[4, 7, 33]\n  return %y as "y"\n}\n'
    (node,) = parse_graph(text).nodes
    assert (violations(node, cpu_constraints()) == ()) is fits
