"""How operators on images are written in ONNX."""

from __future__ import annotations

from opcel_compiler.frontend.export_ops import exports, pool_attrs, reduced
from opcel_compiler.frontend.writer import Writer
from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.ops.sampling import RESAMPLED


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
