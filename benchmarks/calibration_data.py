"""The samples of benchmarks.calibration. It imports as little as may be: what it takes counts as inference's."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np


def samples(inputs: str | os.PathLike[str], count: int) -> Iterator[dict[str, np.ndarray]]:
    """The arrays of an .npz file disturbed at random: floats by noise of 0.1, integers in another order."""
    with np.load(inputs) as file:
        base = dict(file)
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {
            name: (x + 0.1 * rng.standard_normal(x.shape)).astype(x.dtype) if x.dtype.kind == "f"
            else rng.permuted(x, axis=-1)
            for name, x in base.items()
        }  # fmt: skip


def reader() -> Iterator[dict[str, np.ndarray]]:
    """As many samples as the environment names, of the file that it names: what a process reads."""
    return samples(os.environ["CALIBRATED_INPUTS"], int(os.environ["CALIBRATED_SAMPLES"]))
