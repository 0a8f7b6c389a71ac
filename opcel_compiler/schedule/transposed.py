"""A transposed convolution as ordinary convolutions, one for each position of a result element within the stride.

Along one axis with stride s, pad p and dilation d, element o = s·i + r of the result sums the taps k with
k·d = r + p (mod s), each times input element i + (r + p - k·d) / s. So the elements of one r are a convolution of
stride 1 with each (s / gcd(s, d))-th tap, reversed, dilated by d / gcd(s, d), written s elements apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product as cartesian
from typing import TYPE_CHECKING, Any

import numpy as np

from opcel_compiler.ir.dims import Dim, ceildiv
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.program import whole
from opcel_compiler.ir.types import F32, TensorType

if TYPE_CHECKING:
    from opcel_compiler.schedule.lower import Lowering


@dataclass(frozen=True)
class AxisPhase:
    """Elements first, first + stride, … of one axis, `count` of them: a convolution with `taps` of the weights."""

    first: int
    count: Dim
    taps: tuple[int, ...]
    dilation: int
    before: int
    after: int


def axis_phases(size: Dim, out: Dim, kernel: int, stride: int, pad: int, dilation: int) -> list[AxisPhase] | None:
    """The phases of one axis; None when one has no tap, or its pads are symbolic or negative."""
    phases = []
    for r in range(stride):
        count = ceildiv(out - r, stride)
        if count == 0:
            continue
        taps = [k for k in reversed(range(kernel)) if (r + pad - k * dilation) % stride == 0]
        if not taps:
            return None
        first, last = ((r + pad - k * dilation) // stride for k in (taps[0], taps[-1]))
        after = count + last - size
        if not isinstance(after, int) or after < 0 or first > 0:
            return None
        phases.append(AxisPhase(r, count, tuple(taps), dilation // math.gcd(dilation, stride), -first, after))
    return phases


@dataclass(frozen=True)
class Phase:
    """One convolution: its attributes, its weights [filters, channels / groups, taps...], and where its result goes."""

    attrs: Mapping[str, Any]
    weights: np.ndarray
    starts: tuple[int, ...]
    sizes: tuple[Dim, ...]


def phases(
    sizes: Sequence[Dim], out: Sequence[Dim], weights: np.ndarray, attrs: Mapping[str, Any]
) -> list[Phase] | None:
    """The convolutions that make up a conv_transpose with spatial `sizes` and result sizes `out`; None when an axis
    does not divide into phases. `weights` is [channels, filters / groups, kernel...]."""
    axes: list[list[AxisPhase]] = []
    for i, (size, total) in enumerate(zip(sizes, out, strict=True)):
        found = axis_phases(
            size, total, weights.shape[2 + i], attrs["strides"][i], attrs["pads"][i], attrs["dilations"][i]
        )
        if found is None:
            return None
        axes.append(found)
    groups, (channels, filters) = attrs["groups"], weights.shape[:2]
    grouped = weights.reshape(groups, channels // groups, *weights.shape[1:]).swapaxes(1, 2)
    grouped = grouped.reshape(groups * filters, channels // groups, *weights.shape[2:])
    result = []
    for chosen in cartesian(*axes):
        kept = (slice(None), slice(None), *np.ix_(*(a.taps for a in chosen)))
        taps = grouped[kept]
        pads = (*(a.before for a in chosen), *(a.after for a in chosen))
        own = {"strides": (1,) * len(chosen), "pads": pads, "dilations": tuple(a.dilation for a in chosen)}
        result.append(
            Phase(
                {**own, "groups": groups}, np.ascontiguousarray(taps), tuple(a.first for a in chosen),
                tuple(a.count for a in chosen),
            )
        )  # fmt: skip
    return result


def lower_conv_transpose(lowering: Lowering, node: Node) -> None:
    """Constant weights: convolutions whose results interleave. Else one kernel."""
    x, w, bias = (*node.operands, None)[:3]
    assert x is not None and w is not None
    out_type, weights = lowering.type_of(node.result), w.constant
    parts = None
    if weights is not None and len(out_type.dims) <= 4 and weights.dtype == F32:
        parts = phases(x.tensor.dims[2:], out_type.dims[2:], weights.array, node.attrs)
    if not parts:
        lowering.whole_kernel(node)
        return
    source, out = lowering.contiguous(lowering.view(x)), lowering.result(node.result, None)
    extra = [] if bias is None else [lowering.view(bias)]
    for part in parts:
        body = Graph("body")
        values = [body.add_input("x", x.type), body.add_input("w", TensorType(F32, part.weights.shape))]
        if bias is not None:
            values.append(body.add_input("bias", bias.type))
        anchor = body.add("conv", values, part.attrs, origin=node.origin)
        body.add_output(anchor.result)
        taps = whole(lowering.weight(Constant(part.weights), w.name))
        shape = (*out.shape[:2], *part.sizes)
        place = out.slice((0, 0, *part.starts), shape, (1, 1, *node.attrs["strides"]))
        lowering.emit("conv", body, [source, taps, *extra], [place], anchor)
    lowering.views[node.result] = out


def lower_fused_transpose(lowering: Lowering, node: Node, anchor: Node) -> bool:
    """One of dequantized operands, with what follows: a convolution for each phase, as above, with the same prologue
    and epilogue. False, and nothing is done, where it does not divide."""
    region = node.regions[0]
    source, factors = anchor.operand(0).producer, anchor.operand(1).producer
    assert source is not None and factors is not None
    outside = dict(zip(region.inputs, (v for v in node.operands if v is not None), strict=True))
    x, w = outside.get(source.operand(0)), outside.get(factors.operand(0))
    out_type = lowering.type_of(node.result)
    if x is None or w is None or w.constant is None or len(out_type.dims) > 4:
        return False
    if any(v in outside and outside[v].constant is None for v in factors.operands if v is not None):
        return False
    parts = phases(x.tensor.dims[2:], out_type.dims[2:], w.constant.array, anchor.attrs)
    if not parts:
        return False
    out, views = lowering.result(node.result, None), {}
    for inner, value in outside.items():
        if inner in factors.operands and inner is not factors.operand(0) and value.constant is not None:
            scales = _for_filters(value.constant.array, anchor.attrs["groups"], len(out_type.dims))
            views[inner] = whole(lowering.weight(Constant(scales, value.constant.dtype), value.name))
        else:
            views[inner] = lowering.contiguous(lowering.view(value))
    for part in parts:
        body = Graph("body")
        views[factors.operand(0)] = whole(lowering.weight(Constant(part.weights, w.constant.dtype), w.name))
        known = {inner: body.add_input(inner.name, TensorType(v.dtype, v.shape)) for inner, v in views.items()}
        for each in region.nodes:
            operands = [None if v is None else known[v] for v in each.operands]
            op, attrs = ("conv", part.attrs) if each is anchor else (each.op, each.attrs)
            made = body.add(op, operands, attrs, origin=each.origin)
            known.update(zip(each.results, made.results, strict=True))
        body.add_output(known[region.outputs[0]])
        shape = (*out.shape[:2], *part.sizes)
        place = out.slice((0, 0, *part.starts), shape, (1, 1, *anchor.attrs["strides"]))
        lowering.emit("conv", body, [*views.values()], [place], known[anchor.result].producer)
    lowering.views[node.result] = out
    return True


def _for_filters(values: np.ndarray, groups: int, rank: int) -> np.ndarray:
    """Scales or zero points along the second axis of [channels, filters / groups, ...], for the filters of `phases`."""
    if values.size == 1:
        return values
    return np.tile(values.reshape(-1), groups).reshape(-1, *[1] * (rank - 1))
