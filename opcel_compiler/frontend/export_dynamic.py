"""How operators whose results depend in size on data are written in ONNX."""

from __future__ import annotations

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


@exports("nonzero")
def nonzero(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 9, "NonZero")
    return w.node("NonZero", xs)
