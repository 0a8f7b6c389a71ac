"""How quantization and the operators on bits are written in ONNX."""

from __future__ import annotations

from typing import Any

from opcel_compiler.frontend.export_ops import exports, need
from opcel_compiler.frontend.proto_types import code_of
from opcel_compiler.frontend.writer import Writer
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.types import F32

_BITS = {"bit_and": "BitwiseAnd", "bit_or": "BitwiseOr", "bit_xor": "BitwiseXor", "bit_not": "BitwiseNot"}


@exports(*_BITS)
def bitwise(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 18, _BITS[node.op])
    return w.node(_BITS[node.op], xs)


@exports("shift_left", "shift_right")
def shift(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 11, "BitShift")
    return w.node("BitShift", xs, direction=node.op.removeprefix("shift_").upper())


@exports("bit_cast")
def bit_cast(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 26, "BitCast")
    return w.node("BitCast", xs, to=code_of(node.attrs["dtype"]))


def _placed(w: Writer, node: Node, xs: list[str]) -> tuple[list[str], dict[str, Any]]:
    """(scale and zero point, attributes) as ONNX has them: one number, a vector along an axis, or one a block."""
    x = node.operand(0).tensor.dims
    params = [v.tensor.dims for v in node.operands[1:] if v is not None]
    wide = [(1,) * (len(x) - len(p)) + p for p in params]
    given = [v for v in node.operands[1:] if v is not None]
    if all(d == 1 for p in params for d in p):
        return [_reshape(w, v, p, ()) for v, p in zip(given, xs[1:], strict=True)], {}
    axes = {i for p in wide for i, d in enumerate(p) if d != 1}
    need(w, 13, "a scale along an axis")
    if len(axes) == 1:
        (axis,) = axes
        size = next(p[axis] for p in wide if p[axis] != 1)
        full = (1,) * axis + (size,) + (1,) * (len(x) - axis - 1)
        vectors = [
            _reshape(w, v, p, (size,)) if d == full else _reshape(w, None, _expand(w, p, d, full), (size,))
            for v, p, d in zip(given, xs[1:], wide, strict=True)
        ]
        return vectors, {"axis": axis}
    need(w, 21, "a scale a block")
    rest = [i for i in range(len(x)) if i not in axes and isinstance(x[i], int) and x[i] != 1]
    axis, block = (rest[0], x[rest[0]]) if rest else (0, 1)
    full = tuple(1 if rest and i == axis else d for i, d in enumerate(x))
    return [_expand(w, p, d, full) for p, d in zip(xs[1:], wide, strict=True)], {"axis": axis, "block_size": block}


def _reshape(w: Writer, value: Value | None, x: str, shape: tuple[Dim, ...]) -> str:
    """The tensor `x`, which holds `value`, in another shape; a constant is written in that shape."""
    if value is not None and value.tensor.dims == shape:
        return x
    sizes = tuple(d for d in shape if isinstance(d, int))
    if value is not None and value.constant is not None and len(sizes) == len(shape):
        return w.constant(value.constant.array.reshape(sizes), value.constant.dtype)
    return w.node("Reshape", [x, w.dims(shape)])


def _expand(w: Writer, x: str, have: tuple[Dim, ...], shape: tuple[Dim, ...]) -> str:
    return x if have == shape else w.node("Expand", [x, w.dims(shape)])


@exports("quantize")
def quantize(w: Writer, node: Node, xs: list[str]) -> str:
    dtype = node.attrs["dtype"]
    params, attrs = _placed(w, node, xs)
    plain = dtype.name in ("u8", "i8") and node.operand(0).tensor.dtype == F32
    need(
        w, 10 if plain else 25 if dtype.bits == 2 else 23 if dtype.name == "f4e2m1" else 21, f"quantization to {dtype}"
    )
    if dtype.is_float and not node.attrs["saturate"]:
        attrs["saturate"] = 0
    if len(params) == 1 and dtype.name != "u8":
        need(w, 21, "a quantization without a zero point")
        attrs["output_dtype"] = code_of(dtype)
    return w.node("QuantizeLinear", [xs[0], *params], **attrs)


@exports("dequantize")
def dequantize(w: Writer, node: Node, xs: list[str]) -> str:
    have, want, scale = node.operand(0).tensor.dtype, node.attrs["dtype"], node.operand(1).tensor.dtype
    params, attrs = _placed(w, node, xs)
    plain = have.name in ("u8", "i8", "i32") and want == F32
    need(w, 10 if plain else 25 if have.bits == 2 else 23 if have.name == "f4e2m1" else 21, f"dequantization of {have}")
    if want != scale:
        need(w, 23, "a dequantization to another type than the scale's")
        attrs["output_dtype"] = code_of(want)
    return w.node("DequantizeLinear", [xs[0], *params], **attrs)


@exports("matmul_nbits")
def matmul_nbits(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 21, "a product with weights of a few bits")
    weights = w.node("DequantizeLinear", xs[1:], axis=0, block_size=node.attrs["group"])
    dtype = node.operand(0).tensor.dtype
    return w.node("MatMul", [xs[0], weights if dtype == F32 else w.cast(weights, dtype)])
