"""Constant data and how its elements are stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from opcel_compiler.ir.types import DType, TensorType, dtype_of


@dataclass(frozen=True, slots=True)
class Dense:
    """Every element stored, row-major."""

    def __str__(self) -> str:
        return "dense"


@dataclass(frozen=True, slots=True)
class Sparse:
    """At most `n` of every `m` neighbours along `axis` are non-zero; the mask is shared by `granularity` elements
    of the next-inner axis (1: per element)."""

    n: int
    m: int
    axis: int
    granularity: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m or self.granularity < 1:
            raise ValueError(f"not an n:m sparsity: {self.n}:{self.m}, granularity {self.granularity}")

    def __str__(self) -> str:
        return f"sparse<{self.n}:{self.m}, axis={self.axis}, granularity={self.granularity}>"


@dataclass(frozen=True, slots=True)
class Grouped:
    """Integers of `dtype` with one scale (and optional zero point) for each `group` elements along `axis`."""

    dtype: DType
    group: int
    axis: int

    def __post_init__(self) -> None:
        if self.group < 1 or not self.dtype.is_integer:
            raise ValueError(f"not a grouped encoding: {self.dtype} by {self.group}")

    def __str__(self) -> str:
        return f"grouped<{self.dtype}, group={self.group}, axis={self.axis}>"


Encoding = Dense | Sparse | Grouped
DENSE = Dense()


class Constant:
    """Immutable tensor data: an array (possibly a memory map, never copied here) with its encoding.

    Two constants are equal when dtype, shape, encoding and bytes are; NaNs compare by their bits.
    """

    __slots__ = ("_digest", "array", "dtype", "encoding")

    def __init__(self, array: np.ndarray, dtype: DType | None = None, encoding: Encoding = DENSE) -> None:
        self.array = array.view()
        self.array.flags.writeable = False
        self.dtype = dtype_of(array) if dtype is None else dtype
        self.encoding = encoding
        self._digest: str | None = None

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.array.shape)

    @property
    def nbytes(self) -> int:
        return (int(self.array.size) * self.dtype.bits + 7) // 8

    @property
    def digest(self) -> str:
        """16 hex digits that name the content."""
        if self._digest is None:
            h = hashlib.sha256(f"{self.type}|{self.encoding}|".encode())
            if self.dtype.kind == "s":
                for s in self.array.ravel():
                    data = s if isinstance(s, bytes) else str(s).encode()
                    h.update(len(data).to_bytes(8, "little") + data)
            else:
                h.update(np.ascontiguousarray(self.array).reshape(-1).view(np.uint8).data)
            self._digest = h.hexdigest()[:16]
        return self._digest

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constant):
            return NotImplemented
        if self is other:
            return True
        return self.type == other.type and self.encoding == other.encoding and self.digest == other.digest

    def __hash__(self) -> int:
        return hash((self.type, self.digest))

    def __repr__(self) -> str:
        return f"Constant({self.type}, {self.digest})"
