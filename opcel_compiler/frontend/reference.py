"""ONNX's own reference implementation, for models that no other engine runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator


def evaluate_onnx(
    model: str | Path | bytes | ModelProto, outputs: Sequence[str], feeds: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """The named outputs of a model. Raises whatever the reference implementation raises for what it does not do."""
    if isinstance(model, bytes):
        model = ModelProto.FromString(model)
    elif not isinstance(model, ModelProto):
        model = onnx.load(str(model))
    return [np.asarray(v) for v in ReferenceEvaluator(model).run(list(outputs), dict(feeds))]
