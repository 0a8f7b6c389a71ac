"""Tensor data of a model as NumPy arrays: views of the file's bytes, small unaligned ones apart."""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path

import numpy as np
from onnx import SparseTensorProto, TensorProto, numpy_helper

from opcel_compiler.frontend.limits import LIMITS, ModelError
from opcel_compiler.frontend.proto_types import code_of, dtype_from
from opcel_compiler.frontend.wire import MARK, Buffer
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.types import DType

_READ_WHOLE = 1 << 20
"""Files up to this size are read; larger ones are mapped."""

_LARGE = 1 << 16
"""Tensors of more bytes are never copied for the sake of alignment."""

_MAX_SPARSE = 1 << 28
"""The most elements of a sparse tensor."""


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped read-only when it is large. Raises OSError."""
    with path.open("rb") as f:
        size = os.fstat(f.fileno()).st_size
        if size <= _READ_WHOLE:
            return memoryview(f.read())
        return memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))


class Weights:
    """Decodes the tensors of one model. `data`: the model file's bytes; `folder`: where its external data may lie."""

    def __init__(self, data: Buffer | None, folder: Path | None) -> None:
        self._data = None if data is None else memoryview(data)
        self._folder = folder
        self._files: dict[str, memoryview] = {}

    def release(self) -> None:
        """Let go of the mapped pages that were read so far; views of them stay valid and read them anew."""
        for view in (self._data, *self._files.values()):
            if view is not None and isinstance(view.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                view.obj.madvise(mmap.MADV_DONTNEED)

    def constant(self, t: TensorProto, where: str) -> Constant:
        """The data of `t`. Raises ModelError, naming `where`, when it is absent, short, broken or outside."""
        dtype = dtype_from(t.data_type, where)
        shape = _shape(t, where)
        count = math.prod(shape)
        if t.data_location == TensorProto.EXTERNAL:
            raw = self._external(t, (count * dtype.bits + 7) // 8, where)
        elif t.HasField("raw_data"):
            raw = memoryview(t.raw_data)
        else:
            return Constant(_typed(t, dtype, shape, count, where), dtype)
        if dtype.kind == "s":
            raise ModelError(f"{where} stores strings as raw bytes, which ONNX does not allow")
        return Constant(_decode(raw, dtype, shape, count, where), dtype)

    def sparse(self, t: SparseTensorProto, where: str) -> Constant:
        """The data of a sparse tensor, made dense."""
        values = self.constant(t.values, where)
        indices = self.constant(t.indices, where).array
        shape = _dims(list(t.dims), where)
        if math.prod(shape) > _MAX_SPARSE:
            raise ModelError(f"{where}: the sparse tensor of shape {list(shape)} is too large to be made dense")
        out = np.zeros(shape, values.array.dtype)
        try:
            at = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, shape)
            out[at] = values.array
        except (IndexError, ValueError) as e:
            raise ModelError(f"{where}: the indices of the sparse tensor do not fit its shape {shape}: {e}") from None
        return Constant(out, values.dtype)

    def _external(self, t: TensorProto, need: int, where: str) -> memoryview:
        entries = {e.key: e.value for e in t.external_data}
        location = entries.get("location", "")
        offset, length = _number(entries, "offset", 0, where), _number(entries, "length", None, where)
        assert offset is not None
        if location == MARK and self._data is not None:
            data = self._data
        else:
            data = self.file(location, where)
        if length is None:
            length = need
        if length < need:
            raise ModelError(f"{where} needs {need} bytes, and its external data entry holds {length}")
        if offset + length > len(data):
            raise ModelError(
                f"{where}: bytes {offset} to {offset + length} are wanted from {location!r}, which has {len(data)};"
                " the file is truncated or belongs to another model"
            )
        return data[offset : offset + length]

    def file(self, location: str, where: str) -> memoryview:
        """The bytes of a file of external data. Raises ModelError, naming `where`, for one that may not be read."""
        if location in self._files:
            return self._files[location]
        if self._folder is None:
            raise ModelError(f"{where} lies in the external file {location!r}; load the model by its path")
        folder = self._folder.resolve()
        bad = not location or "\0" in location or "\\" in location
        if bad or Path(location).is_absolute() or ".." in Path(location).parts:
            raise ModelError(f"{where} names the file {location!r}; only files below the model's folder are read")
        path = (folder / location).resolve()
        if not path.is_relative_to(folder):
            raise ModelError(f"{where}: the external file {location!r} leads outside the model's folder")
        if not path.is_file():
            raise ModelError(f"{where}: the external file {location!r} is missing from the model's folder {folder}")
        try:
            data = map_file(path)
        except OSError as e:
            raise ModelError(f"{where}: the external file {location!r} cannot be read: {e.strerror}") from None
        self._files[location] = data
        return data


def _number(entries: dict[str, str], key: str, default: int | None, where: str) -> int | None:
    text = entries.get(key)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ModelError(f"{where}: the external data's {key} is {text!r}, not a number of bytes")
    return int(text)


def _shape(t: TensorProto, where: str) -> tuple[int, ...]:
    return _dims(list(t.dims), where)


def _dims(dims: list[int], where: str) -> tuple[int, ...]:
    if len(dims) > LIMITS.get().rank:
        raise ModelError(f"{where} has {len(dims)} dimensions; at most {LIMITS.get().rank} are supported")
    if any(d < 0 for d in dims) or math.prod(d or 1 for d in dims) >= 1 << 48:
        raise ModelError(f"{where} has the impossible shape {dims}")
    return tuple(dims)


def _decode(raw: memoryview, dtype: DType, shape: tuple[int, ...], count: int, where: str) -> np.ndarray:
    need = (count * dtype.bits + 7) // 8
    if len(raw) < need:
        raise ModelError(f"{where} needs {need} bytes for {dtype}{list(shape)}, and {len(raw)} are there")
    if dtype.bits < 8:
        return _unpack(np.frombuffer(raw, np.uint8, need), dtype, count).reshape(shape)
    array: np.ndarray = np.frombuffer(raw, np.uint8, need).view(dtype.numpy)
    # A large tensor stays where the file has it, aligned or not: a copy would hold it twice while the file is mapped.
    return (array if array.flags.aligned or need > _LARGE else array.copy()).reshape(shape)


def _unpack(packed: np.ndarray, dtype: DType, count: int) -> np.ndarray:
    """Elements of 2, 4 or 6 bits, low bits first, one an array element."""
    if 8 % dtype.bits:
        bits = np.unpackbits(packed, count=count * dtype.bits, bitorder="little").reshape(count, dtype.bits)
        fields = np.packbits(bits, axis=1, bitorder="little").reshape(-1)
    else:
        shifts = np.arange(8 // dtype.bits, dtype=np.uint8) * np.uint8(dtype.bits)
        fields = ((packed[:, None] >> shifts) & np.uint8((1 << dtype.bits) - 1)).reshape(-1)[:count]
    if dtype.kind == "f":
        floats: np.ndarray = fields.view(dtype.numpy)
        return floats
    if dtype.kind == "i":
        top = np.uint8(1 << (dtype.bits - 1))
        fields = (fields ^ top).astype(np.int8) - top.astype(np.int8)
    out: np.ndarray = fields.astype(dtype.numpy)
    return out


_FIELDS = {
    "float_data": "f32 c64",
    "double_data": "f64 c128",
    "int64_data": "i64",
    "uint64_data": "u32 u64",
    "string_data": "string",
}


def _typed(t: TensorProto, dtype: DType, shape: tuple[int, ...], count: int, where: str) -> np.ndarray:
    """Data held in the typed fields of a TensorProto."""
    field = next((f for f, names in _FIELDS.items() if dtype.name in names.split()), "int32_data")
    have, per = len(getattr(t, field)), 2 if dtype.kind == "c" else 1
    need = -(-count * dtype.bits // 8) if dtype.bits in (2, 4) else count * per
    if have < need:
        raise ModelError(f"{where} needs {need} numbers for {dtype}{list(shape)}, and {have} are there")
    if dtype.kind == "s":
        out = np.empty(count, np.object_)
        out[:] = [_text(s) for s in list(t.string_data)[:count]]
        return out.reshape(shape)
    try:
        return np.asarray(numpy_helper.to_array(t)).reshape(shape).astype(dtype.numpy, copy=False)
    except (ValueError, TypeError, OverflowError) as e:
        raise ModelError(f"{where} cannot be decoded: {e}") from None


def _text(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def to_proto(constant: Constant, name: str) -> TensorProto:
    """The TensorProto of `constant`, with its data in `raw_data` (strings in `string_data`)."""
    array = constant.array
    t = TensorProto(name=name, data_type=code_of(constant.dtype), dims=array.shape)
    if constant.dtype.kind == "s":
        t.string_data.extend(s if isinstance(s, bytes) else str(s).encode() for s in array.ravel())
        return t
    if constant.dtype.bits < 8:
        flat = np.ascontiguousarray(array).reshape(-1)
        fields = flat.view(np.uint8) if constant.dtype.kind == "f" else flat.astype(np.int8).view(np.uint8)
        bits = np.unpackbits(fields.reshape(-1, 1), axis=1, count=constant.dtype.bits, bitorder="little")
        t.raw_data = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
        return t
    t.raw_data = array.tobytes()
    return t


def restore(t: TensorProto, weights: Weights, where: str) -> None:
    """Put data that lies outside the message into it, so that the message stands alone."""
    if t.data_location == TensorProto.EXTERNAL:
        name = t.name
        t.CopyFrom(to_proto(weights.constant(t, where), name))
