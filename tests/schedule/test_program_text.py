"""The text form of programs: a round trip, what it shows, what it refuses, and structural equality."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hand_programs import feeds_for, kernel, residual, single, weight
from kernel_cases import CASES

from opcel_compiler.ir.dims import dim_min, symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Kernel, Program, Region, View, whole
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.program_text import ParseError, equal_programs, parse_program, print_program
from opcel_compiler.ir.types import F32, tensor

N = symbol("n", 1, 64)


def round_trip(program: Program) -> str:
    store: dict[str, Constant] = {}
    text = print_program(program, constants=store)
    back = parse_program(text, store)
    assert equal_programs(program, back) is None
    assert print_program(back) == text
    return text


@pytest.mark.parametrize("case", CASES)
def test_round_trip_of_every_kind_of_kernel(case: str) -> None:
    program, _ = single(CASES[case][0], *CASES[case][1])
    for k in program.kernels:
        k.tiles = {"sram": tuple(2 for _ in k.axes), "local": tuple(1 for _ in k.axes)} if k.axes else {}
    round_trip(program)


def test_round_trip_of_layouts_and_weights() -> None:
    program = residual()
    text = round_trip(program)
    assert "temp @a: f32[2, 10, 7, 6] layout<block=8@1, halo=0-0.0-0.1-1.1-1>" in text
    store: dict[str, Constant] = {}
    back = parse_program(print_program(program, constants=store), store)
    assert set(store) == {b.data.digest for b in program.buffers if b.data is not None and b.data.array.size > 16}
    feeds = feeds_for(program)
    np.testing.assert_array_equal(run_program(back, feeds)["y"], run_program(program, feeds)["y"])


def odd() -> Program:
    """All that a program can say that those of one kernel do not."""
    t = tensor("f32", N, 6)
    x, y = Buffer("in:0", t, "input"), Buffer("scores/y", t, "output")
    a = Buffer("a", t, layout=Layout(order=(1, 0), pad_value=-1.5, storage="bf16"), memory="sram")
    w = weight("w", np.ones((6,), np.float32))
    w.packing = 'p"q'
    first = kernel("elementwise.x-1", [x, w], a, lambda g, v, w: g.add("add", [v, w], origin=["A b"]).result, "A b")
    first.params = {
        "n": 3, "f": 0.5, "flag": True, "none": None, "s": 'a"b', "rows": (8, 4, 1), "mixed": (1, ("x", 2.0)),
        "extent": N * 2 + 1, "dtype": F32, "table": {"k": (1,)},
    }  # fmt: skip
    first.inputs[0] = View(x, (N, 6), (6, 1), dim_min(N, 3) * 0)
    first.inputs[1] = View(w, (N, 6), (0, 1), 0)
    second = Region(0, (), [View(a, (2, N), (1, 6), N - N + 2)], [whole(y)], 'no "kernel"', ("Frob_1", "Frob_2"))
    return Program("odd program", [x], [y], [first, second])


def test_round_trip_of_names_params_regions() -> None:
    text = round_trip(odd())
    for part in (
        'program "odd program"(@"in:0") -> (@"scores/y") {',
        "temp @a: f32[n, 6] layout<order=1.0, pad=-1.5, storage=bf16> in sram",
        'weight @w: f32[6] packing "p\\"q" = f32[6] 1.0',
        'reads @"in:0", @w[n, 6]:[0, 1]:[0]',
        'region 0 "no \\"kernel\\"" from "Frob_1", "Frob_2" {',
        "reads @a[2, n]:[1, 6]:[2]",
        "extent=dim(2*n + 1), dtype=dtype(f32)",
        "symbol n in 1..64",
    ):
        assert part in text, part


def test_what_the_text_shows() -> None:
    program, _ = single(CASES["conv"][0], *CASES["conv"][1])
    text = print_program(program)
    assert "axes (d0=n, d1=4, d2=3, d3=9, reduce ic=5, reduce k0=3, reduce k1=2)" in text
    assert "maps (d0, ic, 2*d2 + k0 + -1, d3 + 2*k1 + -2), (d1, ic, k0, k1), (d1), (d0, d1, d2, d3)" in text
    assert "anchor 0" in text


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("program single", "graph single", "line 2, column 1: expected 'program'"),
        ("input @x1: ", "input @x0: ", "@x0 is declared twice"),
        ("reads @x0", "reads @x9", "buffer @x9 is not declared"),
        ("-> (@y)", "-> (@z)", "buffer @z is not declared"),
        ("anchor 0", "anchor 7", "the body has no node 7"),
        ("(d0, k)", "(d0, k*k)", "is not affine in the axes"),
        ("(d0, k)", "(d0, j)", "j is not affine in the axes d0, d1, k"),
        (
            "kernel k",
            "kernal k",
            "'kernal' is none of kernel, region, read, require, if, loop, input, output, weight, temp",
        ),
        ("body(", "bodi(", "expected 'body'"),
        ("output @y: f32[n, 7]", "output @y: f32[n, 7] layout<blok=8>", "expected <order="),
        ("output @y: f32[n, 7]", "output @y: f33[n, 7]", "'f33' is no element type"),
    ],
)
def test_parse_errors(old: str, new: str, message: str) -> None:
    program, _ = single(CASES["gemm"][0], *CASES["gemm"][1])
    text = print_program(program)
    assert old in text
    with pytest.raises(ParseError) as e:
        parse_program(text.replace(old, new, 1))
    assert message in str(e.value)


def test_text_after_the_end_and_missing_data_are_refused() -> None:
    with pytest.raises(ParseError, match="expected the end of the text"):
        parse_program("program p() -> () {}\nmore")
    with pytest.raises(ParseError, match=r"the data of constant #[0-9a-f]+ is not given"):
        parse_program(print_program(residual()))


def _first(p: Program) -> Kernel:
    return next(iter(p.kernels))


CHANGES: dict[str, tuple[Callable[[Program], object], str]] = {
    "name": (lambda p: setattr(p, "name", "q"), "program residual, not q"),
    "buffer": (lambda p: p.outputs.append(Buffer("z", tensor("f32"))), "8 buffers, not 9"),
    "layout": (lambda p: setattr(p.outputs[0], "layout", Layout(order=(1, 0, 2, 3))), "layout plain, not layout<"),
    "memory": (lambda p: setattr(p.outputs[0], "memory", "sram"), "memory dram, not sram"),
    "data": (lambda p: setattr(p.steps[1].inputs[1].buffer, "data", None), "data Constant"),
    "output": (lambda p: p.outputs.append(p.inputs[0]), "the outputs are y, not y, x"),
    "step": (lambda p: p.steps.pop(0) and p.steps.insert(0, p.steps[0]), "the views read are @x, not @a"),
    "steps": (lambda p: p.steps.append(_first(p)), "4 steps, not 5"),
    "view": (lambda p: _first(p).inputs.append(whole(p.inputs[0])), "the views read are @x, not @x, @x"),
    "origin": (lambda p: setattr(_first(p), "origin", ("o",)), "origin (), not ('o',)"),
    "family": (lambda p: setattr(_first(p), "family", "copy"), "family relayout, not copy"),
    "axes": (lambda p: setattr(_first(p), "axes", ()), "axes (Axis"),
    "tiles": (lambda p: setattr(_first(p), "tiles", {"l": (1,)}), "tiles {}, not {'l': (1,)}"),
    "params": (lambda p: _first(p).params.update(a=1), "params {}, not {'a': 1}"),
    "body": (lambda p: p.steps[1].anchor.set_attrs(strides=(1, 2)), "the bodies differ: node 0: attribute strides"),
    "anchor": (lambda p: setattr(p.steps[1], "anchor", None), "the anchor is node 0, not None"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_equality_sees(change: str) -> None:
    apply, message = CHANGES[change]
    a, b = residual(), residual()
    assert equal_programs(a, b) is None
    apply(b)
    reason = equal_programs(a, b)
    assert reason is not None and message in reason


def test_regions_are_compared() -> None:
    a, b = odd(), odd()
    assert equal_programs(a, b) is None
    region = b.steps[1]
    assert isinstance(region, Region)
    b.steps[1] = replace(region, reason="other")
    assert equal_programs(a, b) == "step 1: the regions differ"
