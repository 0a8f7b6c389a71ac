"""What is told of each layer of a quantized model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.quantization import FLOAT, STATIC, Plan
from opcel_compiler.quantization.layers import candidates, macs, root, seconds
from opcel_compiler.quantization.probe import Measured
from opcel_compiler.targets.schema import Target


def layer_facts(graph: Graph, plan: Plan, measured: Mapping[str, Measured], target: Target) -> list[dict[str, Any]]:
    """A row for each contraction, in order: how it is computed, the grid of what it reads, its own loss on samples,
    what it costs by the target's rates in f32 and as it is, and why it stays float."""
    rows = []
    for candidate in candidates(graph, target):
        node, name = candidate.node, candidate.name
        layer = plan.layers[name]
        count = macs(node)
        row: dict[str, Any] = {
            "name": name, "op": node.op, "origin": list(node.origin), "scheme": layer.scheme, "reason": layer.reason,
            "macs": count, "seconds_float_modelled": seconds(count, target, False),
            "seconds_modelled": seconds(count, target, layer.scheme != FLOAT), **_reads(node, plan, layer.scheme),
        }  # fmt: skip
        if name in measured:
            m = measured[name]
            row |= {"sqnr_db": round(min(m.sqnr, 999.0), 2) if m.sqnr > -math.inf else None, "kl": float(f"{m.kl:.4g}")}
        rows.append(row)
    return rows


def _reads(node: Node, plan: Plan, scheme: str) -> dict[str, Any]:
    if scheme == FLOAT:
        return {}
    out: dict[str, Any] = {"corrected": node.results[0].name in plan.corrections}
    value = root(node.operand(0))
    out["divided"] = value.name in plan.divided or value.name.removesuffix(".divided") in plan.divided
    if scheme == STATIC:
        grid = plan.grids[value.name]
        low, high = grid.range
        out |= {"reads": value.name, "low": low, "high": high, "scale": grid.scale, "zero": grid.zero}
    return out


def summary(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """How many layers and multiply-adds are quantized, and the least signal to noise of any."""
    total = sum(row["macs"] for row in layers)
    codes = [row for row in layers if row["scheme"] != FLOAT]
    measured = [row["sqnr_db"] for row in codes if row.get("sqnr_db") is not None]
    return {
        "layers": len(layers), "quantized": len(codes),
        "macs_share": sum(row["macs"] for row in codes) / total if total else 0.0,
        "least_sqnr_db": min(measured, default=None),
    }  # fmt: skip
