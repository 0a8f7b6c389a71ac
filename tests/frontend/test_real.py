"""Trained networks, when OPCEL_MODELS names the folder that holds them: import, round trip, what stays opaque."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx_harness import session

from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.frontend.importer import Imported, import_model
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.maps import without_maps
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.verify import verify

ROOT = Path(os.environ.get("OPCEL_MODELS", "/nonexistent"))
pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="OPCEL_MODELS does not name the folder of trained networks")

NETWORKS = sorted(p.relative_to(ROOT).as_posix() for d in ("real", "onnx_light") for p in (ROOT / d).glob("**/*.onnx"))
LOWERED = {
    "onnx_light/light_inception_v1.onnx",
    "real/ipne/deeplab_v3.onnx",
    "real/nanodet/nanodet_m_320.onnx",
    "real/opencv_zoo/yolox_nano.onnx",
    "real/ppocr/en_PP-OCRv3_det.onnx",
    "real/xfeat/xfeat_256x256.onnx",
    "real/exported/resnet20_cifar10.onnx",
    "real/exported/mlperftiny_vww_mobilenetv1_025_96.onnx",
    "real/mediapipe/blazeface_front_128.onnx",
    "real/mediapipe/bodypix_mobilenet050_s16.onnx",
    "real/opencv_zoo/vittrack.onnx",
    "real/ppocr/ch_mobile_v2.0_cls.onnx",
    "real/tribuo/tinybert.onnx",
    "real/ultraface/version-RFB-320.onnx",
    "real/magika/magika_standard_v3_3.onnx",
    "real/vespa/dummy_transformer_mlm.onnx",
}
"""Networks of which nothing may be left opaque."""

LOOSE = {
    "real/ort/mobilenetv2_qdq.onnx": 0.1,
    "real/ppocr/en_PP-OCRv3_det.onnx": 0.1,
    "onnx_light/light_squeezenet.onnx": 1.5,
}
"""How far rounding alone moves the results of ill-conditioned networks, relative to their largest."""


def feeds_of(s: ort.InferenceSession, name: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    size = 64 if "ppocr" in name else 97 if "bodypix" in name else 512 if "silero" in name else 2
    out = {}
    for i in s.get_inputs():
        shape = [d if isinstance(d, int) and d > 0 else size for d in i.shape]
        if "float" in i.type:
            out[i.name] = rng.uniform(-1, 1, shape).astype(np.float32)
        else:
            dtype = {"tensor(int32)": np.int32, "tensor(bool)": np.bool_, "tensor(uint8)": np.uint8}.get(
                i.type, np.int64
            )
            out[i.name] = rng.integers(0, 2, shape).astype(dtype)
    return out


NO_ONNX_FORM = {"order_key", "tree_ensemble"}


def results(imported: Imported, feeds: dict[str, np.ndarray]) -> list:
    """What ONNX Runtime computes of the exported graph; the interpreter's results where it has no ONNX form."""
    if not NO_ONNX_FORM & {n.op for n in imported.graph.nodes}:
        return session(export_model(imported.graph, names=imported)).run(None, feeds)
    maps = without_maps(imported.graph, imported.output_names)
    given = zip(imported.graph.inputs, imported.input_names, strict=True)
    got = list(run(imported.graph, {v.name: feeds[n] for v, n in given}).values())
    for i, name in enumerate(imported.output_names):
        if name in maps:
            got[i] = [dict(zip(maps[name], row, strict=True)) for row in got[i].tolist()]
    return got


def is_maps(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) for v in value)


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name: str) -> None:
    imported = import_model(ROOT / name)
    verify(imported.graph)
    if name in LOWERED:
        assert not imported.foreign
    try:
        original = session(ROOT / name)
        feeds = feeds_of(original, name)
        want = original.run(None, feeds)
    except Exception as e:
        pytest.skip(f"ONNX Runtime does not run the original: {str(e)[:100]}")
    for g, w in zip(results(imported, feeds), want, strict=True):
        if is_maps(w):
            assert [list(row) for row in g] == [list(row) for row in w]
            g, w = (np.float32([list(row.values()) for row in rows]) for rows in (g, w))
        if isinstance(w, np.ndarray) and w.dtype.kind == "f" and w.size:
            scale = float(np.nanmax(np.abs(w))) + 1e-6
            assert g.shape == w.shape
            np.testing.assert_allclose(g, w, rtol=0, atol=scale * LOOSE.get(name, 1e-4))
        else:
            assert np.array_equal(g, w) if isinstance(w, np.ndarray) else g == w


VALID = ("migraphx__if_param_excp_test", "ort__ort_github_issue_12151_neg_dq_axis", "real__bert_toy_optimized")


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "malformed").glob("*.onnx")))
def test_malformed(name: str) -> None:
    """One clear error, or an import: never another exception."""
    try:
        imported = import_model(ROOT / "malformed" / name)
    except ModelError as e:
        assert len(str(e)) > 20 and "Traceback" not in str(e)
        assert not name.startswith(VALID)
    else:
        verify(imported.graph)
        assert not name.startswith("own__") or name == "own__huge_constantofshape.onnx"
