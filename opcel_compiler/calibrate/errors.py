"""What can be wrong with calibration data."""

from __future__ import annotations

from opcel_compiler.errors import OpcelError


class CalibrationError(OpcelError):
    """Data, or a sample of it, that a model cannot be calibrated with.

    `sample` is its number from 0, `tensor` the input or value at fault, `coordinate` the place of its first bad
    element, `node` the node of the model that first made one; None where there is none.
    """

    def __init__(
        self, message: str, *, sample: int | None = None, tensor: str | None = None,
        coordinate: tuple[int, ...] | None = None, node: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.sample, self.tensor, self.coordinate, self.node = sample, tensor, coordinate, node


class CalibrationWarning(UserWarning):
    """Data that can be calibrated with, but hardly as it was meant."""
