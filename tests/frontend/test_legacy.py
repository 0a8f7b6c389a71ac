"""Operators as opsets 1 to 6 write them, against the same as a later opset writes it."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.ir.verify import verify

from .onnx_harness import floats, interpret, one_node, reference, same

A, VECTOR, COLUMN = floats(2, 3, 4), floats(4, seed=1), floats(3, seed=2)
POSITIVE = floats(3, seed=3, low=0.5)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: dict[str, tuple[str, tuple[int, dict, dict], tuple[int, dict, dict]]] = {
    "add, last axes": ("Add", (1, {"b": VECTOR}, {"broadcast": 1}), (13, {"b": VECTOR}, {})),
    "mul, from an axis": (
        "Mul", (6, {"b": COLUMN}, {"broadcast": 1, "axis": 1}), (13, {"b": COLUMN.reshape(3, 1)}, {}),
    ),
    "sub, from a negative axis": (
        "Sub", (6, {"b": COLUMN}, {"broadcast": 1, "axis": -2}), (13, {"b": COLUMN.reshape(3, 1)}, {}),
    ),
    "greater, two axes": (
        "Greater", (6, {"b": floats(2, 3)}, {"broadcast": 1, "axis": 0}), (13, {"b": floats(2, 3, 1)}, {}),
    ),
    "prelu, a slope a channel": ("PRelu", (6, {"s": COLUMN}, {}), (13, {"s": COLUMN.reshape(3, 1)}, {})),
    "prelu, one slope": ("PRelu", (1, {"s": COLUMN[:1]}, {"consumed_inputs": [0, 0]}), (13, {"s": COLUMN[:1]}, {})),
    "batch normalization": (
        "BatchNormalization",
        (1, dict(s=COLUMN, b=COLUMN, m=COLUMN, v=POSITIVE), {"is_test": 1, "consumed_inputs": [0, 0, 0, 1, 1]}),
        (13, dict(s=COLUMN, b=COLUMN, m=COLUMN, v=POSITIVE), {}),
    ),
    "dropout": ("Dropout", (6, {}, {"is_test": 1, "ratio": 0.3}), (13, {}, {})),
    "cast": ("Cast", (1, {}, {"to": "INT32"}), (13, {}, {"to": 6})),
    "concat": ("Concat", (1, {"b": A}, {}), (13, {"b": A}, {"axis": 1})),
    "selu": ("Selu", (1, {}, {}), (13, {}, {"alpha": 1.6732, "gamma": 1.0507})),
    "pad": (
        "Pad", (1, {}, {"paddings": [0, 1, 0, 0, 0, 2], "value": 1.5}),
        (13, {"p": ints(0, 1, 0, 0, 0, 2), "v": np.float32(1.5).reshape(())}, {}),
    ),
    "reshape": ("Reshape", (1, {}, {"shape": [0, -1]}), (13, {"s": ints(0, -1)}, {})),
    "tile": ("Tile", (1, {"t": ints(2), "a": ints(1)}, {}), (13, {"r": ints(1, 2, 1)}, {})),
    "clip": ("Clip", (1, {}, {"min": -0.5, "consumed_inputs": [0]}), (11, {"m": np.float32(-0.5).reshape(())}, {})),
    "softmax": ("Softmax", (1, {}, {}), (11, {}, {})),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_same_as_a_later_opset(name: str) -> None:
    op, (opset, constants, attrs), (later, theirs, other) = CASES[name]
    new = one_node(op, {"x": A}, later, constants=theirs, **other)
    old = onnx.ModelProto()
    old.CopyFrom(new)
    old.opset_import[0].version = opset
    del old.graph.initializer[:], old.graph.node[:]
    old.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in constants.items())
    old.graph.node.append(helper.make_node(op, ["x", *constants], ["y0"], **attrs))
    imported = import_model(old)
    verify(imported.graph)
    assert not imported.foreign
    same(interpret(imported, {"x": A}), reference(new, {"x": A}))


@pytest.mark.parametrize(("op", "opset"), [("Dropout", 6), ("BatchNormalization", 6)])
def test_training_stays_opaque(op: str, opset: int) -> None:
    four = {} if op == "Dropout" else dict(s=COLUMN, b=COLUMN, m=COLUMN, v=POSITIVE)
    imported = import_model(one_node(op, {"x": A}, opset, constants=four))
    assert [n.attrs["reason"] for n in imported.foreign] == ["is_test is 0, which trains"]


def test_an_operand_that_does_not_fit_is_refused() -> None:
    model = one_node("Add", {"x": A}, 13, constants={"b": floats(3, 4)})
    model.opset_import[0].version = 6
    model.graph.node[0].attribute.extend(helper.make_attribute(n, v) for n, v in {"broadcast": 1, "axis": 2}.items())
    with pytest.raises(ModelError, match="has too many axes to begin at axis 2"):
        import_model(model)
