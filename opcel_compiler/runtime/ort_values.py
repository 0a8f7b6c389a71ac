"""Runs an ONNX Runtime session on NumPy arrays, of those element types too that its own Python interface refuses.

These are bfloat16, the 8-bit floats, and types under 8 bits, of which arrays hold one a byte and its tensors several.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np

_CODES = {
    "bfloat16": 16, "float8_e4m3fn": 17, "float8_e4m3fnuz": 18, "float8_e5m2": 19, "float8_e5m2fnuz": 20, "uint4": 21,
    "int4": 22, "float4_e2m1fn": 23, "float8_e8m0fnu": 24, "uint2": 25, "int2": 26,
}  # fmt: skip
"""ONNX's numbers of the element types that NumPy itself has not."""
_NAMES = {code: name for name, code in _CODES.items()}
_BITS = {"uint4": 4, "int4": 4, "float4_e2m1fn": 4, "uint2": 2, "int2": 2}
_PLAIN = {
    f"tensor({name})"
    for name in "float uint8 int8 uint16 int16 int32 int64 string bool float16 double uint32 uint64".split()
}


def run_session(session: Any, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
    """The outputs, in order: arrays, and for other types lists, dicts and None. Raises what ONNX Runtime raises."""
    types = {v.name: v.type for v in session.get_outputs()}
    odd = any(isinstance(v, np.ndarray) and v.dtype.name in _CODES for v in feeds.values())
    if not odd and all(types[name] in _PLAIN or not types[name].startswith("tensor") for name in outputs):
        result: list[Any] = session.run(list(outputs), dict(feeds))
        return result
    binding = session.io_binding()
    kept = []  # ONNX Runtime reads the memory of what is bound
    for name, value in feeds.items():
        kept.append(_to_ort(value))
        binding.bind_ortvalue_input(name, kept[-1])
    for name in outputs:
        binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    return [_from_ort(value) for value in binding.get_outputs()]


def _to_ort(array: np.ndarray) -> Any:
    import onnxruntime

    name = array.dtype.name
    if name not in _CODES:
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
    raw = np.ascontiguousarray(array)
    if name not in _BITS:
        raw = raw.view(np.uint16 if raw.itemsize == 2 else np.uint8).reshape(array.shape)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, _CODES[name])
    packed = pack(raw.view(np.uint8), _BITS[name])
    value = onnxruntime.OrtValue.ortvalue_from_shape_and_type(list(array.shape), _CODES[name])
    if packed.size:
        ctypes.memmove(value.data_ptr(), packed.ctypes.data, packed.size)
    return value


def _from_ort(value: Any) -> Any:
    if not value.is_tensor() or value.element_type() not in _NAMES:
        return value.numpy()
    name = _NAMES[value.element_type()]
    dtype, shape = np.dtype(getattr(ml_dtypes, name)), tuple(value.shape())
    count, bits = math.prod(shape), _BITS.get(name)
    size = count * dtype.itemsize if bits is None else -(-count * bits // 8)
    raw = np.frombuffer(ctypes.string_at(value.data_ptr(), size) if size else b"", np.uint8)
    if bits is None:
        return raw.view(dtype).reshape(shape).copy()
    numbers = unpack(raw, bits, count)
    if name in ("int4", "int2"):
        half = 1 << (bits - 1)
        return ((numbers.astype(np.int8) ^ half) - half).astype(dtype).reshape(shape)
    return numbers.view(dtype).reshape(shape)


def pack(values: np.ndarray, bits: int) -> np.ndarray:
    """Bytes that hold the low `bits` of each of `values`, the first in the lowest bits."""
    each = 8 // bits
    flat = values.reshape(-1) & ((1 << bits) - 1)
    flat = np.concatenate([flat, np.zeros(-flat.size % each, np.uint8)]).reshape(-1, each)
    shifts = np.arange(each, dtype=np.uint8) * bits
    packed: np.ndarray = np.bitwise_or.reduce(flat << shifts, axis=1).astype(np.uint8)
    return packed


def unpack(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """The first `count` numbers of `bits` bits each in the bytes `packed`, one a byte."""
    shifts = np.arange(8 // bits, dtype=np.uint8) * bits
    flat: np.ndarray = ((packed[:, None] >> shifts) & ((1 << bits) - 1)).reshape(-1)[:count]
    return flat
