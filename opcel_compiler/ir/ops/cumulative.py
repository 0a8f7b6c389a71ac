"""Running sums and products."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import accumulator, array_at, check_axis, quiet, tensor_of, widen
from opcel_compiler.ir.types import Type

KINDS = ("sum", "product")


def _infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x = tensor_of(operands, 0, "fiu")
    if attrs["kind"] not in KINDS:
        raise InferenceError(f"kind={attrs['kind']!r} is none of {', '.join(KINDS)}")
    if x.shape is not None:
        check_axis(attrs["axis"], len(x.shape))
    return (x,)


@quiet
def _cumulate(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, axis = array_at(arrays, 0), attrs["axis"]
    wide = widen(x)
    if attrs["reverse"]:
        wide = np.flip(wide, axis)
    fn = np.cumsum if attrs["kind"] == "sum" else np.cumprod
    out = np.asarray(fn(wide, axis, dtype=accumulator(wide.dtype)))
    if attrs["exclusive"]:
        first = np.full_like(np.take(out, [0], axis) if out.shape[axis] else out, attrs["kind"] != "sum")
        out = np.concatenate([first, np.delete(out, -1, axis)], axis) if out.shape[axis] else out
    if attrs["reverse"]:
        out = np.flip(out, axis)
    return (out.astype(x.dtype),)


define(
    "cumulate",
    "The sum or product of the elements up to each along axis; without it if exclusive, from the end if reverse",
    "x",
    _infer,
    _cumulate,
    (
        AttrDef("axis", "int"), AttrDef("kind", "str", "sum"), AttrDef("exclusive", "bool", False),
        AttrDef("reverse", "bool", False),
    ),
)  # fmt: skip
