"""Sequences of tensors. Importing resolves what takes them apart; what is left of them only other engines can take."""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import present, tensor_of
from opcel_compiler.ir.types import SequenceType, TensorType, Type


def _infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    types = [tensor_of(operands, i) for i in range(len(operands))]
    if any(t.dtype != attrs["dtype"] for t in types):
        raise InferenceError(f"the elements are {', '.join(map(str, types))}, not all of {attrs['dtype']}")
    if attrs["stacked"]:
        if len(types) != 1 or not types[0].shape:
            raise InferenceError("stacked elements are one tensor with an axis for them")
        return (SequenceType(TensorType(attrs["dtype"], types[0].shape[1:])),)
    same = bool(types) and all(t == types[0] for t in types)
    return (SequenceType(types[0] if same else TensorType(attrs["dtype"], None)),)


def _evaluate(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    parts = present(arrays)
    return (cast(Any, list(parts[0]) if attrs["stacked"] else list(parts)),)


define(
    "sequence",
    "The sequence of the operands, or, if `stacked`, of the parts of the one operand along its first axis",
    "xs*",
    _infer,
    _evaluate,
    (AttrDef("dtype", "dtype"), AttrDef("stacked", "bool", False)),
)
