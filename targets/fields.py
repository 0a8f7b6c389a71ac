"""The kinds of value that a target description holds, and how each is read from YAML.

A dataclass field made with one of the functions at the end is read from a description by its `Kind`.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any

from opcel_compiler.ir.types import DTYPES

_DECIMAL: dict[str, float] = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY: dict[str, float] = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_BYTES = {f"{p}B": f for p, f in (_DECIMAL | _BINARY).items()}
UNITS: dict[str, dict[str, float]] = {
    "size": _BYTES,
    "bandwidth": {f"{unit}/s": f for unit, f in _BYTES.items()},
    "frequency": {"Hz": 1, "kHz": 1e3, "MHz": 1e6, "GHz": 1e9},
    "duration": {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "power": {"W": 1, "mW": 1e-3},
    "throughput": {f"{p}op/s": f for p, f in _DECIMAL.items()},
}
"""For each quantity its units, and the factor of each to the base unit: bytes, bytes/s, Hz, s, W, operations/s."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """`read` turns a YAML scalar into the field's value, and raises ValueError with the reason when it cannot."""

    read: Callable[[object], object]


@dataclass(frozen=True, slots=True)
class Many:
    """A YAML list of scalars, read as a tuple; `check`, when given, raises ValueError on the whole tuple."""

    item: Callable[[object], object]
    check: Callable[[tuple[Any, ...]], None] | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """A YAML mapping, read as a dataclass."""

    type: type


@dataclass(frozen=True, slots=True)
class Records:
    """A YAML mapping from names to mappings, read as a tuple of dataclasses whose `name` is the key."""

    type: type


Kind = Scalar | Many | Record | Records


def read_text(value: object) -> str:
    if isinstance(value, datetime.date):
        return value.isoformat()
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not a text")
    return value


def read_dtype(value: object) -> str:
    if value not in DTYPES:
        raise ValueError(f"{value!r} is no element type; those are {', '.join(DTYPES)}")
    return str(value)


def read_date(value: object) -> str:
    text = read_text(value)
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"{text!r} is not a date; write it as 2025-01-31") from None


def _read_number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{value!r} is not a number")
    return _positive(value, value)


def _positive(number: float, written: object) -> float:
    if not abs(number) <= sys.float_info.max:
        raise ValueError(f"{written!r} is not a finite number")
    if number <= 0:
        raise ValueError(f"{written!r} is not positive")
    return number


def read_count(value: object) -> int:
    number = _read_number(value)
    if not isinstance(number, int):
        raise ValueError(f"{value!r} is not a whole number")
    return number


def _read_flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _reader_of_choice(choices: tuple[str, ...]) -> Callable[[object], str]:
    def read(value: object) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return str(value)

    return read


def _reader_of_quantity(quantity: str) -> Callable[[object], float]:
    units = UNITS[quantity]
    example = {"size": "32 KiB", "bandwidth": "24 GB/s", "frequency": "3.7 GHz", "duration": "100 ns", "power": "360 W"}
    hint = f"write a {quantity} with its unit, as {example.get(quantity, f'100 {list(units)[-1]}')}"

    def read(value: object) -> float:
        if not isinstance(value, str):
            raise ValueError(f"{value!r} has no unit; {hint}")
        match = re.fullmatch(r"\s*(\S+)\s+(\S+)\s*", value)
        if match is None:
            raise ValueError(f"{value!r} is not a number and a unit; {hint}")
        written, unit = match.groups()
        if unit not in units:
            raise ValueError(f"{unit!r} is no unit of {quantity}; those are {', '.join(units)}")
        try:
            number = _positive(float(written) * units[unit], value)
        except ValueError as error:
            if "float" in str(error):
                raise ValueError(f"{written!r} is not a number; {hint}") from None
            raise
        if quantity != "size":
            return number
        if number != int(number):
            raise ValueError(f"{value!r} is not a whole number of bytes")
        return int(number)

    return read


def _field(kind: Kind, default: Any) -> Any:
    return field(metadata={"kind": kind}, default=default)


def text(default: Any = MISSING) -> Any:
    return _field(Scalar(read_text), default)


def date() -> Any:
    return _field(Scalar(read_date), MISSING)


def flag(default: bool) -> Any:
    return _field(Scalar(_read_flag), default)


def count(default: Any = MISSING) -> Any:
    """A positive whole number."""
    return _field(Scalar(read_count), default)


def number(default: Any = MISSING) -> Any:
    """A positive, finite number."""
    return _field(Scalar(_read_number), default)


def choice(*choices: str, default: Any = MISSING) -> Any:
    return _field(Scalar(_reader_of_choice(choices)), default)


def quantity(name: str, default: Any = MISSING) -> Any:
    """A positive number with a unit of UNITS[name], held in the base unit; sizes are int, all others float."""
    return _field(Scalar(_reader_of_quantity(name)), default)


def dtype(default: Any = MISSING) -> Any:
    """The name of an element type, as the IR writes it."""
    return _field(Scalar(read_dtype), default)


def many(
    item: Callable[[object], object], default: Any = MISSING, check: Callable[[tuple[Any, ...]], None] | None = None
) -> Any:
    return _field(Many(item, check), default)


def record(type: type, default: Any = MISSING) -> Any:
    return _field(Record(type), default)


def records(type: type, default: Any = MISSING) -> Any:
    return _field(Records(type), default)
