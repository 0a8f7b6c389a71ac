"""Reading a model file without its weights: large `raw_data` fields are located, cut out, and left where they are.

Only the protobuf wire format is known here: a message is a sequence of (field number, wire type, payload), and wire
type 2 is a length followed by that many bytes. The field numbers are those of ONNX's published schema.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

Buffer = Union[bytes, memoryview]

MIN_CUT = 4096
"""`raw_data` of fewer bytes stays in the message."""

MARK = "*opcel-span*"
"""The `location` of a tensor whose bytes were cut out; its `offset` and `length` refer to the model file itself."""

_MAX_DEPTH = 90

# message: {field: the message inside it}
_NESTED = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_RAW_DATA = 9


class WireError(ValueError):
    """The bytes are not a protobuf message."""


@dataclass(frozen=True)
class Span:
    offset: int
    length: int


def _varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise WireError("a number runs past the end of its message")


def _encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _field(number: int, payload: bytes) -> bytes:
    return _encode_varint(number << 3 | 2) + _encode_varint(len(payload)) + payload


def _external(span: Span) -> bytes:
    """The TensorProto fields external_data (13) and data_location (14) that point at `span`."""
    out = b""
    for key, text in (("location", MARK), ("offset", str(span.offset)), ("length", str(span.length))):
        out += _field(13, _field(1, key.encode()) + _field(2, text.encode()))
    return out + _encode_varint(14 << 3) + b"\x01"


def without_weights(data: Buffer) -> bytes:
    """The ModelProto message `data` with each large `raw_data` replaced by an external reference marked `MARK`.

    Raises WireError when the bytes are no well-formed message.
    """
    view = memoryview(data)
    return b"".join(_strip(view, 0, len(view), "model", 0))


def _strip(data: memoryview, at: int, end: int, kind: str, depth: int) -> list[Buffer]:
    """The pieces of the message data[at:end]; consecutive bytes that stay are one piece."""
    pieces: list[Buffer] = []
    tail = b""
    kept = at
    nested = _NESTED.get(kind, {})
    while at < end:
        start = at
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(data, at, end)
            continue
        if wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise WireError("a field runs past the end of its message")
            continue
        if wire != 2 or number == 0:
            raise WireError(f"wire type {wire} of field {number} is not used by ONNX")
        size, at = _varint(data, at, end)
        if at + size > end:
            raise WireError(f"field {number} of the {kind} needs {size} bytes, and {end - at} are left")
        if size >= MIN_CUT:
            if kind == "tensor" and number == _RAW_DATA:
                pieces.append(data[kept:start])
                tail = _external(Span(at, size))  # at the end, as the last data_location is the one that counts
                kept = at + size
            elif number in nested and depth < _MAX_DEPTH:
                inner = _strip(data, at, at + size, nested[number], depth + 1)
                total = sum(map(len, inner))
                if total != size:
                    pieces += [data[kept:start], _encode_varint(key), _encode_varint(total), *inner]
                    kept = at + size
        at += size
    pieces += [data[kept:end], tail]
    return pieces
