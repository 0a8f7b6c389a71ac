"""The kernels that compute the layers of a quantized model, and what they take."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from opcel_compiler.ir.recurrent import RECURRENT
from opcel_compiler.runtime.model import CompiledModel

STEPS = (*sorted(RECURRENT), "recurrent")
"""How the names of the families begin that compute the steps of recurrent layers."""
MULTIPLYING = ("gemm", "conv", "vector", "matmul", "attention", "linear_attention", *STEPS)
"""How the names of the families begin that compute contractions."""


def layer_kernels(kernels: Iterable[Mapping[str, Any]], origin: Iterable[str]) -> list[Mapping[str, Any]]:
    """The kernels of a report that multiply for the ONNX nodes `origin` of a layer: of a recurrent one the product for
    all steps and the steps, else the first."""
    own = set(origin)
    found = [k for k in kernels if own and own <= set(k["origin"]) and k["family"].startswith(MULTIPLYING)]
    return found if any(k["family"].split(".")[0] in STEPS for k in found) else found[:1]


def layer_seconds(
    model: CompiledModel, feeds: dict[str, np.ndarray], origins: Iterable[Iterable[str]], blocks: int, block_s: float
) -> list[float | None]:
    """What the kernels of layers with these ONNX nodes take: the median of `blocks` of about `block_s` seconds. None
    where there is no kernel."""
    runs = max(1, int(block_s / max(sum(model.profile(feeds)), 1e-6)))
    measured = [model.profile(feeds, runs) for _ in range(blocks)]
    seconds = [statistics.median(steps) / runs for steps in zip(*measured, strict=True)]
    found = [layer_kernels(model.report["kernels"], origin) for origin in origins]
    return [sum(seconds[k["step"]] for k in kernels) if kernels else None for kernels in found]
