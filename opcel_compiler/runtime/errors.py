"""What can go wrong while an artifact is opened and run."""

from __future__ import annotations

from opcel_compiler.errors import OpcelError


class ArtifactError(OpcelError):
    """A folder is no artifact of this version, is damaged, or was compiled for another CPU."""


class FeedError(OpcelError):
    """An array given to `run` does not fit the model's signature."""


class RunError(OpcelError):
    """The model failed while it ran: a region in ONNX Runtime, memory, or the program itself."""
