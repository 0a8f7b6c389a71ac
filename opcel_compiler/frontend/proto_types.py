"""ONNX type messages and our types, both ways."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping
from typing import Union

from onnx import TensorProto, TypeProto

from opcel_compiler.frontend.limits import LIMITS, ModelError
from opcel_compiler.ir.dims import Dim, Expr, Symbol, as_symbol, symbol
from opcel_compiler.ir.types import (
    DTYPES,
    DType,
    MapType,
    OptionalType,
    SequenceType,
    TensorType,
    Type,
    UnknownType,
)

_NAMES = {
    "f32": TensorProto.FLOAT, "u8": TensorProto.UINT8, "i8": TensorProto.INT8, "u16": TensorProto.UINT16,
    "i16": TensorProto.INT16, "i32": TensorProto.INT32, "i64": TensorProto.INT64, "string": TensorProto.STRING,
    "bool": TensorProto.BOOL, "f16": TensorProto.FLOAT16, "f64": TensorProto.DOUBLE, "u32": TensorProto.UINT32,
    "u64": TensorProto.UINT64, "c64": TensorProto.COMPLEX64, "c128": TensorProto.COMPLEX128,
    "bf16": TensorProto.BFLOAT16, "f8e4m3fn": TensorProto.FLOAT8E4M3FN, "f8e4m3fnuz": TensorProto.FLOAT8E4M3FNUZ,
    "f8e5m2": TensorProto.FLOAT8E5M2, "f8e5m2fnuz": TensorProto.FLOAT8E5M2FNUZ, "u4": TensorProto.UINT4,
    "i4": TensorProto.INT4, "f4e2m1": TensorProto.FLOAT4E2M1, "f8e8m0": 24, "u2": 25, "i2": 26, "f6e2m3": 27,
    "f6e3m2": 28,
}  # fmt: skip
_CODES: dict[str, int] = {name: int(code) for name, code in _NAMES.items()}
_DTYPES: dict[int, DType] = {code: DTYPES[name] for name, code in _CODES.items()}


def code_of(dtype: DType) -> int:
    """The TensorProto.DataType number of an element type."""
    return _CODES[dtype.name]


def dtype_from(code: int, where: str) -> DType:
    """The element type of a TensorProto.DataType number. Raises ModelError, naming `where`, for an unknown one."""
    found = _DTYPES.get(code)
    if found is None:
        raise ModelError(f"{where} has the element type {code}, which this version does not know")
    return found


DimValue = Union[int, tuple[int, Union[int, None]]]
"""What a user gives a dimension: its size, or the (least, largest) size it may have, None meaning any."""


class Symbols:
    """The symbols of one model: each name of a dimension in the file becomes one symbol with a printable name.

    `limits` narrows the ranges of symbols by their printable names. `given` binds dimensions or narrows their ranges,
    by the file's names or by printable ones.
    """

    def __init__(self, limits: dict[str, Symbol] | None = None, given: Mapping[str, DimValue] | None = None) -> None:
        self.limits = limits or {}
        self.given = given or {}
        self.used: set[str] = set()
        self.originals: dict[str, str] = {}
        self._by_original: dict[str, Dim] = {}
        self._fresh = 0
        self._iterations = 0

    def _make(self, name: str, original: str = "") -> Dim:
        key = original if original in self.given else name
        value = self.given.get(key, (0, None))
        self.used.add(key)
        if isinstance(value, int):
            return value
        found = self.limits.get(name)
        return Expr((((found,), 1),)) if found else symbol(name, *value)

    def _free(self, base: str) -> str:
        """A name that the text form can hold and no symbol has, as close to `base` as that allows."""
        clean = "".join(c if c.isascii() and c.isalnum() else "_" for c in base)
        if not clean.isidentifier() or keyword.iskeyword(clean) or clean in ("min", "max"):
            clean = f"d_{clean}"
        name, n = clean, 1
        while name in self.originals:
            n += 1
            name = f"{clean}_{n}"
        return name

    def named(self, original: str) -> Dim:
        """The symbol for the file's dimension name `original`."""
        if original not in self._by_original:
            name = self._free(original)
            self.originals[name] = original
            self._by_original[original] = self._make(name, original)
        return self._by_original[original]

    def iteration(self, last: int | None) -> Dim:
        """A symbol for the number of a loop's iteration, from 0 to `last` where there is a limit."""
        self._iterations += 1
        name = f"i{self._iterations}"
        while name in self.originals:
            name += "_"
        self.originals[name] = ""
        return symbol(name, 0, last)

    def late(self, base: str, lo: int, hi: int | None) -> Dim:
        """A symbol in [lo, hi] whose value is read from data, named after `base`."""
        name = self._free(base)
        self.originals[name] = ""
        return symbol(name, lo, hi)

    def fresh(self) -> Dim:
        """A symbol for a dimension of which the file says nothing."""
        while True:
            name = f"d{self._fresh}"
            self._fresh += 1
            if name not in self.originals:
                self.originals[name] = ""
                return self._make(name)


def type_from(proto: TypeProto, dim_from: Callable[[TypeProto], tuple[Dim, ...] | None], where: str) -> Type:
    """Our type for a TypeProto; `dim_from` reads the shape of a tensor type. Raises ModelError naming `where`."""
    kind = proto.WhichOneof("value")
    if kind == "tensor_type":
        code = proto.tensor_type.elem_type
        return UnknownType() if code == 0 else TensorType(dtype_from(code, where), dim_from(proto))
    if kind == "sequence_type":
        return SequenceType(type_from(proto.sequence_type.elem_type, dim_from, where))
    if kind == "optional_type":
        return OptionalType(type_from(proto.optional_type.elem_type, dim_from, where))
    if kind == "map_type":
        key = dtype_from(proto.map_type.key_type, where)
        return MapType(key, type_from(proto.map_type.value_type, dim_from, where))
    return UnknownType()


def file_shape(symbols: Symbols, where: str) -> Callable[[TypeProto], tuple[Dim, ...] | None]:
    """Reads shapes as a file writes them: names become symbols, unknown dims fresh symbols."""

    def read(proto: TypeProto) -> tuple[Dim, ...] | None:
        if not proto.tensor_type.HasField("shape"):
            return None
        rank = len(proto.tensor_type.shape.dim)
        if rank > LIMITS.get().rank:
            raise ModelError(f"{where} has {rank} dimensions; at most {LIMITS.get().rank} are supported")
        out: list[Dim] = []
        for d in proto.tensor_type.shape.dim:
            if d.HasField("dim_value") and d.dim_value >= 0:
                out.append(d.dim_value)
            else:
                out.append(symbols.named(d.dim_param) if d.dim_param else symbols.fresh())
        return tuple(out)

    return read


def type_to(type: Type, dim_name: Callable[[Dim], str] = str) -> TypeProto:
    """The TypeProto of `type`; a dim that is no integer is written as the parameter `dim_name(dim)` ("": left open)."""
    proto = TypeProto()
    if isinstance(type, TensorType):
        proto.tensor_type.elem_type = code_of(type.dtype)
        if type.shape is not None:
            proto.tensor_type.shape.SetInParent()
            for d in type.shape:
                entry = proto.tensor_type.shape.dim.add()
                if isinstance(d, int):
                    entry.dim_value = d
                elif name := dim_name(d):
                    entry.dim_param = name
    elif isinstance(type, SequenceType):
        proto.sequence_type.elem_type.CopyFrom(type_to(type.element, dim_name))
    elif isinstance(type, OptionalType):
        proto.optional_type.elem_type.CopyFrom(type_to(type.element, dim_name))
    elif isinstance(type, MapType):
        proto.map_type.key_type = code_of(type.key)
        proto.map_type.value_type.CopyFrom(type_to(type.value, dim_name))
    return proto


def plain_symbol(dim: Dim) -> str:
    """The name of the symbol that `dim` is, or ""."""
    found = as_symbol(dim)
    return found.name if found else ""
