"""Recurrent layers in every form of the standard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, lowers
from opcel_compiler.frontend.lowerings.scatter import index_vectors, numbers
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.ops.recurrent import DEFAULTS, DIRECTIONS
from opcel_compiler.ir.types import I64

_FUNCTIONS: dict[str, tuple[str, float | None, float | None]] = {
    "sigmoid": ("sigmoid", None, None), "tanh": ("tanh", None, None), "relu": ("relu", None, None),
    "affine": ("affine", 1.0, 0.0), "leakyrelu": ("leaky_relu", 0.01, None),
    "thresholdedrelu": ("thresholded_relu", 1.0, None), "scaledtanh": ("scaled_tanh", 1.0, 1.0),
    "hardsigmoid": ("hard_sigmoid", 0.2, 0.5), "elu": ("elu", 1.0, None), "softsign": ("softsign", None, None),
    "softplus": ("softplus", None, None),
}  # fmt: skip
"""ONNX's functions in lower case: ours, and the alpha and beta of those that have them."""


def _activations(c: Lowering, directions: int) -> dict[str, Any]:
    """The attributes of ours that name the functions; none where they are the operator's own."""
    own = DEFAULTS[c.op_type.lower()]
    if not c.has("activations"):
        return {}
    names = [n.decode(errors="replace").lower() for n in c.attr_strings("activations")]
    if len(names) != len(own) * directions:
        raise ModelError(
            f"node {c.origin!r} ({c.op_type}): {len(names)} activations, and it needs {len(own) * directions}"
        )
    given = iter(c.attr_floats("activation_alpha", ())), iter(c.attr_floats("activation_beta", ()))
    chosen = []
    for name in names:
        if name not in _FUNCTIONS:
            raise ModelError(f"node {c.origin!r} ({c.op_type}): the activation {name!r} is unknown")
        function, alpha, beta = _FUNCTIONS[name]
        chosen.append((function, _next(given[0], alpha), _next(given[1], beta)))
    if tuple(f for f, _, _ in chosen) == own * directions:
        return {}
    return {key: tuple(f[i] for f in chosen) for i, key in enumerate(("activations", "alphas", "betas"))}


def _next(given: Iterator[float], default: float | None) -> float:
    """The next parameter that the node gives, for a function that has one."""
    return 0.0 if default is None else next(given, default)


@lowers("LSTM", "GRU", "RNN")
def recurrent(c: Lowering) -> list[Value | None]:
    direction = c.attr_str("direction", "forward")
    if direction not in DIRECTIONS:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): direction {direction!r} is unknown")
    attrs: dict[str, Any] = {"direction": direction, "clip": c.attr_float("clip", 0.0)}
    attrs |= _activations(c, 2 if direction == "bidirectional" else 1)
    if c.op_type == "GRU":
        attrs["reset_after"] = bool(c.attr_int("linear_before_reset", 0))
    if c.op_type == "LSTM":
        attrs["input_forget"] = bool(c.attr_int("input_forget", 0))
    batch_first = bool(c.attr_int("layout", 0))
    lengths, peepholes = c.opt(4), c.opt(7) if c.op_type == "LSTM" else None
    if lengths is not None and _all_equal(lengths, c.shape(c.x(0))[int(batch_first)]):
        lengths = None
    if peepholes is not None and _all_equal(peepholes, 0):
        peepholes = None
    x, r, w = c.x(0), c.x(2), c.x(1)
    states = [c.opt(5), c.opt(6)] if c.op_type == "LSTM" else [c.opt(5)]
    if batch_first:
        x = c.transpose(x, (1, 0, 2))
        states = [None if s is None else c.transpose(s, (1, 0, 2)) for s in states]
    operands = [x, r, w, c.opt(3), *states, lengths, peepholes]
    while operands[-1] is None:
        operands.pop()
    node = c.builder.add(c.op_type.lower(), operands, attrs, c.origin)
    y, *cell = node.results
    results: list[Value | None] = [y, last_states(c, y, direction, lengths) if c.wants(1) else None, *cell]
    if batch_first:
        perms = ((2, 0, 1, 3), (1, 0, 2), (1, 0, 2))
        results = [None if v is None else c.transpose(v, p) for v, p in zip(results, perms, strict=False)]
    return results[: len(c.node.output)]


def _all_equal(x: Value, number: Dim) -> bool:
    """Whether x is known to hold nothing but `number`."""
    return x.constant is not None and isinstance(number, int) and bool((x.constant.array == number).all())


def last_states(c: Lowering, y: Value, direction: str, lengths: Value | None) -> Value:
    """The hidden state [directions, batch, hidden] after each sequence's last step, from all of them."""
    t, _, batch, hidden = c.shape(y)
    parts = []
    for k in range(2 if direction == "bidirectional" else 1):
        forward = k == 0 and direction != "reverse"
        one = c.slice(y, 1, k, 1)
        if forward and lengths is not None:
            end = c.emit("sub", c.cast(lengths, I64), c.of_dims([1], scalar=True))
            places = index_vectors(c, [end, numbers(c, batch, 0, 1)], (batch,))
            one = c.emit("gather_nd", c.reshape(one, (t, batch, hidden)), places, batch_dims=0)
        else:
            one = c.slice(one, 0, t - 1 if forward else 0, 1)
        parts.append(c.reshape(one, (1, batch, hidden)))
    return parts[0] if len(parts) == 1 else c.emit("concat", *parts, axis=0)
