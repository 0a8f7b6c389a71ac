"""Operators that only move elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from opcel_compiler.ir.dims import Dim, bounds, product
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import (
    array_at,
    at_least,
    broadcasts_to,
    check_axis,
    ints,
    may_equal,
    optional_array,
    optional_tensor,
    present,
    same_dtype,
    tensor_of,
    unify,
    unknown_rank,
)
from opcel_compiler.ir.types import TensorType, Type

_SHAPE = AttrDef("shape", "dims")
_AXIS = AttrDef("axis", "int")


def _check_sizes(name: str, sizes: tuple[Dim, ...]) -> None:
    for d in sizes:
        at_least(d, 0, f"a size of {name}={sizes}")


def _infer_reshape(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, shape = tensor_of(operands, 0), attrs["shape"]
    _check_sizes("shape", shape)
    if x.shape is not None and not may_equal(product(x.shape), product(shape)):
        raise InferenceError(f"{x} has {product(x.shape)} elements, shape={shape} has {product(shape)}")
    return (TensorType(x.dtype, shape),)


define(
    "reshape",
    "The same elements in row-major order under another shape",
    "x",
    _infer_reshape,
    lambda arrays, attrs: (array_at(arrays, 0).reshape(ints(attrs, "shape")),),
    (_SHAPE,),
    traits="movement",
)


def _infer_transpose(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, perm = tensor_of(operands, 0), attrs["perm"]
    if sorted(perm) != list(range(len(perm))):
        raise InferenceError(f"perm={perm} is no permutation")
    if x.shape is None:
        return unknown_rank(x.dtype)
    if len(perm) != len(x.shape):
        raise InferenceError(f"perm={perm} does not fit {x}")
    return (TensorType(x.dtype, tuple(x.shape[p] for p in perm)),)


define(
    "transpose",
    "Axis i of the result is axis perm[i] of x",
    "x",
    _infer_transpose,
    lambda arrays, attrs: (array_at(arrays, 0).transpose(attrs["perm"]),),
    (AttrDef("perm", "ints"),),
    traits="movement",
)


def _infer_expand(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, shape = tensor_of(operands, 0), attrs["shape"]
    _check_sizes("shape", shape)
    if x.shape is not None:
        broadcasts_to(x.shape, shape, "expand")
    return (TensorType(x.dtype, shape),)


define(
    "expand",
    "x broadcast to exactly `shape`",
    "x",
    _infer_expand,
    lambda arrays, attrs: (np.broadcast_to(array_at(arrays, 0), ints(attrs, "shape")),),
    (_SHAPE,),
    traits="movement",
)


def _infer_slice(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x = tensor_of(operands, 0)
    starts, sizes, steps = attrs["starts"], attrs["sizes"], attrs["steps"]
    if not len(starts) == len(sizes) == len(steps) == (len(starts) if x.shape is None else len(x.shape)):
        raise InferenceError(f"starts, sizes and steps need one entry for each axis of {x}")
    if 0 in steps:
        raise InferenceError("a step is 0")
    _check_sizes("sizes", sizes)
    for i, d in enumerate(x.shape or ()):
        low = bounds(sizes[i])[0]
        if low is not None and low > 0:
            last = starts[i] + (sizes[i] - 1) * steps[i]
            for edge in (starts[i], last):
                at_least(edge, 0, f"an index along axis {i}")
                at_least(d - 1 - edge, 0, f"along axis {i}, the last index of x less an index")
        elif sizes[i] != 0 and steps[i] == 1:
            at_least(starts[i], 0, f"the start along axis {i}")
            at_least(d - starts[i] - sizes[i], 0, f"along axis {i}, the size of x less the end")
    return (TensorType(x.dtype, sizes),)


def _slice(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, index = array_at(arrays, 0), []
    cuts = (ints(attrs, name) for name in ("starts", "sizes", "steps"))
    for n, start, size, step in zip(x.shape, *cuts, strict=True):
        last = start + (size - 1) * step
        if size and not (0 <= start < n and 0 <= last < n):
            raise ValueError(f"a slice from {start} to {last} does not fit an axis of size {n}")
        stop = last + (1 if step > 0 else -1)
        index.append(slice(start, None if stop < 0 else stop, step) if size else slice(0, 0))
    return (x[tuple(index)],)


define(
    "slice",
    "Element i along an axis is element start + i step of x",
    "x",
    _infer_slice,
    _slice,
    (AttrDef("starts", "dims"), AttrDef("sizes", "dims"), AttrDef("steps", "dims")),
    traits="movement",
)


def _infer_concat(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    if not operands:
        raise InferenceError("concat needs an operand")
    types, axis = [tensor_of(operands, i) for i in range(len(operands))], attrs["axis"]
    dtype = same_dtype(types)
    shapes = [t.shape for t in types if t.shape is not None]
    if len(shapes) < len(types):
        return unknown_rank(dtype)
    out = list(shapes[0])
    check_axis(axis, len(out))
    for shape in shapes[1:]:
        if len(shape) != len(out):
            raise InferenceError(f"the operands' ranks differ: {', '.join(map(str, types))}")
        for i, d in enumerate(shape):
            out[i] = out[i] + d if i == axis else unify(out[i], d, f"the sizes of axis {i} differ")
    return (TensorType(dtype, tuple(out)),)


define(
    "concat",
    "The operands one after the other along axis",
    "xs*",
    _infer_concat,
    lambda arrays, attrs: (np.concatenate(present(arrays), attrs["axis"]),),
    (_AXIS,),
    traits="movement",
)

_MODES = ("constant", "reflect", "edge", "wrap")


def _infer_pad(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, value, pads = tensor_of(operands, 0), optional_tensor(operands, 1), attrs["pads"]
    if attrs["mode"] not in _MODES:
        raise InferenceError(f"mode={attrs['mode']!r} is none of {', '.join(_MODES)}")
    if value is not None:
        same_dtype((x, value))
        if value.shape:
            raise InferenceError(f"the pad value must be a scalar, not {value}")
    if len(pads) % 2:
        raise InferenceError(f"pads={pads} must hold a begin and an end for each axis")
    for d in pads:
        at_least(d, 0, f"an entry of pads={pads}")
    if x.shape is None:
        return unknown_rank(x.dtype)
    n = len(x.shape)
    if len(pads) != 2 * n:
        raise InferenceError(f"pads={pads} must hold a begin and an end for each axis of {x}")
    return (TensorType(x.dtype, tuple(d + pads[i] + pads[n + i] for i, d in enumerate(x.shape))),)


def _pad(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, pads, value = array_at(arrays, 0), ints(attrs, "pads"), optional_array(arrays, 1)
    widths = list(zip(pads[: x.ndim], pads[x.ndim :], strict=True))
    if not widths:
        return (x,)
    if attrs["mode"] != "constant":
        how: Any = attrs["mode"]
        return (np.pad(x, widths, how),)
    return (np.pad(x, widths, constant_values=x.dtype.type(0) if value is None else value.item()),)


define(
    "pad",
    "x with pads (begins then ends, none negative) around it: of the scalar `value` or 0, or by mode from x",
    "x value?",
    _infer_pad,
    _pad,
    (AttrDef("pads", "dims"), AttrDef("mode", "str", "constant")),
    traits="movement",
)


def _indices(operands: Operands) -> tuple[TensorType, TensorType]:
    x, indices = tensor_of(operands, 0), tensor_of(operands, 1, "iu")
    return x, indices


def _infer_gather(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    (x, indices), axis = _indices(operands), attrs["axis"]
    if x.shape is not None:
        check_axis(axis, len(x.shape))
    if x.shape is None or indices.shape is None:
        return unknown_rank(x.dtype)
    return (TensorType(x.dtype, x.shape[:axis] + indices.shape + x.shape[axis + 1 :]),)


def _gather(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, indices = present(arrays)
    return (np.asarray(np.take(x, indices, axis=attrs["axis"])),)


define(
    "gather",
    "The slices of x at `indices` along axis; negative indices count from the end",
    "x indices",
    _infer_gather,
    _gather,
    (_AXIS,),
    traits="movement",
)


def _infer_gather_elements(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, indices = _indices(operands)
    if x.shape is not None:
        check_axis(attrs["axis"], len(x.shape))
        if indices.shape is not None and len(indices.shape) != len(x.shape):
            raise InferenceError(f"indices has rank {len(indices.shape)}, x has rank {len(x.shape)}")
    return (TensorType(x.dtype, indices.shape),)


def _gather_elements(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x, indices), axis = present(arrays), attrs["axis"]
    cut = tuple(slice(None) if i == axis else slice(n) for i, n in enumerate(indices.shape))
    return (np.take_along_axis(x[cut], indices.astype(np.int64), axis),)


define(
    "gather_elements",
    "Element by element, x at the same place but for indices[place] along axis",
    "x indices",
    _infer_gather_elements,
    _gather_elements,
    (_AXIS,),
    traits="movement",
)


def _infer_gather_nd(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    (x, indices), batch = _indices(operands), attrs["batch_dims"]
    if x.shape is None or indices.shape is None:
        return unknown_rank(x.dtype)
    if not indices.shape or not 0 <= batch < len(indices.shape):
        raise InferenceError(f"batch_dims={batch} does not fit indices of type {indices}")
    depth = indices.shape[-1]
    if not isinstance(depth, int):
        return unknown_rank(x.dtype)
    if not batch + depth <= len(x.shape):
        raise InferenceError(f"indices of {depth} entries after {batch} batch axes do not fit {x}")
    shared = tuple(unify(x.shape[i], indices.shape[i], f"batch axis {i} differs") for i in range(batch))
    return (TensorType(x.dtype, shared + indices.shape[batch:-1] + x.shape[batch + depth :]),)


def _gather_nd(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (x, indices), batch = present(arrays), attrs["batch_dims"]
    lead = np.ogrid[tuple(slice(n) for n in indices.shape[:batch])] if batch else []
    extra = (1,) * (indices.ndim - 1 - batch)
    index = [np.asarray(a).reshape(np.shape(a) + extra) for a in lead]
    index += [indices[..., i] for i in range(indices.shape[-1])]
    return (np.broadcast_to(x, (*indices.shape[:-1], *x.shape)) if not index else np.asarray(x[tuple(index)]),)


define(
    "gather_nd",
    "The slices of x at the index vectors in the last axis of indices, after batch_dims shared axes",
    "x indices",
    _infer_gather_nd,
    _gather_nd,
    (AttrDef("batch_dims", "int", 0),),
    traits="movement",
)
