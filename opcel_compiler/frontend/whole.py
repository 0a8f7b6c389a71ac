"""The model of an import as it was, in one message."""

from __future__ import annotations

from onnx import ModelProto

from opcel_compiler.frontend.foreign import embed
from opcel_compiler.frontend.importer import Imported
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.weights import restore


def whole_model(imported: Imported) -> ModelProto:
    """The model that was imported, with the tensors that lie beside its file in it.

    Raises ModelError when it is too large for one message (2 GiB).
    """
    model: ModelProto = ModelProto.FromString(bytes(imported.source))
    for tensor in model.graph.initializer:
        restore(tensor, imported.weights, f"initializer {tensor.name!r}")
    for i, node in enumerate([*model.graph.node, *(n for f in model.functions for n in f.node)]):
        embed(node, imported.weights, node.name or str(i))
    if model.ByteSize() >= 1 << 31:
        raise ModelError("the model cannot be run whole in ONNX Runtime, as it is larger than 2 GiB")
    return model
