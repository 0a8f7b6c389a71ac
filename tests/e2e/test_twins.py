"""Twins of the benchmark networks: native, proved, equal to ONNX Runtime on inputs that the proof did not see."""

from __future__ import annotations

import numpy as np
import pytest

import opcel_compiler as oc
from opcel_compiler.compilation import prepare
from opcel_compiler.runtime.model import _cpu_features
from opcel_compiler.targets import load_target

from .conftest import GetTwin, assert_same, reference
from .twins import feeds
from .twins_more import ALL


def assert_equal_bits(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    for key, value in first.items():
        np.testing.assert_array_equal(value.reshape(-1).view(np.uint8), second[key].reshape(-1).view(np.uint8), key)


@pytest.mark.parametrize("name", ALL)
def test_same_as_onnx_runtime(twin: GetTwin, name: str) -> None:
    compiled, spec = twin(name), ALL[name]
    model = spec.build()
    assert compiled.manifest["proof"]["status"] == "proved"
    for seed, sizes in enumerate(spec.sizes, 1):
        given = feeds(model, sizes, seed)
        got = compiled.run(given)
        assert_same(got, reference(model, given), **sizes)
        for threads in (1, 2, 3):
            with oc.load(compiled.path, threads=threads) as other:
                assert_equal_bits(other.run(given), got)


@pytest.mark.parametrize("name", ALL)
def test_kernel_families(twin: GetTwin, name: str) -> None:
    report = twin(name).report
    families = {kernel["family"] for kernel in report["kernels"]}
    if "vector" in families:
        families.add("gemm")  # a product, of few rows
    assert ALL[name].families <= families
    assert report["coverage"]["fallback_nodes"] == 0
    assert all(kernel["origin"] for kernel in report["kernels"])


@pytest.mark.parametrize("name", [n for n, t in ALL.items() if t.recognized or t.gone])
def test_spelled_out_operators_are_recognized(name: str) -> None:
    graph = prepare(ALL[name].build()).graph
    ops = {n.op for n in graph.nodes} | {n.op for f in graph.nodes for r in f.regions for n in r.nodes}
    assert ALL[name].recognized <= ops
    assert not ops & ALL[name].gone


@pytest.mark.parametrize("level", ["x86-64", "x86-64-avx2", "x86-64-avx512", "x86-64-avx512-vnni-bf16"])
@pytest.mark.parametrize("name", ["mlp-symbolic", "mobilenet", "bert-torchscript", "lstm-wide", "generator", "llama"])
def test_every_level(twin: GetTwin, name: str, level: str) -> None:
    isa = load_target(level).isa
    assert isa is not None
    if missing := set(isa.features) - _cpu_features():
        pytest.skip(f"this CPU lacks {', '.join(sorted(missing))}")
    compiled, spec = twin(name, level), ALL[name]
    assert compiled.manifest["target"]["isa"] == isa.level
    model = spec.build()
    given = feeds(model, spec.sizes[-1], 5)
    assert_same(compiled.run(given), reference(model, given))


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mlp-symbolic", {"batch": 700}),
        ("resnet-symbolic", {"batch": 9}),
        ("mobilenet", {}),
        ("digits", {"batch": 60}),
        ("bert-torchscript-symbolic", {"batch": 17, "length": 33}),
        ("reductions", {"batch": 500}),
    ],
)
def test_the_number_of_threads_changes_no_bit(twin: GetTwin, name: str, sizes: dict[str, int]) -> None:
    path = twin(name).path
    given = feeds(ALL[name].build(), sizes, 3)
    with oc.load(path, threads=1) as one:
        first = one.run(given)
    for threads in (2, 3):
        with oc.load(path, threads=threads) as several:
            second = several.run(given)
        assert_equal_bits(first, second)


@pytest.mark.parametrize("name", ["mlp-symbolic", "resnet-symbolic", "digits", "bert-dynamo-symbolic", "integers"])
def test_an_empty_batch_gives_empty_results(twin: GetTwin, name: str) -> None:
    compiled, model = twin(name), ALL[name].build()
    sizes = ALL[name].sizes[-1]
    got = compiled.run(feeds(model, {**sizes, "batch": 0}))
    assert all(v.shape[0] == 0 for v in got.values())
    given = feeds(model, sizes, 6)
    assert_same(compiled.run(given), reference(model, given))
