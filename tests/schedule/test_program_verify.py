"""One broken program, at least, for each numbered invariant of `verify_program`."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hand_programs import kernel, residual, single, weight
from kernel_cases import CASES

from opcel_compiler.ir import program_verify as module
from opcel_compiler.ir.dims import Symbol, as_symbol, symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Control, Index, Kernel, Program, Read, Region, Requirement, View, whole
from opcel_compiler.ir.program_verify import ProgramVerifyError, verify_program
from opcel_compiler.ir.types import tensor

Change = Callable[[Program, dict[str, Buffer], list[Kernel]], object]
BROKEN: list[tuple[int, str, Change]] = []


def breaks(invariant: int, message: str) -> Callable[[Change], None]:
    return lambda change: BROKEN.append((invariant, message, change))


def _case(change: Change) -> Program:
    program = residual()
    change(program, {b.name: b for b in program.buffers}, list(program.kernels))
    return program


breaks(1, "the inputs are , those of kind input x")(lambda p, b, k: p.inputs.clear())
breaks(1, "the outputs are y, y, those of kind output y")(lambda p, b, k: p.outputs.append(p.outputs[0]))
breaks(1, "the outputs are y, those of kind output y, c")(lambda p, b, k: setattr(b["c"], "kind", "output"))
breaks(2, "two buffers are named a")(lambda p, b, k: setattr(b["b"], "name", "a"))
breaks(3, "a weight has data")(lambda p, b, k: setattr(b["w1"], "data", None))
breaks(3, "a weight has data")(lambda p, b, k: setattr(b["a"], "data", b["w1"].data))
breaks(3, "nor a packing")(lambda p, b, k: setattr(b["a"], "packing", "panels"))
breaks(3, "has data of type f32[3]")(
    lambda p, b, k: setattr(b["w1"], "data", Constant(np.zeros(3, np.float32)))
)  # fmt: skip
breaks(3, "has data of type f64[10]")(lambda p, b, k: setattr(b["bias"], "data", Constant(np.zeros(10))))
breaks(4, "no permutation of 4 axes")(lambda p, b, k: setattr(b["a"], "layout", Layout(order=(0, 1, 1, 2))))
breaks(4, "no axis of 4 can be blocked so")(
    lambda p, b, k: setattr(b["a"], "layout", Layout(block_axis=4, block=8))
)  # fmt: skip
breaks(4, "no axis of 4 can be blocked so")(lambda p, b, k: setattr(b["a"], "layout", Layout(block=0)))
breaks(4, "the halo does not fit")(lambda p, b, k: setattr(b["a"], "layout", Layout(halo=((1, 1),))))
breaks(4, "the halo does not fit")(
    lambda p, b, k: setattr(b["a"], "layout", Layout(halo=((0, 0), (0, 0), (1, -1), (0, 0))))
)  # fmt: skip
breaks(4, "the blocked one without a halo")(
    lambda p, b, k: setattr(b["a"], "layout", Layout(block=8, halo=((0, 0), (1, 0), (0, 0), (0, 0))))
)  # fmt: skip
breaks(4, "cannot be stored as f16")(lambda p, b, k: setattr(b["a"], "layout", Layout(storage="f16")))
breaks(4, "cannot be stored as bf16")(lambda p, b, k: setattr(b["x"], "layout", Layout(storage="bf16")))
breaks(4, "cannot be stored as bf16")(lambda p, b, k: setattr(b["y"], "layout", Layout(storage="bf16")))
breaks(5, "pads of f32 are 0")(lambda p, b, k: setattr(b["a"], "layout", replace(b["a"].layout, pad_value=1.0)))
breaks(6, "has shape (2, 10, 7, 6) and strides (1,)")(
    lambda p, b, k: k[0].inputs.__setitem__(0, View(b["x"], b["x"].type.dims, (1,)))
)
breaks(6, "a view of @a")(lambda p, b, k: k[0].outputs.__setitem__(0, View(b["a"], (20,), (1,))))
breaks(7, "spans 1..840 of 840 elements")(
    lambda p, b, k: k[0].inputs.__setitem__(0, replace(k[0].inputs[0], offset=1))
)  # fmt: skip
breaks(7, "spans -839..0 of 840")(
    lambda p, b, k: k[0].inputs.__setitem__(0, replace(k[0].inputs[0], strides=(-420, -42, -6, -1)))
)
breaks(8, "the graph breaks invariant 8")(lambda p, b, k: setattr(k[1].anchor.result, "type", tensor("f32", 3)))
breaks(8, "the body has 3 inputs and 1 outputs, the kernel reads 2, writes 1")(lambda p, b, k: k[1].inputs.pop())
breaks(8, "the anchor %conv = conv is not a node of the body")(lambda p, b, k: setattr(k[1], "anchor", k[2].anchor))
breaks(9, "stands for a view of shape (2, 10, 7, 5) of @x")(
    lambda p, b, k: k[0].inputs.__setitem__(0, replace(k[0].inputs[0], shape=(2, 10, 7, 5)))
)
breaks(9, "%a0: f32[2, 10, 7, 6] stands for")(lambda p, b, k: setattr(b["x"], "type", tensor("i32", 2, 10, 7, 6)))
breaks(10, "axes have distinct names")(lambda p, b, k: setattr(k[0], "axes", k[0].axes[:1] * 4))
breaks(10, "axes have distinct names")(
    lambda p, b, k: setattr(k[0], "axes", (replace(k[0].axes[0], kind="serial"), *k[0].axes[1:]))
)
breaks(10, "1 maps for 2 views")(lambda p, b, k: setattr(k[0], "maps", k[0].maps[:1]))
breaks(10, "3 indices for a view of rank 4")(lambda p, b, k: setattr(k[0], "maps", (k[0].maps[0][1:], k[0].maps[1])))
for bad in (
    Index(((7, 1),)), Index(((-1, 1),)), Index(((0, 0),)), Index(((0, 1), (0, 2))), Index(base=1, whole=True),
):  # fmt: skip
    breaks(10, "is no index over d0, d1, d2, d3")(
        lambda p, b, k, bad=bad: setattr(k[0], "maps", ((bad, *k[0].maps[0][1:]), k[0].maps[1]))  # type: ignore[misc]
    )
breaks(11, "has 1 extents for 4 axes")(lambda p, b, k: setattr(k[0], "tiles", {"sram": (1,)}))
breaks(11, "is 0 along d1")(lambda p, b, k: setattr(k[0], "tiles", {"sram": (1, 0, 1, 1)}))
breaks(11, "is 11 along d1, inside 10")(lambda p, b, k: setattr(k[0], "tiles", {"sram": (1, 11, 1, 1)}))
breaks(11, "the tile of local is 3 along d1, inside 2")(
    lambda p, b, k: setattr(k[0], "tiles", {"sram": (1, 2, 1, 1), "local": (1, 3, 1, 1)})
)
breaks(12, "@a: f32[2, 10, 7, 6] layout<block=8@1, halo=0-0.0-0.1-1.1-1> temp is read before")(
    lambda p, b, k: p.steps.pop(0)
)
breaks(13, "is written")(lambda p, b, k: setattr(b["a"], "kind", "input") or p.inputs.append(b["a"]))
breaks(14, "y: f32[2, 10, 7, 6] plain output is never written")(lambda p, b, k: p.steps.pop())
breaks(15, "what is read of @b")(lambda p, b, k: k[2].outputs.__setitem__(0, whole(b["b"])))
breaks(15, "what is read of @a")(
    lambda p, b, k: p.steps.insert(1, Kernel("copy", k[0].body, [whole(b["a"])], [_shifted(b["a"])]))
)


@breaks(15, "two results overlap in @a")
def _(p: Program, b: dict[str, Buffer], k: list[Kernel]) -> None:
    k[0].body.add_output(k[0].body.inputs[0], "again")
    k[0].outputs.append(k[0].outputs[0])
    k[0].maps = (*k[0].maps, k[0].maps[0])


breaks(16, "region 1 is the one numbered 0")(lambda p, b, k: p.steps.append(Region(1, (), [], [], "why")))
breaks(16, "with a reason")(lambda p, b, k: p.steps.append(Region(0, (), [], [], "")))
breaks(17, "symbol n has the ranges 1.. and 2..")(
    lambda p, b, k: p.steps.append(
        Region(0, (), [View(b["x"], (symbol("n", 1),), (0,)), View(b["x"], (symbol("n", 2),), (0,))], [], "why")
    )
)


def _mark(*marks: Control) -> Change:
    return lambda p, b, k: p.steps.__setitem__(slice(0, 0), marks)


def _flag() -> View:
    return whole(Buffer("flag", tensor("bool", 1), "weight", data=Constant(np.array([True]))))


I = symbol("i")  # noqa: E741
breaks(18, "a block does not end")(_mark(Control("if", [_flag()])))
breaks(18, "an end of nothing")(_mark(Control("end")))
breaks(18, "an else without its if")(
    _mark(Control("loop", iteration=as_symbol(I), trip=2), Control("else"), Control("end"))
)
breaks(18, "a condition is one bool")(_mark(Control("if"), Control("end")))
breaks(18, "that no loop around it has")(_mark(Control("loop", trip=3), Control("end")))
breaks(18, "i stands outside its loop")(
    lambda p, b, k: (
        k[0].inputs.__setitem__(0, replace(k[0].inputs[0], offset=I)),
        p.steps.extend((Control("loop", iteration=as_symbol(I), trip=1), Control("end"))),
    )
)
breaks(12, "is read before anything writes it")(
    lambda p, b, k: p.steps.__setitem__(slice(0, 1), [Control("if", [_flag()]), p.steps[0], Control("end")])
)


def _read(p: Program, *names: str) -> None:
    size = Buffer("size", tensor("i64", 1), "input")
    p.inputs.append(size)
    p.steps.append(Read([whole(size)], tuple(Symbol(n) for n in names)))


@breaks(19, "s is named before it is read")
def _(p: Program, b: dict[str, Buffer], k: list[Kernel]) -> None:
    p.steps.append(Region(0, (), [View(b["x"], (symbol("s"),), (0,))], [], "why"))
    _read(p, "s")


breaks(19, "s, s are not read just once")(lambda p, b, k: _read(p, "s", "s"))
breaks(19, "2 symbols are read of @size")(lambda p, b, k: _read(p, "s", "t"))
breaks(20, "m == 3 names m, which the program does not have")(
    lambda p, b, k: p.requirements.append(Requirement(symbol("m"), 3, True))
)


def _shifted(buffer: Buffer) -> View:
    view = whole(buffer)
    return replace(view, offset=view.offset + 1)


@pytest.mark.parametrize(("invariant", "message", "change"), BROKEN)
def test_a_broken_program_is_refused(invariant: int, message: str, change: Change) -> None:
    with pytest.raises(ProgramVerifyError) as e:
        verify_program(_case(change))
    assert (e.value.invariant, message in str(e.value)) == (invariant, True), str(e.value)


def test_every_number_is_broken() -> None:
    assert module.__doc__ is not None
    numbers = {int(n) for n in re.findall(r"^ ?(\d+)\. ", module.__doc__, re.MULTILINE)}
    assert numbers == {n for n, _, _ in BROKEN} == set(range(1, len(numbers) + 1))


@pytest.mark.parametrize("case", CASES)
def test_programs_of_one_kernel_are_valid(case: str) -> None:
    program, _ = single(CASES[case][0], *CASES[case][1])
    verify_program(program)


def test_valid_programs() -> None:
    verify_program(residual())
    empty = Program("empty")
    verify_program(empty)


def test_pads_of_integers_fit_their_type() -> None:
    x = Buffer("x", tensor("u8", 4), "input", Layout(halo=((1, 1),), pad_value=128.0))
    verify_program(Program("p", [x]))
    x.layout = Layout(halo=((1, 1),), pad_value=300.0)
    with pytest.raises(ProgramVerifyError, match=r"invariant 5: .* 300\.0 is no u8"):
        verify_program(Program("p", [x]))


def test_an_elementwise_kernel_may_work_in_place() -> None:
    t = tensor("f32", 4)
    x, y, w = Buffer("x", t, "input"), Buffer("y", t, "output"), weight("w", np.ones(4, np.float32))
    first = kernel("elementwise", [x], y, lambda g, v: g.add("exp", [v]).result)
    second = kernel("elementwise", [y, w], y, lambda g, v, w: g.add("mul", [v, w]).result)
    verify_program(Program("p", [x], [y], [first, second]))


def test_slices_of_one_buffer_need_not_overlap() -> None:
    t = tensor("f32", 2, 4)
    x, y = Buffer("x", t, "input"), Buffer("y", t, "output")
    first = kernel("copy", [x], y, lambda g, v: v)
    left, right = (whole(y).slice((0, at), (2, 2), (1, 1)) for at in (0, 2))
    second = kernel("copy", [Buffer("t", tensor("f32", 2, 2))], Buffer("u", tensor("f32", 2, 2)), lambda g, v: v)
    second.inputs, second.outputs = [left], [right]
    verify_program(Program("p", [x], [y], [first, second]))


def test_the_message_shows_the_step() -> None:
    program = _case(lambda p, b, k: k[1].inputs.pop())
    with pytest.raises(ProgramVerifyError) as e:
        verify_program(program)
    assert str(e.value).endswith('\nkernel conv.blocked from "Conv_0" {\n  reads @a, @w1\n  writes @b')
