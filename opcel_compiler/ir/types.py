"""Element types and the types of values: tensors of every ONNX dtype, sequences, optionals, maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

import ml_dtypes
import numpy as np

from opcel_compiler.ir.dims import Dim, Expr, product


@dataclass(frozen=True, slots=True)
class DType:
    """An element type. `kind` is one of f (float), i (signed), u (unsigned), b (bool), c (complex), s (string).

    `bits` is the size of one element; elements under 8 bits are packed low nibble (low bits) first in stored data
    and unpacked, one an array element, in NumPy arrays.
    """

    name: str
    kind: str
    bits: int
    numpy: np.dtype
    code: int
    """The number that stands for it in files and at the C interface: that of ONNX TensorProto.DataType."""

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_integer(self) -> bool:
        return self.kind in "iu"


def _table() -> dict[str, DType]:
    rows: list[tuple[str, str, int, object]] = [
        ("f64", "f", 64, np.float64), ("f32", "f", 32, np.float32), ("f16", "f", 16, np.float16),
        ("bf16", "f", 16, ml_dtypes.bfloat16), ("f8e4m3fn", "f", 8, ml_dtypes.float8_e4m3fn),
        ("f8e4m3fnuz", "f", 8, ml_dtypes.float8_e4m3fnuz), ("f8e5m2", "f", 8, ml_dtypes.float8_e5m2),
        ("f8e5m2fnuz", "f", 8, ml_dtypes.float8_e5m2fnuz), ("f8e8m0", "f", 8, ml_dtypes.float8_e8m0fnu),
        ("f4e2m1", "f", 4, ml_dtypes.float4_e2m1fn), ("f6e2m3", "f", 6, ml_dtypes.float6_e2m3fn),
        ("f6e3m2", "f", 6, ml_dtypes.float6_e3m2fn), ("i64", "i", 64, np.int64), ("i32", "i", 32, np.int32),
        ("i16", "i", 16, np.int16), ("i8", "i", 8, np.int8), ("i4", "i", 4, ml_dtypes.int4),
        ("i2", "i", 2, ml_dtypes.int2), ("u64", "u", 64, np.uint64), ("u32", "u", 32, np.uint32),
        ("u16", "u", 16, np.uint16), ("u8", "u", 8, np.uint8), ("u4", "u", 4, ml_dtypes.uint4),
        ("u2", "u", 2, ml_dtypes.uint2), ("bool", "b", 8, np.bool_), ("c64", "c", 64, np.complex64),
        ("c128", "c", 128, np.complex128), ("string", "s", 0, np.object_),
    ]  # fmt: skip
    order = (
        "f32 u8 i8 u16 i16 i32 i64 string bool f16 f64 u32 u64 c64 c128 bf16 f8e4m3fn f8e4m3fnuz f8e5m2 f8e5m2fnuz "
        "u4 i4 f4e2m1 f8e8m0 u2 i2 f6e2m3 f6e3m2"
    ).split()
    return {
        name: DType(name, kind, bits, np.dtype(base), order.index(name) + 1)  # type: ignore[call-overload]
        for name, kind, bits, base in rows
    }


DTYPES: dict[str, DType] = _table()
F32, F64, F16, BF16 = DTYPES["f32"], DTYPES["f64"], DTYPES["f16"], DTYPES["bf16"]
I64, I32, I8, U8, BOOL, STRING = (DTYPES[n] for n in ("i64", "i32", "i8", "u8", "bool", "string"))
_BY_NUMPY = {d.numpy: d for d in DTYPES.values()}


def dtype_of(array: np.ndarray) -> DType:
    """The DType of a NumPy array; str and bytes arrays are `string`. Raises TypeError for any other dtype."""
    if array.dtype.kind in "US":
        return STRING
    try:
        return _BY_NUMPY[array.dtype.newbyteorder("=")]
    except KeyError:
        raise TypeError(f"no element type for NumPy dtype {array.dtype}") from None


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor of `dtype`; `shape` is a tuple of dims, or None when the rank is unknown."""

    dtype: DType
    shape: tuple[Dim, ...] | None

    def __post_init__(self) -> None:
        if not isinstance(self.dtype, DType):
            raise TypeError(f"{self.dtype!r} is not a DType")
        if self.shape is not None:
            if not isinstance(self.shape, tuple):
                raise TypeError(f"a shape is a tuple, not {self.shape!r}")
            for d in self.shape:
                if not (isinstance(d, Expr) or (type(d) is int and d >= 0)):
                    raise TypeError(f"{d!r} in shape {self.shape!r} is neither a size nor a symbolic dim")

    @property
    def rank(self) -> int | None:
        return None if self.shape is None else len(self.shape)

    @property
    def dims(self) -> tuple[Dim, ...]:
        """The shape, for a type whose rank is known. Raises TypeError otherwise."""
        if self.shape is None:
            raise TypeError("the rank of this tensor is unknown")
        return self.shape

    @property
    def is_static(self) -> bool:
        return self.shape is not None and all(type(d) is int for d in self.shape)

    @property
    def static_shape(self) -> tuple[int, ...]:
        """The shape as integers. Raises TypeError when a dim is symbolic or the rank unknown."""
        if not self.is_static:
            raise TypeError(f"{self} is not static")
        return tuple(int(d) for d in self.dims)  # type: ignore[arg-type]

    @property
    def size(self) -> Dim:
        """The number of elements."""
        return product(self.dims)

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype}[*]"
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class SequenceType:
    element: Type

    def __str__(self) -> str:
        return f"seq<{self.element}>"


@dataclass(frozen=True, slots=True)
class OptionalType:
    element: Type

    def __str__(self) -> str:
        return f"optional<{self.element}>"


@dataclass(frozen=True, slots=True)
class MapType:
    key: DType
    value: Type

    def __str__(self) -> str:
        return f"map<{self.key}, {self.value}>"


@dataclass(frozen=True, slots=True)
class UnknownType:
    """The type of a value of which nothing is known; only opaque nodes may produce or take it."""

    def __str__(self) -> str:
        return "?"


Type = Union[TensorType, SequenceType, OptionalType, MapType, UnknownType]


def tensor(dtype: DType | str, *shape: Dim) -> TensorType:
    """Short for TensorType: `tensor("f32", 1, 3)`."""
    return TensorType(DTYPES[dtype] if isinstance(dtype, str) else dtype, tuple(shape))
