"""Compiled twins, shared by the whole session: one object cache, one artifact for each twin and target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import opcel_compiler as oc
from opcel_compiler.proof import Bound, compare

from .twins_more import ALL

GetTwin = Callable[..., oc.CompiledModel]


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> GetTwin:
    """twin(name, target): the twin compiled, proved and open."""
    folder = tmp_path_factory.mktemp("twins")
    made: dict[tuple[str, str], oc.CompiledModel] = {}

    def get(name: str, target: str = "host") -> oc.CompiledModel:
        if (name, target) not in made:
            output = folder / f"{name}.{target}"
            made[name, target] = oc.compile(ALL[name].build(), target, output, fallback="error")
        return made[name, target]

    return get


def reference(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What ONNX Runtime computes with its optimizations off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in model.graph.output]
    return dict(zip(names, session.run(names, feeds), strict=True))


def assert_same(got: dict[str, np.ndarray], want: dict[str, np.ndarray], **where: Any) -> None:
    """Equal names, shapes and types; integers equal, floats within the default bound, NaNs in the same places."""
    assert list(got) == list(want)
    for name, value in want.items():
        assert (got[name].shape, got[name].dtype) == (value.shape, value.dtype), (name, where)
        assert compare(name, got[name], value, Bound()).within, (name, where, got[name], value)
