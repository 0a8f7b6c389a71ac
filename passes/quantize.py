"""Give the layers that a plan names operands of 8 bits.

A layer reads `dequantize(codes of x)` and `dequantize(constant s8 weights, a scale for each output channel)`. A value
that several layers read is quantized once, and each reader has a `dequantize` of its own. Max pools and concats work on
the codes themselves. A recurrent layer becomes such a product for x's part of the gates, and the steps with s8 weights,
which round the state on grids of its own. Without a plan nothing changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.codes import LARGEST, SMALLEST, term_axes, weight_codes, weight_scales
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.ops.recurrent import SCALE_AT
from opcel_compiler.ir.quantization import DYNAMIC, LAYERS, STATIC, Plan
from opcel_compiler.ir.recurrent import RECURRENT, bias_parts
from opcel_compiler.ir.thresholds import Grid
from opcel_compiler.ir.types import F32, I8, U8
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import erase_unused
from opcel_compiler.rewrite.pass_ import Pass

CENTRE = 128
"""The code of zero where the scale of a row is computed as the model runs."""


@dataclass(frozen=True)
class Quantize(Pass):
    """Approximate, and done only where the caller's plan asks for it."""

    name: ClassVar[str] = "quantize"
    summary: ClassVar[str] = "quantize the layers of a plan to 8 bits"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        plan = ctx.quantization
        if plan is not None:
            _Quantizer(graph, plan, ctx).run()


class _Quantizer:
    def __init__(self, graph: Graph, plan: Plan, ctx: PassContext) -> None:
        self.graph, self.plan, self.ctx = graph, plan, ctx
        self.codes: dict[tuple[Value, Grid], Value] = {}
        self.rows: dict[Value, tuple[Value, Value, Value]] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if not node.results or node.graph is None or not self._allowed(node):
                continue
            name = node.results[0].name
            layer = self.plan.layers.get(name)
            if node.op in LAYERS | RECURRENT and layer is not None and layer.scheme in (STATIC, DYNAMIC):
                (self._layer if node.op in LAYERS else self._recurrent)(node, name, layer.scheme)
            for i in self.plan.readers.get(name, ()):
                node.set_operand(i, self._read(node.operand(i), node))

    def _allowed(self, node: Node) -> bool:
        return self.ctx.limit is None or self.ctx.report.total < self.ctx.limit

    def _layer(self, node: Node, name: str, scheme: str) -> None:
        x, weights = node.operand(0), node.operand(1)
        given = x.producer
        node.set_operand(0, self._read_as(scheme, x, node))
        node.set_operand(1, self._weights(node, weights))
        correction = self.plan.corrections.get(name)
        if correction is not None:
            self._correct(node, correction)
        self.ctx.changed(scheme, node)
        erase_unused([n for n in (weights.producer, given) if n is not None])

    def _recurrent(self, node: Node, name: str, scheme: str) -> None:
        x, r, w = node.operand(0), node.operand(1), node.operand(2)
        given = [v.producer for v in (x, r, w, node.optional(3)) if v is not None]
        total, kept = bias_parts(node)
        codes, scales = _coded(node.op, w)
        columns = np.ascontiguousarray(codes.reshape(-1, codes.shape[2]).T)
        weights = self._dequantized_weights(node, w, columns, scales.reshape(-1))
        gates = self._add(node, "matmul", self._read_as(scheme, x, node), weights)
        if total is not None:
            gates = self._add(node, "add", gates, self._constant(node, total, "bias"))
        codes, scales = _coded(node.op, r)
        at = SCALE_AT[node.op]
        operands = [gates, self._constant(node, codes, f"{r.name}.codes"), None, None, *node.operands[4:at]]
        operands += [None] * (at - len(operands))
        operands[3] = None if kept is None else self._constant(node, kept, "bias")
        operands.append(self._constant(node, scales[..., 0], f"{r.name}.scale"))
        again = self.graph.add(node.op, operands, node.attrs, before=node, origin=node.origin)
        for old, new in zip(node.results, again.results, strict=True):
            old.name, new.name = new.name, old.name
        self.ctx.changed(scheme, node)
        self.graph.replace(node, again.results)
        erase_unused([n for n in given if n is not None])

    # -- weights -----------------------------------------------------------------------------------------------------

    def _weights(self, node: Node, weights: Value) -> Value:
        codes, scales = _coded(node.op, weights)
        return self._dequantized_weights(node, weights, codes, scales.reshape(-1) if node.op == "matmul" else scales)

    def _dequantized_weights(self, node: Node, weights: Value, codes: np.ndarray, scales: np.ndarray) -> Value:
        held = self._constant(node, codes, f"{weights.name}.codes")
        scale = self._constant(node, scales, f"{weights.name}.scale")
        return self._add(node, "dequantize", held, scale, dtype=F32)

    def _correct(self, node: Node, correction: np.ndarray) -> None:
        """Add a constant for each output channel to the layer's result."""
        added = correction.astype(np.float32)
        if node.op == "matmul":
            old = node.result
            uses = old.uses
            following = node._next
            total = self.graph.add(
                "add", [old, self._constant(following or node, added, "correction")], before=following,
                origin=node.origin,
            ).result  # fmt: skip
            for user, i in uses:
                if isinstance(user, Graph):
                    user.set_output(i, total)
                else:
                    user.set_operand(i, total)
            return
        bias = node.optional(2)
        if bias is None or bias.constant is None:
            data, before = added, None
        else:
            data, before = np.asarray(bias.constant.array) + added, bias.producer
        value = self._constant(node, data, "corrected")
        if len(node.operands) > 2:
            node.set_operand(2, value)
        else:
            again = self.graph.add(node.op, [*node.operands, value], node.attrs, before=node, origin=node.origin)
            again.result.name, node.result.name = node.result.name, again.result.name
            self.graph.replace(node, again.results)
        if before is not None:
            erase_unused([before])

    # -- activations -------------------------------------------------------------------------------------------------

    def _read_as(self, scheme: str, x: Value, reader: Node) -> Value:
        return self._read(x, reader) if scheme == STATIC else self._read_rows(x, reader)

    def _read(self, x: Value, reader: Node) -> Value:
        """What the codes of `x` stand for, for `reader` alone."""
        grid = self.plan.grids[self._root(x).name]
        return self._dequantized(reader, self._codes(x, grid), grid)

    def _root(self, x: Value) -> Value:
        """The value whose grid is that of `x`: itself, or what max pools choose it from."""
        while x.name not in self.plan.grids and x.producer is not None and x.producer.op == "max_pool":
            x = x.producer.operand(0)
        return x

    def _codes(self, x: Value, grid: Grid) -> Value:
        """The codes of `x` on `grid`, made right after `x` is."""
        if (x, grid) not in self.codes:
            self.codes[x, grid] = self._made(x, grid)
        return self.codes[x, grid]

    def _made(self, x: Value, grid: Grid) -> Value:
        maker = x.producer
        own = self.plan.grids.get(x.name)
        if maker is not None and maker.graph is self.graph:
            if maker.op == "concat" and (own is None or own == grid) and all(map(self._known, maker.operands)):
                parts = [self._codes(v, grid) for v in maker.operands if v is not None]
                return self._after(maker, "concat", parts, axis=maker.attrs["axis"])
            if maker.op == "max_pool" and own is None:
                return self._after(maker, "max_pool", [self._codes(maker.operand(0), grid)], **maker.attrs)
        source = x
        if own is not None and own != grid:  # from one grid to another, without the value itself
            codes = self._codes(x, own)
            source = self._after(codes.producer, "dequantize", self._pair(codes, own), dtype=F32)
        return self._after(source.producer, "quantize", self._pair(source, grid), dtype=U8)

    def _known(self, v: Value | None) -> bool:
        return v is not None and self._root(v).name in self.plan.grids

    def _dequantized(self, reader: Node, codes: Value, grid: Grid) -> Value:
        scale = self._constant(reader, np.float32(grid.scale), "scale")
        zero = self._constant(reader, np.uint8(grid.zero), "zero")
        return self._add(reader, "dequantize", codes, scale, zero, dtype=F32)

    def _pair(self, x: Value, grid: Grid) -> list[Value]:
        before = self._following(x.producer)
        scale = self._constant(before, np.float32(grid.scale), "scale")
        return [x, scale, self._constant(before, np.uint8(grid.zero), "zero")]

    def _read_rows(self, x: Value, reader: Node) -> Value:
        """The same with a scale for each row of `x`, its largest magnitude over 127; zero has the code 128."""
        if x not in self.rows:
            maker, axes = x.producer, (len(x.tensor.dims) - 1,)
            size = self._after(maker, "abs", [x])
            most = self._after(size.producer, "reduce_max", [size], axes=axes, keepdims=True)
            before = self._following(most.producer)
            most = self._after(most.producer, "max", [most, self._constant(before, SMALLEST, "least")])
            before = self._following(most.producer)
            scale = self._after(most.producer, "mul", [most, self._constant(before, np.float32(1 / LARGEST), "step")])
            zero = self._constant(self._following(scale.producer), np.uint8(CENTRE), "zero")
            self.rows[x] = self._after(zero.producer, "quantize", [x, scale, zero], dtype=U8), scale, zero
        codes, scale, zero = self.rows[x]
        return self._add(reader, "dequantize", codes, scale, zero, dtype=F32)

    # -- nodes -------------------------------------------------------------------------------------------------------

    def _following(self, maker: Node | None) -> Node | None:
        return next(iter(self.graph.nodes), None) if maker is None else maker._next

    def _after(self, maker: Node | None, op: str, operands: list[Value], **attrs: object) -> Value:
        """A node right after those that make its operands, the last of which is `maker` or a constant behind it."""
        before = self._following(maker)
        made = {v.producer for v in operands}
        while before is not None and (before.op == "constant" or before in made):
            before = before._next
        origin = maker.origin if maker is not None else ()
        return self.graph.add(op, operands, attrs, before=before, origin=origin).result

    def _add(self, node: Node, op: str, *operands: Value, **attrs: object) -> Value:
        return self.graph.add(op, list(operands), attrs, before=node, origin=node.origin).result

    def _constant(self, before: Node | None, array: np.ndarray | np.generic, name: str) -> Value:
        dtype = I8 if array.dtype == np.int8 else U8 if array.dtype == np.uint8 else F32
        return self.graph.constant(Constant(np.asarray(array), dtype), before=before, name=name)


def _coded(op: str, weights: Value) -> tuple[np.ndarray, np.ndarray]:
    """(codes, scales with ones in the other axes) of a layer's constant weights."""
    data = weights.constant
    assert data is not None
    w = np.asarray(data.array)
    scales = weight_scales(w, term_axes(op, w.ndim))
    return weight_codes(w, scales), scales
