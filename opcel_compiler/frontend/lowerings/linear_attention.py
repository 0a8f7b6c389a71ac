"""ONNX's linear attention: its rules differ in what scales and what corrects the state."""

from __future__ import annotations

import math

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.dims import floordiv
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32

_RULES = ("linear", "gated", "delta", "gated_delta")


@lowers("LinearAttention", first=27)
def linear_attention(c: Lowering) -> list[Value]:
    heads, queries = c.attr_int("kv_num_heads"), c.attr_int("q_num_heads")
    rule = c.attr_str("update_rule", "gated_delta")
    if rule not in _RULES or heads < 1 or queries < 1 or queries % heads:
        raise ModelError(
            f"node {c.origin!r} (LinearAttention): update_rule {rule!r}, {queries} query and {heads} key heads "
            "do not fit"
        )
    gated, delta = "gated" in rule, "delta" in rule
    dtype, state = c.dtype(c.x(0)), c.opt(3)
    wide = dtype if dtype.bits > 32 else F32
    q, k, v = (_by_heads(c, c.cast(c.x(i), wide), n) for i, n in ((0, queries), (1, heads), (2, heads)))
    size = c.shape(k)[3]
    scale = c.attr_float("scale", 0.0) or (1.0 / math.sqrt(size) if isinstance(size, int) else 0.0)
    if not scale:
        raise Unsupported("the size of the heads is symbolic")
    q = c.emit("mul", q, c.number(scale, q))
    decay = beta = None
    if gated:
        decay = c.emit("exp", _by_heads(c, c.cast(c.x(4), wide), heads))
    if delta:
        rates = c.cast(c.x(5), wide)
        beta = c.reshape(rates, (*c.shape(rates), 1))
    stored = dtype if state is None else c.dtype(state)
    past = None if state is None else c.cast(state, wide)
    operands = [q, k, v, past, decay, beta]
    while operands[-1] is None:
        operands.pop()
    node = c.builder.add("linear_attention", operands, {"delta": delta}, c.origin)
    y, present = node.results
    b, t, h, width = c.shape(y)
    return [c.cast(c.reshape(y, (b, t, h * width)), dtype), c.cast(present, stored)][: len(c.node.output)]


def _by_heads(c: Lowering, x: Value, heads: int) -> Value:
    b, t, width = c.shape(x)
    return c.reshape(x, (b, t, heads, floordiv(width, heads)))
