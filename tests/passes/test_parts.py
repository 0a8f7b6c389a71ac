"""Parts of blocked images: concats and interleaved convolutions written in place, on Programs that are run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from opcel_compiler.codegen.cpu.pack import laid_out
from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.parts import Part, part_of
from opcel_compiler.ir.program import Buffer, Program, whole
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target


class Net:
    """A graph of image operators with random weights."""

    def __init__(self, channels: int = 32, symbolic: bool = False) -> None:
        self.graph = Graph("main")
        self.random = np.random.default_rng(0)
        shape = (symbol("n", 1), channels, symbol("h", 1), symbol("w", 1)) if symbolic else (2, channels, 6, 5)
        self.x = self.graph.add_input("x", TensorType(F32, shape))
        self.shape = (2, channels, 6, 5)

    def weight(self, *shape: int) -> Value:
        array = (self.random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        return self.graph.constant(Constant(array))

    def conv(self, x: Value, filters: int, size: int = 1) -> Value:
        window = {"strides": (1, 1), "pads": (size // 2,) * 4, "dilations": (1, 1)}
        channels = int(x.tensor.dims[1])  # type: ignore[arg-type]
        return self.graph.add("conv", [x, self.weight(filters, channels, size, size)], window).result

    def up(self, x: Value, filters: int, size: int = 2, pad: int = 0) -> Value:
        window = {"strides": (2, 2), "pads": (pad,) * 4, "dilations": (1, 1), "output_padding": (0, 0)}
        channels = int(x.tensor.dims[1])  # type: ignore[arg-type]
        return self.graph.add("conv_transpose", [x, self.weight(channels, filters, size, size)], window).result

    def concat(self, *values: Value, axis: int = 1) -> Value:
        return self.graph.add("concat", list(values), {"axis": axis}).result

    def relu(self, x: Value) -> Value:
        return self.graph.add("relu", [x]).result

    def families(self, *outputs: Value, target: str = "x86-64-avx512") -> list[str]:
        """The families of the Program, which is verified and computes what the graph does."""
        for i, value in enumerate(outputs):
            self.graph.add_output(value, f"y{i}")
        feeds = {"x": self.random.standard_normal(self.shape).astype(np.float32)}
        wanted = run(self.graph, feeds)
        ctx = PassContext(target=load_target(target), small=True)  # layouts are tested, not Winograd
        PassManager.run(self.graph, Pipeline.parse("fuse"), ctx)
        program = lower(self.graph)
        PassManager.run(program, Pipeline.parse("relayout,choose-kernels"), ctx)
        verify_program(program)
        self.program = program
        for a, b in zip(wanted.values(), run_program(program, feeds).values(), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4)
        return [k.family for k in program.kernels]


CONV = "conv.blocked"


@pytest.mark.parametrize("target", ["x86-64", "x86-64-avx2", "x86-64-avx512"])
def test_a_concat_is_written_in_place(target: str) -> None:
    net = Net()
    joined = net.concat(net.relu(net.conv(net.x, 16)), net.conv(net.x, 32))
    assert net.families(net.conv(joined, 16, 3), target=target) == ["relayout", CONV, CONV, CONV, "relayout"]


def test_a_value_that_others_read_is_a_part_all_the_same() -> None:
    net = Net()
    skip = net.conv(net.x, 16)
    deep = net.conv(net.conv(skip, 32, 3), 16)
    out = net.conv(net.concat(deep, skip), 16, 3)
    assert net.families(out) == ["relayout", *[CONV] * 4, "relayout"]
    joined = next(v.buffer for k in net.program.kernels for v in k.inputs if v.buffer.type.shape == (2, 32, 6, 5))
    assert joined.layout.halo == () or joined.layout.halo[2:] == ((1, 1), (1, 1))


def test_a_part_of_two_concats_is_copied_once() -> None:
    net = Net()
    a, b, c = (net.conv(net.x, 16) for _ in range(3))
    out = net.conv(net.concat(net.conv(net.concat(a, b), 16), net.concat(b, c)), 16)
    assert net.families(out).count("copy") == 1


def test_a_concat_of_a_concat() -> None:
    net = Net()
    first = net.conv(net.x, 16)
    inner = net.concat(first, net.conv(first, 16, 3))
    outer = net.concat(inner, net.conv(inner, 16, 3))
    assert "relayout" not in net.families(net.conv(outer, 16))[1:-1]


def test_a_row_major_operand_is_converted_into_its_part() -> None:
    net = Net(channels=16)
    found = net.families(net.conv(net.concat(net.conv(net.x, 48, 3), net.x), 16))
    assert found.count("copy") == 0 and found[-1] == "relayout"


@pytest.mark.parametrize("sizes", [(10, 16), (16, 10), (20, 20)])
def test_parts_begin_at_a_block(sizes: tuple[int, int]) -> None:
    net = Net()
    found = net.families(net.conv(net.concat(*(net.conv(net.x, n) for n in sizes)), 16))
    assert ("copy" in found) == (sizes[0] % 16 != 0)


@pytest.mark.parametrize("symbolic", [False, True])
def test_sizes_that_only_the_run_knows(symbolic: bool) -> None:
    """Up again to the size of the skip connection: equal when it runs, of another form before."""
    net = Net(symbolic=symbolic)
    skip = net.conv(net.x, 16)
    pool = {"kernel": (2, 1), "strides": (2, 1), "pads": (0,) * 4, "dilations": (1, 1)}
    low = net.conv(net.graph.add("max_pool", [skip], pool).result, 16)
    window = {"strides": (2, 1), "pads": (0,) * 4, "dilations": (1, 1), "output_padding": (0, 0)}
    up = net.graph.add("conv_transpose", [low, net.weight(16, 32, 2, 1)], window).result
    out = net.conv(net.concat(up, skip), 16, 3)
    assert net.families(out) == ["relayout", CONV, "pool.blocked", CONV, CONV, CONV, CONV, "relayout"]


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_other_axes(axis: int) -> None:
    net = Net()
    found = net.families(net.conv(net.concat(net.conv(net.x, 16), net.conv(net.x, 16), axis=axis), 16))
    assert ("copy" in found) == (axis != 0)


def test_a_result_that_is_an_output_too() -> None:
    net = Net()
    a = net.conv(net.x, 16)
    joined = net.concat(a, net.conv(net.x, 16))
    net.families(net.conv(joined, 16), a, joined)


def test_a_concat_without_convolutions_stays_row_major() -> None:
    net = Net()
    assert net.families(net.concat(net.relu(net.x), net.x)).count("relayout") == 0


@pytest.mark.parametrize("filters", [16, 24, 12])
@pytest.mark.parametrize("size, pad", [(2, 0), (4, 1), (3, 0)])
def test_interleaved_convolutions(filters: int, size: int, pad: int) -> None:
    net = Net()
    up = net.relu(net.up(net.conv(net.x, 32), filters, size, pad))
    assert net.families(net.conv(up, 16, 3)) == ["relayout", *[CONV] * 5, "elementwise", CONV, "relayout"]


@pytest.mark.parametrize(
    "make",
    [
        lambda v: v.slice((0, 16, 0, 0), (2, 16, 6, 5), (1, 1, 1, 1)),
        lambda v: v.slice((1, 0, 1, 0), (1, 48, 3, 2), (1, 1, 2, 3)),
    ],
)
@pytest.mark.parametrize("layout", [Layout(), Layout(block=16, halo=((0, 0), (0, 0), (1, 0), (2, 1)))])
def test_a_part_in_every_layout(make: Callable[..., object], layout: Layout) -> None:
    """A part of the row-major buffer shows the same elements in any layout."""
    plain = Buffer("p", TensorType(F32, (2, 48, 6, 5)))
    view = make(whole(plain))
    part = part_of(view)  # type: ignore[arg-type]
    assert isinstance(part, Part)
    values = np.arange(2 * 48 * 6 * 5, dtype=np.float32).reshape(2, 48, 6, 5)
    spans = zip(part.starts, part.sizes, part.steps, strict=True)
    wanted = values[tuple(slice(a, a + (int(n) - 1) * s + 1, s) for a, n, s in spans)]  # type: ignore[call-overload]
    other = Buffer("o", plain.type, layout=layout)
    flat, moved = laid_out(values, layout), part.view(other)
    got = np.empty_like(wanted)
    for index in np.ndindex(*wanted.shape):
        channel, block = index[1], layout.block
        steps = [i * s for i, s in zip(index, moved.strides, strict=True)]
        if block > 1:
            steps[1] = channel // block * moved.strides[1] + channel % block
        got[index] = flat[moved.offset + sum(steps)]
    assert np.array_equal(got, wanted)
    assert part_of(whole(plain)) is None


def test_programs_of_parts_have_no_dead_buffers() -> None:
    net = Net()
    net.families(net.conv(net.concat(net.conv(net.x, 16), net.conv(net.x, 16)), 16))
    program: Program = net.program
    read = {v.buffer for s in program.steps for v in s.inputs} | set(program.outputs)
    assert all(v.buffer in read for s in program.steps for v in s.outputs)
