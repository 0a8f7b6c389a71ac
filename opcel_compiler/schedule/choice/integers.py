"""Quantized convolutions in the form that kernels for bytes compute: integer products, then one factor a channel.

A kernel's body dequantizes an image and its filters, convolves them, and goes on from there. As scale and zero point
are the same for all that a sum adds up,

    sum (x - zx) sx · w sw[n]  =  (sum (x - zx) w) · sx sw[n],

where the first factor is an integer that s32 holds. If the body ends in a quantization by a constant scale, its
reciprocal joins the factor as far as what lies between lets it pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.ops.quant import LARGEST_DEPTH, integer_range
from opcel_compiler.ir.program import Buffer, Kernel, View, whole
from opcel_compiler.ir.program_split import source
from opcel_compiler.ir.types import F32, I8, U8

HOMOGENEOUS = frozenset({"relu", "leaky_relu", "neg", "add", "sub", "min", "max"})
"""Operators for which f(c a, c b) = c f(a, b) where c > 0."""


@dataclass(frozen=True)
class Quantized:
    """A convolution's operands as integers: the body's inputs, their scales and the image's zero point."""

    image: Value
    filters: Value
    scale: float
    zero: int
    filter_scales: np.ndarray
    """One for each filter."""


def quantized_conv(kernel: Kernel) -> Quantized | None:
    """What a kernel for bytes needs to know of a convolution; None where it cannot be one.

    The image is u8 with one scale and zero point, the filters are constant s8 with a scale for all or one each, and no
    sum passes s32.
    """
    anchor = kernel.anchor
    if anchor is None or anchor.op != "conv":
        return None
    x, w = (anchor.operand(i).producer for i in (0, 1))
    if x is None or w is None or x.op != "dequantize" or w.op != "dequantize":
        return None
    image, filters = x.operand(0), w.operand(0)
    if image.tensor.dtype != U8 or filters.tensor.dtype != I8 or image.producer or filters.producer:
        return None
    if {x.result.tensor.dtype, w.result.tensor.dtype} != {F32} or not filters.tensor.is_static:
        return None
    weights, scale, scales = (constant_of(kernel, v) for v in (filters, x.operand(1), w.operand(1)))
    zero, filter_zero = (
        constant_of(kernel, v) if v is not None else np.zeros(1, np.int8) for v in (x.optional(2), w.optional(2))
    )
    if weights is None or scale is None or scales is None or zero is None or filter_zero is None:
        return None
    count, *rest = filters.tensor.static_shape
    per_filter = scales.size == 1 or (scales.ndim == 1 + len(rest) and scales.shape == (count, *[1] * len(rest)))
    if scale.size != 1 or zero.size != 1 or filter_zero.any() or not per_filter:
        return None
    if int(np.prod(rest)) > LARGEST_DEPTH:
        return None
    each = np.broadcast_to(scales.astype(np.float64).reshape(-1), (count,))
    return Quantized(image, filters, float(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]), each)


def is_integer(kernel: Kernel) -> bool:
    """Whether a convolution's kernel multiplies integers."""
    anchor = kernel.anchor
    return anchor is not None and anchor.op == "conv" and source(anchor.operand(0)) is not anchor.operand(0)


def constant_of(kernel: Kernel, value: Value) -> np.ndarray | None:
    """The elements of a constant of the body or of a weight that it reads whole."""
    if value.constant is not None:
        constant: np.ndarray = value.constant.array
        return constant
    if value not in kernel.body.inputs:
        return None
    view = kernel.inputs[kernel.body.inputs.index(value)]
    if view.buffer.kind != "weight" or not view.is_whole or view.buffer.data is None:
        return None
    data: np.ndarray = view.buffer.data.array.reshape(value.tensor.static_shape)
    return data


def integer_form(kernel: Kernel, quantized: Quantized, name: Callable[[str], str]) -> Kernel:
    """The kernel with a body of integer products. `name` makes names of buffers."""
    return _Rewriting(kernel, quantized, name).kernel()


def _by_channel(numbers: np.ndarray, rank: int) -> np.ndarray:
    return numbers.astype(np.float32).reshape(-1, *[1] * rank)


def _integers(data: np.ndarray, steps: np.ndarray) -> np.ndarray | None:
    """`data` in steps where, up to f32's rounding, these are integers that can be added to sums exactly. Else None."""
    with np.errstate(all="ignore"):
        numbers = data / steps
        found = np.rint(numbers)
        near = np.abs(numbers - found) <= np.abs(numbers) * 2.0**-22
    return found if bool(np.all(near & (np.abs(found) < 1 << 22))) else None


class _Rewriting:
    def __init__(self, kernel: Kernel, quantized: Quantized, name: Callable[[str], str]) -> None:
        assert kernel.anchor is not None
        self.old, self.anchor, self.quantized, self.name = kernel, kernel.anchor, quantized, name
        self.body = Graph("body")
        self.views: list[View] = []
        self.known: dict[tuple[Value, float], Value] = {}
        self.inputs: dict[Value, Value] = {}
        self.products = self._products()

    def kernel(self) -> Kernel:
        k = self.old
        self.body.add_output(self._scaled(k.body.outputs[0], 1.0))
        return Kernel(
            k.family, self.body, self.views, list(k.outputs), self.products.producer, dict(k.params), origin=k.origin
        )

    def _products(self) -> Value:
        q = self.quantized
        x, w = self._input(q.image), self._input(q.filters)
        one, zero = self._literal(1.0), self.body.constant(Constant(np.array(q.zero, np.uint8)), name="zero")
        real = [
            self.body.add("dequantize", [x, one, zero], {"dtype": F32}).result,
            self.body.add("dequantize", [w, one], {"dtype": F32}).result,
        ]
        attrs = {**self.anchor.attrs, "exact": True}
        return self.body.add("conv", real, attrs, origin=self.anchor.origin).result

    def _grid(self, node: Node) -> Value | None:
        """A quantization by a positive constant, as one of the scaled operand by 1."""
        scale, zero = constant_of(self.old, node.operand(1)), node.optional(2)
        data = None if zero is None else constant_of(self.old, zero)
        if scale is None or scale.size != 1 or (step := float(scale.reshape(-1)[0])) <= 0:
            return None
        if zero is not None and (data is None or data.size != 1):
            return None
        value = self._without_cuts(node.operand(0), step, data, node)
        rest = [] if zero is None else [self._number(zero, 1.0)]
        made = self._scaled(value, 1 / step)
        return self.body.add("quantize", [made, self._literal(1.0), *rest], node.attrs, origin=node.origin).result

    def _without_cuts(self, value: Value, scale: float, zero: np.ndarray | None, last: Node) -> Value:
        """`value` before operators that cut it where the quantization does so anyway."""
        low, high = integer_range(last.attrs["dtype"])
        at = 0 if zero is None else int(zero.reshape(-1)[0])
        while (node := value.producer) is not None:
            if node.op == "relu" and at <= low:
                value = node.operand(0)
                continue
            bounds = [v.constant for v in node.operands if v is not None] if node.op in ("min", "max") else []
            i = next((i for i, c in enumerate(bounds) if c is not None and c.array.size == 1), None)
            if i is None:
                break
            bound = bounds[i]
            assert bound is not None
            grid = np.rint(float(bound.array.reshape(-1)[0]) / scale) + at
            if not (grid >= high if node.op == "min" else grid <= low):
                break
            value = node.operand(1 - i)
        return value

    def _scaled(self, value: Value, factor: float) -> Value:
        """The new body's value of `value` times a positive factor."""
        if (value, factor) not in self.known:
            self.known[value, factor] = self._make(value, factor)
        return self.known[value, factor]

    def _make(self, value: Value, factor: float) -> Value:
        node = value.producer
        if value is self.anchor.result:
            return self._real_sums(factor)
        if value.constant is not None:
            return self._scaled_constant(value.constant, factor)
        data = constant_of(self.old, value) if factor != 1 else None
        if data is not None:
            return self._vector(np.asarray(data.astype(np.float64) * factor, np.float32))
        if node is None:
            return self._times(self._input(value), factor)
        if node.op == "quantize" and factor == 1 and (grid := self._grid(node)) is not None:
            return grid
        operands = self._operands(node, factor)
        taken = operands is not None
        made = self.body.add(node.op, operands or self._operands(node, 1.0) or [], node.attrs, origin=node.origin)
        return made.result if taken else self._times(made.result, factor)

    def _times(self, value: Value, factor: float) -> Value:
        return value if factor == 1 else self.body.add("mul", [value, self._literal(factor)]).result

    def _operands(self, node: Node, factor: float) -> list[Value | None] | None:
        """The operands that make a node's result `factor` times as large; None where none do."""
        factors = [1.0] * len(node.operands)
        if node.op == "dequantize" and constant_of(self.old, node.operand(1)) is not None:
            grid = [
                None if v is None else self._number(v, f)
                for v, f in zip(node.operands[1:], (factor, 1.0), strict=False)
            ]
            return [self._scaled(node.operand(0), 1.0), *grid]
        if factor != 1 and node.op in HOMOGENEOUS:
            factors = [factor] * len(factors)
        elif factor != 1 and (at := self._constant_factor(node)) is not None:
            factors[at] = factor
        elif factor != 1:
            return None
        return [None if v is None else self._scaled(v, f) for v, f in zip(node.operands, factors, strict=True)]

    def _constant_factor(self, node: Node) -> int | None:
        """The operand of a product that can take in a factor: a constant, else any of the two."""
        if node.op == "div":
            return 0
        if node.op != "mul":
            return None
        return next((i for i in (1, 0) if constant_of(self.old, node.operand(i)) is not None), 0)

    def _real_sums(self, factor: float) -> Value:
        q = self.quantized
        rank = len(self.anchor.result.tensor.dims) - 2
        steps = q.filter_scales * q.scale
        factors = self._vector(_by_channel(steps * factor, rank))
        bias = self.anchor.optional(2)
        if bias is None:
            return self.body.add("mul", [self.products, factors]).result
        data = constant_of(self.old, bias)
        assert data is not None
        if (whole_steps := _integers(data, steps)) is not None:
            total = self.body.add("add", [self.products, self._vector(_by_channel(whole_steps, rank))]).result
            return self.body.add("mul", [total, factors]).result
        real = self.body.add("mul", [self.products, factors]).result
        added = self._vector(_by_channel(data.astype(np.float64) * factor, rank))
        return self.body.add("add", [real, added]).result

    def _input(self, value: Value) -> Value:
        if value not in self.inputs:
            self.inputs[value] = self.body.add_input(value.name, value.type)
            self.views.append(self.old.inputs[self.old.body.inputs.index(value)])
        return self.inputs[value]

    def _vector(self, data: np.ndarray) -> Value:
        made = Constant(data)
        value = self.body.add_input("factor", made.type)
        base = self.old.outputs[0].buffer.name
        self.views.append(whole(Buffer(self.name(f"{base}.factor"), made.type, "weight", data=made)))
        return value

    def _number(self, value: Value, factor: float) -> Value:
        """A constant of one element times a factor, as a weight: so kernels of other scales have the same code."""
        data = constant_of(self.old, value)
        if data is None or data.size != 1:
            return self._scaled(value, factor)
        return self._vector(data if factor == 1 else np.asarray(data.astype(np.float64) * factor, np.float32))

    def _literal(self, value: float) -> Value:
        return self.body.constant(Constant(np.array(value, np.float32)))

    def _scaled_constant(self, data: Constant, factor: float) -> Value:
        if factor == 1:
            return self.body.constant(data)
        return self.body.constant(Constant(np.asarray(data.array.astype(np.float64) * factor, np.float32)))
