"""How a model is quantized: what the caller chooses."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.nbits import WeightScheme
from opcel_compiler.ir.statistics import Statistics
from opcel_compiler.ir.thresholds import THRESHOLDS

AUTO = "auto"
ACTIVATIONS = (AUTO, "static", "dynamic")
LEAST_SQNR = 15.0


class QuantizationError(OpcelError):
    """A model that cannot be quantized as it was asked for."""


@dataclass(frozen=True)
class Recipe:
    """`calibrate`: the data, as `calibrate.readers.read_samples` takes them, images with the description `preprocess`;
    `statistics`: what was seen of data, or the file of it, which is written if there is none yet. `on_bad_sample` and
    `allow_random` are those of `calibration.collect`. `threshold` chooses ranges from them. `activations`: "static"
    grids or, for matrix products, "dynamic" ones, a scale for each row, computed as the model runs. Both can be left to
    what is measured on the outputs ("auto"): "mse" or, in networks of matrix products, "minmax"; static or dynamic.
    `equalize` and `correct` allow channels to be divided between layers and biases to be corrected where that is
    measured to help. A layer whose own result has a signal-to-noise ratio below `least_sqnr` decibels stays float, and
    so do those `kept`, by the names of their results, with reasons. `planned` is shown the planner once the plan is
    made and the graph not yet quantized. `weights` is what becomes of weights with precision "int4", for which data are
    no must.
    """

    calibrate: Any = None
    statistics: Statistics | str | os.PathLike[str] | None = None
    preprocess: str | os.PathLike[str] | None = None
    on_bad_sample: str = "error"
    allow_random: bool = False
    threshold: str = AUTO
    activations: str = AUTO
    equalize: bool = True
    correct: bool = True
    least_sqnr: float = LEAST_SQNR
    kept: Mapping[str, str] = field(default_factory=dict)
    planned: Callable[[Any], None] | None = None
    weights: WeightScheme = field(default_factory=WeightScheme)

    def check(self) -> None:
        """Raises QuantizationError for what is missing or unknown."""
        if self.calibrate is None and self.statistics is None and not self.allow_random:
            raise QuantizationError(
                "precision int8 needs to see data: give samples with --calibrate DATA (`calibrate` in Python), or the "
                "statistics of earlier ones with --statistics FILE"
            )
        for what, value, known in (
            ("the threshold", self.threshold, (AUTO, *THRESHOLDS)), ("activations", self.activations, ACTIVATIONS),
        ):  # fmt: skip
            if value not in known:
                raise QuantizationError(f"{what} can be {', '.join(known)}, not {value!r}")
