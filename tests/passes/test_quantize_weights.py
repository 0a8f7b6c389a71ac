"""Weights of 4 bits: which products and tables get them, and how far they are from what they stand for."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.nbits import WeightScheme, grouped
from opcel_compiler.ir.types import I64, TensorType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline

RNG = np.random.default_rng(0)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("k, group", [(256, 64), (300, 128), (50, 128)])
def test_codes_are_the_nearest(bits: int, symmetric: bool, k: int, group: int) -> None:
    w = weights(k, 40)
    w[:, 3] = 0
    w[:, 5] = np.abs(w[:, 5])
    made = grouped(w, bits, group, symmetric, clip=False)
    assert made.scale.shape == (-(-k // group), 40) and (made.zero is None) == symmetric
    step = np.repeat(made.scale, made.group, 0)[:k]
    assert (np.abs(made.floats() - w) <= step * 0.5001 + 1e-7).all()
    assert (made.floats()[:, 3] == 0).all()


def test_a_clipped_range_never_loses_more() -> None:
    w = weights(512, 64) ** 3
    for symmetric in (False, True):
        whole, clipped = (grouped(w, 4, 128, symmetric, clip) for clip in (False, True))
        loss = [np.square(g.floats() - w).reshape(4, 128, 64).sum(1) for g in (whole, clipped)]
        assert (loss[1] <= loss[0] * (1 + 1e-6)).all() and loss[1].sum() < 0.99 * loss[0].sum()


class Language:
    """Rows of a table, a layer, and a head."""

    def __init__(self) -> None:
        self.graph = Graph()
        ids = self.graph.add_input("ids", TensorType(I64, (1, 6)))
        table, small = self.constant(weights(600, 128)), self.constant(weights(7, 128))
        x = self.add("gather", table, ids, axis=0)
        x = self.add("add", x, self.add("gather", small, ids, axis=0))
        x = self.add("relu", self.add("matmul", x, self.constant(weights(128, 512))))
        x = self.add("matmul", x, self.constant(weights(512, 128)))
        x = self.add("add", x, self.add("matmul", x, self.constant(weights(128, 128))))
        logits = self.add("matmul", x, self.constant(weights(128, 600)))
        self.graph.add_output(self.add("add", logits, self.constant(weights(600))), "logits")

    def constant(self, array: np.ndarray) -> Value:
        return self.graph.constant(Constant(array))

    def add(self, op: str, *operands: Value, **attrs: object) -> Value:
        return self.graph.add(op, list(operands), attrs).result

    def quantized(self, scheme: WeightScheme | None) -> PassContext:
        ctx = PassContext(weights=scheme)
        PassManager.run(self.graph, Pipeline.parse("quantize-weights,dead-code"), ctx)
        return ctx


def test_layers_the_head_and_tables() -> None:
    net = Language()
    feeds = {"ids": RNG.integers(0, 7, (1, 6))}
    before = run(net.graph, feeds)["logits"]
    net.quantized(None)
    assert not any(n.op == "matmul_nbits" for n in net.graph.nodes)
    ctx = net.quantized(WeightScheme(group=64))
    products = [n for n in net.graph.nodes if n.op == "matmul_nbits"]
    assert [(n.operand(1).tensor.dtype.name, n.attrs["group"]) for n in products] == [
        ("u4", 64), ("u4", 64), ("i8", 128),
    ]  # fmt: skip
    assert all(n.attrs["rounded"] for n in products)
    assert sum(n.op == "matmul" for n in net.graph.nodes) == 1, "what is small stays float"
    assert [r.reason for r in ctx.report.refusals()] == ["it has 16384 weights, fewer than 65536"]
    gathers = [n.operand(0).tensor.dtype.name for n in net.graph.nodes if n.op == "gather"]
    assert sorted(gathers) == ["f32", "f32", "i8"]
    after = run(net.graph, feeds)["logits"]
    assert 1e-3 < np.linalg.norm(after - before) / np.linalg.norm(before) < 0.2


def test_weights_that_were_found_with_data_are_taken() -> None:
    net = Language()
    first = next(n for n in net.graph.nodes if n.op == "matmul")
    given = grouped(weights(128, 512), 4, 32, True, False)
    net.quantized(WeightScheme(found={first.result.name: given}))
    node = next(n for n in net.graph.nodes if n.op == "matmul_nbits")
    assert node.attrs["group"] == 32 and node.operand(1).constant is not None
    np.testing.assert_array_equal(node.operand(1).constant.array.astype(np.int8), given.codes)
