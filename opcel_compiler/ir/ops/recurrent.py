"""Recurrent layers over whole sequences, in one direction or in both.

Operands: x [t, b, i], r [d, g·n, n], w [d, g·n, i], bias [d, 2·g·n] (that of w, then that of r), the initial hidden
state h [d, b, n] and, for lstm, the initial cell state c [d, b, n]; d directions, n hidden units, g gates in ONNX's
order. Without w, x holds w's part of the gates already: [t, b, d·g·n]. `lengths` [b] says how many steps each sequence
has; peepholes [d, 3·n] are those of the input, output and forget gates. The result y is [t, d, b, n], in the order of x
also where the direction is reverse, and zero behind a sequence's end; absent biases, states and peepholes are zero.

`activations` names the functions of each direction in ONNX's order, and `alphas` and `betas` hold their parameters;
without names they are sigmoid for gates and tanh for states. A positive `clip` bounds what goes into the functions of
the gates.

A layer whose r is of s8 has its scales in r_scale [d, g·n], and of the other operands only x, h and c, a gru also its
bias. Hidden states are then rounded for the product with it, those of each sequence and step to u8 on a grid that
reaches from their least to their largest and holds 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from opcel_compiler.ir.dims import Dim, product
from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import (
    array_at,
    optional_array,
    optional_tensor,
    quiet,
    same_dtype,
    tensor_of,
    unify,
    unknown_rank,
    widen,
)
from opcel_compiler.ir.types import I8, TensorType, Type

DIRECTIONS = ("forward", "reverse", "bidirectional")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
"""Gates in ONNX's order: lstm input, output, forget, cell; gru update, reset, hidden."""

DEFAULTS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
"""The activations of one direction where none are named."""

SCALE_AT = {"lstm": 8, "gru": 6, "rnn": 6}
"""Which operand r_scale is."""


def special_form(op: str, attrs: Attrs) -> str:
    """What of a layer's attributes the kernels of a call a step do not take, in words for the user; "" for nothing."""
    if attrs["activations"] and not (op == "rnn" and set(attrs["activations"]) == {"relu"}):
        return "it has activations of its own"
    if attrs["clip"] > 0:
        return "its gates are clipped"
    if attrs.get("input_forget"):
        return "its input and forget gates are coupled"
    if not attrs.get("reset_after", True):
        return "its reset gate stands before the product with R (linear_before_reset is 0)"
    return ""


State = tuple[np.ndarray, ...]
Function = Callable[[np.ndarray], np.ndarray]
Step = Callable[[np.ndarray, np.ndarray, np.ndarray, "np.ndarray | None", State, np.ndarray], State]
"""(x's part of the gates [b, g·n] with w's bias, r [g·n, n], r's bias [g·n], peepholes [3·n], state, the hidden state
as it is multiplied) → the next state, hidden first."""
Cell = Callable[[Attrs, Sequence[Function]], Step]
"""From the attributes and the functions of one direction."""


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


_FUNCTIONS: dict[str, Callable[[np.ndarray, float, float], np.ndarray]] = {
    "sigmoid": lambda x, a, b: _sigmoid(x),
    "tanh": lambda x, a, b: np.tanh(x),
    "relu": lambda x, a, b: np.maximum(x, 0),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "thresholded_relu": lambda x, a, b: np.where(x > a, x, 0),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "elu": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(np.minimum(x, 0))),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: np.logaddexp(0, x),
}
ACTIVATIONS = tuple(_FUNCTIONS)
"""The functions that `activations` may name."""


def functions(op: str, attrs: Attrs) -> list[list[tuple[str, float, float]]]:
    """(name, alpha, beta) of each function of each direction of an lstm, gru or rnn."""
    own, directions = DEFAULTS[op], 2 if attrs["direction"] == "bidirectional" else 1
    names = attrs["activations"] or own * directions
    alphas, betas = (attrs[k] or (0.0,) * len(names) for k in ("alphas", "betas"))
    flat = list(zip(names, alphas, betas, strict=True))
    return [flat[i : i + len(own)] for i in range(0, len(flat), len(own))]


def _function(name: str, alpha: float, beta: float) -> Function:
    return lambda x: np.asarray(_FUNCTIONS[name](x, x.dtype.type(alpha), x.dtype.type(beta)), x.dtype)


def _check(op: str, attrs: Attrs) -> None:
    if attrs["direction"] not in DIRECTIONS:
        raise InferenceError(f"direction={attrs['direction']!r} is none of {', '.join(DIRECTIONS)}")
    names, count = attrs["activations"], len(DEFAULTS[op]) * (2 if attrs["direction"] == "bidirectional" else 1)
    for key in ("activations", "alphas", "betas"):
        if attrs[key] and len(attrs[key]) != count:
            raise InferenceError(f"{key}={attrs[key]} needs {count} entries")
    for name in names:
        if name not in ACTIVATIONS:
            raise InferenceError(f"the activation {name!r} is none of {', '.join(ACTIVATIONS)}")


def _infer(op: str) -> Callable[[Operands, Attrs], tuple[Type, ...]]:
    gates, states = GATES[op], 2 if op == "lstm" else 1

    def infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
        x, r = tensor_of(operands, 0, "f"), tensor_of(operands, 1, "fi")
        w, bias, *rest = (optional_tensor(operands, i) for i in range(2, SCALE_AT[op] + 1))
        initial, lengths, scale = rest[:states], rest[states], rest[-1]
        peepholes = rest[states + 1] if op == "lstm" else None
        if r.dtype.is_float == (scale is not None) or not (r.dtype.is_float or r.dtype == I8):
            raise InferenceError(f"r of {r.dtype} {'without' if scale is None else 'with'} a scale")
        more = (w, lengths, peepholes, None if op == "gru" else bias)
        if scale is not None and (special_form(op, attrs) or any(t is not None for t in more)):
            raise InferenceError("r of s8 needs gates that are complete, and a layer that has nothing special")
        given = (x, None if r.dtype == I8 else r, w, bias, *initial, peepholes, scale)
        floats = [t for t in given if t is not None]
        dtype = same_dtype(floats)
        _check(op, attrs)
        if lengths is not None and lengths.dtype.kind not in "iu":
            raise InferenceError(f"the lengths are {lengths.dtype}, not integers")
        if any(t.shape is None for t in (*floats, r, *([] if lengths is None else [lengths]))):
            return unknown_rank(dtype) * states
        ranks = (
            (x, 3),
            (w, 3),
            (r, 3),
            (bias, 2),
            *((s, 3) for s in initial),
            (lengths, 1),
            (peepholes, 2),
            (scale, 2),
        )
        for operand, rank in ranks:
            if operand is not None and len(operand.dims) != rank:
                raise InferenceError(f"an operand {operand} must have rank {rank}")
        (t, b, width), n = x.dims, r.dims[2]
        d: Dim = 2 if attrs["direction"] == "bidirectional" else 1
        unify(r.dims[0], d, "r's directions do not fit the direction")
        rows = unify(r.dims[1], n * gates, f"r's rows are not {gates} times its columns")
        if w is None:
            unify(width, rows * d, "the gates in x do not fit r")
        else:
            unify(w.dims[0], d, "w's directions do not fit the direction")
            unify(w.dims[1], rows, "w's rows and r's differ")
            unify(w.dims[2], width, "the sizes of w and x differ")
        if bias is not None:
            unify(bias.dims[0], d, "the bias' directions do not fit the direction")
            unify(bias.dims[1], rows * 2, "the bias is not twice as long as r has rows")
        if scale is not None:
            unify(scale.dims[0], d, "the scales' directions do not fit the direction")
            unify(scale.dims[1], rows, "the scales are not one for each row of r")
        if lengths is not None:
            unify(lengths.dims[0], b, "the lengths are not one for each sequence")
        if peepholes is not None:
            unify(peepholes.dims[0], d, "the peepholes' directions do not fit the direction")
            unify(peepholes.dims[1], n * 3, "the peepholes are not three for each hidden unit")
        for state in initial:
            if state is not None:
                for have, want in zip(state.dims, (d, b, n), strict=True):
                    unify(have, want, "an initial state is not [directions, batch, hidden]")
        return (TensorType(dtype, (t, d, b, n)), TensorType(dtype, (d, b, n)))[:states]

    return infer


def _evaluate(op: str, cell: Cell) -> Callable[[Arrays, Attrs], State]:
    states = 2 if op == "lstm" else 1

    @quiet
    def evaluate(arrays: Arrays, attrs: Attrs) -> State:
        x, r = widen(array_at(arrays, 0)), widen(array_at(arrays, 1))
        w, bias, *rest = (optional_array(arrays, i) for i in range(2, SCALE_AT[op] + 1))
        initial, lengths, scale = rest[:states], rest[states], rest[-1]
        peepholes = rest[states + 1] if op == "lstm" else None
        if scale is not None:
            r = r.astype(x.dtype) * widen(scale)[..., None]
        (t, b), (d, rows, n) = x.shape[:2], r.shape
        y = np.zeros((t, d, b, n), x.dtype)
        last = np.empty((d, b, n), x.dtype)
        for k, names in enumerate(functions(op, attrs)):
            step = cell(attrs, [_function(*f) for f in names])
            inputs = x[:, :, k * rows : (k + 1) * rows] if w is None else np.matmul(x, widen(w[k]).T)
            both = np.zeros(2 * rows, x.dtype) if bias is None else widen(bias[k])
            peep = None if peepholes is None else widen(peepholes[k])
            state = tuple(np.zeros((b, n), x.dtype) if s is None else widen(s[k]) for s in initial)
            backward = k == 1 or attrs["direction"] == "reverse"
            for i in range(t - 1, -1, -1) if backward else range(t):
                h = state[0] if scale is None else on_own_grids(state[0])
                new = step(inputs[i] + both[:rows], r[k], both[rows:], peep, state, h)
                if lengths is None:
                    state, y[i, k] = new, new[0]
                else:
                    going = (i < lengths)[:, None]
                    state = tuple(np.where(going, a, b) for a, b in zip(new, state, strict=True))
                    y[i, k] = np.where(going, new[0], 0)
            last[k] = state[-1]
        dtype = array_at(arrays, 0).dtype
        return tuple(a.astype(dtype, copy=False) for a in (y, last)[:states])

    return evaluate


def on_own_grids(h: np.ndarray) -> np.ndarray:
    """Each row rounded to the 256 steps from its least number to its largest, moved so that 0 is one of them."""
    low, high = np.minimum(h.min(1, keepdims=True), 0), np.maximum(h.max(1, keepdims=True), 0)
    width = np.where(high == low, h.dtype.type(1), high - low)
    scale = width / h.dtype.type(255)
    zero = np.clip(np.rint(-low / scale), 0, 255)
    return np.asarray((np.clip(np.rint(h / scale) + zero, 0, 255) - zero) * scale)


def _clipped(x: np.ndarray, attrs: Attrs) -> np.ndarray:
    clip = attrs["clip"]
    return np.clip(x, -clip, clip) if clip > 0 else x


def _flops(gates: int) -> Callable[[Operands, Sequence[Type], Attrs], Dim]:
    def flops(operands: Operands, results: Sequence[Type], _: Attrs) -> Dim:
        x, r, w, y = tensor_of(operands, 0), tensor_of(operands, 1), optional_tensor(operands, 2), results[0]
        if not isinstance(y, TensorType) or y.shape is None or x.shape is None or r.shape is None:
            return 0
        depth = r.shape[2] if w is None else r.shape[2] + x.shape[2]
        return product(y.shape) * (depth * (2 * gates) + 4 * gates)

    return flops


def _lstm(attrs: Attrs, fns: Sequence[Function]) -> Step:
    gate, squash, out = fns

    def step(
        inputs: np.ndarray, r: np.ndarray, bias: np.ndarray, peep: np.ndarray | None, state: State, h: np.ndarray
    ) -> State:
        c = state[1]
        i, o, f, g = np.split(inputs + h @ r.T + bias, 4, axis=1)
        pi, po, pf = np.zeros((3, 1), h.dtype) if peep is None else np.split(peep, 3)
        i = gate(_clipped(i + pi * c, attrs))
        f = 1 - i if attrs["input_forget"] else gate(_clipped(f + pf * c, attrs))
        c = f * c + i * squash(_clipped(g, attrs))
        return gate(_clipped(o + po * c, attrs)) * out(c), c

    return step


def _gru(attrs: Attrs, fns: Sequence[Function]) -> Step:
    gate, squash = fns

    def step(
        inputs: np.ndarray, r: np.ndarray, bias: np.ndarray, _: np.ndarray | None, state: State, h: np.ndarray
    ) -> State:
        n = r.shape[1]
        both = inputs[:, : 2 * n] + h @ r[: 2 * n].T + bias[: 2 * n]
        z, reset = np.split(gate(_clipped(both, attrs)), 2, axis=1)
        if attrs["reset_after"]:
            hidden = reset * (h @ r[2 * n :].T + bias[2 * n :])
        else:
            hidden = (reset * h) @ r[2 * n :].T + bias[2 * n :]
        return ((1 - z) * squash(_clipped(inputs[:, 2 * n :] + hidden, attrs)) + z * state[0],)

    return step


def _rnn(attrs: Attrs, fns: Sequence[Function]) -> Step:
    def step(
        inputs: np.ndarray, r: np.ndarray, bias: np.ndarray, _: np.ndarray | None, state: State, h: np.ndarray
    ) -> State:
        return (fns[0](_clipped(inputs + h @ r.T + bias, attrs)),)

    return step


_ATTRS = (
    AttrDef("direction", "str", "forward"), AttrDef("activations", "strs", ()), AttrDef("alphas", "floats", ()),
    AttrDef("betas", "floats", ()), AttrDef("clip", "float", 0.0),
)  # fmt: skip


def _define(op: str, summary: str, operands: str, cell: Cell, *attrs: AttrDef) -> None:
    define(
        op, summary, operands, _infer(op), _evaluate(op, cell), (*_ATTRS, *attrs), results=2 if op == "lstm" else 1,
        flops=_flops(GATES[op]), traits="contraction",
    )  # fmt: skip


_define(
    "lstm",
    "Long short-term memory: every hidden state y and the last cell state; input_forget: the forget gate is 1 - input",
    "x r w? bias? h? c? lengths? peepholes? r_scale?",
    _lstm,
    AttrDef("input_forget", "bool", False),
)
_define(
    "gru",
    "Gated recurrent unit; reset_after: the reset gate scales the product with r, else the state before it",
    "x r w? bias? h? lengths? r_scale?",
    _gru,
    AttrDef("reset_after", "bool", False),
)
_define("rnn", "Recurrent layer of one function", "x r w? bias? h? lengths? r_scale?", _rnn)
