"""TopK, Unique, running sums, places of what is not zero: compiled, beside the definitions of the operators."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto

import opcel_compiler as oc
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.interpret import run

from .builder import Net
from .conftest import assert_same

F32, F64, I32, I64, U8, BOOL = (
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.INT32, TensorProto.INT64, TensorProto.UINT8, TensorProto.BOOL,
)  # fmt: skip


def _net() -> Net:
    net = Net("selection", 18)
    x, whole, wide, small, flags = (
        net.input("x", "n", "m"), net.input("whole", "n", "m", dtype=I64), net.input("wide", "n", "m", dtype=F64),
        net.input("small", "n", "m", dtype=U8), net.input("flags", "n", "m", dtype=BOOL),
    )  # fmt: skip
    kinds = {x: F32, whole: I64, wide: F64, small: U8, flags: BOOL}

    def top(name: str, value: str, k: int, **attrs: int) -> None:
        values, places = net.many(2, "TopK", value, np.array([k]), **attrs)
        net.output(f"{name} values", values, kinds[value])
        net.output(f"{name} places", places, I64)

    for value in (x, whole, wide, small):
        top(f"{value} largest", value, 7)
    top("smallest", x, 70, largest=0)
    top("one", x, 1)
    top("along rows", x, 3, axis=0, largest=0)
    for value, attrs in (
        (x, {}),
        (wide, {"exclusive": 1}),
        (whole, {"reverse": 1}),
        (x, {"exclusive": 1, "reverse": 1}),
    ):
        for axis in (0, 1):
            result = net("CumSum", value, np.array(axis), **attrs)
            net.output(f"sums of {value} {len(attrs)} {attrs.get('reverse', 0)} along {axis}", result, kinds[value])
    for value in (x, whole, flags):
        net.output(f"places in {value}", net("NonZero", value), I64)
    for value in (x, small):
        parts = net.many(4, "Unique", value, sorted=int(value == x))
        for i, part in enumerate(parts):
            net.output(f"unique {value} {i}", part, I64 if i else kinds[value])
    return net


@pytest.fixture(scope="module")
def net() -> Net:
    return _net()


def test_against_the_definitions(net: Net) -> None:
    proto = net.model()
    imported = import_model(proto)
    random = np.random.default_rng(7)
    with oc.compile(proto, fallback="error", proof=False) as model:
        for n, m, special in ((5, 70, False), (3, 1000, True), (40, 129, True), (3, 70, False)):
            x = np.round(random.standard_normal((n, m)) * 4).astype(np.float32) / 4
            if special:
                x[random.random((n, m)) < 0.1] = np.nan
                x[random.random((n, m)) < 0.05] = np.inf
            feeds = {
                "x": x, "whole": random.integers(-9, 9, (n, m)), "wide": random.standard_normal((n, m)),
                "small": random.integers(0, 99, (n, m)).astype(np.uint8), "flags": random.random((n, m)) < 0.3,
            }  # fmt: skip
            inner = {v.name: feeds[name] for v, name in zip(imported.graph.inputs, imported.input_names, strict=True)}
            assert_same(model.run(feeds), run(imported.graph, inner), n=n, m=m)


def test_the_number_of_threads_changes_nothing(net: Net) -> None:
    random = np.random.default_rng(8)
    feeds = {
        "x": random.standard_normal((64, 3000)).astype(np.float32), "whole": random.integers(-9, 9, (64, 3000)),
        "wide": random.standard_normal((64, 3000)), "small": random.integers(0, 99, (64, 3000)).astype(np.uint8),
        "flags": random.random((64, 3000)) < 0.3,
    }  # fmt: skip
    compiled = oc.compile(net.model(), fallback="error", proof=False)
    with oc.load(compiled.path, threads=1) as one, oc.load(compiled.path, threads=3) as three:
        alone, together = one.run(feeds), three.run(feeds)
        for name, value in alone.items():
            np.testing.assert_array_equal(value, together[name], err_msg=name)
