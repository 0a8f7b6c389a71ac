"""A convolution on blocked channels in its other families, and measured choices that may name any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from opcel_compiler.ir.program import Buffer, Kernel, View
from opcel_compiler.schedule.choice.candidates import Params, apply, candidates, is_static, kernel_text, settable
from opcel_compiler.schedule.choice.context import Choosing
from opcel_compiler.schedule.choice.convolution import choose_conv
from opcel_compiler.schedule.choice.integers import is_integer
from opcel_compiler.schedule.choice.winograd import use_winograd, winograd_plans

CONVOLUTIONS = ("conv.blocked", "conv.winograd")

Choice = tuple[Kernel, Params]
"""A kernel, and the parameters to `apply` to it."""


@dataclass(frozen=True)
class Override:
    """What was measured to be the best choice for a kernel."""

    family: str
    params: Mapping[str, Any]


def choices(kernel: Kernel, choosing: Choosing) -> list[Choice]:
    """What may be measured of a kernel: the choice that it has first; [] where there is nothing else."""
    known = (kernel, *variants(kernel, choosing))
    out = [(each, params) for each in known for params in candidates(each, choosing.target)]
    return out if len(out) > 1 else []


def variants(kernel: Kernel, choosing: Choosing, winograd: bool = True) -> list[Kernel]:
    """The kernel in other families or with tiles of another size, each with its own parameters and packed weights.

    Without `winograd` none of that family.
    """
    if kernel.family not in CONVOLUTIONS or not is_static(kernel) or is_integer(kernel):
        return []
    known = _form(kernel)
    out: list[Kernel] = []
    for plan in winograd_plans(_plain(kernel, choosing), choosing) if winograd else []:
        out.append(_plain(kernel, choosing))
        use_winograd(out[-1], plan, choosing)
    out.append(_plain(kernel, choosing))
    choose_conv(out[-1], choosing)
    return [each for each in out if _form(each) != known]


def override(
    kernels: Iterable[Kernel], tuned: Mapping[str, Override], choosing: Choosing, winograd: bool = True
) -> int:
    """Replace the choices of the kernels that `tuned` has by their text; gives how many. Raises CandidateError."""
    count = 0
    for kernel in kernels:
        found = tuned.get(kernel_text(kernel)) if settable(kernel) else None
        if found is None:
            continue
        for each in (kernel, *variants(kernel, choosing, winograd)):
            if each.family == found.family and each.params.get("tile") == found.params.get("tile"):
                kernel.family, kernel.params, kernel.inputs = each.family, each.params, each.inputs
                apply(kernel, found.params, choosing.name)
                count += 1
                break
    return count


def _form(kernel: Kernel) -> tuple[str, object]:
    return kernel.family, kernel.params.get("tile")


def _plain(kernel: Kernel, choosing: Choosing) -> Kernel:
    """The kernel before its family was chosen, with a weight buffer of its own."""
    assert kernel.anchor is not None
    at = list(kernel.body.inputs).index(kernel.anchor.operand(1))
    view, inputs = kernel.inputs[at], list(kernel.inputs)
    old = view.buffer
    layout = replace(old.layout, storage="")
    fresh = Buffer(choosing.name(f"{old.name}.other"), old.type, "weight", layout, old.memory, old.data)
    inputs[at] = View(fresh, view.shape, view.strides, view.offset)
    return Kernel(
        "conv.blocked", kernel.body, inputs, list(kernel.outputs), kernel.anchor,
        {"kind": kernel.params.get("kind", "blocked")}, kernel.axes, kernel.maps, dict(kernel.tiles), kernel.origin,
    )  # fmt: skip
