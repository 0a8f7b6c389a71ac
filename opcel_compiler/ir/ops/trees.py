"""Ensembles of decision trees over rows of features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from opcel_compiler.ir.dims import Dim, dim_max, product
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import ints, present, quiet, tensor_of, unify, unknown_rank
from opcel_compiler.ir.types import DTYPES, F32, F64, TensorType, Type

AGGREGATES = {"sum": (np.add, 0.0), "min": (np.minimum, np.inf), "max": (np.maximum, -np.inf)}
"""How a target's values join, and where they start."""

LOWEST = {np.dtype(np.uint32): 0x7FFFFE, np.dtype(np.uint64): 0xFFFFFFFFFFFFE}
"""The key of a NaN that is below everything, by the key's type; smaller thresholds are rows of `leaves`."""


def fields(nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(threshold, feature, step) of each node."""
    half = nodes.dtype.type(4 * nodes.dtype.itemsize)
    low = (nodes.dtype.type(1) << half) - nodes.dtype.type(1)
    return nodes[:, 0], (nodes[:, 1] & low).astype(np.int64), (nodes[:, 1] >> half).astype(np.int64)


def order_keys(x: np.ndarray, low: bool = False) -> np.ndarray:
    """`order_key` of f32 or f64."""
    word = np.dtype(f"u{x.dtype.itemsize}").type
    bits = (x + x.dtype.type(0)).view(word)
    top = word(1) << word(8 * x.dtype.itemsize - 1)
    keys = np.where(bits & top, ~bits, bits | top)
    out: np.ndarray = np.where(np.isnan(x), LOWEST[keys.dtype] if low else np.iinfo(word).max, keys).astype(word)
    return out


def _infer_key(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x = tensor_of(operands, 0, "f")
    if attrs["nan"] not in ("high", "low"):
        raise InferenceError(f"nan={attrs['nan']!r} is none of high, low")
    if x.dtype not in (F32, F64):
        raise InferenceError(f"operand 0 has dtype {x.dtype}, which the operator does not take")
    return (TensorType(DTYPES["u32" if x.dtype == F32 else "u64"], x.shape),)


define(
    "order_key",
    "Unsigned integers in the order of the floats x, equal for 0 and -0; NaN is above all or, if nan is low, below",
    "x",
    _infer_key,
    quiet(lambda arrays, attrs: (order_keys(present(arrays)[0], attrs["nan"] == "low"),)),
    (AttrDef("nan", "str", "high"),),
    traits="elementwise",
)


def _infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, nodes, leaves, trees = (tensor_of(operands, i, k) for i, k in enumerate(("u", "u", "f", "i")))
    if attrs["aggregate"] not in AGGREGATES:
        raise InferenceError(f"aggregate={attrs['aggregate']!r} is none of {', '.join(AGGREGATES)}")
    if any(t.shape is None for t in (x, nodes, leaves, trees)):
        return unknown_rank(leaves.dtype)
    if any(len(t.dims) != 2 for t in (x, nodes, leaves, trees)):
        raise InferenceError("every operand must have rank 2")
    unify(nodes.dims[1], 2, "a node has two fields")
    unify(trees.dims[1], 4, "a tree has four fields")
    if leaves.dims[1] != 1:
        unify(leaves.dims[1], attrs["targets"], "a leaf's values are not the targets")
    return (TensorType(leaves.dtype, (*attrs["parts"], x.dims[0], attrs["targets"])),)


@quiet
def _evaluate(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, nodes, leaves, trees = present(arrays)
    threshold, feature, step = fields(nodes)
    rows, (parts,) = np.arange(len(x)), ints(attrs, "parts")
    join, start = AGGREGATES[attrs["aggregate"]]
    y = np.full((parts, len(x), attrs["targets"]), start, np.float64)
    for i, (root, column, _, depth) in enumerate(trees):
        at = np.full(len(x), root, np.int64)
        for _ in range(depth):
            at += step[at] + (x[rows, feature[at]] < threshold[at])
        found = leaves[threshold[at].astype(np.int64)]
        columns = slice(column, column + 1) if leaves.shape[1] == 1 else slice(None)
        part = y[(parts * (i + 1) - 1) // len(trees), :, columns]
        join(part, found, out=part)
    return (y.astype(leaves.dtype),)


def _flops(operands: Operands, results: Sequence[Type], attrs: Attrs) -> Dim:
    x, trees = tensor_of(operands, 0), tensor_of(operands, 3)
    if x.shape is None or trees.shape is None:
        return 0
    return product((x.shape[0], dim_max(1, trees.shape[0]), 8))


define(
    "tree_ensemble",
    "Of each row of x, the values of the leaves that it reaches, joined over the trees of each of `parts` equal parts. "
    "x holds keys (see order_key). A node is a threshold and a link (feature, then step, each half of it): the next "
    "node is step nodes further, and one more where the row's feature is below the threshold. A leaf has step 0, and "
    "as threshold, below which no key is, its row of leaves. A tree is its root, its target if leaves have one value, "
    "the steps after which rows may be at leaves, and its depth",
    "x nodes leaves trees",
    _infer,
    _evaluate,
    (
        AttrDef("targets", "int"), AttrDef("aggregate", "str", "sum"), AttrDef("parts", "dims", (1,)),
    ),
    flops=_flops,
)  # fmt: skip
