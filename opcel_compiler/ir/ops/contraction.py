"""Sums of products: matrix multiplication, convolution, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from opcel_compiler.ir.dims import Dim, equal, mod, product
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import (
    array_at,
    at_least,
    broadcast,
    broadcasts_to,
    optional_array,
    optional_tensor,
    present,
    quiet,
    same_dtype,
    tensor_of,
    unify,
    unknown_rank,
    widen,
)
from opcel_compiler.ir.ops.norm import softmax
from opcel_compiler.ir.ops.windows import check_window, padded, taps, window_counts, windows
from opcel_compiler.ir.types import TensorType, Type

EXACT = AttrDef("exact", "bool", False)
"""The operands are floats that are integers, and so are all sums of their products: none is rounded, and nothing may be
done that rounds one, as to scale the operands or to compute with sums and quotients of them."""

# -- matmul ----------------------------------------------------------------------------------------------------------


def _infer_matmul(operands: Operands, _: Attrs) -> tuple[Type, ...]:
    a, b = tensor_of(operands, 0, "fiuc"), tensor_of(operands, 1, "fiuc")
    dtype = same_dtype((a, b))
    if a.shape is None or b.shape is None:
        return unknown_rank(dtype)
    if not a.shape or not b.shape:
        raise InferenceError("matmul does not take scalars")
    unify(a.shape[-1], b.shape[-2] if len(b.shape) > 1 else b.shape[0], "the contracted sizes differ")
    rows, columns = a.shape[-2:-1], b.shape[-1:] if len(b.shape) > 1 else ()
    return (TensorType(dtype, broadcast((a.shape[:-2], b.shape[:-2])) + rows + columns),)


@quiet
def _matmul(arrays: Arrays, _: Attrs) -> tuple[np.ndarray, ...]:
    a, b = present(arrays)
    return (np.asarray(np.matmul(widen(a), widen(b))).astype(a.dtype, copy=False),)


def matmul_flops(operands: Operands, results: Sequence[Type], _: Attrs) -> Dim:
    """A multiplication and an addition for each element of a row and each element of the result."""
    a, y = tensor_of(operands, 0), results[0]
    if a.shape is None or not isinstance(y, TensorType) or y.shape is None:
        return 0
    return 2 * a.shape[-1] * product(y.shape)


define(
    "matmul",
    "Matrix product over the last two axes, leading axes broadcast; vectors as in NumPy",
    "a b",
    _infer_matmul,
    _matmul,
    (EXACT,),
    flops=matmul_flops,
    traits="contraction",
)

# -- convolution -----------------------------------------------------------------------------------------------------

_CONV = (
    AttrDef("strides", "ints"), AttrDef("pads", "ints"), AttrDef("dilations", "ints"), AttrDef("groups", "int", 1),
)  # fmt: skip


def _conv_shapes(operands: Operands, attrs: Attrs) -> tuple[TensorType, TensorType, TensorType | None]:
    x, w = tensor_of(operands, 0, "fiu"), tensor_of(operands, 1, "fiu")
    bias = optional_tensor(operands, 2)
    same_dtype((x, w) if bias is None else (x, w, bias))
    if x.shape is not None and w.shape is not None:
        if not 3 <= len(x.shape) <= 5:
            raise InferenceError(f"x has rank {len(x.shape)}; 1 to 3 spatial axes are defined")
        if len(w.shape) != len(x.shape):
            raise InferenceError(f"x has rank {len(x.shape)}, w has rank {len(w.shape)}")
        check_window(len(x.shape) - 2, attrs, "strides", "dilations")
        if attrs["groups"] < 1:
            raise InferenceError(f"groups={attrs['groups']} must be positive")
    return x, w, bias


def _kernel_of(w: TensorType) -> tuple[int, ...]:
    out = tuple(d for d in w.dims[2:] if isinstance(d, int))
    if len(out) != len(w.dims) - 2:
        raise InferenceError(f"the kernel of w: {w} must have constant spatial sizes")
    return out


def _check_bias(bias: TensorType | None, channels: Dim) -> None:
    if bias is not None and bias.shape is not None:
        if len(bias.shape) != 1:
            raise InferenceError(f"bias has rank {len(bias.shape)}, not 1")
        unify(bias.shape[0], channels, "bias and output channels differ")


def _infer_conv(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, w, bias = _conv_shapes(operands, attrs)
    if x.shape is None or w.shape is None:
        return unknown_rank(x.dtype)
    groups = attrs["groups"]
    unify(x.shape[1], w.shape[1] * groups, "the channels of x and those of w times the groups differ")
    if equal(mod(w.shape[0], groups), 0) is False:
        raise InferenceError(f"{w.shape[0]} output channels are not divisible into {groups} groups")
    _check_bias(bias, w.shape[0])
    kernel = _kernel_of(w)
    return (TensorType(x.dtype, (x.shape[0], w.shape[0], *window_counts(x.shape[2:], kernel, attrs))),)


def _add_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if bias is not None:
        y += widen(bias).reshape(-1, *[1] * (y.ndim - 2))
    return y


@quiet
def _conv(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, w = widen(array_at(arrays, 0)), widen(array_at(arrays, 1))
    kernel, groups = w.shape[2:], attrs["groups"]
    counts = [int(c) for c in window_counts(x.shape[2:], kernel, attrs) if isinstance(c, int)]
    view = windows(padded(x, kernel, counts, attrs, 0), kernel, counts, attrs)
    n, o, spatial = x.shape[0], w.shape[0], len(kernel)
    weights = w.reshape(groups, o // groups, -1)
    order = (0, *range(1 + spatial, 1 + 2 * spatial), *range(1, 1 + spatial))
    y = np.empty((n, o, *counts), x.dtype)
    for i in range(n):
        columns = view[i].transpose(order).reshape(groups, weights.shape[2], math.prod(counts))
        np.matmul(weights, columns, out=y[i].reshape(groups, o // groups, -1))
    return (_add_bias(y, optional_array(arrays, 2)).astype(array_at(arrays, 0).dtype, copy=False),)


def _conv_flops(operands: Operands, results: Sequence[Type], _: Attrs) -> Dim:
    w, y = tensor_of(operands, 1), results[0]
    if w.shape is None or not isinstance(y, TensorType) or y.shape is None:
        return 0
    return 2 * product(w.shape[1:]) * product(y.shape)


define(
    "conv",
    "Cross-correlation of x [n, c, spatial...] with w [o, c/groups, kernel...], plus bias [o]",
    "x w bias?",
    _infer_conv,
    _conv,
    (*_CONV, EXACT),
    flops=_conv_flops,
    traits="contraction",
)


def _infer_conv_transpose(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    x, w, bias = _conv_shapes(operands, attrs)
    if x.shape is None or w.shape is None:
        return unknown_rank(x.dtype)
    unify(x.shape[1], w.shape[0], "the channels of x and w differ")
    if equal(mod(x.shape[1], attrs["groups"]), 0) is False:
        raise InferenceError(f"{x.shape[1]} channels are not divisible into {attrs['groups']} groups")
    channels = w.shape[1] * attrs["groups"]
    _check_bias(bias, channels)
    extra = attrs["output_padding"]
    if len(extra) != len(x.shape) - 2 or any(e < 0 for e in extra):
        raise InferenceError(f"output_padding={extra} must be one non-negative integer for each spatial axis")
    return (TensorType(x.dtype, (x.shape[0], channels, *_transposed_sizes(x.shape[2:], _kernel_of(w), attrs))),)


def _transposed_sizes(sizes: Sequence[Dim], kernel: Sequence[int], attrs: Attrs) -> list[Dim]:
    out: list[Dim] = []
    for i, size in enumerate(sizes):
        full = (size - 1) * attrs["strides"][i] + attrs["dilations"][i] * (kernel[i] - 1) + 1
        out.append(full - attrs["pads"][i] - attrs["pads"][len(kernel) + i] + attrs["output_padding"][i])
        at_least(out[-1], 0, f"the output size of spatial axis {i}")
    return out


@quiet
def _conv_transpose(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, w = widen(array_at(arrays, 0)), widen(array_at(arrays, 1))
    kernel, groups, (n, c), sizes = w.shape[2:], attrs["groups"], x.shape[:2], x.shape[2:]
    out = [int(d) for d in _transposed_sizes(sizes, kernel, attrs) if isinstance(d, int)]
    per_group = w.shape[1]
    weights = w.reshape(groups, c // groups, -1).transpose(0, 2, 1)
    parts = np.matmul(weights, x.reshape(n, groups, c // groups, -1))
    parts = parts.reshape(n, groups, per_group, *kernel, *sizes)
    pads = attrs["pads"]
    y = np.zeros((n, groups * per_group, *(d + pads[i] + pads[len(kernel) + i] for i, d in enumerate(out))), x.dtype)
    for k, index in taps(kernel, sizes, attrs):
        part = (slice(None), slice(None), slice(None), *k)
        y[index] += parts[part].reshape(n, -1, *sizes)
    inside = (slice(None), slice(None), *(slice(pads[i], pads[i] + d) for i, d in enumerate(out)))
    y = _add_bias(np.ascontiguousarray(y[inside]), optional_array(arrays, 2))
    return (y.astype(array_at(arrays, 0).dtype, copy=False),)


def _conv_transpose_flops(operands: Operands, _: Sequence[Type], __: Attrs) -> Dim:
    x, w = tensor_of(operands, 0), tensor_of(operands, 1)
    if x.shape is None or w.shape is None:
        return 0
    return 2 * product(x.shape) * product(w.shape[1:])


define(
    "conv_transpose",
    "The gradient of conv by its input: x [n, c, spatial...], w [c, o/groups, kernel...] + bias [o]",
    "x w bias?",
    _infer_conv_transpose,
    _conv_transpose,
    (*_CONV, AttrDef("output_padding", "ints")),
    flops=_conv_transpose_flops,
    traits="contraction",
)

# -- attention -------------------------------------------------------------------------------------------------------


def _infer_attention(operands: Operands, _: Attrs) -> tuple[Type, ...]:
    q, k, v = (tensor_of(operands, i, "f") for i in range(3))
    mask = optional_tensor(operands, 3)
    same_dtype((q, k, v) if mask is None else (q, k, v, mask))
    if q.shape is None or k.shape is None or v.shape is None:
        return unknown_rank(q.dtype)
    if not len(q.shape) == len(k.shape) == len(v.shape) == 4:
        raise InferenceError("q, k and v have rank 4: [batch, heads, length, size]")
    batch = unify(unify(q.shape[0], k.shape[0], "the batches differ"), v.shape[0], "the batches differ")
    unify(q.shape[3], k.shape[3], "the sizes of q and k differ")
    length = unify(k.shape[2], v.shape[2], "the lengths of k and v differ")
    heads = unify(k.shape[1], v.shape[1], "the heads of k and v differ")
    if isinstance(heads, int) and (heads == 0 or equal(mod(q.shape[1], heads), 0) is False):
        raise InferenceError(f"{q.shape[1]} query heads are no multiple of {heads} key heads")
    if mask is not None and mask.shape is not None:
        broadcasts_to(mask.shape, (batch, q.shape[1], q.shape[2], length), "mask")
    return (TensorType(q.dtype, (batch, q.shape[1], q.shape[2], v.shape[3])),)


@quiet
def _attention(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    q, k, v = (widen(array_at(arrays, i)) for i in range(3))
    b, h, s, d = q.shape
    heads, t = k.shape[1:3]
    grouped = (q * q.dtype.type(attrs["scale"])).reshape(b, heads, (h // heads) * s, d)
    scores = np.matmul(grouped, k.swapaxes(2, 3)).reshape(b, h, s, t)
    mask = optional_array(arrays, 3)
    if mask is not None:
        scores += widen(mask)
    if attrs["causal"]:
        scores[..., np.arange(t) > np.arange(s)[:, None] + (t - s)] = -np.inf
    weights = softmax(scores, 3).reshape(b, heads, (h // heads) * s, t)
    return (np.matmul(weights, v).reshape(b, h, s, v.shape[3]).astype(array_at(arrays, 0).dtype, copy=False),)


def _attention_flops(operands: Operands, _: Sequence[Type], __: Attrs) -> Dim:
    q, v = tensor_of(operands, 0), tensor_of(operands, 2)
    if q.shape is None or v.shape is None:
        return 0
    return product(q.shape[:3]) * v.shape[2] * (2 * q.shape[3] + 2 * v.shape[3] + 5)


define(
    "attention",
    "softmax(scale q k' + mask) v for q [b, h, s, d], k [b, g, t, d], v [b, g, t, e]; each key head serves h/g "
    "query heads; causal: query i sees keys up to i + t - s; a query that sees none gives NaN",
    "q k v mask?",
    _infer_attention,
    _attention,
    (AttrDef("scale", "float"), AttrDef("causal", "bool", False)),
    flops=_attention_flops,
    traits="contraction",
)
