"""Recurrent layers over whole sequences, in one direction or in both.

Operands: x [t, b, i], r [d, g·n, n], w [d, g·n, i], bias [d, 2·g·n] (that of w, then that of r), the initial hidden
state h [d, b, n] and, for lstm, the initial cell state c [d, b, n]; d directions, n hidden units, g gates in ONNX's
order. Without w, x holds w's part of the gates already: [t, b, d·g·n]. The result y is [t, d, b, n], in the order of x
also where the direction is reverse; absent biases and states are zero.
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
from opcel_compiler.ir.types import TensorType, Type

DIRECTIONS = ("forward", "reverse", "bidirectional")
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
"""Gates in ONNX's order: lstm input, output, forget, cell; gru update, reset, hidden."""

State = tuple[np.ndarray, ...]
Step = Callable[[np.ndarray, np.ndarray, np.ndarray, State], State]
"""(x's part of the gates [b, g·n] with w's bias, r [g·n, n], r's bias [g·n], state) → the next state, hidden first."""


def _infer(gates: int, states: int) -> Callable[[Operands, Attrs], tuple[Type, ...]]:
    def infer(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
        x, r = tensor_of(operands, 0, "f"), tensor_of(operands, 1, "f")
        w, bias, *initial = (optional_tensor(operands, i) for i in range(2, 4 + states))
        dtype = same_dtype([x, r, *(t for t in (w, bias, *initial) if t is not None)])
        if attrs["direction"] not in DIRECTIONS:
            raise InferenceError(f"direction={attrs['direction']!r} is none of {', '.join(DIRECTIONS)}")
        if any(t is not None and t.shape is None for t in (x, w, r, bias, *initial)):
            return unknown_rank(dtype) * states
        for operand, rank in ((x, 3), (w, 3), (r, 3), (bias, 2), *((s, 3) for s in initial)):
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
        for state in initial:
            if state is not None:
                for have, want in zip(state.dims, (d, b, n), strict=True):
                    unify(have, want, "an initial state is not [directions, batch, hidden]")
        return (TensorType(dtype, (t, d, b, n)), TensorType(dtype, (d, b, n)))[:states]

    return infer


def _evaluate(gates: int, states: int, cell: Callable[[Attrs], Step]) -> Callable[[Arrays, Attrs], State]:
    @quiet
    def evaluate(arrays: Arrays, attrs: Attrs) -> State:
        x, r = widen(array_at(arrays, 0)), widen(array_at(arrays, 1))
        w, bias, *initial = (optional_array(arrays, i) for i in range(2, 4 + states))
        (t, b), (d, rows, n) = x.shape[:2], r.shape
        y = np.empty((t, d, b, n), x.dtype)
        last = np.empty((d, b, n), x.dtype)
        step = cell(attrs)
        for k in range(d):
            inputs = x[:, :, k * rows : (k + 1) * rows] if w is None else np.matmul(x, widen(w[k]).T)
            both = np.zeros(2 * rows, x.dtype) if bias is None else widen(bias[k])
            state = tuple(np.zeros((b, n), x.dtype) if s is None else widen(s[k]) for s in initial)
            backward = k == 1 or attrs["direction"] == "reverse"
            for i in range(t - 1, -1, -1) if backward else range(t):
                state = step(inputs[i] + both[:rows], r[k], both[rows:], state)
                y[i, k] = state[0]
            last[k] = state[-1]
        dtype = array_at(arrays, 0).dtype
        return tuple(a.astype(dtype, copy=False) for a in (y, last)[:states])

    return evaluate


def _flops(gates: int) -> Callable[[Operands, Sequence[Type], Attrs], Dim]:
    def flops(operands: Operands, results: Sequence[Type], _: Attrs) -> Dim:
        x, r, w, y = tensor_of(operands, 0), tensor_of(operands, 1), optional_tensor(operands, 2), results[0]
        if not isinstance(y, TensorType) or y.shape is None or x.shape is None or r.shape is None:
            return 0
        depth = r.shape[2] if w is None else r.shape[2] + x.shape[2]
        return product(y.shape) * (depth * (2 * gates) + 4 * gates)

    return flops


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def _lstm(_: Attrs) -> Step:
    def step(inputs: np.ndarray, r: np.ndarray, bias: np.ndarray, state: State) -> State:
        h, c = state
        i, o, f, g = np.split(inputs + h @ r.T + bias, 4, axis=1)
        c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
        return _sigmoid(o) * np.tanh(c), c

    return step


def _gru(attrs: Attrs) -> Step:
    def step(inputs: np.ndarray, r: np.ndarray, bias: np.ndarray, state: State) -> State:
        (h,), n = state, r.shape[1]
        z, reset = np.split(_sigmoid(inputs[:, : 2 * n] + h @ r[: 2 * n].T + bias[: 2 * n]), 2, axis=1)
        if attrs["reset_after"]:
            hidden = reset * (h @ r[2 * n :].T + bias[2 * n :])
        else:
            hidden = (reset * h) @ r[2 * n :].T + bias[2 * n :]
        return ((1 - z) * np.tanh(inputs[:, 2 * n :] + hidden) + z * h,)

    return step


def _rnn(attrs: Attrs) -> Step:
    def step(inputs: np.ndarray, r: np.ndarray, bias: np.ndarray, state: State) -> State:
        total = inputs + state[0] @ r.T + bias
        return (np.tanh(total) if attrs["activation"] == "tanh" else np.maximum(total, 0),)

    return step


_DIRECTION = AttrDef("direction", "str", "forward")
define(
    "lstm",
    "Long short-term memory: every hidden state y and the last cell state",
    "x r w? bias? h? c?",
    _infer(4, 2),
    _evaluate(4, 2, _lstm),
    (_DIRECTION,),
    results=2,
    flops=_flops(4),
    traits="contraction",
)
define(
    "gru",
    "Gated recurrent unit; reset_after: the reset gate scales the product with r, else the state before it",
    "x r w? bias? h?",
    _infer(3, 1),
    _evaluate(3, 1, _gru),
    (_DIRECTION, AttrDef("reset_after", "bool", False)),
    flops=_flops(3),
    traits="contraction",
)
define(
    "rnn",
    "Recurrent layer; activation: tanh or relu",
    "x r w? bias? h?",
    _infer(1, 1),
    _evaluate(1, 1, _rnn),
    (_DIRECTION, AttrDef("activation", "str", "tanh")),
    flops=_flops(1),
    traits="contraction",
)
