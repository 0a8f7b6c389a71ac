"""Operators that choose elements: the largest, the distinct ones, boxes that overlap no better one."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import (
    array_at,
    at_least,
    check_axis,
    ints,
    present,
    tensor_of,
    unify,
    unknown_rank,
    widen,
)
from opcel_compiler.ir.types import I32, I64, TensorType, Type, tensor


def _infer_topk(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, axis, k = tensor_of(operands, 0, "fiu"), attrs["axis"], attrs["k"]
    if len(k) != 1:
        raise InferenceError("k holds one dim")
    at_least(k[0], 0, "k")
    if x.shape is None:
        return (*unknown_rank(x.dtype), *unknown_rank(I64))
    check_axis(axis, len(x.shape))
    at_least(x.shape[axis] - k[0], 0, "the size of the axis less k")
    shape = (*x.shape[:axis], k[0], *x.shape[axis + 1 :])
    return TensorType(x.dtype, shape), TensorType(I64, shape)


def _topk(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, axis, (k,) = array_at(arrays, 0), attrs["axis"], ints(attrs, "k")
    n = x.shape[axis]
    if attrs["largest"]:
        order = n - 1 - np.flip(np.argsort(np.flip(widen(x), axis), axis, kind="stable"), axis)
    else:
        order = np.argsort(widen(x), axis, kind="stable")
    order = np.take(order, range(k), axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


define(
    "topk",
    "The k largest elements along axis, or smallest, in order, and their indices; equal ones in order, NaN as largest",
    "x",
    _infer_topk,
    _topk,
    (AttrDef("axis", "int"), AttrDef("k", "dims"), AttrDef("largest", "bool", True)),
    results=2,
)


def _infer_unique(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x = tensor_of(operands, 0, "fiub")
    if x.shape is not None and len(x.shape) != 2:
        raise InferenceError(f"{x} is no matrix")
    n: Dim | None = None if x.shape is None else x.shape[0]
    rows = unknown_rank(I64) if n is None else (tensor(I64, n),)
    return (*rows, *rows, *rows, tensor(I64))


def _unique(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x = widen(array_at(arrays, 0))
    n = len(x)
    # numpy.unique takes NaNs in rows for different; their ranks among all elements are not.
    ranks = np.unique(x, return_inverse=True)[1].reshape(x.shape) if x.size else x.astype(np.int64)
    _, first, inverse, counts = np.unique(ranks, axis=0, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    if not attrs["sorted"]:
        order = np.argsort(first)
        inverse = np.argsort(order)[inverse]
        first, counts = first[order], counts[order]
    rest = (0, n - len(first))
    return np.pad(first, rest), inverse.astype(np.int64), np.pad(counts, rest), np.array(len(first), np.int64)


define(
    "unique",
    "Of the distinct rows of x[n, m], ascending or as they appear: the first place of each, for each row of x which it "
    "is, how often each occurs, and how many there are; the first and third results hold so many, then anything",
    "x",
    _infer_unique,
    _unique,
    (AttrDef("sorted", "bool", True),),
    results=4,
)


def _infer_suppress(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    boxes, scores = tensor_of(operands, 0, "f"), tensor_of(operands, 1, "f")
    most = tensor_of(operands, 2, "i")
    for t in (most, tensor_of(operands, 3, "f"), tensor_of(operands, 4, "f")):
        if t.shape is not None and t.shape:
            raise InferenceError(f"a limit is {t}, not a scalar")
    if boxes.shape is None or scores.shape is None:
        return (*unknown_rank(I64), *unknown_rank(I32))
    if len(boxes.shape) != 3 or len(scores.shape) != 3 or boxes.shape[2] != 4:
        raise InferenceError(f"boxes {boxes} and scores {scores} are not [b, n, 4] and [b, c, n]")
    unify(boxes.shape[0], scores.shape[0], "the numbers of batches differ")
    unify(boxes.shape[1], scores.shape[2], "the numbers of boxes differ")
    kept = (*scores.shape[:2], attrs["room"][0])
    return TensorType(I64, kept), TensorType(I32, scores.shape)


def _corners(boxes: np.ndarray, center: bool) -> np.ndarray:
    """[..., 4] as (low, low, high, high)."""
    a, b = boxes[..., :2], boxes[..., 2:]
    if center:
        return np.concatenate([a - b / 2, a + b / 2], -1)
    return np.concatenate([np.minimum(a, b), np.maximum(a, b)], -1)


def _suppress(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    boxes, scores, most, overlap, least = present(arrays)
    boxes, (room,) = _corners(boxes, attrs["center"]), ints(attrs, "room")
    out = np.full((*scores.shape[:2], room), -1, np.int64)
    limit = min(int(most), room)
    for b, c in np.ndindex(*scores.shape[:2]):
        kept: list[int] = []
        row = scores[b, c]
        for i in np.argsort(-row, kind="stable"):
            if len(kept) >= limit or not row[i] > least:
                break
            if not any(_overlap(boxes[b, i], boxes[b, j]) > overlap for j in kept):
                kept.append(int(i))
        out[b, c, : len(kept)] = kept
    return out, np.zeros(scores.shape, np.int32)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    inner = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
    union = (a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - inner
    return float(inner / union) if union > 0 else 0.0


define(
    "suppress",
    "Boxes [b, n, 4] by descending score [b, c, n] above `least`, at most `most` a class, without those of which more "
    "than `overlap` of the union with a better one is shared: their indices [b, c, room], then -1; and scratch memory",
    "boxes scores most overlap least",
    _infer_suppress,
    _suppress,
    (AttrDef("room", "dims"), AttrDef("center", "bool", False)),
    results=2,
)
