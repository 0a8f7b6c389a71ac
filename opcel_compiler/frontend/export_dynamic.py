"""How operators whose results depend in size on data are written in ONNX."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.export_ops import exports, need
from opcel_compiler.frontend.writer import Writer
from opcel_compiler.ir.analysis import made_symbols
from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.types import I64


@exports("read_dims")
def read_dims(w: Writer, node: Node, xs: list[str]) -> list[str]:
    """No result: each symbol is an element, where a size names it."""
    x = xs[0] if node.operand(0).tensor.dtype == I64 else w.cast(xs[0], I64)
    flat = w.node("Reshape", [x, w.ints([-1])])
    symbols = made_symbols(node)
    for i, symbol in enumerate(symbols):
        w.size(symbol.name, flat if len(symbols) == 1 else w.node("Gather", [flat, w.ints([i])], axis=0))
    return []


@exports("topk")
def topk(w: Writer, node: Node, xs: list[str]) -> list[str]:
    need(w, 11, "TopK")
    attrs = {"axis": node.attrs["axis"], "largest": int(node.attrs["largest"]), "sorted": 1}
    return w.many("TopK", [xs[0], w.dims(node.attrs["k"])], (True, True), **attrs)


@exports("unique")
def unique(w: Writer, node: Node, xs: list[str]) -> list[str]:
    need(w, 11, "Unique")
    names = w.many("Unique", xs, (False, True, True, True), axis=0, sorted=int(node.attrs["sorted"]))
    rows = w.node("Gather", [w.node("Shape", xs), w.ints([0])], axis=0)
    size = w.node("Shape", [names[0]])
    after = w.node("Concat", [w.ints([0]), w.node("Sub", [rows, size])], axis=0)
    first, counts = (w.node("Pad", [names[i], after]) for i in (0, 2))
    return [first, names[1], counts, w.node("Reshape", [size, w.constant(np.zeros(0, np.int64))])]


@exports("cumulate")
def cumulate(w: Writer, node: Node, xs: list[str]) -> str:
    a = node.attrs
    op_type, first = ("CumSum", 11) if a["kind"] == "sum" else ("CumProd", 26)
    need(w, first, op_type)
    flags = {name: int(a[name]) for name in ("exclusive", "reverse")}
    return w.node(op_type, [xs[0], w.constant(np.array(a["axis"], np.int64))], **flags)


@exports("nonzero")
def nonzero(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 9, "NonZero")
    return w.node("NonZero", xs)
