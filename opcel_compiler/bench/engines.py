"""Engines that can run a model, each at its best settings for one call at a time."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

Feeds = Mapping[str, np.ndarray]
Call = Callable[[Feeds], list[np.ndarray]]
"""One call; the outputs in the model's order, valid until the next call. Where memory is bound to the feeds that the
engine was opened with, those are used."""


@dataclass(frozen=True)
class Engine:
    """`open(module, path, feeds, threads)` loads the model at `path`, an artifact for opcel, else an ONNX file; `feeds`
    are those of the first call.

    Its process has the variables of `environment`, and computes in `precision`.
    """

    name: str
    title: str
    module: str
    open: Callable[[ModuleType, Path, Feeds, int], Call]
    environment: Mapping[str, str] = field(default_factory=dict)
    precision: str = "f32"

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


def _opcel(module: ModuleType, path: Path, feeds: Feeds, threads: int, weights: str = "map") -> Call:
    model = module.load(path, threads=threads, weights=weights)
    if isinstance(model, module.Decoder):
        return _decode_step(module, model, dict(feeds))
    return lambda given: list(model.run(given).values())


def _opcel_out(module: ModuleType, path: Path, feeds: Feeds, threads: int) -> Call:
    model = module.load(path, threads=threads)
    given = dict(feeds)
    outputs = model.run(given)
    results = list(outputs.values())

    def run(_: Feeds) -> list[np.ndarray]:
        model.run(given, outputs)
        return results

    return run


def _decode_step(module: ModuleType, model: Any, feeds: dict[str, np.ndarray]) -> Call:
    """The step after the caches in `feeds`, again and again."""
    first = module.run_whole(model, feeds)
    caches = {s["input"]: s["output"] for s in model.manifest["states"]}
    name, axis = model.manifest["states"][0]["input"], model.manifest["states"][0]["axis"]
    before = feeds[name].shape[axis]
    given = {key: value for key, value in feeds.items() if key not in caches}
    kept = {key: first[key] for key in caches.values()}

    def run(_: Feeds) -> list[np.ndarray]:
        model.length = before
        found = model.run(given)
        return [kept[key] if key in kept else found[key] for key in first]

    return run


def _onnxruntime(module: ModuleType, path: Path, feeds: Feeds, threads: int) -> Call:
    session, names = _session(module, path, threads)
    return lambda given: list(session.run(names, given))


def _onnxruntime_binding(module: ModuleType, path: Path, feeds: Feeds, threads: int) -> Call:
    session, names = _session(module, path, threads)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    results = [np.zeros_like(array) for array in session.run(names, feeds)]
    for name, array in zip(names, results, strict=True):
        binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(_: Feeds) -> list[np.ndarray]:
        session.run_with_iobinding(binding)
        return results

    return run


def _session(module: ModuleType, path: Path, threads: int) -> tuple[Any, list[str]]:
    options = module.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = module.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = module.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, [o.name for o in session.get_outputs()]


def _openvino(module: ModuleType, path: Path, feeds: Feeds, threads: int, precision: str = "f32") -> Call:
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    compiled = module.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    count = len(compiled.outputs)

    def run(given: Feeds) -> list[np.ndarray]:
        found = request.infer(given, share_inputs=True, share_outputs=True)
        return [found[i] for i in range(count)]

    return run


OPCEL = Engine("opcel", "OPCEL", "opcel_compiler.runtime", _opcel)
OPCEL_RESIDENT = Engine("opcel-resident", "OPCEL", OPCEL.module, partial(_opcel, weights="resident"))
OPCEL_OUT = Engine("opcel-out", "OPCEL, outputs given", OPCEL.module, _opcel_out)
_OPENVINO_BF16 = partial(_openvino, precision="bf16")
PEERS = {
    engine.name: engine
    for engine in (
        Engine("ort", "ONNX Runtime", "onnxruntime", _onnxruntime),
        Engine("ort-binding", "ONNX Runtime, IO binding", "onnxruntime", _onnxruntime_binding),
        Engine("openvino", "OpenVINO", "openvino", _openvino),
        Engine("openvino-bf16", "OpenVINO bf16", "openvino", _OPENVINO_BF16, precision="bf16"),
        Engine("openvino-avx2", "OpenVINO AVX2", "openvino", _openvino, {"ONEDNN_MAX_CPU_ISA": "AVX2"}),
        Engine("ort-int8", "ONNX Runtime int8", "onnxruntime", _onnxruntime, precision="int8"),
        Engine("openvino-int8", "OpenVINO int8", "openvino", _openvino, precision="int8"),
        Engine("openvino-int8-bf16", "OpenVINO int8, rest bf16", "openvino", _OPENVINO_BF16, precision="int8"),
        Engine("openvino-int4", "OpenVINO int4", "openvino", _openvino, precision="int4"),
        Engine("openvino-int4-bf16", "OpenVINO int4, rest bf16", "openvino", _OPENVINO_BF16, precision="int4"),
        Engine("opcel-f32", "OPCEL f32", OPCEL.module, partial(_opcel, weights="resident")),
    )
}
ENGINES = {engine.name: engine for engine in (OPCEL, OPCEL_RESIDENT, OPCEL_OUT, *PEERS.values())}
