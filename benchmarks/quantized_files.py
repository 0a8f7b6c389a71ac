"""Networks quantized by ONNX Runtime: python -m benchmarks.quantized_files --networks DIR --to FOLDER [NAME ...]

For each NAME.onnx with NAME.npz: NAME-u8s8.onnx and NAME-s8s8.onnx (quantize_static, QDQ, weights with a scale for each
channel) and NAME-dynamic.onnx (quantize_dynamic), each with its feeds beside it. --stored DIR (with index.json, see
benchmarks.models) adds the stored models that are quantized already. The ranges are those of a few
variations of the feeds, so that such a file says how fast and how exact an engine computes it, and nothing of a task's
accuracy. A file that is there is kept. --only takes some of the schemes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx

from benchmarks import models
from benchmarks.networks import feeds_of, names_in

SAMPLES = 4
SCHEMES = ("u8s8", "s8s8", "dynamic")
QUANTIZED = frozenset(
    {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}
)


def variations(feeds: Mapping[str, np.ndarray], count: int = SAMPLES) -> Iterator[dict[str, np.ndarray]]:
    """The feeds, then others like them: floats scaled with noise on them, larger integers in another order."""
    rng = np.random.default_rng(0)
    yield dict(feeds)
    for _ in range(count - 1):
        yield {name: _varied(array, rng) for name, array in feeds.items()}


def _varied(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if array.dtype.kind == "f":
        noise = rng.standard_normal(array.shape) * (0.1 * float(array.std()))
        return (array * rng.uniform(0.7, 1.2) + noise).astype(array.dtype)
    return rng.permuted(array, axis=-1) if array.ndim and array.max(initial=0) > 1 else array


def quantize(source: Path, feeds: Mapping[str, np.ndarray], scheme: str, target: Path) -> None:
    """Write `target`, the model `source` quantized by `scheme`, one of SCHEMES."""
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_dynamic,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.samples = variations(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.samples, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        except Exception as error:  # its checks refuse some models that the tools quantize all the same
            print(f"{source.name}: not preprocessed: {str(error).splitlines()[0]}")
            shutil.copy(source, prepared)
        if scheme == "dynamic":
            quantize_dynamic(prepared, target, per_channel=True, weight_type=QuantType.QInt8)
            return
        signed = QuantType.QInt8 if scheme == "s8s8" else QuantType.QUInt8
        quantize_static(
            prepared, target, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=signed, weight_type=QuantType.QInt8,
            extra_options={"ActivationSymmetric": scheme == "s8s8"},
        )  # fmt: skip


def stored(folder: Path) -> Iterator[tuple[str, onnx.ModelProto, dict[str, np.ndarray]]]:
    """(name, model, feeds) of each valid model of an index that has inputs and quantizes."""
    for entry in json.loads((folder / "index.json").read_text()):
        path = folder / entry["file"]
        if (
            not entry.get("valid", True)
            or path.suffix != ".onnx"
            or not _quantizes(onnx.load(path, load_external_data=False).graph)
        ):
            continue
        if feeds := models.feeds_of(path, entry):
            yield path.stem, onnx.load(path), feeds


def _quantizes(graph: onnx.GraphProto) -> bool:
    inner = (a.g for n in graph.node for a in n.attribute if a.HasField("g"))
    return any(n.op_type in QUANTIZED for n in graph.node) or any(map(_quantizes, inner))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="networks (default: all of the folder)")
    parser.add_argument("--networks", type=Path, metavar="DIR", help="where the float networks lie")
    parser.add_argument("--stored", type=Path, metavar="DIR", help="where models lie of which some are quantized")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="where the quantized ones go")
    parser.add_argument("--only", default=",".join(SCHEMES), metavar="SCHEME,...", help=f"of {', '.join(SCHEMES)}")
    args = parser.parse_intermixed_args()
    args.to.mkdir(parents=True, exist_ok=True)
    for name, model, feeds in stored(args.stored) if args.stored else ():
        onnx.save(model, args.to / f"{name}.onnx")
        np.savez(args.to / f"{name}.npz", **feeds)  # type: ignore[arg-type]
        print(f"{name}.onnx: stored", flush=True)
    for name in names_in(args.networks, args.names) if args.networks else ():
        with np.load(feeds_of(args.networks, name)) as file:
            feeds = {key: file[key] for key in file.files}
        for scheme in args.only.split(","):
            target = args.to / f"{name}-{scheme}.onnx"
            if target.exists():
                continue
            partial = target.with_suffix(".partial")
            try:
                quantize(args.networks / f"{name}.onnx", feeds, scheme, partial)
            except Exception as error:  # the tools' errors have no common base; the other files are still wanted
                print(f"{target.name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}")
                continue
            partial.rename(target)
            shutil.copy(feeds_of(args.networks, name), target.with_suffix(".npz"))
            print(f"{target.name}: {target.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
