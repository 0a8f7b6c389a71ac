"""What an operator of the IR is: one definition from which checks, inference, evaluation and cost all derive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.dims import Dim, Expr, as_symbol, product
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.types import DType, MapType, OptionalType, SequenceType, TensorType, Type, UnknownType

Attrs = Mapping[str, Any]
Operands = Sequence["Type | None"]
Arrays = Sequence["np.ndarray | None"]

TRAITS = frozenset({"elementwise", "commutative", "contraction", "reduction", "row", "movement", "control", "opaque"})
"""elementwise: result i depends on element i of each operand, after broadcasting; row: works on whole rows of `axis`;
movement: only moves elements; control: has regions; opaque: a barrier to passes."""


class InferenceError(OpcelError):
    """The operands or attributes break the operator's contract; the text says how."""


@dataclass(frozen=True)
class AttrDef:
    """An attribute. `kind` is int, float, bool, str, bytes, dtype, type, constant, ints, floats, strs, dims, types,
    symbols (plain symbols that the node itself makes)."""

    name: str
    kind: str
    default: Any = ...

    def check(self, value: Any) -> str | None:
        """Why `value` is not of this kind, or None."""
        if self.default is None and value is None:
            return None
        if not _KINDS[self.kind](value):
            return f"attribute {self.name}={value!r} is not of kind {self.kind}"
        return None


def _is_dim(v: Any) -> bool:
    return type(v) is int or isinstance(v, Expr)


def _all(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, tuple) and all(map(test, v))


def _is_type(v: Any) -> bool:
    return isinstance(v, (TensorType, SequenceType, OptionalType, MapType, UnknownType))


_KINDS: dict[str, Callable[[Any], bool]] = {
    "int": lambda v: type(v) is int,
    "float": lambda v: type(v) in (int, float),
    "bool": lambda v: type(v) is bool,
    "str": lambda v: isinstance(v, str),
    "bytes": lambda v: isinstance(v, bytes),
    "dtype": lambda v: isinstance(v, DType),
    "type": _is_type,
    "constant": lambda v: isinstance(v, Constant),
    "ints": _all(lambda v: type(v) is int),
    "floats": _all(lambda v: type(v) in (int, float)),
    "strs": _all(lambda v: isinstance(v, str)),
    "dims": _all(_is_dim),
    "symbols": _all(lambda v: isinstance(v, Expr) and as_symbol(v) is not None),
    "types": _all(_is_type),
}


@dataclass(frozen=True)
class OpDef:
    """An operator.

    `operands`: names; a trailing `?` marks an optional operand, a trailing `*` a variadic tail.
    `infer(types, attrs)` gives the result types or raises InferenceError. `evaluate(arrays, attrs)` computes the
    results with NumPy; None when only its regions or an outside engine can. `flops(types, results, attrs)` counts
    multiplies and adds, one each. `results`: how many there are; -1 means any number.
    """

    name: str
    summary: str
    operands: tuple[str, ...]
    attrs: Mapping[str, AttrDef]
    results: int
    infer: Callable[[Operands, Attrs], tuple[Type, ...]]
    evaluate: Callable[[Arrays, Attrs], tuple[np.ndarray, ...]] | None
    flops: Callable[[Operands, Sequence[Type], Attrs], Dim]
    traits: frozenset[str]

    def complete(self, given: Attrs) -> dict[str, Any]:
        """`given` with defaults filled in, in definition order. Raises InferenceError for a bad attribute."""
        if "opaque" in self.traits:
            return dict(given)
        for name in given:
            if name not in self.attrs:
                raise InferenceError(f"{self.name} has no attribute {name!r}; it has {', '.join(self.attrs) or 'none'}")
        out = {}
        for name, d in self.attrs.items():
            value = given.get(name, d.default)
            if value is ...:
                raise InferenceError(f"{self.name} needs the attribute {name!r}")
            if reason := d.check(value):
                raise InferenceError(f"{self.name}: {reason}")
            out[name] = value
        return out

    def check_operands(self, operands: Sequence[object | None]) -> None:
        """Raises InferenceError when the number or presence of operands is wrong."""
        variadic = bool(self.operands) and self.operands[-1].endswith("*")
        fixed = self.operands[:-1] if variadic else self.operands
        if len(operands) > len(fixed) and not variadic:
            raise InferenceError(f"{self.name} takes at most {len(fixed)} operands, not {len(operands)}")
        for i, name in enumerate(fixed):
            if not name.endswith("?") and (i >= len(operands) or operands[i] is None):
                raise InferenceError(f"{self.name} needs its operand {name!r}")


_REGISTRY: dict[str, OpDef] = {}


def define(
    name: str,
    summary: str,
    operands: str,
    infer: Callable[[Operands, Attrs], tuple[Type, ...]],
    evaluate: Callable[[Arrays, Attrs], tuple[np.ndarray, ...]] | None = None,
    attrs: Sequence[AttrDef] = (),
    results: int = 1,
    flops: Callable[[Operands, Sequence[Type], Attrs], Dim] | None = None,
    traits: str = "",
) -> OpDef:
    """Register an operator. `operands` and `traits` are space-separated. Raises ValueError for a name taken twice."""
    if name in _REGISTRY:
        raise ValueError(f"operator {name!r} is defined twice")
    kinds = frozenset(traits.split())
    if unknown := kinds - TRAITS:
        raise ValueError(f"operator {name!r}: unknown traits {sorted(unknown)}")
    flops = flops or (_one_per_result if "elementwise" in kinds else lambda *_: 0)
    names = {a.name: a for a in attrs}
    op = OpDef(name, summary, tuple(operands.split()), names, results, infer, evaluate, flops, kinds)
    _REGISTRY[name] = op
    return op


def _one_per_result(_: Operands, results: Sequence[Type], __: Attrs) -> Dim:
    out: Dim = 0
    for t in results:
        if isinstance(t, TensorType) and t.shape is not None:
            out = out + product(t.shape)
    return out


def op_def(name: str) -> OpDef:
    """The definition of operator `name`. Raises KeyError."""
    import opcel_compiler.ir.ops  # noqa: F401  the definitions register themselves

    return _REGISTRY[name]


def all_ops() -> dict[str, OpDef]:
    """Every operator by name, in definition order."""
    import opcel_compiler.ir.ops  # noqa: F401

    return dict(_REGISTRY)
