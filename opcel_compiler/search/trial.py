"""Candidates of one kernel measured against each other: a Program that runs each by turns, on random data."""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from opcel_compiler.codegen.cpu.build import build
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.program import Buffer, Kernel, Program, View
from opcel_compiler.ir.types import F32, TensorType
from opcel_compiler.runtime import _runtime
from opcel_compiler.schedule.choice.candidates import Name, apply
from opcel_compiler.schedule.choice.variants import Choice
from opcel_compiler.targets.schema import Target

SHARED_BYTES = 32 << 20
"""Weights from this size on are shared by all candidates: no cache keeps them from one to the next."""

BLOCK_S = 0.004
"""How long a block lasts at least; a figure is the mean over a block."""


@dataclass
class Trial:
    """An open module whose steps are `count` candidates by `order`, each there twice: its seconds are those of both. A
    step of none is not counted."""

    model: _runtime.Model
    order: list[int | None]
    count: int
    runs: int = 1

    def blocks(self, rounds: int) -> list[list[float]]:
        """By candidate, the seconds of one call in each of `rounds` blocks; they run interleaved."""
        out: list[list[float]] = [[] for _ in range(self.count)]
        for _ in range(rounds):
            steps = self.model.profile({}, self.runs)
            for i in range(self.count):
                both = [s for s, which in zip(steps, self.order, strict=True) if which == i]
                out[i].append(sum(both) / len(both) / self.runs)
        return out

    def warm_up(self) -> None:
        """Touch the weights, and choose how many runs make a block."""
        self.model.profile({}, 1)
        start = time.perf_counter()
        self.model.profile({}, 1)
        self.runs = max(1, int(BLOCK_S / max(1e-7, time.perf_counter() - start)))


def open_trial(choices: Sequence[Choice], target: Target, pool: _runtime.Pool | None) -> Trial:
    """Compile and open the choices of a static kernel. Raises ToolchainError or CandidateError."""
    program, order = trial_program(choices)
    with tempfile.TemporaryDirectory(prefix="opcel-tune-") as folder:
        build(program, target, Path(folder), ((), ("done",)))
        model = _runtime.Model(os.fspath(folder), True, pool, None)
    trial = Trial(model, order, len(choices))
    trial.warm_up()
    return trial


def trial_program(choices: Sequence[Choice]) -> tuple[Program, list[int | None]]:
    """A Program whose steps run each choice of a kernel twice, and the choice of each step.

    The first step is of none: a run may begin with one thread, until the others have woken. What the kernel reads are
    weights, random and of each candidate its own, so that a candidate finds no more of them in a cache than it would
    between the other kernels of a network. Each step writes a buffer of its own.
    """
    count, taken = len(choices), set[str]()
    order = [None, *range(count), *range(0, count, 2), *range(1, count, 2)]

    def name(base: str) -> str:
        fresh = next(n for n in (base, *(f"{base}.{i}" for i in range(len(taken) + 1))) if n not in taken)
        taken.add(fresh)
        return fresh

    common: dict[Buffer, Buffer] = {}
    made: dict[int, Kernel] = {}
    steps: list[Kernel] = []
    for at, which in enumerate(0 if turn is None else turn for turn in order):
        if which not in made:
            kernel, params = choices[which]
            made[which] = _alone(kernel, which, common, name)
            apply(made[which], params, name)
        step = copy.copy(made[which])
        step.outputs = [_moved(v, Buffer(name(f"y{at}"), v.buffer.type, "temp", v.buffer.layout)) for v in step.outputs]
        steps.append(step)
    program = Program("trial", [], [Buffer("done", TensorType(F32, (1,)), "output")], list(steps))
    return program, order


def _alone(kernel: Kernel, seed: int, common: dict[Buffer, Buffer], name: Name) -> Kernel:
    """The kernel with weights in place of what it reads; large weights and other operands are shared, in `common`."""
    own: dict[Buffer, Buffer] = {}

    def weight(old: Buffer) -> Buffer:
        is_weight = old.kind == "weight"
        assert isinstance(old.elements, int)
        large = old.elements * old.element_bytes >= SHARED_BYTES
        kept = own if is_weight and not large else common
        if old not in kept:
            data = Constant(_random(old, seed))
            kept[old] = Buffer(name(old.name), old.type, "weight", old.layout, old.memory, data, old.packing)
        return kept[old]

    inputs = [_moved(view, weight(view.buffer)) for view in kernel.inputs]
    return Kernel(
        kernel.family, kernel.body, inputs, list(kernel.outputs), kernel.anchor, dict(kernel.params), kernel.axes,
        kernel.maps, dict(kernel.tiles), kernel.origin,
    )  # fmt: skip


def _moved(view: View, buffer: Buffer) -> View:
    return View(buffer, view.shape, view.strides, view.offset)


def _random(buffer: Buffer, seed: int) -> np.ndarray:
    """Small normal floats; zeros for everything else, which are valid as indices."""
    shape = tuple(int(d) for d in buffer.type.dims)  # type: ignore[arg-type]
    dtype = buffer.type.dtype
    if not dtype.is_float:
        return np.zeros(shape, dtype.numpy)
    return (0.1 * np.random.default_rng(seed).standard_normal(shape, np.float32)).astype(dtype.numpy)
