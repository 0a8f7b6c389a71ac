"""What the frontend accepts, and the error it gives for the rest."""

from __future__ import annotations

import onnx
import onnx.defs

from opcel_compiler.errors import OpcelError

MIN_OPSET = 7
"""The oldest opset of the default domain that lowerings know; nodes of older ones are put into its form first."""

MAX_OPSET = onnx.defs.onnx_opset_version()
"""The newest opset of the default domain that the installed `onnx` defines."""

MAX_CONTENT = 64
"""The most elements of an integer tensor whose symbolic content is followed."""

MAX_RANK = 64
"""The highest rank of a tensor in a file."""

MAX_TENSOR_BYTES = 1 << 40
"""The largest tensor of a model, where its size is known."""

MAX_FUNCTION_DEPTH = 32
"""How deep calls of model-local functions may nest."""

MAX_GRAPH_DEPTH = 30
"""How deep graphs may nest in the attributes of nodes."""

EXPERIMENTAL = frozenset(
    "ATen Affine ConstantFill Crop DynamicSlice GRUUnit GivenTensorFill ImageScaler ParametricSoftplus Scale "
    "ScaledTanh ScaleImage SimplifiedLayerNormalization".split()
)
"""Operators of the default domain that left the standard but that ONNX Runtime still executes."""

DEFAULT_DOMAINS = ("", "ai.onnx")


class ModelError(OpcelError):
    """The model file cannot be used; the text names the file, the node or the tensor, the cause and a way out."""


class ExportError(OpcelError):
    """The graph cannot be written as ONNX; the text names the node and the cause."""


def check_opsets(opsets: dict[str, int]) -> None:
    """Raises ModelError for an opset import that no version of ONNX has, or that is newer than the installed `onnx`."""
    version = opsets.get("")
    if version is None:
        return
    if version < 1:
        raise ModelError(f"the model imports opset {version}; opsets 1 to {MAX_OPSET} are supported")
    if version > MAX_OPSET:
        raise ModelError(
            f"the model imports opset {version}, and the installed onnx {onnx.__version__} knows opsets up to"
            f" {MAX_OPSET}; export the model at an opset up to {MAX_OPSET}, or install a newer onnx"
        )
