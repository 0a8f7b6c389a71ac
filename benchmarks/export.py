"""Make the benchmark networks: python -m benchmarks.export DIR [NAME ...]

Each becomes DIR/NAME.onnx, with DIR/NAME.npz beside it: feeds by input name. Needs `pip install -e .[export]`; all
eleven take some 1.6 GB. --dynamic leaves batch, length and cache sizes open; --dynamo takes PyTorch's newer exporter.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NETWORKS = (
    "resnet50", "mobilenet_v2", "vit_b16", "bert_base", "minilm", "gpt2_decode", "llama_160m_decode",
    "whisper_tiny_encoder", "lstm", "mlp", "unet",
)  # fmt: skip
NEEDED = ("torch", "transformers", "onnxscript")
SEED = 0


@dataclass(frozen=True)
class Settings:
    """How to export. `opset` None: 17, or 20 with the newer exporter."""

    batch: int = 1
    dynamic: bool = False
    opset: int | None = None
    dynamo: bool = False


def missing_packages() -> list[str]:
    """What must be installed before anything can be exported."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def export_all(names: Sequence[str], folder: Path, settings: Settings) -> None:
    """Export networks into a folder. Raises SystemExit that says what to install when PyTorch is not there."""
    if missing := missing_packages():
        raise SystemExit(
            f"the networks {', '.join(names)} must be exported first, and {', '.join(missing)} is not installed: "
            "pip install -e .[export]"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        size = export(name, folder, settings)
        print(f"{name}.onnx, {size / 2**20:.1f} MiB", flush=True)


def export(name: str, folder: Path, settings: Settings) -> int:
    """Export one network; gives the bytes of its files."""
    import torch

    architectures = importlib.import_module("benchmarks.architectures")
    torch.manual_seed(SEED)
    network = getattr(architectures, name)()
    architectures.liven(network)
    network.eval()
    feeds = {i.name: i.sample(settings.batch) for i in network.inputs}
    # An example of size 1 would be taken for a constant.
    traced = [i.sample(max(2, settings.batch)) for i in network.inputs] if settings.dynamic else list(feeds.values())
    path = folder / f"{name}.onnx"
    with torch.no_grad(), warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        torch.onnx.export(network, tuple(traced), str(path), **_options(network, settings))
    np.savez(folder / f"{name}.npz", **{key: value.numpy() for key, value in feeds.items()})
    return sum(file.stat().st_size for file in folder.glob(f"{name}.onnx*"))


def _options(network: Any, settings: Settings) -> dict[str, Any]:
    names = [i.name for i in network.inputs]
    common = {"input_names": names, "dynamo": settings.dynamo}
    if settings.dynamo:
        out = {**common, "opset_version": settings.opset or 20, "optimize": True, "verbose": False}
        return {**out, "dynamic_shapes": {"values": _dynamic(network)}} if settings.dynamic else out
    out = {**common, "opset_version": settings.opset or 17}
    return {**out, "dynamic_axes": {i.name: i.varying for i in network.inputs}} if settings.dynamic else out


def _dynamic(network: Any) -> tuple[dict[int, Any], ...]:
    from torch.export import Dim

    sizes = {name: Dim(name, min=1, max=4096) for i in network.inputs for name in i.varying.values()}
    return tuple({axis: sizes[name] for axis, name in i.varying.items()} for i in network.inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="the batch size (default: 1)")
    parser.add_argument("--dynamic", action="store_true", help="leave batch, length and cache sizes open")
    parser.add_argument("--opset", type=int, metavar="N", help="default: 17, with --dynamo 20")
    parser.add_argument("--dynamo", action="store_true", help="PyTorch's newer exporter")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in NETWORKS]:
        parser.error(f"no network is called {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    settings = Settings(args.batch, args.dynamic, args.opset, args.dynamo)
    export_all(args.names or NETWORKS, args.folder, settings)


if __name__ == "__main__":
    main()
