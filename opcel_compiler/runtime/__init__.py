"""Opens compiled artifacts and runs them."""

from __future__ import annotations

from opcel_compiler.runtime.errors import ArtifactError, FeedError, RunError
from opcel_compiler.runtime.model import CompiledModel, TensorSpec, load, read_manifest, verify

__all__ = ["ArtifactError", "CompiledModel", "FeedError", "RunError", "TensorSpec", "load", "read_manifest", "verify"]
