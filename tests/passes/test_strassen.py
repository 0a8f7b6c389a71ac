"""Where choose-kernels takes Strassen's algorithm, into what tasks it cuts, and who can forbid it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opcel_compiler.codegen.cpu.pack import packed
from opcel_compiler.ir.dims import Dim, evaluate, symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.program import Kernel
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.rewrite.rule import Numerics
from opcel_compiler.schedule.choice.candidates import candidates, covers
from opcel_compiler.schedule.choice.strassen import LEAST, STACK, combined_bytes
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target


def chosen(
    m: Dim = 128, k: int = 768, n: int = 768, *, constant: bool = True, target: str = "x86-64-avx512", **context: Any
) -> tuple[Kernel, PassContext]:
    """The kernel of one product, and what was reported."""
    graph = Graph("main")
    x = graph.add_input("x", TensorType(F32, (1, m, k)))
    w = (
        graph.constant(Constant(np.ones((k, n), np.float32)))
        if constant
        else graph.add_input("w", TensorType(F32, (k, n)))
    )
    graph.add_output(graph.add("matmul", [x, w], {}).result, "y")
    ctx = PassContext(target=load_target(target), **context)
    PassManager.run(graph, Pipeline.parse("fuse"), ctx)
    program = lower(graph)
    PassManager.run(program, Pipeline.parse("choose-kernels"), ctx)
    verify_program(program)
    return next(k for k in program.kernels if k.anchor is not None and k.anchor.op == "matmul"), ctx


@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(128, 768, 768), (128, 768, 3072), (128, 3072, 768), (197, 768, 2304), (1500, 1536, 384), (1024, 768, 768)],
)
def test_large_products(m: int, k: int, n: int) -> None:
    kernel, ctx = chosen(m, k, n)
    assert kernel.family == "gemm.strassen" and ctx.report.changes["choose-kernels", "strassen"] == 1
    p, upper = kernel.params, -(-m // 2)
    assert all(covers(p["rows"], part) for part in {min(p["rows_per_task"], upper), upper % p["rows_per_task"]})
    assert candidates(kernel, ctx.target) == []
    held = p["pairs"] if p["blocks"] > 1 else 1
    assert 4 * p["rows_per_task"] * (7 * p["depth"] + 4 * held * p["panel"]) < STACK
    assert p["depth"] * p["blocks"] >= k // 2 > (p["depth"] - 1) * p["blocks"]
    weight = kernel.inputs[1].buffer
    assert packed(weight).nbytes == combined_bytes((k, n), weight.packing) == 7 * k * n


@pytest.mark.parametrize(
    "options",
    [
        {"m": 64}, {"k": 128}, {"n": 128}, {"k": 769}, {"n": 33 * 8}, {"constant": False}, {"small": True},
        {"limit": 0}, {"target": "x86-64-avx2"},
    ],
)  # fmt: skip
def test_plain(options: dict[str, Any]) -> None:
    kernel, ctx = chosen(**options)
    assert kernel.family == "gemm"
    assert ctx.report.changes["choose-kernels", "strassen"] == 0


def test_forbidden_class_is_reported() -> None:
    kernel, ctx = chosen(forbidden=frozenset({Numerics.REASSOCIATES, Numerics.APPROXIMATE}))
    assert kernel.family == "gemm"
    assert [r.reason for r in ctx.report.refusals() if r.rule == "strassen"] == [
        "it reassociates, and the pipeline forbids that"
    ]


def test_unknown_rows_are_plain_where_there_are_few() -> None:
    kernel, _ = chosen(symbol("rows", 0, None), 768, 768)
    assert kernel.family == "gemm.strassen" and kernel.params["rows"][-1] == 1
    assert LEAST[0] <= kernel.params["fewest"] <= 256
    few, _ = chosen(symbol("rows", 0, LEAST[0] - 1), 768, 768)
    assert few.family == "gemm"


def test_tasks_of_unknown_rows_are_as_many_as_of_known_ones() -> None:
    """Each size's own number of tasks, and a task for no rows at all."""
    rows = symbol("rows", 0, None)
    kernel, _ = chosen(rows, 384, 384, small=True)
    for m in (60, 100, 128, 700, 1024):
        known, _ = chosen(m, 384, 384, small=True)
        counts = []
        for params in (
            known.params,
            {k: v if k == "rows" else evaluate(v, {"rows": m}) for k, v in kernel.params.items()},
        ):
            panels = -(-384 // params["panel"])
            counts.append(-(-m // params["rows_per_task"]) * -(-panels // params["panels_per_task"]))
        assert counts[0] == counts[1], m
    assert evaluate(kernel.params["rows_per_task"], {"rows": 0}) > 0
    assert evaluate(kernel.params["panels_per_task"], {"rows": 0}) > 0
