"""What a lowering works with: one ONNX node, its operands as our values, and the means to emit our operators."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx.defs
from onnx import AttributeProto, GraphProto, NodeProto

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.proto_types import dtype_from
from opcel_compiler.frontend.symbolic import as_dims
from opcel_compiler.ir.dims import Dim, bounds
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import DType, TensorType

if TYPE_CHECKING:
    from opcel_compiler.frontend.builder import Builder
    from opcel_compiler.frontend.scope import Scope

Results = "Value | Sequence[Value | None]"
Lower = Callable[["Lowering"], Any]

REGISTRY: dict[tuple[str, str], tuple[Lower, int, int]] = {}
OLDER: list[Callable[[Lowering], Lowering]] = []
"""What puts a node of the default domain into the form of MIN_OPSET."""


class Unsupported(Exception):
    """This instance of an operator has no lowering; the text says why. The node is then kept as `foreign`."""


class Invalid(Unsupported):
    """The node breaks its operator's contract: it cannot run anywhere. In a branch that is not taken it may stand."""


def lowers(*op_types: str, domain: str = "", first: int = 7, last: int = 1 << 30) -> Callable[[Lower], Lower]:
    """Register a lowering of ONNX operators, for the opsets from `first` to `last`."""

    def register(fn: Lower) -> Lower:
        for op_type in op_types:
            REGISTRY[domain, op_type] = (fn, first, last)
        return fn

    return register


IDLE = frozenset(
    (
        "consumed_inputs hidden_size inputdimensions kernel_shape momentum multi_class nodes_hitrates "
        "nodes_hitrates_as_tensor noop_with_empty_axes num_outputs ratio seed"
    ).split()
)
"""Attributes that a lowering need not look at: shapes say the same, only training reads them, or no axes are empty, or
they are statistics."""


def _default(node: NodeProto, opset: int, name: str) -> AttributeProto | None:
    """The value that the standard gives an attribute of the operator, if it gives one."""
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
    except onnx.defs.SchemaError:
        return None
    attribute = schema.attributes.get(name)
    return None if attribute is None else attribute.default_value


class Lowering:
    """One ONNX node being lowered at `opset` of its domain. A lowering returns the value of the node's output, or one
    value for each output (None for those it cannot give), or raises `Unsupported`."""

    def __init__(
        self,
        builder: Builder,
        node: NodeProto,
        opset: int,
        inputs: Sequence[Value | None],
        origin: str,
        used: Container[str],
        scope: Scope,
    ) -> None:
        self.builder = builder
        self.node = node
        self.op_type = node.op_type
        self.opset = opset
        self.inputs = tuple(inputs)
        self.origin = origin
        self._used = used
        self.scope = scope
        self._attrs: dict[str, AttributeProto] = {a.name: a for a in node.attribute}
        self._read: set[str] = set()

    def replaced(self, node: NodeProto, opset: int, inputs: Sequence[Value | None]) -> Lowering:
        """The same node written otherwise."""
        return Lowering(self.builder, node, opset, inputs, self.origin, self._used, self.scope)

    # -- inputs --------------------------------------------------------------------------------------------------

    def x(self, i: int = 0) -> Value:
        """Input `i`, which the operator needs. Raises ModelError when the node does not have it."""
        value = self.opt(i)
        if value is None:
            raise ModelError(f"node {self.origin!r} ({self.op_type}) has no input {i}, which the operator needs")
        return value

    def opt(self, i: int) -> Value | None:
        return self.inputs[i] if i < len(self.inputs) else None

    def wants(self, i: int) -> bool:
        """Whether the model uses output `i`."""
        return i < len(self.node.output) and self.node.output[i] in self._used

    def tensor_type(self, value: Value) -> TensorType:
        """The type of a tensor of known rank; Unsupported otherwise."""
        t = value.type
        if not isinstance(t, TensorType):
            raise Unsupported(f"%{value.name} is {t}, not a tensor")
        if t.shape is None:
            raise Unsupported(f"the rank of %{value.name} is unknown")
        return t

    def shape(self, value: Value) -> tuple[Dim, ...]:
        return self.tensor_type(value).dims

    def rank(self, value: Value) -> int:
        return len(self.shape(value))

    def dtype(self, value: Value) -> DType:
        t = value.type
        if not isinstance(t, TensorType):
            raise Unsupported(f"%{value.name} is {t}, not a tensor")
        return t.dtype

    def axis(self, axis: int, rank: int) -> int:
        """A possibly negative axis made non-negative. Raises ModelError when it is out of range."""
        if not -rank <= axis < rank:
            raise ModelError(f"node {self.origin!r} ({self.op_type}): axis {axis} is out of range for rank {rank}")
        return axis % rank if rank else 0

    def dims(self, value: Value, what: str) -> tuple[Dim, ...]:
        """The content of an integer tensor, flat; Unsupported, naming `what` it is, when it is not known."""
        content = self.builder.content(value)
        if content is None:
            raise Unsupported(f"{what} (%{value.name}) is computed from data")
        return as_dims(content)

    def sizes(self, value: Value, what: str, lo: int = 0, hi: int | None = None) -> tuple[Dim, ...]:
        """Like `dims`; what is computed from data becomes symbols from `lo` to `hi`, whose values are read when the
        model runs. Unsupported when the number of elements is not constant, or too large."""
        content = self.builder.read(value, self.origin, lo, hi)
        if content is None:
            raise Unsupported(f"{what} (%{value.name}) is computed from data, and is no small tensor of constant size")
        return as_dims(content)

    def size(self, value: Value, what: str, lo: int = 0, hi: int | None = None) -> Dim:
        """`sizes` of a tensor of one element."""
        found = self.sizes(value, what, lo, hi)
        if len(found) != 1:
            raise ModelError(f"node {self.origin!r} ({self.op_type}): {what} must have one element, not {len(found)}")
        return found[0]

    def is_known(self, *values: Value | None) -> bool:
        """Whether the contents of all these tensors are known, perhaps as symbols; absent ones are."""
        return all(v is None or self.builder.content(v) is not None for v in values)

    def known_ints(self, value: Value, what: str) -> tuple[int, ...]:
        """Like `dims`, for content that must not be symbolic."""
        data = value.constant
        if data is not None and data.dtype.is_integer:
            return tuple(int(v) for v in data.array.reshape(-1).tolist())
        out = self.dims(value, what)
        if not all(isinstance(d, int) for d in out):
            raise Unsupported(f"{what} {out} is symbolic")
        return tuple(int(d) for d in out)  # type: ignore[arg-type]

    def graph(self, name: str) -> GraphProto:
        a = self._get(name, AttributeProto.GRAPH, ...)
        assert a is not None
        return a.g

    # -- attributes ----------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        self._read.add(name)
        return name in self._attrs

    def unread(self) -> str | None:
        """An attribute that the lowering has not looked at, though its value is not the standard's default."""
        for name, a in self._attrs.items():
            if name not in self._read and name not in IDLE and a != _default(self.node, self.opset, name):
                return str(name)
        return None

    def _get(self, name: str, kind: int, default: Any) -> AttributeProto | None:
        self._read.add(name)
        a: AttributeProto | None = self._attrs.get(name)
        if a is None:
            if default is ...:
                raise ModelError(f"node {self.origin!r} ({self.op_type}) lacks its attribute {name!r}")
            return None
        if a.type not in (kind, AttributeProto.UNDEFINED):
            have, want = AttributeProto.AttributeType.Name(a.type), AttributeProto.AttributeType.Name(kind)
            raise ModelError(f"node {self.origin!r} ({self.op_type}): attribute {name!r} is {have}, and must be {want}")
        return a

    def attr_int(self, name: str, default: Any = ...) -> int:
        a = self._get(name, AttributeProto.INT, default)
        return default if a is None else a.i

    def attr_float(self, name: str, default: Any = ...) -> float:
        a = self._get(name, AttributeProto.FLOAT, default)
        return default if a is None else float(a.f)

    def attr_str(self, name: str, default: Any = ...) -> str:
        a = self._get(name, AttributeProto.STRING, default)
        return default if a is None else a.s.decode(errors="replace")

    def attr_ints(self, name: str, default: Any = ...) -> Any:
        a = self._get(name, AttributeProto.INTS, default)
        return default if a is None else tuple(a.ints)

    def attr_floats(self, name: str, default: Any = ...) -> Any:
        a = self._get(name, AttributeProto.FLOATS, default)
        return default if a is None else tuple(a.floats)

    def attr_strings(self, name: str) -> list[bytes]:
        a = self._get(name, AttributeProto.STRINGS, ...)
        assert a is not None
        return list(a.strings)

    def attr_tensor(self, name: str) -> Constant | None:
        """The tensor attribute `name`, or None when it is absent."""
        a = self._get(name, AttributeProto.TENSOR, None)
        return None if a is None else self.builder.weights.constant(a.t, f"attribute {name!r} of node {self.origin!r}")

    def is_sparse(self, name: str) -> bool:
        """Whether the attribute `name` is there and is a sparse tensor."""
        return self.has(name) and self._attrs[name].type == AttributeProto.SPARSE_TENSOR

    def attr_sparse(self, name: str) -> Constant:
        a = self._get(name, AttributeProto.SPARSE_TENSOR, ...)
        assert a is not None
        return self.builder.weights.sparse(a.sparse_tensor, f"attribute {name!r} of node {self.origin!r}")

    def attr_dtype(self, name: str, default: Any = ...) -> DType:
        a = self._get(name, AttributeProto.INT, default)
        return default if a is None else dtype_from(a.i, f"attribute {name!r} of node {self.origin!r}")

    # -- emitting ------------------------------------------------------------------------------------------------

    def emit(self, op: str, *operands: Value | None, **attrs: Any) -> Value:
        """Apply one of our operators with one result. Raises InferenceError."""
        return self.builder.emit(op, operands, attrs, self.origin)

    def constant(self, array: np.ndarray, dtype: DType | None = None) -> Value:
        return self.builder.constant(Constant(array, dtype), self.origin)

    def number(self, x: Any, like: Value) -> Value:
        """A constant scalar of the element type of `like`."""
        dtype = self.dtype(like)
        return self.constant(np.asarray(x).astype(dtype.numpy), dtype)

    def of_dims(self, dims: Iterable[Dim], scalar: bool = False) -> Value:
        """An i64 tensor that holds these dims."""
        values = list(dims)
        out = np.empty(len(values), object)
        out[:] = values
        return self.builder.materialise(out.reshape(()) if scalar else out, None, self.origin)

    def cast(self, x: Value, dtype: DType) -> Value:
        return x if self.dtype(x) == dtype else self.emit("cast", x, dtype=dtype)

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        return x if self.shape(x) == tuple(shape) else self.emit("reshape", x, shape=tuple(shape))

    def transpose(self, x: Value, perm: Sequence[int]) -> Value:
        return x if list(perm) == sorted(perm) else self.emit("transpose", x, perm=tuple(perm))

    def slice(self, x: Value, axis: int, start: Dim, size: Dim) -> Value:
        """`size` elements from `start` along one axis."""
        shape = self.shape(x)
        starts: list[Dim] = [0] * len(shape)
        sizes = list(shape)
        starts[axis], sizes[axis] = start, size
        if start == 0 and size == shape[axis]:
            return x
        return self.emit("slice", x, starts=tuple(starts), sizes=tuple(sizes), steps=(1,) * len(shape))

    def channels(self, x: Value, rank: int) -> Value:
        """A vector of one number a channel, shaped to broadcast along axis 1 of a tensor of `rank`."""
        (c,) = self.shape(x)
        return self.reshape(x, (c, *([1] * (rank - 2))))


def nonnegative(d: Dim) -> bool:
    lo = bounds(d)[0]
    return lo is not None and lo >= 0
