"""Operators that the compiler itself does not define: opaque ones, and bodies made by fusion."""

from __future__ import annotations

from collections.abc import Callable

from opcel_compiler.ir.opdef import AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.types import Type


def _not_inferred(what: str) -> Callable[[Operands, Attrs], tuple[Type, ...]]:
    def infer(_: Operands, __: Attrs) -> tuple[Type, ...]:
        raise InferenceError(f"the types of {what} are given when it is made")

    return infer


BODIES = frozenset({"fused", "external"})
"""The operators whose one region takes the operands and returns the results."""

define(
    "fused",
    "One region computed as a whole; its inputs are the operands, its outputs the results",
    "xs*",
    _not_inferred("a fused body"),
    results=-1,
    traits="control",
)

define(
    "foreign",
    "An operator of another domain or without a definition, kept as the node that the model holds",
    "xs*",
    _not_inferred("a foreign operator"),
    attrs=(AttrDef("domain", "str"), AttrDef("op_type", "str"), AttrDef("opset", "int"), AttrDef("node", "bytes")),
    results=-1,
    traits="opaque control",
)

define(
    "external",
    "A region that another engine runs, with the reason why; made by placement",
    "xs*",
    _not_inferred("an external region"),
    attrs=(AttrDef("reason", "str"),),
    results=-1,
    traits="opaque control",
)
