"""append-caches: which attentions write the caches that a step returns, and that results stay the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.program import Control, Kernel, Program
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.program_parse import parse_program
from opcel_compiler.ir.program_text import print_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.lower import lower
from opcel_compiler.schedule.states import StateSpec, append_in_place
from opcel_compiler.targets import load_target
from opcel_compiler.targets.schema import Target

KEYS = "%k = concat(%past_k, %a){axis=2}"
VALUES = "%v = concat(%past_v, %b){axis=2}"
ATTENTION = "%y = attention(%q, %k, %v){scale=0.25, causal=true}"


def step(*nodes: str, length: str = "9", queries: int = 1, size: int = 16, outputs: str = "%y, %k, %v") -> str:
    """A step of four query heads for two of keys and values, of `length` places before it."""
    inputs = [
        f"%q: f32[1, 4, {queries}, {size}]",
        f"%a: f32[1, 2, {queries}, {size}]",
        f"%b: f32[1, 2, {queries}, {size}]",
    ]
    inputs += [f"%past_{n}: f32[1, 2, {length}, {size}]" for n in "kv"]
    return f"graph main({', '.join(inputs)}) {{\n" + "\n".join(nodes) + f"\nreturn {outputs}\n}}"


def cache_of(size: int) -> Target:
    target = load_target("x86-64-avx512")
    memory, last, *inner = target.memories
    return replace(target, memories=(memory, replace(last, size=size), *inner))


def appended(text: str, target: Target | None = None, state: str = "") -> Program:
    """The Program of a graph after the pass, verified, equal to the graph and to what its text parses to."""
    graph, ctx = parse_graph(text), PassContext(target=target or load_target("x86-64-avx512"))
    program = lower(graph)
    if state:
        names = [v.name for v in graph.inputs], list(graph.output_names)
        append_in_place(program, [StateSpec.parse(state)], names)
    PassManager.run(program, Pipeline.parse("choose-kernels,append-caches"), ctx)
    verify_program(program)
    if not state:
        rng = np.random.default_rng(0)
        shapes = {v.name: [d if isinstance(d, int) else 7 for d in v.tensor.dims] for v in graph.inputs}
        feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        want = list(run(parse_graph(text), feeds).values())
        for made in (program, parse_program(print_program(program))):
            for a, b in zip(want, run_program(made, feeds).values(), strict=True):
                np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    return program


def families(program: Program) -> list[str]:
    return [k.family for k in program.kernels]


@pytest.mark.parametrize("length", ["9", "0", "t"])
def test_a_step_that_returns_its_caches(length: str) -> None:
    program = appended(step(KEYS, VALUES, ATTENTION, length=length))
    (kernel,) = program.kernels
    assert kernel.family == "attention.append"
    assert [v.buffer.name for v in kernel.outputs] == [b.name for b in program.outputs]
    assert {v.buffer for v in kernel.inputs} == set(program.inputs)


def test_a_mask_and_what_follows() -> None:
    mask = "%m = f32[1, 1, 1, 10] 0.5"
    masked = "%s = attention(%q, %k, %v, %m){scale=0.25, causal=false}"
    assert families(appended(step(mask, KEYS, VALUES, masked, "%y = relu(%s)"))) == ["attention.append", "elementwise"]


def test_caches_that_nobody_is_given() -> None:
    """They are written all the same: the kernel's copies are not known to be needless."""
    assert families(appended(step(KEYS, VALUES, ATTENTION, outputs="%y"))) == ["attention.append"]


def test_new_keys_first() -> None:
    text = step("%k = concat(%a, %past_k){axis=2}", "%v = concat(%b, %past_v){axis=2}", ATTENTION)
    assert families(appended(text)) == ["attention.append"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(step(KEYS, VALUES, ATTENTION, queries=2), id="two-queries"),
        pytest.param(step(KEYS, VALUES, ATTENTION, size=12), id="heads-of-parts"),
        pytest.param(step(KEYS, "%v = concat(%past_v, %b, %b){axis=2}", "%w = concat(%k, %a){axis=2}",
                          ATTENTION.replace("%k", "%w")), id="three-parts"),
        pytest.param(step(KEYS, VALUES, "%e = exp(%k)", ATTENTION, outputs="%y, %v, %e"), id="read-before"),
        pytest.param(step("%c = concat(%past_k, %a){axis=2}", VALUES, "%k = exp(%c)", ATTENTION), id="computed"),
        pytest.param(step(KEYS, ATTENTION.replace("%v", "%k"), outputs="%y, %k"), id="keys-as-values"),
    ],
)  # fmt: skip
def test_attentions_that_do_not(text: str) -> None:
    found = families(appended(text))
    assert "attention" in found and "copy" in found and "attention.append" not in found


def test_a_reader_after_the_step() -> None:
    text = step(KEYS, VALUES, ATTENTION, "%e = exp(%k)", outputs="%y, %v, %e")
    assert families(appended(text)) == ["attention.append", "elementwise"]


def test_state_in_place_has_nothing_to_copy() -> None:
    assert families(appended(step(KEYS, VALUES, ATTENTION, length="t"), state="past_*:32")) == [
        "copy", "copy", "attention",
    ]  # fmt: skip


def test_copies_before_a_branch_stay() -> None:
    """The attention of a branch that may not run leaves them."""
    program = appended(step(KEYS, VALUES, ATTENTION))
    plain = lower(parse_graph(step(KEYS, VALUES, ATTENTION)))
    at = next(i for i, k in enumerate(plain.steps) if isinstance(k, Kernel) and k.family == "attention")
    plain.steps[at:] = [Control("loop", trip=1), plain.steps[at], Control("end"), *plain.steps[at + 1 :]]
    PassManager.run(plain, Pipeline.parse("append-caches"), PassContext(target=load_target("x86-64-avx512")))
    assert families(plain).count("copy") == 4 and families(program) == ["attention.append"]


@pytest.mark.parametrize(("cache", "streamed"), [(1 << 10, True), (1 << 20, False)])
def test_past_the_caches_where_they_do_not_hold_it(cache: int, streamed: bool) -> None:
    (kernel,) = appended(step(KEYS, VALUES, ATTENTION), cache_of(cache)).kernels
    assert kernel.params == {"streamed": streamed}
