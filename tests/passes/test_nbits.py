"""Weights of a few bits: which products are recognised, and what their kernels are."""

from __future__ import annotations

import numpy as np
import pytest

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.types import DTYPES, F32, TensorType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.choice.candidates import settable
from opcel_compiler.schedule.choice.nbits import groups
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target

RNG = np.random.default_rng(0)


class Blocks:
    """A graph with one product of x [rows, k] and weights that are dequantized in blocks along k."""

    def __init__(self, dtype: str = "i4", k: int = 64, n: int = 24, block: int = 16, zero: bool = False) -> None:
        self.graph = Graph()
        self.x = self.graph.add_input("x", TensorType(F32, (3, k)))
        d = DTYPES[dtype]
        low = -(1 << (d.bits - 1)) if d.kind == "i" else 0
        w = RNG.integers(low, low + (1 << d.bits), (k // block, block, n)).astype(d.numpy)
        scale = RNG.uniform(0.5, 1, (k // block, 1, n)).astype(np.float32)
        points = RNG.integers(low, low + (1 << d.bits), (k // block, 1, n)).astype(d.numpy)
        operands = [self.constant(w, dtype), self.constant(scale, "f32")]
        if zero:
            operands.append(self.constant(points, dtype))
        self.real = self.graph.add("dequantize", operands, {"dtype": F32}).result

    def constant(self, array: np.ndarray, dtype: str) -> Value:
        return self.graph.constant(Constant(array, DTYPES[dtype]))

    def add(self, op: str, *operands: Value, **attrs: object) -> Value:
        return self.graph.add(op, list(operands), attrs).result

    def optimized(self, y: Value, pipeline: str = "recognize-nbits,dead-code", **given: str) -> Graph:
        """The graph with the result y, after the passes: it computes what it did."""
        self.graph.add_output(y, "y")
        feeds = {"x": RNG.normal(size=(3, self.x.tensor.static_shape[1])).astype(np.float32)}
        before = run(self.graph, feeds)["y"]
        target = load_target("x86-64-avx512-vnni-bf16")
        PassManager.run(self.graph, Pipeline.parse(pipeline), PassContext(target=target, **given))
        np.testing.assert_allclose(run(self.graph, feeds)["y"], before, rtol=2e-5, atol=1e-4)
        return self.graph


def ops(graph: Graph) -> list[str]:
    return [n.op for n in graph.nodes if n.op != "constant"]


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8"])
@pytest.mark.parametrize("zero", [False, True])
def test_blocks_along_k(dtype: str, zero: bool) -> None:
    b = Blocks(dtype, zero=zero)
    graph = b.optimized(b.add("matmul", b.x, b.add("reshape", b.real, shape=(64, 24))))
    assert ops(graph) == ["matmul_nbits"]
    node = list(graph.nodes)[-1]
    assert node.attrs["group"] == 16 and not node.attrs["rounded"]
    unsigned = dtype[0] == "u" or zero
    assert node.operand(1).tensor.dtype.name == ("u" if unsigned else "i") + dtype[1]
    assert len(node.operands) == (4 if unsigned else 3)


def test_weights_that_are_transposed_and_cut() -> None:
    b = Blocks(n=24)
    wide = b.add("reshape", b.real, shape=(64, 24))
    turned = b.add("transpose", b.add("slice", wide, starts=(0, 4), sizes=(60, 8), steps=(1, 2)), perm=(1, 0))
    x = b.add("slice", b.x, starts=(0, 0), sizes=(3, 60), steps=(1, 1))
    graph = b.optimized(b.add("matmul", x, b.add("transpose", turned, perm=(1, 0))))
    assert ops(graph) == ["slice", "matmul_nbits"]


def test_one_scale_a_column() -> None:
    b = Blocks("i8", block=64)
    graph = b.optimized(b.add("matmul", b.x, b.add("reshape", b.real, shape=(64, 24))))
    assert list(graph.nodes)[-1].attrs["group"] == 64


def test_what_stays_as_it_is() -> None:
    """A scale for each row, a product of two dequantized operands, weights that are no matrix."""
    rows = Blocks(block=1)
    y = rows.add("matmul", rows.x, rows.add("reshape", rows.real, shape=(64, 24)))
    assert "matmul" in ops(rows.optimized(y))
    both = Blocks("i8")
    one = both.constant(np.array(0.5, np.float32), "f32")
    x = both.add("dequantize", both.add("quantize", both.x, one, dtype=DTYPES["u8"]), one, dtype=F32)
    assert "matmul" in ops(both.optimized(both.add("matmul", x, both.add("reshape", both.real, shape=(64, 24)))))
    batched = Blocks(k=64, block=16)
    x = batched.add("reshape", batched.x, shape=(4, 3, 16))
    assert "matmul" in ops(batched.optimized(batched.add("matmul", x, batched.real)))


def test_the_kernel_keeps_what_follows_and_the_program_computes_the_same() -> None:
    for precision, rounds in (("f32", False), ("int4", True)):
        b = Blocks(zero=True)
        y = b.add("matmul", b.x, b.add("reshape", b.real, shape=(64, 24)))
        bias = b.constant(RNG.normal(size=24).astype(np.float32), "f32")
        graph = b.optimized(b.add("relu", b.add("add", y, bias)), "recognize-nbits,fold-constants,dead-code,fuse")
        program = lower(graph)
        target = load_target("x86-64-avx512-vnni-bf16")
        PassManager.run(program, Pipeline.parse("choose-kernels"), PassContext(target=target, precision=precision))
        (kernel,) = program.kernels
        assert kernel.family == "gemm.nbits" and kernel.params["rows"] == (3,)
        assert (kernel.params.get("precision") == "rounded") == rounds
        assert settable(kernel) == ("panels_per_task",), "tiles cover the rows of the tasks that were chosen"
        feeds = {"x": RNG.normal(size=(3, 64)).astype(np.float32)}
        got = run_program(program, feeds, target)["y"]
        np.testing.assert_allclose(got, run(graph, feeds)["y"], rtol=2e-5, atol=1e-4)


def test_groups_in_which_rows_are_rounded() -> None:
    assert groups(4096, 32) == (32, 1)
    assert groups(4096, 512) == (128, 4)
    assert groups(768, 768) == (128, 6)
    assert groups(100, 4096) == (100, 1)
    assert groups(1000, 300) == (75, 4)
