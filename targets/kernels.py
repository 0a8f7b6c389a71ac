"""The kernel table, csrc/kernels/table.yaml, read as data."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

TABLE = Path(__file__).resolve().parent.parent / "csrc" / "kernels" / "table.yaml"


@dataclass(frozen=True, slots=True)
class ElementwiseRow:
    """The C++ of an elementwise operator on vectors (None: there is none) and on single elements; element types as
    OperatorRow has them."""

    scalar: str
    vector: str | None = None
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """The kernel families of an operator, best first, and the element types of its first operand: names of
    types, or of groups of them in targets.cpu.constraints."""

    families: tuple[str, ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KernelTable:
    elementwise: Mapping[str, ElementwiseRow]
    operators: Mapping[str, OperatorRow]


@functools.cache
def kernel_table() -> KernelTable:
    """The table that ships with the compiler."""
    path = TABLE if TABLE.exists() else Path(__file__).parents[1] / "csrc" / "kernels" / "table.yaml"
    data = yaml.safe_load(path.read_text())
    return KernelTable(
        {
            n: ElementwiseRow(r["scalar"], r.get("vector"), _names(r.get("dtypes", [])))
            for n, r in data["elementwise"].items()
        },
        {n: OperatorRow(tuple(r["families"]), _names(r["dtypes"])) for n, r in data["operators"].items()},
    )


def _names(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
