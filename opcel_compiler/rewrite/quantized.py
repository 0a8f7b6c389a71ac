"""Facts about quantized values: their scales and zero points, and which products are of integers.

The canonical form of a contraction of integers, which integer kernels take: operand 0 is `dequantize` of u8, with one
zero point and one scale (of a matmul also one for each row, [..., m, 1]); operand 1 is `dequantize` of an s8 constant
without a zero point, with one scale or one for each output channel ([n] of a matmul, [o, 1, ...] of a conv, and
[1, o, 1, ...] of a conv_transpose).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from opcel_compiler.ir.codes import channel_axis
from opcel_compiler.ir.dims import equal
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.ops.quant import LARGEST_DEPTH, integer_range
from opcel_compiler.ir.quantization import LAYERS
from opcel_compiler.ir.types import F32, I8, U8, DType
from opcel_compiler.rewrite.facts import dtype_of, shape_of

MOVES = frozenset(
    {"reshape", "transpose", "expand", "slice", "pad", "concat", "gather", "gather_elements", "gather_nd"}
)
"""Operators whose results are elements of operand 0 (of all operands: concat), or a pad's value."""

KEEPS_GRID = MOVES | {"max_pool"}
"""Operators that give numbers of the grid on which their operands lie."""


def computes_integers(anchor: Node) -> bool:
    """Whether there are kernels of integers for a contraction; else its weights are made floats when compiling."""
    return anchor.op in LAYERS


def maker(v: Value | None, op: str) -> Node | None:
    """The node of operator `op` that makes `v`, or None."""
    return v.producer if v is not None and v.producer is not None and v.producer.op == op else None


def byte(dtype: DType | None) -> bool:
    """Whether a type holds integers of 8 bits."""
    return dtype in (I8, U8)


def scale_of(node: Node) -> Value:
    """The scale of a `quantize` or `dequantize`."""
    return node.operand(1)


def zero_of(node: Node) -> Value | None:
    """The zero point of a `quantize` or `dequantize`, or None."""
    return node.optional(2)


def is_number(v: Value | None) -> bool:
    """Whether `v` has one element, or is absent."""
    if v is None:
        return True
    shape = shape_of(v)
    return shape is not None and all(d == 1 for d in shape)


def per_tensor(node: Node) -> bool:
    """Whether a `quantize` or `dequantize` has one scale and one zero point."""
    return is_number(scale_of(node)) and is_number(zero_of(node))


def scale_number(node: Node) -> float | None:
    """The scale, where it is one constant."""
    data = scale_of(node).constant
    return float(data.array.reshape(-1)[0]) if data is not None and data.array.size == 1 else None


def zero_number(node: Node) -> int | None:
    """The zero point, where it is one constant or absent."""
    zero = zero_of(node)
    if zero is None:
        return 0
    data = zero.constant
    if data is None or data.array.size == 0:
        return None
    first = int(data.array.reshape(-1)[0])
    return first if bool(np.all(data.array == first)) else None


def from_lowest(node: Node, dtype: DType) -> bool:
    """Whether the zero point is the lowest integer of `dtype` and the scale is positive: no number is negative."""
    scale = scale_number(node)
    return scale is not None and scale > 0 and zero_number(node) == integer_range(dtype)[0]


def same_grid(a: Node, b: Node) -> bool:
    """Whether two nodes provably have the same scale and the same zero point."""
    return _same(scale_of(a), scale_of(b)) and (
        _same(zero_of(a), zero_of(b)) or (zero_number(a) is not None and zero_number(a) == zero_number(b))
    )


def _same(a: Value | None, b: Value | None) -> bool:
    if a is b or a is None or b is None:
        return a is b
    x, y = a.constant, b.constant
    return x is not None and y is not None and x.dtype == y.dtype and x.array.tobytes() == y.array.tobytes()


def grid_is_normal(node: Node) -> bool:
    """Whether the scales are constants, no step of which overflows or is subnormal: quantize undoes dequantize."""
    data = scale_of(node).constant
    if data is None or data.dtype != F32:
        return False
    size = np.abs(data.array.astype(np.float64))
    info = np.finfo(np.float32)
    return bool(np.all((size >= float(info.tiny)) & (size * 65536 < float(info.max))))


# -- products ---------------------------------------------------------------------------------------------------------


def _contractions(v: Value) -> Iterator[Node]:
    """The anchors that read `v` as operand 1, perhaps moved."""
    for user, i in v.uses:
        if not isinstance(user, Node):
            continue
        if i == 1 and computes_integers(user):
            yield user
        elif i == 0 and user.op in ("reshape", "transpose"):
            yield from _contractions(user.result)


def _on_a_grid(v: Value) -> bool:
    """Whether `v` is made of dequantized bytes, moved or pooled."""
    node = v.producer
    while node is not None and (node.op in KEEPS_GRID or node.op == "relu"):
        node = node.operand(0).producer
    return node is not None and node.op == "dequantize" and byte(dtype_of(node.operand(0)))


def kept_quantized(node: Node) -> bool:
    """Whether constants that `node` dequantizes are to stay integers: weights of a product with quantized numbers, or
    a table of which few rows are read."""
    if node.op != "dequantize" or not byte(dtype_of(node.operand(0))):
        return False
    if any(_on_a_grid(user.operand(0)) for user in _contractions(node.result)):
        return True
    return per_tensor(node) and any(isinstance(u, Node) and u.op == "gather" and i == 0 for u, i in node.result.uses)


def integer_operands(anchor: Node) -> tuple[Node, Node] | str:
    """The two `dequantize` nodes of a contraction in canonical form, or the reason why it has no such form."""
    if not computes_integers(anchor):
        return f"{anchor.op} has no kernel for integers"
    x, w = maker(anchor.operand(0), "dequantize"), maker(anchor.operand(1), "dequantize")
    if x is None or w is None or anchor.result.tensor.dtype != F32:
        return f"%{anchor.operand(0 if x is None else 1).name} is not dequantized"
    for why in (_activations(anchor, x), _weights(anchor, w)):
        if why is not None:
            return why
    depth = _depth(anchor)
    if depth is None or depth > LARGEST_DEPTH:
        return f"sums of {'unknown' if depth is None else depth} products may leave 32 bits"
    return x, w


def _depth(anchor: Node) -> int | None:
    """How many products each sum has."""
    shape = anchor.operand(1).tensor.dims
    sizes = {"conv": shape[1:], "conv_transpose": (*shape[:1], *shape[2:])}.get(anchor.op, shape[-2:-1])
    return math.prod(d for d in sizes if isinstance(d, int)) if all(isinstance(d, int) for d in sizes) else None


def _activations(anchor: Node, x: Node) -> str | None:
    dtype = x.operand(0).tensor.dtype
    if dtype != U8:
        return f"its operand is quantized to {dtype}, not to u8"
    if not is_number(zero_of(x)) and not (anchor.op == "matmul" and _per_row(x, zero_of(x))):
        return "its operand has several zero points"
    if not is_number(scale_of(x)) and not (anchor.op == "matmul" and _per_row(x, scale_of(x))):
        return "its operand has several scales"
    if anchor.op == "conv" and (scale_number(x) is None or zero_number(x) is None):
        return "the scale or zero point of its operand is computed as it runs"
    return None


def _per_row(x: Node, p: Value | None) -> bool:
    shape, given = shape_of(x.result), None if p is None else shape_of(p)
    return shape is not None and given is not None and len(given) >= 1 and given[-1] == 1


def _weights(anchor: Node, w: Node) -> str | None:
    data, zero = w.operand(0).constant, zero_of(w)
    if data is None:
        return f"its weights (%{w.operand(0).name}) are not constant"
    if data.dtype != I8:
        return f"its weights are of {data.dtype}, not of s8"
    if zero is not None:
        return "its weights have a zero point"
    shape, given = w.result.tensor.dims, scale_of(w).tensor.dims
    if scale_of(w).constant is None:
        return "the scale of its weights is not constant"
    if anchor.op == "matmul" and (len(shape) != 2 or len(anchor.operand(0).tensor.dims) < 2):
        return "its operands are not matrices"
    if is_number(scale_of(w)):
        return None
    axis = channel_axis(anchor.op, len(shape))
    wide = (1,) * (len(shape) - len(given)) + tuple(given)
    if any(d != 1 for i, d in enumerate(wide) if i != axis) or equal(wide[axis], shape[axis]) is not True:
        return "the scales of its weights are not one for each output channel"
    return None
