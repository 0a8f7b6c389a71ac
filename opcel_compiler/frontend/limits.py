"""What the frontend accepts, and the error it gives for the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, fields

import onnx
import onnx.defs

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.dims import bounds
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import TensorType

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

MAX_VERSION = (1 << 31) - 1
"""The largest version of a domain or of the format that `onnx` can hold."""

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


@dataclass(frozen=True)
class Limits:
    """What a model may take while it is read. `nodes`: operators of the graph, functions written out; `seconds`: for
    all lowering and folding of the import; `tensor_bytes`: the largest tensor, where its size is known."""

    nodes: int = 1_000_000
    seconds: int = 600
    rank: int = MAX_RANK
    tensor_bytes: int = MAX_TENSOR_BYTES

    @staticmethod
    def of(given: Mapping[str, int]) -> Limits:
        """The limits with those `given` by name (with - or _) in place of the defaults. Raises ModelError."""
        known = {f.name for f in fields(Limits)}
        named = {name.replace("-", "_"): value for name, value in given.items()}
        if unknown := sorted(set(named) - known):
            raise ModelError(f"there is no limit {unknown[0]!r}; there are {', '.join(sorted(known))}")
        return Limits(**named)


_DEFAULTS = Limits()

LIMITS: ContextVar[Limits] = ContextVar("limits", default=_DEFAULTS)
"""The limits that hold for imports in this context."""


class ModelError(OpcelError):
    """The model file cannot be used; the text names the file, the node or the tensor, the cause and a way out."""


class ExportError(OpcelError):
    """The graph cannot be written as ONNX; the text names the node and the cause."""


def check_opsets(opsets: dict[str, int]) -> None:
    """Raises ModelError for an opset import that no version of ONNX has, or that is newer than the installed `onnx`."""
    for domain, imported in opsets.items():
        if domain and not 0 < imported <= MAX_VERSION:
            raise ModelError(f"the model imports version {imported} of the domain {domain!r}, which is none")
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


def check_size(value: Value) -> None:
    """Raises ModelError for a tensor that no memory can hold; where symbols are open, for those at their least."""
    t = value.type
    if not isinstance(t, TensorType) or t.shape is None:
        return
    least = [d if isinstance(d, int) else bounds(d)[0] or 0 for d in t.shape]
    count = min(max(math.prod(least), *least, 0), 10**300)
    if count * t.dtype.bits // 8 > LIMITS.get().tensor_bytes:
        where = f"node {value.producer.origin[0]!r}" if value.producer and value.producer.origin else "input"
        raise ModelError(
            f"{where}: the tensor {value.name!r} of type {t} has {count:.2g} elements, and a tensor may take at "
            f"most {LIMITS.get().tensor_bytes / (1 << 30):.4g} GiB; correct the sizes in the model"
        )


def domain_of(domain: str) -> str:
    """A domain of operators by one name: the default one has two."""
    return "" if domain in DEFAULT_DOMAINS else domain
