"""How operators on images are written in ONNX."""

from __future__ import annotations

import math

import numpy as np

from opcel_compiler.frontend.export_ops import exports, need, pool_attrs, reduced
from opcel_compiler.frontend.limits import ExportError
from opcel_compiler.frontend.writer import Writer
from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.ops.sampling import RESAMPLED
from opcel_compiler.ir.types import I64


@exports("arg_max_pool")
def arg_max_pool(w: Writer, node: Node, xs: list[str]) -> str:
    return w.many("MaxPool", xs, (True, True), **pool_attrs(w, node, "MaxPool"))[1]


@exports("resample")
def resample(w: Writer, node: Node, xs: list[str]) -> str:
    """Rows and columns gathered once for each tap, and their weighted sum."""
    x, given = xs[0], [*xs[1:], *[""] * 4][:4]
    for axis, i in RESAMPLED:
        places, weights = given[i - 1], given[i]
        if not places:
            continue
        x = w.node("Gather", [x, places], axis=axis)
        if weights:
            shape = [*(0 for _ in range(2)), *[1] * (3 - axis)]
            x = w.node("Mul", [x, w.node("Reshape", [weights, w.ints(shape)])])
        x = reduced(w, "ReduceSum", x, [axis], keepdims=False)
    return x if x != xs[0] else w.node("Identity", [x])


@exports("grid_sample")
def grid_sample(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 16, "GridSample")
    mode = node.attrs["mode"]
    if w.opset < 20:
        mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return w.node(
        "GridSample", xs, mode=mode, padding_mode=node.attrs["padding"], align_corners=int(node.attrs["align_corners"])
    )


@exports("roi_align")
def roi_align(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 16 if node.attrs["half_pixel"] else 10, "RoiAlign")
    (height, width), how = node.attrs["size"], "half_pixel" if node.attrs["half_pixel"] else "output_half_pixel"
    return w.node(
        "RoiAlign", [*xs[:2], w.cast(xs[2], I64)], output_height=height, output_width=width, mode=node.attrs["mode"],
        sampling_ratio=node.attrs["samples"], spatial_scale=float(node.attrs["scale"]),
        coordinate_transformation_mode=how if w.opset >= 16 else None,
    )  # fmt: skip


@exports("deform_columns")
def deform_columns(w: Writer, node: Node, xs: list[str]) -> str:
    """A DeformConv, one group a channel, whose weights pick one element of the window each."""
    need(w, 19, "DeformConv")
    a, channels = node.attrs, node.operand(0).tensor.dims[1]
    if not isinstance(channels, int):
        raise ExportError(f"{w.where}: deform_columns needs a constant number of channels, not {channels}")
    dtype, taps = node.operand(0).tensor.dtype, math.prod(a["kernel"])
    picks = np.tile(np.eye(taps, dtype=dtype.numpy), (channels, 1)).reshape(-1, 1, *a["kernel"])
    inputs = [xs[0], w.constant(picks, dtype), xs[1], *(["", xs[2]] if len(xs) > 2 else [])]
    window = {name: list(a[name]) for name in ("strides", "pads", "dilations")}
    return w.node("DeformConv", inputs, **window, group=channels, offset_group=a["groups"])


@exports("col2im")
def col2im(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 18, "Col2Im")
    window = {name: list(node.attrs[name]) for name in ("strides", "pads", "dilations")}
    return w.node("Col2Im", [xs[0], w.dims(node.attrs["size"]), w.dims(node.attrs["kernel"])], **window)
