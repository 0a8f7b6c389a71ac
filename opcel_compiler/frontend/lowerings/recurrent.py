"""Recurrent layers: the plain forms; clipping, peepholes, unusual activations and sequence lengths are left alone."""

from __future__ import annotations

from typing import Any

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.ops.recurrent import DIRECTIONS

_DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def _activations(c: Lowering, directions: int) -> list[str]:
    """The activations of one direction; Unsupported when directions differ."""
    own = _DEFAULTS[c.op_type]
    if not c.has("activations"):
        return own
    names = [n.decode(errors="replace") for n in c.attr_strings("activations")]
    one = names[: len(own)]
    if names != one * directions:
        raise Unsupported(f"the activations {names} of the directions differ")
    return one


@lowers("LSTM", "GRU", "RNN")
def recurrent(c: Lowering) -> list[Value | None]:
    direction = c.attr_str("direction", "forward")
    if direction not in DIRECTIONS:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): direction {direction!r} is unknown")
    directions = 2 if direction == "bidirectional" else 1
    activations = _activations(c, directions)
    attrs: dict[str, Any] = {"direction": direction}
    if c.op_type == "GRU":
        attrs["reset_after"] = bool(c.attr_int("linear_before_reset", 0))
    if c.op_type == "RNN" and activations[0] in ("Tanh", "Relu"):
        attrs["activation"] = activations[0].lower()
    elif activations != _DEFAULTS[c.op_type]:
        raise Unsupported(f"the activations {activations} have no lowering")
    if c.has("clip") or c.attr_int("input_forget", 0):
        raise Unsupported("clip and input_forget have no lowering")
    batch_first = bool(c.attr_int("layout", 0))
    if (lengths := c.opt(4)) is not None and not _all_equal(lengths, c.shape(c.x(0))[int(batch_first)]):
        raise Unsupported("sequence lengths have no lowering")
    if c.op_type == "LSTM" and (peepholes := c.opt(7)) is not None and not _all_equal(peepholes, 0):
        raise Unsupported("peepholes have no lowering")
    x, r, w = c.x(0), c.x(2), c.x(1)
    states = [c.opt(5), c.opt(6)] if c.op_type == "LSTM" else [c.opt(5)]
    if batch_first:
        x = c.transpose(x, (1, 0, 2))
        states = [None if s is None else c.transpose(s, (1, 0, 2)) for s in states]
    node = c.builder.add(c.op_type.lower(), [x, r, w, c.opt(3), *states], attrs, c.origin)
    y, *cell = node.results
    results: list[Value | None] = [y, _last(c, y, direction) if c.wants(1) else None, *cell]
    if batch_first:
        perms = ((2, 0, 1, 3), (1, 0, 2), (1, 0, 2))
        results = [None if v is None else c.transpose(v, p) for v, p in zip(results, perms, strict=False)]
    return results[: len(c.node.output)]


def _all_equal(x: Value, number: Dim) -> bool:
    """Whether x is known to hold nothing but `number`."""
    return x.constant is not None and isinstance(number, int) and bool((x.constant.array == number).all())


def _last(c: Lowering, y: Value, direction: str) -> Value:
    """The hidden state [directions, batch, hidden] after the last step, from all of them."""
    t, _, batch, hidden = c.shape(y)
    ends: list[Dim] = [t - 1, 0] if direction != "reverse" else [0]
    parts = []
    for k, at in enumerate(ends[: 2 if direction == "bidirectional" else 1]):
        one = c.slice(c.slice(y, 0, at, 1), 1, k, 1)
        parts.append(c.reshape(one, (1, batch, hidden)))
    return parts[0] if len(parts) == 1 else c.emit("concat", *parts, axis=0)
