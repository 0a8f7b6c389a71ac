"""What a user says of calibration data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opcel_compiler.calibrate.errors import CalibrationError

ON_BAD_SAMPLE = ("error", "skip")


@dataclass(frozen=True)
class Data:
    """`source` is what `readers.read_samples` reads, None for random numbers, which `allow_random` must allow.
    `preprocess` describes how images become an input. `ranges` states by input what its elements lie between.
    `on_bad_sample` is "error" or "skip"; at most `most` samples are used.
    """

    source: Any = None
    preprocess: str | os.PathLike[str] | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    on_bad_sample: str = "error"
    allow_random: bool = False
    most: int | None = None

    @staticmethod
    def of(given: Any) -> Data:
        """`given` itself, or data with that source."""
        return given if isinstance(given, Data) else Data(given)

    def check(self) -> None:
        """Raises CalibrationError for an option that does not exist, and for no data without leave."""
        if self.on_bad_sample not in ON_BAD_SAMPLE:
            raise CalibrationError(f"on_bad_sample is {' or '.join(ON_BAD_SAMPLE)}, not {self.on_bad_sample!r}")
        if self.source is None and not self.allow_random:
            raise CalibrationError(
                "there is no calibration data; give samples of what the model will see. Random numbers give ranges "
                "that mean nothing: --allow-random-calibration takes them all the same, and stamps the artifact"
            )

    def __str__(self) -> str:
        shown = isinstance(self.source, (str, os.PathLike))
        return os.fspath(self.source) if shown else f"of type {type(self.source).__name__}"
