"""Programs run tile by tile give what the graph interpreter gives, and refuse what they cannot do."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hand_programs import Build, feeds_for, kernel, residual, single
from kernel_cases import CASES, F, N, op

from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Kernel, Program, Region, View, whole
from opcel_compiler.ir.program_interpret import ProgramError, run_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.ir.tile_evaluate import Tile
from opcel_compiler.ir.types import BF16, tensor


@dataclass
class Memory:
    size: int
    managed: str = "software"


@dataclass
class Machine:
    size: int

    def memory(self, name: str) -> Memory:
        if name != "sram":
            raise KeyError(name)
        return Memory(self.size)


def reference(program: Program, body: Graph, feeds: dict[str, np.ndarray]) -> np.ndarray:
    return run(body, {v.name: feeds[b.name] for v, b in zip(body.inputs, program.inputs, strict=True)})[
        body.output_names[0]
    ]


@pytest.mark.parametrize("cut", [None, (1,), (2,), (3,), (1, 2, 4), (3, 1, 5, 2)])
@pytest.mark.parametrize("case", CASES)
def test_one_kernel(case: str, cut: tuple[int, ...] | None) -> None:
    build, types = CASES[case]
    program, body = single(build, *types)
    (step,) = program.kernels
    if cut is not None:
        whole_axes = {"max_pool", "avg_pool"}
        keep = step.anchor is not None and step.anchor.op in whole_axes
        step.tiles = {
            "sram": tuple(
                a.extent if keep and a.kind == "reduce" else cut[i % len(cut)] for i, a in enumerate(step.axes)
            )
        }
    feeds = feeds_for(program, n=4)
    (got,) = run_program(program, feeds).values()
    want = reference(program, body, feeds)
    assert got.dtype == want.dtype and got.shape == want.shape
    tolerance = 2e-2 if got.dtype == np.float16 else 2e-6
    np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol=tolerance, atol=tolerance)


def test_every_tile_is_loaded_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[tuple[int, int], ...]] = []
    compute = Tile.compute

    def spy(tile: Tile, node: Node) -> Any:
        seen.append(tuple(tile.intervals))
        return compute(tile, node)

    monkeypatch.setattr(Tile, "compute", spy)
    program, _ = single(op("reduce_max", axes=(1,), keepdims=False), tensor(F, 3, 4))
    (step,) = program.kernels
    step.tiles = {"sram": (2, 4)}
    run_program(program, feeds_for(program))
    assert seen == [((0, 2), (0, 4)), ((2, 3), (0, 4))]


def test_a_row_that_sees_no_key_is_nan() -> None:
    build, types = CASES["attention-mask"]
    program, body = single(build, *types)
    (step,) = program.kernels
    step.tiles = {"sram": (2,) * len(step.axes)}
    feeds = feeds_for(program, n=2)
    feeds["x3"][1] = -np.inf
    feeds["x3"][2, :4] = -np.inf
    (got,) = run_program(program, feeds).values()
    assert np.isnan(got[:, :, 1]).all() and not np.isnan(got[:, :, [0, 2, 3, 4]]).any()
    np.testing.assert_allclose(got, reference(program, body, feeds), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("width", [1, 4, 8, 16])
@pytest.mark.parametrize("tiled", [False, True])
def test_blocked_convolutions(width: int, tiled: bool) -> None:
    program = residual(width)
    if tiled:
        for k in program.kernels:
            k.tiles = {"sram": tuple(3 for _ in k.axes)}
    feeds = feeds_for(program)
    (got,) = run_program(program, feeds).values()
    plain = residual(1)
    for b in plain.buffers:
        b.layout = Layout()
    for k in plain.kernels:
        k.inputs, k.outputs = [whole(v.buffer) for v in k.inputs], [whole(v.buffer) for v in k.outputs]
    (want,) = run_program(plain, feeds).values()
    assert not np.isnan(want).any()
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_wrong_stride_gives_wrong_numbers() -> None:
    program = residual()
    conv_0 = list(program.kernels)[1]
    right = conv_0.outputs[0]
    n, c, h, w = right.strides
    conv_0.outputs[0] = View(right.buffer, right.shape, (n, c, w, h), right.offset)
    (got,) = run_program(program, feeds_for(program)).values()
    (want,) = run_program(residual(), feeds_for(program)).values()
    assert not np.array_equal(got, want)


def test_the_order_of_axes_is_a_matter_of_storage() -> None:
    t = tensor("f32", 2, 3, 4)
    x, y, z = Buffer("x", t, "input"), Buffer("y", t, layout=Layout(order=(2, 0, 1))), Buffer("z", t, "output")
    copy: Build = lambda g, v: v  # noqa: E731
    program = Program("p", [x], [z], [kernel("relayout", [x], y, copy), kernel("relayout", [y], z, copy)])
    feeds = feeds_for(program)
    np.testing.assert_array_equal(run_program(program, feeds)["z"], feeds["x"])
    assert whole(y).strides == (3, 1, 6)


def test_elements_stored_as_bf16_are_rounded() -> None:
    t = tensor("f32", 2, 3)
    x, y, z = Buffer("x", t, "input"), Buffer("y", t, layout=Layout(storage="bf16")), Buffer("z", t, "output")
    copy: Build = lambda g, v: v  # noqa: E731
    program = Program("p", [x], [z], [kernel("relayout", [x], y, copy), kernel("relayout", [y], z, copy)])
    verify_program(program)
    feeds = feeds_for(program)
    got = run_program(program, feeds)["z"]
    np.testing.assert_array_equal(got, feeds["x"].astype(BF16.numpy).astype(np.float32))
    assert not np.array_equal(got, feeds["x"]) and got.dtype == np.float32


def test_concat_by_copies() -> None:
    a, b = Buffer("a", tensor("f32", N, 2), "input"), Buffer("b", tensor("f32", N, 3), "input")
    y = Buffer("y", tensor("f32", N, 5), "output")
    steps: list[Any] = []
    at = 0
    for source in (a, b):
        body = Graph("copy")
        body.add_output(body.add_input("x", source.type))
        target = whole(y).slice((0, at), source.type.dims, (1, 1))
        steps.append(Kernel("copy", body, [whole(source)], [target]))
        at += source.type.dims[1]  # type: ignore[assignment]
    program = Program("p", [a, b], [y], steps)
    feeds = feeds_for(program, n=3)
    np.testing.assert_array_equal(run_program(program, feeds)["y"], np.concatenate([feeds["a"], feeds["b"]], 1))
    program.steps.pop()
    assert np.isnan(run_program(program, feeds)["y"][:, 2:]).all()


def test_dims_kernel() -> None:
    x, y = Buffer("x", tensor("f32", N, 2), "input"), Buffer("y", tensor("i64", 2), "output")
    program = Program("p", [x], [y], [kernel("dims", [], y, op("dims", values=(N, 2 * N)))])
    assert run_program(program, feeds_for(program, n=5))["y"].tolist() == [5, 10]


def test_no_elements() -> None:
    program, _ = single(CASES["gemm"][0], tensor(F, 0, 4), tensor(F, 4, 2), tensor(F, 2))
    (step,) = program.kernels
    step.tiles = {"sram": (1,) * len(step.axes)}
    assert run_program(program, feeds_for(program))["y"].shape == (0, 2)
    program, _ = single(op("reduce_sum", axes=(1,), keepdims=False), tensor(F, 3, 0))
    (step,) = program.kernels
    step.tiles = {"sram": (1,) * len(step.axes)}
    assert run_program(program, feeds_for(program))["y"].tolist() == [0, 0, 0]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["max_pool", "avg_pool"])
def test_windows_of_an_image_without_columns(name: str) -> None:
    """Its only pads lie behind it, so that rounded up no window starts in it."""
    attrs = {"kernel": (3, 1), "strides": (3, 2), "pads": (2, 0, 1, 2), "dilations": (2, 1), "ceil_mode": True}
    program, body = single(op(name, **attrs), tensor(F, 1, 3, 14, 0))
    feeds = feeds_for(program)
    (got,) = run_program(program, feeds).values()
    assert got.shape == reference(program, body, feeds).shape == (1, 3, 5, 0)


def test_overflow_is_refused() -> None:
    build, types = CASES["gemm"]
    program, _ = single(build, *types)
    (step,) = program.kernels
    step.tiles = {"sram": (4, 7, 3)}
    need = 4 * (4 * 3 + 3 * 7 + 7 + 4 * 7)
    run_program(program, feeds_for(program, n=4), Machine(need))
    with pytest.raises(ProgramError, match=rf"k kernel of Node_0: .* {need} bytes of sram, which holds {need - 1}"):
        run_program(program, feeds_for(program, n=4), Machine(need - 1))
    run_program(program, feeds_for(program, n=2), Machine(need - 1))
    step.tiles = {"cache": (4, 7, 3)}
    with pytest.raises(ProgramError, match="a memory that the target lacks"):
        run_program(program, feeds_for(program, n=4), Machine(need))


def test_a_map_that_reads_too_little_is_refused() -> None:
    program, _ = single(CASES["conv"][0], *CASES["conv"][1])
    (step,) = program.kernels
    step.tiles = {"sram": (1,) * len(step.axes)}
    x = list(step.maps[0])
    x[2] = replace(x[2], terms=x[2].terms[:1])
    step.maps = (tuple(x), *step.maps[1:])
    with pytest.raises(ProgramError, match=r"%a0 is read at .* but loaded at"):
        run_program(program, feeds_for(program, n=2))


def test_axes_that_are_not_the_bodys_are_refused() -> None:
    program, _ = single(CASES["gemm"][0], *CASES["gemm"][1])
    (step,) = program.kernels
    step.axes = (replace(step.axes[0], extent=5), *step.axes[1:])
    step.tiles = {"sram": (1, 1, 1)}
    with pytest.raises(ProgramError, match="its axes are d0=5"):
        run_program(program, feeds_for(program, n=2))


def test_a_pool_cannot_tile_its_window() -> None:
    program, _ = single(CASES["max-pool"][0], *CASES["max-pool"][1])
    (step,) = program.kernels
    step.tiles = {"sram": (1,) * len(step.axes)}
    with pytest.raises(ProgramError, match="cannot accumulate over tiles of k0, k1"):
        run_program(program, feeds_for(program, n=2))


def test_inputs_must_fit() -> None:
    program, _ = single(CASES["two-reads"][0], *CASES["two-reads"][1])
    x = np.zeros((2, 2), np.float32)
    for feeds, message in (
        ({}, "input x0 is missing"),
        ({"x0": x.astype(np.float64)}, r"input x0 is float64\[2, 2\], the program takes f32\[n, n\]"),
        ({"x0": x[0]}, "the program takes"),
        ({"x0": x[:1]}, "axis 1 is 2, but n is 1 here"),
    ):
        with pytest.raises(ProgramError, match=message):
            run_program(program, feeds)


def test_a_view_outside_its_buffer_is_refused() -> None:
    program, _ = single(op("relu"), tensor(F, 4))
    (step,) = program.kernels
    step.inputs = [step.inputs[0].slice((1,), (4,), (1,))]
    with pytest.raises(ProgramError, match="buffer x0 reaches element 4 of 4"):
        run_program(program, feeds_for(program))


def test_regions_go_to_their_engine() -> None:
    x, y = Buffer("x", tensor("f32", 3), "input"), Buffer("y", tensor("f32", 3), "output")
    program = Program("p", [x], [y], [Region(0, (), [whole(x)], [whole(y)], "no kernel for Frob")])
    feeds = feeds_for(program)
    with pytest.raises(ProgramError, match="no kernel for Frob"):
        run_program(program, feeds)
    out = run_program(program, feeds, run_region=lambda region, xs: [xs[0] * 2])
    np.testing.assert_array_equal(out["y"], feeds["x"] * 2)
