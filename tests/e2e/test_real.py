"""Trained networks, when OPCEL_MODELS names the folder that holds them: proved, and right on other inputs."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest

import opcel_compiler as oc
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.proof import sample_inputs

from .conftest import assert_same, reference

ROOT = Path(os.environ.get("OPCEL_MODELS", "/nonexistent")) / "real"
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="OPCEL_MODELS does not name the folder of trained networks")

NATIVE = [
    "exported/mlperftiny_streaming_wakeword.onnx",
    "exported/mlperftiny_vww_mobilenetv1_025_96.onnx",
    "exported/resnet20_cifar10.onnx",
    "magika/magika_standard_v1.onnx",
    "mediapipe/blazeface_front_128.onnx",
    "mediapipe/face_landmark.onnx",
    "mujoco-playground/go1_policy.onnx",
    "nanodet/nanodet_m_320.onnx",
    "onnx-models/super_resolution.onnx",
    "ort-examples/mnist-8.onnx",
    "tract/lgbm_classifier.onnx",
    "tract/qlstm.onnx",
    "ultraface/version-RFB-320.onnx",
    "vespa/dummy_transformer_mlm.onnx",
]
WITH_LAYERS_OVER_TIME = ["dtln/dtln_model_1.onnx", "hand-gesture/point_history_classifier_lstm.onnx"]


@pytest.mark.parametrize("name", [*NATIVE, *WITH_LAYERS_OVER_TIME])
def test_trained_network(name: str) -> None:
    path = ROOT / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    with oc.compile(path, fallback="error" if name in NATIVE else "allow") as compiled:
        assert compiled.manifest["proof"]["status"] == "proved"
        assert compiled.regions == 0 or name not in NATIVE
        imported = import_model(path)
        given = sample_inputs(imported.graph, imported.input_names, seed=7)
        assert all(v.dtype != np.dtype(object) for v in given.values())
        assert_same(compiled.run(given), reference(onnx.load(path), given))
