"""Even out the channels of values between layers, as a plan says: a value is divided channel by channel, and the layers
that read it have their weights multiplied by the same numbers.

The division goes into what makes the value: a norm's scale and bias, or a layer's weights and bias, also across what
keeps a positive factor (relu; a minimum, whose constant is divided too). Else it is a multiplication of its own.
Exact but for roundings (Nagel et al., ICCV 2019; Xiao et al., ICML 2023). Without a plan nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.quantization import LAYERS, channel_readers
from opcel_compiler.ir.types import F32
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import erase_unused
from opcel_compiler.rewrite.pass_ import Pass
from opcel_compiler.rewrite.rule import Numerics

Factor = Callable[[np.ndarray], np.ndarray]
Change = tuple[Node, int, Factor]
"""A node, one of its constant operands, and what that becomes."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Reassociates: what is divided and multiplied is rounded on the way."""

    name: ClassVar[str] = "equalize"
    summary: ClassVar[str] = "divide channels between layers so that one grid serves them all"

    def run(self, graph: Graph, ctx: PassContext) -> None:
        if ctx.quantization is None:
            return
        values = {v.name: v for v in graph.values()}
        for name, divisors in ctx.quantization.divided.items():
            value = values.get(name)
            readers = channel_readers(value) if value is not None else None
            if value is None or readers is None or value.producer is None:
                continue
            if ctx.allows("divide", value.producer, Numerics.REASSOCIATES):
                ctx.changed("divide", value.producer)
                _divide(graph, value, readers[0], readers[1], readers[2], divisors.astype(np.float64))


def _divide(graph: Graph, value: Value, readers: list[Node], axis: int, alone: bool, divisors: np.ndarray) -> None:
    changes = _into_maker(value, axis, divisors) if alone else None
    if changes is None:
        _apart(graph, value, axis, divisors)
    for node, i, change in changes or ():
        _replace_constant(node, i, change)
    for node in readers:
        _replace_constant(node, 1, partial(_times, node, divisors))


def _times(node: Node, factors: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Weights that read channels multiplied by `factors` less."""
    ones = [1] * (w.ndim - 2)
    if node.op == "conv":
        groups = int(node.attrs["groups"])
        grouped = w.reshape(groups, -1, *w.shape[1:]) * factors.reshape(groups, 1, -1, *ones)
        return np.asarray(grouped.reshape(w.shape))
    return np.asarray(w * factors.reshape(-1, 1, *ones))


def _apart(graph: Graph, value: Value, axis: int, divisors: np.ndarray) -> None:
    """The layers that read `value` read a product of it instead."""
    assert value.producer is not None
    shape = [-1] + [1] * (len(value.tensor.dims) - 1 - axis)
    before = value.producer._next
    factors = Constant((1 / divisors).astype(np.float32).reshape(shape))
    constant = graph.constant(factors, before=before, name=f"{value.name}.factors")
    uses = value.uses
    product = graph.add("mul", [value, constant], before=before, origin=value.producer.origin,
                        names=[f"{value.name}.divided"]).result  # fmt: skip
    for user, i in uses:
        if isinstance(user, Node) and user.op in LAYERS and i == 0:
            user.set_operand(i, product)


def _into_maker(value: Value, axis: int, divisors: np.ndarray) -> list[Change] | None:
    """What divides `value`, which only the layers read, in its maker; None where that is not possible."""
    shape = [-1] + [1] * (len(value.tensor.dims) - 1 - axis)
    over: Factor = partial(_over, divisors.reshape(shape))
    changes: list[Change] = []
    node = value.producer
    while node is not None:
        if node.op == "relu":
            value = node.operand(0)
        elif node.op in ("min", "add") and (i := _constant_operand(node, axis)) is not None:
            changes.append((node, i, over))
            value = node.operand(1 - i)
        else:
            last = _maker_changes(node, axis, divisors)
            return None if last is None else changes + last
        node = value.producer if len(value.uses) == 1 else None
    return None


def _over(divisors: np.ndarray, c: np.ndarray) -> np.ndarray:
    return np.asarray(c / divisors)


def _constant_operand(node: Node, axis: int) -> int | None:
    """The operand of a binary node that is a constant which varies along the channels at most."""
    rank = len(node.result.tensor.dims)
    for i in (0, 1):
        data, other = node.operand(i).constant, node.operand(1 - i)
        if data is not None and other.tensor.shape == node.result.tensor.shape:
            full = (1,) * (rank - data.array.ndim) + data.array.shape
            if all(d == 1 for at, d in enumerate(full) if at != axis):
                return i
    return None


def _maker_changes(node: Node, axis: int, divisors: np.ndarray) -> list[Change] | None:
    """The same for a layer or a norm, with constant operands, whose results have channels along `axis`."""
    over: Factor = partial(_over, divisors)
    rank, given = (
        len(node.result.tensor.dims),
        [i for i in range(1, len(node.operands)) if node.operands[i] is not None],
    )
    if 1 not in given or any(node.operand(i).constant is None for i in given) or node.attrs.get("exact"):
        return None
    if node.op in LAYERS and (axis == rank - 1) == (node.op == "matmul"):
        return [(node, 1, partial(_rows_over, node, divisors)), *((node, i, over) for i in given if i == 2)]
    if node.op in ("layer_norm", "rms_norm") and node.attrs["axis"] == axis == rank - 1:
        return [(node, i, over) for i in given]
    return None


def _rows_over(node: Node, divisors: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Weights whose results are divided."""
    if node.op == "matmul":
        return np.asarray(w / divisors)
    ones = [1] * (w.ndim - 2)
    if node.op == "conv":
        return np.asarray(w / divisors.reshape(-1, 1, *ones))
    groups = int(node.attrs["groups"])
    grouped = w.reshape(groups, -1, *w.shape[1:]) / divisors.reshape(groups, 1, -1, *ones)
    return np.asarray(grouped.reshape(w.shape))


def _replace_constant(node: Node, i: int, change: Factor) -> None:
    """Give `node` a changed copy of its constant operand `i`; other readers keep theirs."""
    old = node.operand(i)
    data = old.constant
    assert data is not None and node.graph is not None
    new = np.ascontiguousarray(change(data.array.astype(np.float64)), np.float32)
    node.set_operand(i, node.graph.constant(Constant(new, F32), before=node, name=old.name))
    if old.producer is not None:
        erase_unused([old.producer])
