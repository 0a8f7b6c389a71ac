"""Caches that a decode step appends to in place: an input and the output that is that input with something appended.

Both get the same memory, in which the axis that grows has room for a given number of places. The copy of what was there
before goes; every other kernel reads and writes the same elements as before, at the strides of that memory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.dims import Dim, as_symbol, equal, product
from opcel_compiler.ir.layout import Layout
from opcel_compiler.ir.program import Buffer, Kernel, Program, State, Step, View


class StateError(OpcelError):
    """An input that cannot be appended to in place, or a text that does not say which ones and how far."""


@dataclass(frozen=True)
class StateSpec:
    """The inputs whose names match `inputs`, their outputs' names matching `outputs`, with `capacity` places each."""

    inputs: str
    outputs: str
    capacity: int

    @staticmethod
    def parse(text: str) -> StateSpec:
        """`past_*:1024` or `past_*=present_*:1024`; a name may hold * for any text. Raises StateError."""
        found = re.fullmatch(r"([^=:]+)(?:=([^=:]+))?:([1-9]\d*)", text)
        if not found:
            raise StateError(f"{text!r} is no INPUTS=OUTPUTS:CAPACITY, such as 'past_*=present_*:1024'")
        return StateSpec(found[1], found[2] or "*", int(found[3]))


def append_in_place(
    program: Program, specs: Sequence[StateSpec], names: tuple[Sequence[str], Sequence[str]]
) -> None:  # fmt: skip
    """Fill `program.states`; `names` are those of its inputs and outputs. Raises StateError."""
    for spec in specs:
        chosen = [i for i, name in enumerate(names[0]) if fnmatchcase(name, spec.inputs)]
        if not chosen:
            raise StateError(f"no input's name matches {spec.inputs!r}; there are {', '.join(names[0])}")
        for i in chosen:
            past = program.inputs[i]
            present = _grown(program, past)
            if present is None:
                raise StateError(f"input {names[0][i]!r} is not appended to: no output is it and something after it")
            name = names[1][program.outputs.index(present)]
            if not fnmatchcase(name, spec.outputs):
                raise StateError(f"input {names[0][i]!r} grows into output {name!r}, which is no {spec.outputs!r}")
            _share(program, past, present, spec.capacity, names[0][i])


def _grown(program: Program, past: Buffer) -> Buffer | None:
    """The output that begins with a copy of `past`."""
    for kernel in program.kernels:
        if kernel.family == "copy" and kernel.inputs[0].buffer is past and kernel.outputs[0].buffer in program.outputs:
            source, target = kernel.inputs[0], kernel.outputs[0]
            if source.is_whole and target.offset == 0 and source.shape == past.type.dims == target.shape:
                return target.buffer
    return None


def _share(program: Program, past: Buffer, present: Buffer, capacity: int, name: str) -> None:
    before, after = past.type.dims, present.type.dims
    grown = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if equal(a, b) is not True]
    if len(grown) != 1 or not (past.layout.is_plain and present.layout.is_plain):
        raise StateError(f"input {name!r} {past.type} does not grow into {present.type} along one axis")
    axis = grown[0]
    if type(after[axis]) is int and after[axis] > capacity:  # type: ignore[operator]
        raise StateError(f"input {name!r} grows to {after[axis]} places, and the capacity is {capacity}")
    appended = after[axis] - before[axis]
    if not isinstance(appended, int) and as_symbol(appended) is None:
        raise StateError(f"input {name!r} grows by {appended} places; only a constant or an input's dimension can be")
    layout = Layout(room=(axis, capacity))
    for buffer in (past, present):
        moved = _Moved(buffer, layout, axis, before[axis])
        for step in program.steps:
            step.inputs[:] = [moved.view(v, step, name) if v.buffer is buffer else v for v in step.inputs]
            step.outputs[:] = [moved.view(v, step, name) if v.buffer is buffer else v for v in step.outputs]
    past.layout = present.layout = layout
    program.steps = [s for s in program.steps if not _moves_nothing(s, past, present)]
    program.states.append(State(past, present, axis, capacity))


@dataclass(frozen=True)
class _Moved:
    """Views of a dense buffer as views of the same elements in `layout`, where `axis` has room; `held` is its extent
    in the input."""

    buffer: Buffer
    layout: Layout
    axis: int
    held: Dim

    def view(self, view: View, step: Step, name: str) -> View:
        dims = self.buffer.type.dims
        old = Layout().strides(dims)
        new = self.layout.strides(dims)
        fits = isinstance(step, Kernel) and self._starts_in_first_row(view, old)
        strides: list[Dim] = []
        for extent, stride in zip(view.shape, view.strides, strict=True):
            at = next((i for i, s in enumerate(old) if equal(s, stride) is True and dims[i] != 1), None)
            if at is None:
                fits = fits and (extent == 1 or stride == 0)
                strides.append(stride)
            else:
                fits = fits and (at < self.axis or self._within(extent, dims, at))
                strides.append(new[at])
        if not fits:
            where = ", ".join(step.origin[:2]) or "a step"
            raise StateError(f"input {name!r} cannot be appended to in place: {where} needs it in dense memory")
        return View(view.buffer, view.shape, tuple(strides), view.offset)

    def _starts_in_first_row(self, view: View, old: tuple[Dim, ...]) -> bool:
        inside = product(self.buffer.type.dims[self.axis + 1 :])
        appended = equal(view.offset, self.held * old[self.axis]) is True
        small = isinstance(view.offset, int) and (
            view.offset == 0 or (isinstance(inside, int) and view.offset < inside)
        )
        return appended or small

    def _within(self, extent: Dim, dims: tuple[Dim, ...], at: int) -> bool:
        """Whether an axis that steps as the buffer's axis `at` stays inside it."""
        if isinstance(extent, int) and isinstance(dims[at], int):
            return extent <= dims[at]  # type: ignore[operator]
        known = (dims[at], self.held, dims[at] - self.held) if at == self.axis else (dims[at],)
        return extent == 1 or any(equal(extent, k) is True for k in known)


def _moves_nothing(step: Step, past: Buffer, present: Buffer) -> bool:
    """Whether a copy's two views are the same places of the two buffers that share memory."""
    if not isinstance(step, Kernel) or step.family != "copy":
        return False
    source, target = step.inputs[0], step.outputs[0]
    same = (source.shape, source.offset) == (target.shape, target.offset) and all(
        a == b for a, b, extent in zip(source.strides, target.strides, source.shape, strict=True) if extent != 1
    )
    return same and source.buffer is past and target.buffer is present
