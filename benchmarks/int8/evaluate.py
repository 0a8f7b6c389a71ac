"""What an engine computes on all samples of a network."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np

from benchmarks.int8.cases import Samples, feeds
from opcel_compiler.bench.engines import ENGINES

THREADS = 2


def outputs(engine: str, path: Path, samples: Samples, threads: int = THREADS) -> np.ndarray:
    """The network's first output, [samples, *its shape]; `engine` is a name of `opcel_compiler.bench.engines`."""
    chosen = ENGINES[engine]
    given = feeds(samples)
    call = chosen.open(importlib.import_module(chosen.module), path, given[0], threads)
    return np.stack([np.array(call(each)[0]) for each in given])
