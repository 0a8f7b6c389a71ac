"""Run kernels over a few samples of a batch at a time, where what passes between them would leave the caches.

A stretch of kernels that treat all samples of a batch alike becomes a loop whose iterations take `chunk` samples each,
and what only the loop uses shrinks to so many. The price is that weights are read, and kernels launched, once an
iteration. Stretch and chunk are those that the roofline of the target's memories finds best. Numerics: exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

from opcel_compiler.ir.access import analyze
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.dims import as_symbol, evaluate, product, symbol
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.opdef import InferenceError
from opcel_compiler.ir.program import Buffer, Control, Index, Kernel, Program, View, blocks
from opcel_compiler.ir.program_split import fresh_name
from opcel_compiler.ir.types import TensorType
from opcel_compiler.rewrite.pass_ import Pass, PassContext
from opcel_compiler.schedule.cost import kernel_flops, peak
from opcel_compiler.targets.schema import Target

LAUNCH = 2e-6
"""Seconds that a kernel takes to begin and end on all threads."""
LEAVES, STAYS = 2, 1 / 4
"""How many last-level caches images must fill to be taken to leave it, and up to what share of one they stay: others
use it, too, at times more and at times less, and a loop shall pay in either case."""
WORTH = 0.02
"""The share of its kernels' time that a loop must save."""


@dataclass(frozen=True)
class SplitBatch(Pass):
    """Loops over samples, where batches are known and their images do not stay in the caches."""

    name: ClassVar[str] = "split-batch"
    summary: ClassVar[str] = "run kernels over a few samples at a time whose results would leave the caches"
    level: ClassVar[str] = "program"

    def run(self, program: Program, ctx: PassContext) -> None:
        if ctx.target is None or ctx.target.vector is None or program.states:
            return
        for first, batched in reversed(list(_stretches(program))):
            found = _best(batched, ctx.target)
            if found is not None:
                start, stop, chunk = found
                _loop(program, first + start, batched[start:stop], chunk)
                for kernel in (each.kernel for each in batched[start:stop]):
                    if kernel.anchor is not None:
                        ctx.changed("split-batch", kernel.anchor, kernel.origin)


@dataclass
class Batched:
    """A kernel each of whose results has `count` samples along its first axis, and which inputs and outputs have."""

    kernel: Kernel
    count: int
    views: tuple[bool, ...]

    @cached_property
    def flops(self) -> int:
        return kernel_flops(self.kernel, {})

    @cached_property
    def moved(self) -> tuple[int, int]:
        """(bytes of all samples, bytes of what is the same for all)"""
        sizes = [_bytes(v) for v in self.kernel.views]
        samples = sum(size for size, batched in zip(sizes, self.views, strict=True) if batched)
        return samples, sum(sizes) - samples

    def seconds(self, samples: int, target: Target) -> float:
        """All samples' time on one core, so many of them at a time: arithmetic overlaps with what leaves the caches."""
        compute = self.flops / peak(self.kernel.outputs[0].dtype, target)
        held, share = self.moved[0] * samples // self.count, LEAVES if samples == self.count else STAYS
        return max(compute, _seconds(held, self.moved[0], target, share))

    def gain(self, samples: int, target: Target) -> float:
        """Seconds less in a loop, so many samples an iteration; weights come from the last-level cache each time."""
        if self.body(samples) is None:
            return -float("inf")
        again = (self.count // samples - 1) * (LAUNCH + self.moved[1] / target.memories[1].bandwidth)
        return self.seconds(self.count, target) - self.seconds(samples, target) - again

    def crossing(self, views: Sequence[View], target: Target) -> float:
        """Seconds for those of the inputs or outputs that a loop beginning or ending here takes from outside."""
        flags = dict(zip(self.kernel.views, self.views, strict=True))
        moved = sum(_bytes(v) for v in views if flags[v])
        return _seconds(self.moved[0], moved, target, LEAVES)

    def body(self, samples: int) -> Graph | None:
        """The kernel's body for so many samples; None where an operator of it states their number."""
        body = clone(self.kernel.body)
        for value, batched in zip(body.inputs, self.views, strict=False):
            if batched:
                value.type = TensorType(value.tensor.dtype, (samples, *value.tensor.dims[1:]))
        try:
            for node in body.nodes:
                node.reinfer()
        except InferenceError:
            return None
        wanted = [(samples, *v.tensor.dims[1:]) for v in self.kernel.body.outputs]
        return body if [v.tensor.dims for v in body.outputs] == wanted else None


def _bytes(view: View) -> int:
    dims = [d for d, stride in zip(view.shape, view.strides, strict=True) if stride != 0]
    return evaluate(product(dims), {}) * view.buffer.element_bytes


def _seconds(held: int, moved: int, target: Target, share: float) -> float:
    """To bring `moved` bytes from the outermost memory; 0 where `held` of them fit in that share of the next one."""
    memory, cache = target.memories[:2]
    return moved / memory.bandwidth if held > share * cache.size else 0.0


def _batched(kernel: Kernel) -> Batched | None:
    """How a kernel treats samples; None where it joins or tells them apart, or has weights for each."""
    if any(not isinstance(d, int) for v in kernel.views for d in v.shape):
        return None
    access = analyze(kernel.body, kernel.anchor)
    maps = [access.values.get(v, ()) for v in (*kernel.body.inputs, *kernel.body.outputs)]
    lead = maps[-1][0] if maps[-1] else None
    if lead is None or len(lead.terms) != 1:
        return None
    axis = lead.terms[0][0]
    sample, count = Index(((axis, 1),)), kernel.outputs[-1].shape[0]
    flags = []
    for access_map, view in zip(maps, kernel.views, strict=True):
        uses = [i for i, index in enumerate(access_map) if any(a == axis for a, _ in index.terms)]
        if uses and not (uses == [0] and access_map[0] == sample and view.shape[0] == count):
            return None
        if uses and view.buffer.kind == "weight":
            return None
        flags.append(bool(uses))
    if not all(flags[len(kernel.inputs) :]) or not isinstance(count, int):
        return None
    return Batched(kernel, count, tuple(flags)) if all(_by_sample(v, count) for v in kernel.outputs) else None


def _stretches(program: Program) -> Iterator[tuple[int, list[Batched]]]:
    """(index of the first step, kernels) of each longest run of kernels over the same samples, outside branches and
    loops."""
    run: list[Batched] = []
    for i, (step, inside) in enumerate(zip(program.steps, blocks(program.steps), strict=True)):
        found = _batched(step) if isinstance(step, Kernel) and not inside else None
        if run and (found is None or not _follows(run, found)):
            yield i - len(run), run
            run = []
        if found is not None and found.count > 1:
            run.append(found)
    if run:
        yield len(program.steps) - len(run), run


def _follows(run: Sequence[Batched], each: Batched) -> bool:
    """Whether a sample of `each` needs what the run's kernels make of the same sample, and of no other."""
    made = {v.buffer for before in run for v in before.kernel.outputs}
    read = zip(each.kernel.inputs, each.views, strict=False)
    alike = all(part and _by_sample(v, each.count) for v, part in read if v.buffer in made)
    return each.count == run[0].count and alike


def _best(batched: Sequence[Batched], target: Target) -> tuple[int, int, int] | None:
    """(first, last + 1, samples an iteration) of the loop that saves most time; None where none is worth it."""
    count, found = batched[0].count, None
    best = WORTH * sum(each.seconds(each.count, target) for each in batched)
    for chunk in (c for c in range(1, count) if count % c == 0):
        start, total = 0, -float("inf")
        for i, each in enumerate(batched):
            entering = -each.crossing(each.kernel.inputs, target)
            start, total = (i, entering) if entering >= total else (start, total)
            total += each.gain(chunk, target)
            saved = total - each.crossing(each.kernel.outputs, target)
            if saved > best:
                best, found = saved, (start, i + 1, chunk)
    return found


def _loop(program: Program, first: int, batched: Sequence[Batched], chunk: int) -> None:
    """Put the kernels from step `first` on, the program's own, into a loop."""
    count, last = batched[0].count, first + len(batched)
    turn = symbol(fresh_name("turn", {*program.symbols, *program.iterations}), 0, count // chunk - 1)
    inner = _inner(program, batched)
    for buffer in inner:
        buffer.type = TensorType(buffer.type.dtype, (chunk, *buffer.type.dims[1:]))

    def part(view: View) -> View:
        sliced = replace(view, shape=(chunk, *view.shape[1:]))
        if view.buffer in inner:
            return sliced
        return replace(sliced, offset=view.offset + turn * (chunk * view.strides[0]))

    for each in batched:
        kernel, body = each.kernel, each.body(chunk)
        assert body is not None
        if kernel.anchor is not None:
            kernel.anchor = list(body.nodes)[list(kernel.body.nodes).index(kernel.anchor)]
        views = [part(v) if is_part else v for v, is_part in zip(kernel.views, each.views, strict=True)]
        kernel.body, kernel.axes, kernel.maps = body, (), ()
        kernel.inputs, kernel.outputs = views[: len(kernel.inputs)], views[len(kernel.inputs) :]
    origin = tuple(dict.fromkeys(o for each in batched for o in each.kernel.origin))
    program.steps.insert(last, Control("end"))
    program.steps.insert(first, Control("loop", [], as_symbol(turn), count // chunk, origin))


def _inner(program: Program, batched: Sequence[Batched]) -> set[Buffer]:
    """The temporary buffers that only these kernels use, sample by sample."""
    parts = {
        (each.kernel, v) for each in batched for v, part in zip(each.kernel.views, each.views, strict=True) if part
    }
    inner = {view.buffer for _, view in parts if view.buffer.kind == "temp"}
    for step in program.steps:
        for view in step.views:
            if (step, view) not in parts or not _by_sample(view, batched[0].count):
                inner.discard(view.buffer)
    return inner


def _by_sample(view: View, count: int) -> bool:
    """Whether a buffer holds one sample after the other, and the view begins in the first of them."""
    layout, dims = view.buffer.layout, view.buffer.type.dims
    if not dims or dims[0] != count or layout.room or (layout.halo and any(layout.halo[0])):
        return False
    sample, outermost = layout.strides(dims)[0], layout.order[:1] in ((), (0,)) and layout.block_axis != 0
    fixed = isinstance(sample, int) and isinstance(view.offset, int) and view.offset < sample
    return outermost and fixed and view.strides[0] == sample
