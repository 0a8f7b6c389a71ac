"""Data for networks of random weights: python -m benchmarks.int8.synthetic NETWORKS DIR [NAME ...]

For the speed of the benchmark networks alone: samples of the same kind as the feeds beside a network, each different.
DIR gets links to the networks.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.int8.cases import Case, arrays, write
from benchmarks.networks import feeds_of

NAMES = ("resnet50", "mobilenet_v2", "vit_b16", "bert_base", "minilm", "unet", "whisper_tiny_encoder")
SAMPLES = 8


def like(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Floats of the same mean and deviation; of integers, the same ones in another order."""
    if value.dtype.kind == "f":
        return (value.mean() + value.std() * rng.standard_normal(value.shape)).astype(value.dtype)
    return rng.permuted(value.ravel()).reshape(value.shape)


def make(networks: Path, folder: Path, name: str, samples: int = SAMPLES) -> Case:
    rng = np.random.default_rng(0)
    first = arrays(feeds_of(networks, name))
    calibrate = {key: np.stack([like(value, rng) for _ in range(samples)]) for key, value in first.items()}
    evaluate = {key: np.stack([value, *(like(value, rng) for _ in range(3))]) for key, value in first.items()}
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"{name}.onnx"
    if not link.exists():
        link.symlink_to((networks / f"{name}.onnx").resolve())
    return write(folder, name, calibrate, evaluate, metric="cosine", about="random weights")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help=f"default: {', '.join(NAMES)}")
    args = parser.parse_args()
    for name in args.names or NAMES:
        make(args.networks, args.folder, name)


if __name__ == "__main__":
    main()
