"""Opsets 1 to 6: each operator that opset 7 writes otherwise, put into the form of opset 7.

An entry changes the attributes and operands of a node in place; operators without one only lose what `consumed_inputs`
said of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper

from opcel_compiler.frontend.limits import MIN_OPSET, ModelError
from opcel_compiler.frontend.lowering import OLDER, Lowering, Unsupported
from opcel_compiler.ir.graph import Value

Operands = list["Value | None"]
Upgrade = Callable[[Lowering, NodeProto, Operands], None]

_UPGRADES: dict[str, Upgrade] = {}
_BROADCASTING = ("Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "Equal", "Greater", "Less")


def modern(c: Lowering) -> Lowering:
    """`c` as opset 7 writes it. Raises Unsupported for what it cannot write, ModelError for what no opset allows."""
    node, inputs = NodeProto(), list(c.inputs)
    node.CopyFrom(c.node)
    _drop(node, "consumed_inputs")
    upgrade = _UPGRADES.get(c.op_type)
    if upgrade is not None:
        upgrade(c, node, inputs)
    return c.replaced(node, MIN_OPSET, inputs)


OLDER.append(modern)


def upgrades(*op_types: str) -> Callable[[Upgrade], Upgrade]:
    def register(fn: Upgrade) -> Upgrade:
        _UPGRADES.update(dict.fromkeys(op_types, fn))
        return fn

    return register


def _drop(node: NodeProto, *names: str) -> None:
    kept = [a for a in node.attribute if a.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def _set(node: NodeProto, name: str, value: object) -> None:
    _drop(node, name)
    node.attribute.append(helper.make_attribute(name, value))


@upgrades(*_BROADCASTING)
def _broadcast(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    """The second operand's axes begin at the first one's axis `axis`; by default they are its last ones."""
    _drop(node, "axis", "broadcast")
    a, b = c.x(0), c.x(1)
    if not c.attr_int("broadcast", 0) or not c.has("axis"):
        return
    inputs[1] = _placed(c, b, c.axis(c.attr_int("axis"), c.rank(a)), c.rank(a))


def _placed(c: Lowering, b: Value, axis: int, rank: int) -> Value:
    shape = c.shape(b)
    rest = rank - axis - len(shape)
    if rest < 0:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): %{b.name} has too many axes to begin at axis {axis}")
    return c.reshape(b, (*shape, *[1] * rest))


@upgrades("PRelu")
def _prelu(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    """A slope for each channel."""
    x, slope = c.x(0), c.x(1)
    if c.rank(slope) == 1 and c.rank(x) > 1 and c.shape(slope) != (1,):
        inputs[1] = _placed(c, slope, 1, c.rank(x))


@upgrades("BatchNormalization", "Dropout")
def _inference(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    if not c.attr_int("is_test", 0):
        raise Unsupported("is_test is 0, which trains")
    _drop(node, "is_test")


@upgrades("Gemm")
def _gemm(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    _drop(node, "broadcast")


@upgrades("LSTM", "GRU", "RNN")
def _recurrent(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    _drop(node, "output_sequence")


@upgrades("Cast")
def _cast(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    if c.opset < 6:
        _set(node, "to", TensorProto.DataType.Value(c.attr_str("to").upper()))


@upgrades("Concat")
def _concat(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    if not c.has("axis"):
        _set(node, "axis", 1)


@upgrades("LpPool", "GlobalLpPool")
def _norm_order(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    if c.opset < 2 and c.has("p"):
        order = c.attr_float("p")
        if order != int(order):
            raise Unsupported(f"p is {order}")
        _set(node, "p", int(order))


@upgrades("Selu")
def _selu(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    if c.opset < 6:
        _set(node, "alpha", c.attr_float("alpha", 1.6732))
        _set(node, "gamma", c.attr_float("gamma", 1.0507))


@upgrades("Pad")
def _pad(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    if c.opset < 2:
        _set(node, "pads", c.attr_ints("paddings"))
        _drop(node, "paddings")


@upgrades("Reshape")
def _reshape(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    if c.opset < 5:
        inputs[1:] = [_ints(c, c.attr_ints("shape"))]
        _drop(node, "shape")


@upgrades("Split")
def _split(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    sizes = c.opt(1)
    if c.opset < 2 and sizes is not None:
        _set(node, "split", c.known_ints(sizes, "the split"))
        del inputs[1:]


@upgrades("Tile")
def _tile(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    if c.opset < 6:
        rank = c.rank(c.x(0))
        repeats = [1] * rank
        (count,), (axis,) = c.known_ints(c.x(1), "the tiles"), c.known_ints(c.x(2), "the axis")
        repeats[c.axis(axis, rank)] = count
        inputs[1:] = [_ints(c, repeats)]


@upgrades("Upsample")
def _upsample(c: Lowering, node: NodeProto, inputs: Operands) -> None:
    if c.has("height_scale"):
        _set(node, "scales", [1.0, 1.0, c.attr_float("height_scale"), c.attr_float("width_scale")])
        _drop(node, "height_scale", "width_scale")


def _ints(c: Lowering, values: Sequence[int]) -> Value:
    return c.constant(np.asarray(values, np.int64))
