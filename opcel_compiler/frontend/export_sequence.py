"""How operators of sequence models, and writes at computed places, are written in ONNX."""

from __future__ import annotations

from opcel_compiler.frontend.export_ops import exports, need
from opcel_compiler.frontend.writer import Writer
from opcel_compiler.ir.graph import Node


def _reduction(w: Writer, node: Node, what: str) -> str | None:
    """The attribute of a scatter, None for its default."""
    reduction = str(node.attrs["reduction"])
    if reduction == "none":
        return None
    need(w, 16 if reduction in ("add", "mul") else 18, f"{what} with reduction {reduction}")
    return reduction


@exports("scatter_elements")
def scatter_elements(w: Writer, node: Node, xs: list[str]) -> str:
    if w.opset < 11:
        need(w, 9, "Scatter")
        _reduction(w, node, "Scatter")
        return w.node("Scatter", xs, axis=node.attrs["axis"])
    return w.node("ScatterElements", xs, axis=node.attrs["axis"], reduction=_reduction(w, node, "ScatterElements"))


@exports("scatter_nd")
def scatter_nd(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 11, "ScatterND")
    return w.node("ScatterND", xs, reduction=_reduction(w, node, "ScatterND"))
