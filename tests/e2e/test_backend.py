"""ONNX's backend interface, and cases of ONNX's suite by way of its own runner."""

from __future__ import annotations

import unittest

import numpy as np
import pytest
from onnx import helper
from onnx.backend.test import BackendTest

from opcel_compiler import backend
from opcel_compiler.backend import BackendError, OpcelBackend

from .builder import Net

CASES = ("add", "gemm_default_matrix_bias", "identity_sequence", "softmax_axis_1", "split_equal_parts_1d_opset13")


def net() -> Net:
    made = Net("g")
    x, y = made.input("x", 2, 3), made.input("y", 2, 3)
    made.output("sum", made("Add", x, y))
    made.output("difference", made("Sub", x, y))
    return made


X, Y = np.float32([[1, 2, 3], [4, 5, 6]]), np.float32([[1, 1, 1], [2, 2, 2]])


def test_models_run_on_values_by_place_and_by_name() -> None:
    rep = backend.prepare(net().model())
    for given in ([X, Y], (X, Y), {"x": X, "y": Y}):
        result = rep.run(given)
        np.testing.assert_array_equal(result[0], X + Y)
        np.testing.assert_array_equal(result["difference"], X - Y)  # type: ignore[call-overload]
    with pytest.raises(BackendError, match="3 inputs given; the model takes x, y"):
        rep.run([X, Y, Y])
    assert backend.is_compatible(net().model())
    assert len(backend.run_model(net().model(), [X, Y])) == 2


def test_a_node_runs_alone() -> None:
    node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5)
    (y,) = backend.run_node(node, -X)
    np.testing.assert_allclose(y, -0.5 * X)
    old = helper.make_node("Add", ["x", "y"], ["z"], broadcast=1, axis=0)
    (z,) = backend.run_node(old, [X, Y[:, 0].copy()], opset_version=6)
    np.testing.assert_array_equal(z, X + Y[:, :1])
    with pytest.raises(BackendError, match="inputs x, y, and 1 arrays are given"):
        backend.run_node(old, [X])


def test_options_of_compile_are_passed_on() -> None:
    rep = backend.prepare(net().model(), proof=True, threads=1)
    assert rep.model.manifest["proof"]["status"] == "proved" and rep.model.threads == 1


def test_only_cpus_are_supported() -> None:
    assert backend.supports_device("CPU") and backend.supports_device("CPU:0")
    assert not backend.supports_device("CUDA") and not backend.supports_device("nothing")
    with pytest.raises(BackendError, match="'CUDA' is not supported"):
        backend.prepare(net().model(), "CUDA")


def test_onnx_runs_its_own_suite_on_it() -> None:
    suite = BackendTest(OpcelBackend, __name__)
    for case in CASES:
        suite.include(f"^test_{case}_cpu$")
    outcome = unittest.TestResult()
    suite.test_suite.run(outcome)
    assert outcome.wasSuccessful(), outcome.failures or outcome.errors
    assert outcome.testsRun - len(outcome.skipped) == len(CASES)


def test_the_runner_notices_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.OpcelRep, "run", lambda self, inputs: (np.asarray(inputs[0]) * 3,))
    suite = BackendTest(OpcelBackend, __name__).include("^test_add_cpu$")
    outcome = unittest.TestResult()
    suite.test_suite.run(outcome)
    assert not outcome.wasSuccessful()
