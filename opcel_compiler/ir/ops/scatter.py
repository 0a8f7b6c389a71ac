"""Operators that write updates into a copy of a tensor, at places given by indices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import at_least, check_axis, present, quiet, same_dtype, tensor_of, unify
from opcel_compiler.ir.types import TensorType, Type

REDUCTIONS = ("none", "add", "mul", "min", "max")
"""How an update joins what lies at its place. With none, of several updates of one place the last in row-major order
of `indices` stays; with all others they are joined in that order."""

_COMBINE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "none": lambda old, new: new, "add": np.add, "mul": np.multiply, "min": np.minimum, "max": np.maximum,
}  # fmt: skip
_REDUCTION = AttrDef("reduction", "str", "none")


def _operands(operands: Operands, attrs: Attrs) -> tuple[TensorType, TensorType, TensorType]:
    x, indices, updates = tensor_of(operands, 0), tensor_of(operands, 1, "iu"), tensor_of(operands, 2)
    same_dtype((x, updates))
    if attrs["reduction"] not in REDUCTIONS:
        raise InferenceError(f"reduction={attrs['reduction']!r} is none of {', '.join(REDUCTIONS)}")
    return x, indices, updates


def _infer_elements(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, indices, updates = _operands(operands, attrs)
    shapes = [t.shape for t in (x, indices, updates) if t.shape is not None]
    for shape in shapes:
        check_axis(attrs["axis"], len(shape))
        if len(shape) != len(shapes[0]):
            raise InferenceError(f"the ranks of x, indices and updates differ: {x}, {indices}, {updates}")
    if indices.shape is not None and updates.shape is not None:
        for i, (a, b) in enumerate(zip(indices.shape, updates.shape, strict=True)):
            unify(a, b, f"indices and updates differ along axis {i}")
    if indices.shape is not None and x.shape is not None:
        for i, (a, b) in enumerate(zip(x.shape, indices.shape, strict=True)):
            if i != attrs["axis"]:
                at_least(a - b, 0, f"along axis {i}, the size of x less that of indices")
    return (x,)


@quiet
def _scatter_elements(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, indices, updates = present(arrays)
    out, axis, combine = x.copy(), attrs["axis"], _COMBINE[attrs["reduction"]]
    for place in np.ndindex(*indices.shape):
        to = (*place[:axis], int(indices[place]), *place[axis + 1 :])
        out[to] = combine(out[to], updates[place])
    return (out,)


define(
    "scatter_elements",
    "x, where each update has been joined to the element at its own place but for indices[place] along axis",
    "x indices updates",
    _infer_elements,
    _scatter_elements,
    (AttrDef("axis", "int"), _REDUCTION),
    traits="movement",
)


def _infer_nd(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, indices, updates = _operands(operands, attrs)
    if x.shape is None or indices.shape is None or updates.shape is None:
        return (x,)
    if not indices.shape:
        raise InferenceError("indices has no axis of index vectors")
    depth = indices.shape[-1]
    if not isinstance(depth, int):
        return (x,)
    if depth > len(x.shape):
        raise InferenceError(f"indices of {depth} entries do not fit {x}")
    want = indices.shape[:-1] + x.shape[depth:]
    if len(want) != len(updates.shape):
        raise InferenceError(f"updates of {updates} do not fit indices of {indices} into {x}")
    for i, (a, b) in enumerate(zip(want, updates.shape, strict=True)):
        unify(a, b, f"axis {i} of updates does not fit indices and x")
    return (x,)


@quiet
def _scatter_nd(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, indices, updates = present(arrays)
    out, combine = x.copy(), _COMBINE[attrs["reduction"]]
    for place in np.ndindex(*indices.shape[:-1]):
        to = tuple(int(i) for i in indices[place])
        out[to] = combine(out[to], updates[place])
    return (out,)


define(
    "scatter_nd",
    "x, where each slice of updates has been joined to the slice at the index vector in the last axis of indices",
    "x indices updates",
    _infer_nd,
    _scatter_nd,
    (_REDUCTION,),
    traits="movement",
)
