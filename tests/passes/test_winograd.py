"""Where choose-kernels takes Winograd convolutions, with which tile, and who can forbid it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.program import Kernel
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.rewrite.rule import Numerics
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target

TARGETS = ("x86-64", "x86-64-avx2", "x86-64-avx512")


def chosen(
    channels: int, filters: int, size: int, *, batch: int = 1, target: str = "x86-64-avx512", kernel: int = 3,
    stride: int = 1, dilation: int = 1, groups: int = 1, **context: Any,
) -> tuple[Kernel, PassContext]:  # fmt: skip
    """The kernel of one convolution, and what was reported."""
    graph = Graph("main")
    x = graph.add_input("x", TensorType(F32, (batch, channels, size, size)))
    w = graph.constant(Constant(np.zeros((filters, channels // groups, kernel, kernel), np.float32)))
    pad = dilation * (kernel // 2)
    attrs = {"strides": (stride,) * 2, "pads": (pad,) * 4, "dilations": (dilation,) * 2, "groups": groups}
    graph.add_output(graph.add("conv", [x, w], attrs).result, "y")
    ctx = PassContext(target=load_target(target), **context)
    PassManager.run(graph, Pipeline.parse("fuse"), ctx)
    program = lower(graph)
    PassManager.run(program, Pipeline.parse("relayout,choose-kernels"), ctx)
    verify_program(program)
    return next(k for k in program.kernels if k.family.startswith("conv")), ctx


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("channels", "size", "batch", "tile"),
    [(32, 128, 1, 4), (64, 56, 1, 4), (128, 28, 1, 4), (256, 14, 1, 4), (512, 7, 16, 4), (64, 6, 8, 2)],
)
def test_tiles(target: str, channels: int, size: int, batch: int, tile: int) -> None:
    kernel, ctx = chosen(channels, channels, size, batch=batch, target=target)
    assert (kernel.family, kernel.params["tile"]) == ("conv.winograd", tile)
    assert ctx.report.changes["choose-kernels", "winograd"] == 1


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"kernel": 1}, {"kernel": 5}, {"channels": 3}, {"size": 3},
        {"small": True}, {"limit": 0},
    ],
)  # fmt: skip
def test_direct(options: dict[str, Any]) -> None:
    kernel, ctx = chosen(**{"channels": 64, "filters": 64, "size": 56, **options})
    assert kernel.family == "conv.blocked"
    assert ctx.report.changes["choose-kernels", "winograd"] == 0


def test_forbidden_class_is_reported() -> None:
    kernel, ctx = chosen(64, 64, 56, forbidden=frozenset({Numerics.REASSOCIATES, Numerics.APPROXIMATE}))
    assert kernel.family == "conv.blocked"
    assert [r.reason for r in ctx.report.refusals() if r.rule == "winograd"] == [
        "it reassociates, and the pipeline forbids that"
    ]


@pytest.mark.parametrize(("channels", "size"), [(32, 128), (64, 56), (128, 28), (512, 7), (64, 61)])
def test_every_group_is_cut_into_its_register_tiles(channels: int, size: int) -> None:
    """As detail::Cut does it: the fewest tiles, as even as the heights allow, nothing left."""
    params = chosen(channels, channels, size)[0].params
    heights = params["heights"]
    tiles = (-(-size // params["tile"])) ** 2
    assert params["group"] == -(-tiles // params["groups"])
    for group in {tiles // params["groups"], params["group"]}:
        rest = group
        while rest:
            even = -(-rest // -(-rest // heights[0]))
            fitting = [h for h in heights if h <= rest and h >= even]
            assert fitting, (group, heights)
            rest -= fitting[-1]
