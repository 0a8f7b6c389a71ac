"""The same networks in the peers' quantizers: python -m benchmarks.int8.peers DIR OUT [NAME ...]

DIR holds networks with calibration data (benchmarks.int8.networks). Each becomes OUT/NAME.nncf.xml, by NNCF for
OpenVINO at its best settings, and OUT/NAME.ort-METHOD.onnx, by ONNX Runtime's quantizer. With --int4,
OUT/NAME.ort-int4.onnx and OUT/NAME.openvino-int4.xml: weights of 4 bits in groups. Needs `pip install nncf openvino`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter

from benchmarks.int8.cases import Case, Samples, arrays, feeds

SUBSET = 300
"""NNCF's own number of samples to calibrate on at most."""

PERCENTILE = 99.99
PER_CHANNEL = 13
FAILED = "failed.json"
"""What could not be made, by file name, and why."""
GROUP = 128


def attends(model: onnx.ModelProto) -> bool:
    """Whether a softmax is an operand of a product, as in attention."""
    kinds: dict[str, str] = {}
    for node in model.graph.node:
        passed = node.op_type in ("Reshape", "Transpose", "Cast", "Dropout", "Identity")
        kind = kinds.get(node.input[0], "") if passed and node.input else node.op_type
        kinds.update(dict.fromkeys(node.output, kind))
    return any("Softmax" in {kinds.get(i) for i in node.input} for node in model.graph.node if node.op_type == "MatMul")


def nncf_int8(model: Path, samples: Samples, out: Path) -> None:
    """u8 or s8 activations as NNCF chooses, its fast bias correction, and for transformers its SmoothQuant."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    kind = nncf.ModelType.TRANSFORMER if attends(onnx.load(model, load_external_data=False)) else None
    given = feeds(samples)
    data = nncf.Dataset(given)
    quantized = nncf.quantize(
        openvino.Core().read_model(model), data, model_type=kind, subset_size=min(SUBSET, len(given))
    )
    openvino.save_model(quantized, out, compress_to_fp16=False)


def ort_int8(model: Path, samples: Samples, out: Path, method: str = "MinMax") -> None:
    """QDQ with u8 activations and s8 weights per channel; in transformers of products alone, as a mask that is added
    to their scores would stretch the range."""
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left: Iterator[dict[str, np.ndarray]] = iter(feeds(samples))

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    options: dict[str, Any] = {"CalibPercentile": PERCENTILE} if method == "Percentile" else {}
    products = ["Conv", "Gemm", "MatMul"] if attends(onnx.load(model, load_external_data=False)) else None
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(_of_opset(model, Path(folder)), str(prepared), skip_symbolic_shape=True)
        q.quantize_static(
            str(prepared), str(out), Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
            activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
            calibrate_method=q.CalibrationMethod[method], extra_options=options, op_types_to_quantize=products,
        )  # fmt: skip


def _of_opset(model: Path, folder: Path) -> str:
    """The model's file, or one in `folder` of the first opset that has a scale for each channel."""
    loaded = onnx.load(model)
    if all(o.version >= PER_CHANNEL for o in loaded.opset_import if not o.domain):
        return str(model)
    converted = folder / "converted.onnx"
    onnx.save(onnx.version_converter.convert_version(loaded, PER_CHANNEL), converted)
    return str(converted)


def ort_int4(model: Path, out: Path, group: int = GROUP) -> None:
    """MatMulNBits, symmetric, with activations rounded to 8 bits (accuracy level 4)."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(model), block_size=group, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


def openvino_int4(model: Path, out: Path, group: int = GROUP) -> None:
    """Symmetric weights of 4 bits; the first and the last layer of 8, NNCF's default."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    read = openvino.Core().read_model(model)
    openvino.save_model(
        nncf.compress_weights(read, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=group, ratio=1.0), out,
        compress_to_fp16=False,
    )  # fmt: skip


def paths(out: Path, name: str) -> dict[str, Path]:
    """From a peer's way to its file: those that are there."""
    known = {
        "nncf": f"{name}.nncf.xml", "ort-minmax": f"{name}.ort-minmax.onnx",
        "ort-percentile": f"{name}.ort-percentile.onnx",
    }  # fmt: skip
    return {way: out / file for way, file in known.items() if (out / file).exists()}


def _failed(out: Path) -> dict[str, str]:
    file = out / FAILED
    found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
    return found


def failures(out: Path, name: str) -> dict[str, str]:
    """From a peer's way to why it could not make this network's file."""
    found = {file.split(".")[1]: why for file, why in _failed(out).items() if file.split(".")[0] == name}
    return {way: why for way, why in found.items() if way not in paths(out, name)}


def make(case: Case, out: Path, methods: tuple[str, ...]) -> dict[str, str]:
    """The peers' models that are not there yet; from a file's name to why it could not be made."""
    failed = {}
    samples = arrays(case.calibration)
    jobs: dict[str, Any] = {
        f"ort-{m.lower()}.onnx": (lambda p, m=m: ort_int8(case.model, samples, p, m)) for m in methods
    }
    if importlib.util.find_spec("nncf"):
        jobs["nncf.xml"] = lambda path: nncf_int8(case.model, samples, path)
    else:
        failed["nncf.xml"] = "skipped: the package nncf is not installed"
    for suffix, job in jobs.items():
        path = out / f"{case.name}.{suffix}"
        if path.exists() and path.stat().st_mtime < case.model.stat().st_mtime:
            path.unlink()
        _make(path, job, failed)
    return failed


def _make(path: Path, job: Any, failed: dict[str, str]) -> None:
    if path.exists():
        return
    started = time.perf_counter()
    try:
        job(path)
        print(f"{path.name}: {time.perf_counter() - started:.0f} s", flush=True)
    except Exception as error:  # a quantizer that cannot take a network is a row of the table
        failed[path.name] = f"{type(error).__name__}: {error}"[:300]
        print(f"{path.name}: {failed[path.name]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--methods", default="MinMax,Percentile", help="ONNX Runtime's calibrations")
    parser.add_argument("--int4", action="store_true", help="weights of 4 bits, which need no data")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    for name in args.names:
        case = Case(args.folder, name)
        if args.int4:
            _make(args.out / f"{name}.ort-int4.onnx", lambda path, case=case: ort_int4(case.model, path), failed)
            _make(
                args.out / f"{name}.openvino-int4.xml", lambda path, case=case: openvino_int4(case.model, path), failed
            )
        else:
            failed |= make(case, args.out, tuple(args.methods.split(",")))
    known = {**_failed(args.out), **failed}
    left = {file: why for file, why in known.items() if not (args.out / file).exists()}
    (args.out / FAILED).write_text(json.dumps(left, indent=1) + "\n")


if __name__ == "__main__":
    main()
