"""Opens compiled artifacts and runs them."""

from __future__ import annotations

from opcel_compiler.runtime.decoding import Decoder, load, run_whole
from opcel_compiler.runtime.errors import ArtifactError, FeedError, RunError
from opcel_compiler.runtime.model import CompiledModel, TensorSpec, read_manifest, verify

__all__ = [
    "ArtifactError", "CompiledModel", "Decoder", "FeedError", "RunError", "TensorSpec", "load", "read_manifest",
    "run_whole", "verify",
]  # fmt: skip
