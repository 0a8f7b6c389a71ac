"""Contractions and sliding windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.dims import Dim, ceildiv, dim_max, floordiv
from opcel_compiler.ir.graph import Value


@lowers("MatMul")
def matmul(c: Lowering) -> Value:
    return c.emit("matmul", c.x(0), c.x(1))


@lowers("Gemm")
def gemm(c: Lowering) -> Value:
    a, b, bias = c.x(0), c.x(1), c.opt(2)
    if c.rank(a) != 2 or c.rank(b) != 2:
        raise ModelError(f"node {c.origin!r} (Gemm): the operands have ranks {c.rank(a)} and {c.rank(b)}, not 2")
    if c.attr_int("transA", 0):
        a = c.transpose(a, (1, 0))
    if c.attr_int("transB", 0):
        b = c.transpose(b, (1, 0))
    y = c.emit("matmul", a, b)
    alpha, beta = c.attr_float("alpha", 1.0), c.attr_float("beta", 1.0)
    if alpha != 1.0:
        y = c.emit("mul", y, c.number(alpha, y))
    if bias is None or beta == 0.0:
        return y
    if beta != 1.0:
        bias = c.emit("mul", bias, c.number(beta, bias))
    return c.emit("add", y, bias)


def _static(c: Lowering, dims: Sequence[Dim], what: str) -> tuple[int, ...]:
    if not all(isinstance(d, int) for d in dims):
        raise Unsupported(f"{what} {list(dims)} is symbolic")
    return tuple(int(d) for d in dims)  # type: ignore[arg-type]


def per_axis(c: Lowering, name: str, n: int) -> tuple[int, ...]:
    out: tuple[int, ...] = c.attr_ints(name, (1,) * n)
    if len(out) != n or any(v < 1 for v in out):
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {name} {list(out)} needs {n} positive entries")
    return out


def same_pads(
    c: Lowering, sizes: Sequence[Dim], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[Dim, ...]:
    """The pads of a window from `pads` or `auto_pad`."""
    n = len(kernel)
    auto = c.attr_str("auto_pad", "NOTSET") or "NOTSET"
    if auto == "NOTSET":
        pads: tuple[int, ...] = c.attr_ints("pads", (0,) * (2 * n))
        if len(pads) != 2 * n:
            raise ModelError(f"node {c.origin!r} ({c.op_type}): {len(pads)} pads for {n} spatial axes")
        return pads
    if auto == "VALID":
        return (0,) * (2 * n)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise ModelError(f"node {c.origin!r} ({c.op_type}): auto_pad {auto!r} is unknown")
    begins, ends = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        extent = d * (k - 1) + 1
        total: Dim = extent - 1 if s == 1 else (ceildiv(size, s) - 1) * s + extent - size
        total = dim_max(total, 0)
        small = floordiv(total, 2)
        large = total - small
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return (*begins, *ends)


def padded(c: Lowering, x: Value, pads: Sequence[Dim], filler: float) -> tuple[Value, tuple[int, ...]]:
    """`x` and the pads of a window over it; pads that depend on symbolic sizes become an explicit `pad`, and negative
    ones cut `x`."""
    n = len(pads) // 2
    if all(isinstance(p, int) for p in pads):
        fixed = tuple(int(p) for p in pads if isinstance(p, int))
        for i in range(n):
            before, after = max(-fixed[i], 0), max(-fixed[n + i], 0)
            x = c.slice(x, 2 + i, before, c.shape(x)[2 + i] - before - after)
        return x, tuple(max(p, 0) for p in fixed)
    full = (0, 0, *pads[:n], 0, 0, *pads[n:])
    return c.emit("pad", x, c.number(filler, x), pads=full, mode="constant"), (0,) * (2 * n)


def convolved(c: Lowering, x: Value, w: Value, bias: Value | None, window: dict[str, Any]) -> Value:
    """A convolution over any number of spatial axes: beyond three, a sum over the first one's taps."""
    if c.rank(x) <= 5:
        return c.emit("conv", x, w, bias, **window)
    pads, n = window["pads"], c.rank(x) - 2
    stride, dilation = window["strides"][0], window["dilations"][0]
    x = c.emit("pad", x, pads=(0, 0, pads[0], *[0] * n, 0, pads[n], *[0] * (n - 1)))
    inner = {**{k: window[k][1:] for k in ("strides", "dilations")}, **{k: window[k] for k in ("groups", "exact")}}
    inner["pads"] = (*pads[1:n], *pads[n + 1 :])
    kernel = c.shape(w)[2]
    assert isinstance(kernel, int)
    size = floordiv(c.shape(x)[2] - dilation * (kernel - 1) - 1, stride) + 1
    total: Value | None = None
    order = (0, 2, 1, *range(3, n + 2))
    for tap in range(kernel):
        dims = c.shape(x)
        starts, sizes = (0, 0, tap * dilation, *[0] * (n - 1)), (*dims[:2], size, *dims[3:])
        part = c.emit("slice", x, starts=starts, sizes=sizes, steps=(1, 1, stride, *[1] * (n - 1)))
        part = c.reshape(c.transpose(part, order), (dims[0] * size, dims[1], *dims[3:]))
        weights = c.reshape(c.slice(w, 2, tap, 1), (*c.shape(w)[:2], *c.shape(w)[3:]))
        y = convolved(c, part, weights, bias if total is None else None, inner)
        total = y if total is None else c.emit("add", total, y)
    assert total is not None
    out = c.shape(total)
    return c.transpose(c.reshape(total, (c.shape(x)[0], size, *out[1:])), order)


@lowers("Conv")
def conv(c: Lowering) -> Value:
    return convolution(c, c.x(0), c.x(1), c.opt(2))


def convolution(c: Lowering, x: Value, w: Value, bias: Value | None, exact: bool = False) -> Value:
    """The convolution that the node's attributes describe, of these operands."""
    dims, n = c.shape(x), c.rank(x) - 2
    if c.rank(w) != n + 2 or n < 1:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): x has rank {n + 2}, the weights have rank {c.rank(w)}")
    kernel = _static(c, c.shape(w)[2:], "the kernel")
    declared = c.attr_ints("kernel_shape", kernel)
    if tuple(declared) != kernel:
        raise ModelError(
            f"node {c.origin!r} ({c.op_type}): kernel_shape {list(declared)} is not the weights' {list(kernel)}"
        )
    strides, dilations = per_axis(c, "strides", n), per_axis(c, "dilations", n)
    x, pads = padded(c, x, same_pads(c, dims[2:], kernel, strides, dilations), 0.0)
    window = {
        "strides": strides,
        "pads": pads,
        "dilations": dilations,
        "groups": c.attr_int("group", 1),
        "exact": exact,
    }
    return convolved(c, x, w, bias, window)


@lowers("ConvTranspose")
def conv_transpose(c: Lowering) -> Value:
    x, w, bias = c.x(0), c.x(1), c.opt(2)
    dims, n = c.shape(x), c.rank(x) - 2
    kernel = _static(c, c.shape(w)[2:], "the kernel")
    strides, dilations = per_axis(c, "strides", n), per_axis(c, "dilations", n)
    extra: tuple[int, ...] = c.attr_ints("output_padding", (0,) * n)
    auto = c.attr_str("auto_pad", "NOTSET") or "NOTSET"
    if c.has("output_shape") or auto.startswith("SAME"):
        wanted = c.attr_ints("output_shape", tuple(d * s for d, s in zip(dims[2:], strides, strict=True)))[-n:]
        begins, ends = [], []
        for i in range(n):
            total = strides[i] * (dims[2 + i] - 1) + extra[i] + dilations[i] * (kernel[i] - 1) + 1 - wanted[i]
            if not isinstance(total, int):
                raise Unsupported(f"an output of {wanted[i]} from symbolic size {dims[2 + i]} has no lowering")
            before = 0 if total < 0 else total // 2 if auto == "SAME_UPPER" else total - total // 2
            begins.append(before)
            ends.append(total - before)
        pads: tuple[int, ...] = (*begins, *ends)
    else:
        pads = (0,) * (2 * n) if auto == "VALID" else c.attr_ints("pads", (0,) * (2 * n))
    window = {"strides": strides, "dilations": dilations, "groups": c.attr_int("group", 1), "output_padding": extra}
    window["pads"] = tuple(max(p, 0) for p in pads)
    beyond = tuple(max(-p, 0) for p in pads)
    if not any(beyond):
        return c.emit("conv_transpose", x, w, bias, **window)
    y = c.emit("conv_transpose", x, w, **window)
    y = c.emit("pad", y, pads=(0, 0, *beyond[:n], 0, 0, *beyond[n:]))
    return y if bias is None else c.emit("add", y, c.channels(bias, n + 2))


@lowers("Attention", first=23)
def attention(c: Lowering) -> Value:
    """The plain forms; masks, caches and caps go through the operator's own body."""
    q, k, v = c.x(0), c.x(1), c.x(2)
    if any(c.opt(i) is not None for i in range(3, 7)) or any(c.wants(i) for i in range(1, 4)):
        raise Unsupported("Attention with a mask, a cache or further outputs is lowered by its body")
    if c.attr_int("left_window_size", -1) >= 0 or c.attr_int("right_window_size", -1) >= 0:
        raise Unsupported("Attention with a window is lowered by its body")
    if c.attr_float("softcap", 0.0) or c.attr_int("softmax_precision", 1) != 1:
        raise Unsupported("Attention with softcap or another precision is lowered by its body")
    dims = c.shape(q)
    if len(dims) == 3:
        q, k, v = (
            _heads(c, x, c.attr_int(n)) for x, n in ((q, "q_num_heads"), (k, "kv_num_heads"), (v, "kv_num_heads"))
        )
    size = c.shape(q)[3]
    causal = bool(c.attr_int("is_causal", 0))
    if causal and c.shape(q)[2] != c.shape(k)[2]:
        raise Unsupported("causal attention over keys of another length is lowered by its body")
    scale = c.attr_float("scale", 0.0) or (1.0 / math.sqrt(size) if isinstance(size, int) else 0.0)
    if not scale:
        raise Unsupported("the size of the heads is symbolic")
    y = c.emit("attention", q, k, v, scale=scale, causal=causal)
    if len(dims) == 4:
        return y
    b, h, s, d = c.shape(y)
    return c.reshape(c.transpose(y, (0, 2, 1, 3)), (b, s, h * d))


def _heads(c: Lowering, x: Value, heads: int) -> Value:
    b, s, width = c.shape(x)
    return c.transpose(c.reshape(x, (b, s, heads, floordiv(width, heads))), (0, 2, 1, 3))
