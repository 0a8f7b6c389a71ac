"""A quantization plan: which layers of a Graph compute in 8 bits, on which grids, and why others do not.

A layer is a contraction with constant weights and goes by the name of its result. A plan is data: the passes carry it
out (`equalize`, `smooth`, `quantize`), `opcel_compiler.quantization` makes it from statistics.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from opcel_compiler.ir.thresholds import Grid

LAYERS = frozenset({"conv", "conv_transpose", "matmul"})
"""The operators that can be layers."""

STATIC, DYNAMIC, FLOAT = "static", "dynamic", "float"
"""Schemes: a grid known when compiling; a scale for each row, computed as the model runs; not quantized."""


@dataclass(frozen=True)
class Layer:
    """What becomes of one layer. `reason` says why it stays float, in words for the user."""

    scheme: str
    reason: str = ""


@dataclass
class Plan:
    """`layers` by result; `grids` by the value that is quantized; `readers` are other nodes, by result, that read the
    codes of their operands of these indices; `corrections` are added to a layer's result, one for each output channel;
    `equalized` and `smoothed` hold, by the value between two layers, what its channels are divided by.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    readers: dict[str, tuple[int, ...]] = field(default_factory=dict)
    corrections: dict[str, np.ndarray] = field(default_factory=dict)
    equalized: Mapping[str, np.ndarray] = field(default_factory=dict)
    smoothed: Mapping[str, np.ndarray] = field(default_factory=dict)

    def quantized(self, name: str) -> bool:
        """Whether the layer `name` computes in 8 bits."""
        return name in self.layers and self.layers[name].scheme != FLOAT

    @property
    def kept(self) -> dict[str, str]:
        """The layers that stay float, with the reason."""
        return {name: layer.reason for name, layer in self.layers.items() if layer.scheme == FLOAT}
