"""Constraints accept what a target runs, and say in words what it does not."""

from __future__ import annotations

import dataclasses

import pytest

from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.types import DTYPES, SequenceType, TensorType, Type, tensor
from opcel_compiler.targets import constraints, load_target
from opcel_compiler.targets.constraints import Constraint, constraints_of, violations

UNRANKED = TensorType(DTYPES["f32"], None)


def node(type: Type) -> Node:
    graph = Graph()
    return graph.add("relu", [graph.add_input("x", type)], origin=["user/Node_7"], types=[type])


@pytest.mark.parametrize(
    ("constraint", "good", "bad", "message"),
    [
        (constraints.tensors_only(), tensor("f32", 2), SequenceType(tensor("f32", 2)),
         "Operands and results are tensors: %x of relu (from user/Node_7) is seq<f32[2]>"),
        (constraints.static_rank(), tensor("f32", 2), UNRANKED,
         "The rank of each tensor is known: %x of relu (from user/Node_7) is of unknown rank"),
        (constraints.max_rank(2), tensor("f32", 2, 2), tensor("f32", 2, 2, 2),
         "Tensors have a rank of at most 2: %x of relu (from user/Node_7) is of rank 3"),
        (constraints.static_shapes(), tensor("f32", 2), UNRANKED,
         "The shape of each tensor is constant: %x of relu (from user/Node_7) is f32[*]"),
        (constraints.supported_dtypes(("f32", "i8")), tensor("i8", 2), tensor("f16", 2),
         "Element types are among f32, i8: %x of relu (from user/Node_7) is of f16"),
    ],
    ids=lambda value: value.name if isinstance(value, Constraint) else "",
)  # fmt: skip
def test_constraint(constraint: Constraint, good: Type, bad: Type, message: str) -> None:
    assert violations(node(good), [constraint]) == ()
    assert violations(node(bad), [constraint]) == (message,)
    assert message.startswith(constraint.text.rstrip("."))


def test_constraints_of_a_target() -> None:
    target = load_target("x86-64-avx2")
    names = ["tensors-only", "static-rank", "max-rank", "supported-dtypes"]
    assert [c.name for c in constraints_of(target)] == names
    static = dataclasses.replace(target, limits=dataclasses.replace(target.limits, static_shapes=True))
    assert [c.name for c in constraints_of(static)] == [*names, "static-shapes"]
    assert violations(node(tensor("f32", 1, 3)), constraints_of(target)) == ()
    assert len(violations(node(tensor("c64", *[1] * 9)), constraints_of(target))) == 2
