"""Branches and loops as marked blocks of steps, whose results lie in memory that is there before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from opcel_compiler.ir.dims import Dim, as_symbol, equal
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.layout import PLAIN
from opcel_compiler.ir.ops.control import trip_count
from opcel_compiler.ir.program import Buffer, Control, Kernel, Step, View, block_end, whole

if TYPE_CHECKING:
    from opcel_compiler.schedule.lower import Lowering


def lower_if(lowering: Lowering, node: Node) -> None:
    """Each branch leaves its results in the same memory."""
    steps = lowering.program.steps
    targets = [lowering.temp(v.tensor.dtype, v.tensor.dims, v.name) for v in node.results]
    marks = Control("if", [lowering.view(node.operand(0))], origin=node.origin), Control("else")
    for mark, region in zip(marks, node.regions, strict=True):
        first = len(steps) + 1
        lowering.block(mark, region)
        places = [_shaped(t, v.tensor.dims) for t, v in zip(targets, region.outputs, strict=True)]
        _hand_over(lowering, region.outputs, places, first)
    steps.append(Control("end"))
    lowering.views.update(zip(node.results, targets, strict=True))


def lower_loop(lowering: Lowering, node: Node) -> None:
    """Carried values keep one place; each iteration writes its row of a stacked result where it belongs."""
    steps, (body,) = lowering.program.steps, node.regions
    trip, iteration = trip_count(node), node.attrs["iteration"][0]
    carried = []
    for value, initial in zip(body.inputs, node.operands, strict=True):
        assert initial is not None
        carried.append(lowering.temp(value.tensor.dtype, value.tensor.dims, value.name))
        lowering.copy(lowering.view(initial), carried[-1])
    results = node.results[len(carried) :]
    stacks = [lowering.temp(v.tensor.dtype, v.tensor.dims, v.name) for v in results]
    condition = carried[-1:] if node.attrs["conditional"] else []
    lowering.views.update(zip(body.inputs, carried, strict=True))
    first = len(steps) + 1
    lowering.block(Control("loop", list(condition), as_symbol(iteration), trip, node.origin), body)
    _hand_over(lowering, body.outputs, [*carried, *(_row(v, iteration) for v in stacks)], first)
    steps.append(Control("end"))
    lowering.views.update(zip(node.results, [*carried, *stacks], strict=True))


def _shaped(target: View, dims: Sequence[Dim]) -> View:
    """Dense memory for a result under the sizes that it has in a branch."""
    same = all(equal(a, b) is True for a, b in zip(target.shape, dims, strict=True))
    return target if same else View(target.buffer, tuple(dims), PLAIN.strides(tuple(dims)), 0)


def _row(stack: View, at: Dim) -> View:
    return View(stack.buffer, stack.shape[1:], stack.strides[1:], stack.offset + at * stack.strides[0])


def _hand_over(lowering: Lowering, values: Sequence[Value], targets: Sequence[View], first: int) -> None:
    """Bring the values that a block's steps, those from index `first` on, compute to `targets`: written there in the
    first place where nothing else wants that memory after, else copied."""
    steps = lowering.program.steps
    views = [lowering.view(v) for v in values]
    copies: list[tuple[View, View]] = []
    for i, (view, target) in enumerate(zip(views, targets, strict=True)):
        if view == target:
            continue
        others = [v.buffer for j, v in enumerate(views) if j != i]
        if view.buffer not in others and target.buffer not in others and _own(view, steps, first):
            if _free_after(view.buffer, target.buffer, steps, first):
                for step in steps[first:]:
                    step.inputs[:] = [_moved(v, view.buffer, target) for v in step.inputs]
                    step.outputs[:] = [_moved(v, view.buffer, target) for v in step.outputs]
                continue
        copies.append((view, target))
    while copies:
        ready = next((i for i in range(len(copies)) if _unread(copies, i)), None)
        if ready is None:
            view, target = copies[0]
            kept = lowering.temp(view.dtype, view.shape, f"{view.buffer.name}.next")
            lowering.copy(view, kept)
            copies[0] = kept, target
        else:
            lowering.copy(*copies.pop(ready))


def _unread(copies: Sequence[tuple[View, View]], i: int) -> bool:
    """Whether no copy reads what copy `i` writes."""
    return all(view.buffer is not copies[i][1].buffer for view, _ in copies)


def _own(view: View, steps: Sequence[Step], first: int) -> bool:
    """Whether a view is all of a temporary that only the block's steps use."""
    b = view.buffer
    whole_of = b.kind == "temp" and view.is_whole and b.layout.is_plain
    return whole_of and not any(v.buffer is b for step in steps[:first] for v in step.views)


def _free_after(made: Buffer, place: Buffer, steps: Sequence[Step], first: int) -> bool:
    """Whether nothing of the block uses `place` once `made` is being written, but elementwise kernels that read just
    what they write."""
    at = first
    for at in range(first, len(steps)):
        if any(v.buffer is made for v in steps[at].outputs):
            break
    for i in range(first, at):
        step = steps[i]
        if isinstance(step, Control) and step.kind == "loop" and block_end(steps, i)[1] > at:
            at = i
            break
    for step in steps[at:]:
        written = [v for v in step.outputs if v.buffer is made]
        inplace = isinstance(step, Kernel) and step.anchor is None and step.family == "elementwise"
        for v in step.views:
            same = inplace and any(replace(v, buffer=made) == w for w in written)
            if v.buffer is place and not (same and v == whole(place)):
                return False
    return True


def _moved(view: View, made: Buffer, target: View) -> View:
    if view.buffer is not made:
        return view
    return View(target.buffer, view.shape, view.strides, target.offset + view.offset)
