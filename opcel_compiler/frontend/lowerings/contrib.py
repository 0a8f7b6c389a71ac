"""ONNX Runtime's own operators (domain com.microsoft), which its optimizers write into models.

Their definitions are ONNX Runtime's ContribOperators.md; forms with caches that are updated in place, packed batches or
other inputs known only to its decoders have no lowering. Integer masks become additive ones, with the operator's
`mask_filter_value` where they hide a key.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from opcel_compiler.frontend.lowering import Lower, Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.nn import conv, gemm
from opcel_compiler.frontend.lowerings.norm import normalized
from opcel_compiler.ir.dims import Dim, equal, floordiv
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import BOOL, F32, I32, I64

MICROSOFT = "com.microsoft"


def contrib(*op_types: str) -> Callable[[Lower], Lower]:
    return lowers(*op_types, domain=MICROSOFT, first=1)


# -- activations -------------------------------------------------------------------------------------------------------


@contrib("Gelu", "BiasGelu")
def gelu(c: Lowering) -> Value:
    x, bias = c.x(0), c.opt(1)
    return c.emit("gelu", x if bias is None else c.emit("add", x, bias))


@contrib("FastGelu")
def fast_gelu(c: Lowering) -> Value:
    x, bias = c.x(0), c.opt(1)
    return c.emit("gelu", x if bias is None else c.emit("add", x, bias), approximate="tanh")


@contrib("QuickGelu")
def quick_gelu(c: Lowering) -> Value:
    x, alpha = c.x(), c.attr_float("alpha", 1.702)
    if alpha == 1.0:
        return c.emit("silu", x)
    return c.emit("mul", x, c.emit("sigmoid", c.emit("mul", x, c.number(alpha, x))))


def _activated(c: Lowering, x: Value, parameters: dict[str, float]) -> Value:
    """x under the activation that a fused operator names."""
    name = c.attr_str("activation", "")
    if not name:
        return x
    if name in ("Relu", "Sigmoid", "Tanh"):
        return c.emit(name.lower(), x)
    if name == "LeakyRelu":
        return c.emit("leaky_relu", x, alpha=parameters.get("alpha", 0.01))
    if name == "HardSigmoid":
        return c.emit("hard_sigmoid", x, alpha=parameters.get("alpha", 0.2), beta=parameters.get("beta", 0.5))
    if name == "Clip" and {"min", "max"} <= parameters.keys():
        low = c.emit("max", x, c.number(parameters["min"], x))
        return c.emit("min", low, c.number(parameters["max"], x))
    raise Unsupported(f"the activation {name!r} of {c.op_type} has no lowering")


# -- contractions ------------------------------------------------------------------------------------------------------


@contrib("FusedMatMul", "TransposeMatMul")
def fused_matmul(c: Lowering) -> Value:
    if c.attr_int("transBatchA", 0) or c.attr_int("transBatchB", 0):
        raise Unsupported("transposed batches of FusedMatMul have no lowering")
    a, b = c.x(0), c.x(1)
    if c.attr_int("transA", 0) and c.rank(a) > 1:
        a = _swapped(c, a)
    if c.attr_int("transB", 0) and c.rank(b) > 1:
        b = _swapped(c, b)
    y, alpha = c.emit("matmul", a, b), c.attr_float("alpha", 1.0)
    return y if alpha == 1.0 else c.emit("mul", y, c.number(alpha, y))


def _swapped(c: Lowering, x: Value) -> Value:
    rank = c.rank(x)
    return c.transpose(x, (*range(rank - 2), rank - 1, rank - 2))


@contrib("FusedGemm")
def fused_gemm(c: Lowering) -> Value:
    names = ("alpha", "beta", "gamma")
    given = {n: c.attr_float(f"activation_{n}") for n in names if c.has(f"activation_{n}")}
    return _activated(c, gemm(c), given)


@contrib("FusedConv")
def fused_conv(c: Lowering) -> Value:
    y, residual = conv(c), c.opt(3)
    if residual is not None:
        y = c.emit("add", y, residual)
    values = c.attr_floats("activation_params", ())
    names = ("min", "max") if c.attr_str("activation", "") == "Clip" else ("alpha", "beta")
    return _activated(c, y, dict(zip(names, values, strict=False)))


# -- norms -------------------------------------------------------------------------------------------------------------


@lowers("SimplifiedLayerNormalization", first=1)
def simplified_layer_normalization(c: Lowering) -> Value:
    """ONNX Runtime keeps this operator of its own in ONNX's domain."""
    if c.wants(1):
        raise Unsupported("the deviation output of SimplifiedLayerNormalization has no lowering")
    x = c.x()
    if c.attr_int("stash_type", 1) != 1 and c.dtype(x) != F32:
        raise Unsupported("a stash_type other than float32 has no lowering")
    axis = c.axis(c.attr_int("axis", -1), c.rank(x))
    return normalized(c, "rms_norm", x, c.x(1), None, axis)


@contrib("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def skip_layer_normalization(c: Lowering) -> list[Value | None]:
    """A norm of the sum of input, skip and bias; the last output is that sum."""
    if c.wants(1) or c.wants(2):
        raise Unsupported(f"the mean and deviation outputs of {c.op_type} have no lowering")
    centred = c.op_type == "SkipLayerNormalization"
    total, bias = c.emit("add", c.x(0), c.x(1)), c.opt(4 if centred else 3)
    if bias is not None:
        total = c.emit("add", total, bias)
    op, beta = ("layer_norm", c.opt(3)) if centred else ("rms_norm", None)
    return [normalized(c, op, total, c.x(2), beta, c.rank(total) - 1, 1e-12), None, None, total]


@contrib("EmbedLayerNormalization")
def embed_layer_normalization(c: Lowering) -> list[Value | None]:
    """A layer norm of the sum of word, position and segment embeddings; then, for each row, how many ones its mask has,
    and that sum."""
    ids, segments = c.x(0), c.opt(1)
    words, positions = c.x(2), c.x(3)
    batch, length = c.shape(ids)
    places = c.opt(8)
    total = c.emit("gather", words, ids, axis=0)
    where = c.slice(positions, 0, 0, length) if places is None else c.emit("gather", positions, places, axis=0)
    total = c.emit("add", total, where)
    if segments is not None:
        total = c.emit("add", total, c.emit("gather", c.x(4), segments, axis=0))
    y = normalized(c, "layer_norm", total, c.x(5), c.x(6), 2, 1e-12)
    count: Value | None = None
    if c.wants(1):
        mask = c.opt(7)
        if mask is not None:
            count = c.emit("reduce_sum", c.cast(mask, I32), axes=(1,), keepdims=False)
        else:
            count = c.emit("expand", c.constant(np.zeros((), np.int32)), shape=(batch,))
    return [y, count, total]


# -- attention ---------------------------------------------------------------------------------------------------------


def by_heads(c: Lowering, x: Value, heads: int) -> Value:
    """[batch, length, heads·size] as [batch, heads, length, size]."""
    batch, length, width = c.shape(x)
    return c.transpose(c.reshape(x, (batch, length, heads, floordiv(width, heads))), (0, 2, 1, 3))


def joined(c: Lowering, x: Value) -> Value:
    batch, heads, length, size = c.shape(x)
    return c.reshape(c.transpose(x, (0, 2, 1, 3)), (batch, length, heads * size))


def _key_mask(c: Lowering, mask: Value, like: Value, keys: Dim) -> Value:
    """An integer mask as an additive one of rank 4: [batch] counts the keys that are seen, [batch, keys] and [batch,
    queries, keys] are 1 where a key is seen."""
    shape = c.shape(mask)
    if len(shape) == 1 and equal(shape[0], c.shape(like)[0]) is True:
        numbers = c.emit("range_", start=(0,), size=(keys,), step=1, dtype=I64)
        counts = c.reshape(c.cast(mask, I64), (shape[0], 1, 1, 1))
        seen = c.emit("less", c.reshape(numbers, (1, 1, 1, keys)), counts)
    elif len(shape) in (2, 3) and equal(shape[-1], keys) is True:
        full = (shape[0], 1, 1, keys) if len(shape) == 2 else (shape[0], 1, *shape[1:])
        seen = c.cast(c.reshape(mask, full), BOOL)
    else:
        raise Unsupported(f"a mask of shape {list(shape)} has no lowering")
    hidden = c.attr_float("mask_filter_value", -10000.0)
    return c.emit("where", seen, c.number(0.0, like), c.number(hidden, like))


def _attend(c: Lowering, q: Value, k: Value, v: Value, masks: list[Value]) -> Value:
    size = c.shape(q)[3]
    scale = c.attr_float("scale", 0.0) or (1.0 / math.sqrt(size) if isinstance(size, int) else 0.0)
    if not scale:
        raise Unsupported("the size of the heads is symbolic")
    causal = bool(c.attr_int("unidirectional", 0))
    total: list[Value] = []
    for mask in masks:
        total = [c.emit("add", *total, mask) if total else mask]
    return joined(c, c.emit("attention", q, k, v, *total, scale=scale, causal=causal))


def _refuse_inputs(c: Lowering, inputs: dict[int, str]) -> None:
    for i, what in inputs.items():
        if c.opt(i) is not None:
            raise Unsupported(f"{what} of {c.op_type} has no lowering")


@contrib("Attention")
def attention(c: Lowering) -> Value:
    """The projections of q, k and v in one product, then attention."""
    _refuse_inputs(c, {4: "the past", 6: "past_sequence_length"})
    if c.wants(1):
        raise Unsupported("the present output of Attention has no lowering")
    if c.attr_int("do_rotary", 0):
        raise Unsupported("the rotary embedding inside Attention has no lowering")
    x, heads = c.x(0), c.attr_int("num_heads")
    product, bias = c.emit("matmul", x, c.x(1)), c.opt(2)
    if bias is not None:
        product = c.emit("add", product, bias)
    width = c.shape(product)[2]
    sizes: tuple[Dim, ...] = c.attr_ints("qkv_hidden_sizes", (floordiv(width, 3),) * 3)
    starts: tuple[Dim, ...] = (0, sizes[0], sizes[0] + sizes[1])
    q, k, v = (by_heads(c, c.slice(product, 2, s, n), heads) for s, n in zip(starts, sizes, strict=True))
    mask, bias = c.opt(3), c.opt(5)
    masks = [] if mask is None else [_key_mask(c, mask, q, c.shape(k)[2])]
    return _attend(c, q, k, v, masks if bias is None else [*masks, bias])


@contrib("MultiHeadAttention")
def multi_head_attention(c: Lowering) -> list[Value | None]:
    _refuse_inputs(c, {8: "past_sequence_length", 9: "cache_indirection"})
    if c.wants(3):
        raise Unsupported("the scores of MultiHeadAttention have no lowering")
    heads = c.attr_int("num_heads")
    q, k, v = _projected(c, heads)
    if (past := c.opt(6)) is not None:
        k = c.emit("concat", past, k, axis=2)
    if (past := c.opt(7)) is not None:
        v = c.emit("concat", past, v, axis=2)
    masks = [] if c.opt(4) is None else [_key_mask(c, c.x(4), q, c.shape(k)[2])]
    bias = c.opt(5)
    y = _attend(c, q, k, v, masks if bias is None else [*masks, bias])
    return [y, k if c.wants(1) else None, v if c.wants(2) else None]


def _projected(c: Lowering, heads: int) -> tuple[Value, Value, Value]:
    """q, k and v as [batch, heads, length, size], with their bias."""
    q, k, v, bias = c.x(0), c.opt(1), c.opt(2), c.opt(3)
    if k is None or v is None or c.rank(q) != 3:
        raise Unsupported("packed q, k and v of MultiHeadAttention have no lowering")
    if bias is not None:
        if c.rank(k) != 3 or c.rank(v) != 3:
            raise Unsupported("a bias of keys that come by heads has no lowering")
        width = c.shape(q)[2]
        starts: tuple[Dim, ...] = (0, width, width * 2)
        q, k, v = (
            c.emit("add", x, c.slice(bias, 0, start, c.shape(x)[2])) for x, start in zip((q, k, v), starts, strict=True)
        )
    split = [x if c.rank(x) == 4 else by_heads(c, x, heads) for x in (q, k, v)]
    return split[0], split[1], split[2]


@contrib("RotaryEmbedding")
def rotary_embedding(c: Lowering) -> Value:
    """Pairs of elements turned by the angles of their place; `cos` and `sin` hold a row for each place."""
    if c.attr_int("is_packed_batching", 0) or c.attr_float("scale", 1.0) != 1.0:
        raise Unsupported("packed batches and scales of RotaryEmbedding have no lowering")
    x, places = c.x(0), c.x(1)
    by_length = c.rank(x) == 3
    half = c.shape(c.x(2))[1]
    turned, heads = c.attr_int("rotary_embedding_dim", 0) or half * 2, c.attr_int("num_heads", 0)
    if by_length:
        heads_or_size = heads or floordiv(c.shape(x)[2], turned)
        if not isinstance(heads_or_size, int):
            raise Unsupported("the number of heads is symbolic")
        x = by_heads(c, x, heads_or_size)
    batch, _, length, _ = c.shape(x)
    if c.rank(places) == 1:
        offset = c.emit("range_", start=(0,), size=(length,), step=1, dtype=I64)
        places = c.emit("expand", c.emit("add", c.reshape(places, (1, 1)), offset), shape=(batch, length))
    y = rotated(c, x, places, (c.x(2), c.x(3)), bool(c.attr_int("interleaved", 0)), turned)
    return joined(c, y) if by_length else y


def rotated(c: Lowering, x: Value, places: Value, angles: tuple[Value, Value], interleaved: bool, turned: Dim) -> Value:
    """x [batch, heads, length, size], the first `turned` elements of each turned by the angles (cosines, sines, a row
    for each place) of its place [batch, length]."""
    batch, _, length, size = c.shape(x)
    half = c.shape(angles[0])[1]
    cos, sin = (c.reshape(c.emit("gather", t, places, axis=0), (batch, 1, length, half)) for t in angles)
    first, second = _halves(c, c.slice(x, 3, 0, turned), half, interleaved)
    a = c.emit("sub", c.emit("mul", first, cos), c.emit("mul", second, sin))
    b = c.emit("add", c.emit("mul", first, sin), c.emit("mul", second, cos))
    y = _whole(c, a, b, turned, interleaved)
    if equal(turned, size) is not True:
        y = c.emit("concat", y, c.slice(x, 3, turned, size - turned), axis=3)
    return y


def _halves(c: Lowering, x: Value, half: Dim, interleaved: bool) -> tuple[Value, Value]:
    """The first and second elements of the pairs: the halves of the last axis, or every other element."""
    if not interleaved:
        return c.slice(x, 3, 0, half), c.slice(x, 3, half, half)
    pairs = c.reshape(x, (*c.shape(x)[:3], half, 2))
    flat = c.shape(x)[:3]
    a, b = (c.reshape(c.slice(pairs, 4, i, 1), (*flat, half)) for i in (0, 1))
    return a, b


def _whole(c: Lowering, a: Value, b: Value, turned: Dim, interleaved: bool) -> Value:
    if not interleaved:
        return c.emit("concat", a, b, axis=3)
    shape = c.shape(a)
    pairs = c.emit("concat", c.reshape(a, (*shape, 1)), c.reshape(b, (*shape, 1)), axis=4)
    return c.reshape(pairs, (*shape[:3], turned))
