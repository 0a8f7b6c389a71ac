"""One step at a time of lstm, gru and rnn against the operators' own evaluation in float64."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from harness import BF16_ISAS, ISAS, WIDTH, build, integers, pointers

from opcel_compiler.codegen.cpu.pack import recurrent_bytes, recurrent_panels
from opcel_compiler.ir.opdef import op_def
from opcel_compiler.ir.ops.recurrent import SCALE_AT

SOURCE = """
#include "kernels/recurrent/steps.h"
using namespace opcel;
extern "C" void steps(void* const* p, const int64_t* d) {
  const RecurrentArgs a{(float*)p[0], d[0], d[1], (float*)p[1], (float*)p[2], (float*)p[3], (float*)p[4], (float*)p[5],
                        d[2], d[3], d[4], (float*)p[6], d[5], d[6], d[7], d[8], d[9], d[10] != 0, (float*)p[7]};
  const int64_t tasks = recurrent_task_count(a);
  for (int64_t s = 0; s < d[5]; ++s) {
    recurrent_tasks<CELL, WEIGHT, WIDE, 3, 2, 1>(a, s, tasks / 2, tasks);
    recurrent_tasks<CELL, WEIGHT, WIDE, 3, 2, 1>(a, s, 0, tasks / 2);
  }
}
"""
CELLS = {"lstm": "LstmCell", "gru": "GruCell", "rnn": "RnnCell<false>", "relu": "RnnCell<true>"}
F32, BF16 = np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)
GATES = {"lstm": 4, "gru": 3, "rnn": 1, "relu": 1}


def source(cell: str, wide: int = 1, weight: str = "float") -> str:
    return SOURCE.replace("CELL", CELLS[cell]).replace("WEIGHT", weight).replace("WIDE", str(wide))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize(
    "batch, hidden, per_task, wide",
    [(1, 32, 1, 1), (5, 19, 2, 1), (3, 7, 4, 4), (7, 48, 1, 1), (1, 144, 4, 4), (1, 70, 6, 2)],
)
def test_steps(
    isa: str, direction: str, cell: str, initial: bool, batch: int, hidden: int, per_task: int, wide: int
) -> None:
    lib = build(source(cell, wide), isa)
    check(lib, WIDTH[isa], direction, cell, initial, batch, hidden, per_task)


@pytest.mark.parametrize("isa", BF16_ISAS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch, hidden, per_task, wide", [(1, 144, 4, 4), (5, 19, 2, 1), (2, 579, 40, 2)])
def test_steps_in_bf16(isa: str, direction: str, cell: str, batch: int, hidden: int, per_task: int, wide: int) -> None:
    lib = build(source(cell, wide, "bf16"), isa)
    check(lib, WIDTH[isa], direction, cell, True, batch, hidden, per_task, BF16)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(
    "cell, batch, hidden, per_task, wide",
    [
        ("lstm", 1, 144, 4, 4), ("lstm", 5, 19, 2, 1), ("lstm", 2, 579, 40, 2),
        ("gru", 3, 19, 2, 1), ("rnn", 2, 33, 3, 1), ("relu", 1, 33, 1, 1),
    ],
)  # fmt: skip
def test_steps_in_bytes(isa: str, direction: str, cell: str, batch: int, hidden: int, per_task: int, wide: int) -> None:
    lib = build(source(cell, wide, "int8_t"), isa)
    check(lib, WIDTH[isa], direction, cell, True, batch, hidden, per_task, np.dtype(np.int8))


def check(
    lib: ctypes.CDLL, width: int, direction: str, cell: str, initial: bool, batch: int, hidden: int, per_task: int,
    storage: np.dtype[Any] = F32,
) -> None:  # fmt: skip
    rng = np.random.default_rng(hidden)
    t, d, rows = 4, 2 if direction == "bidirectional" else 1, GATES[cell] * hidden

    def floats(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    gates, r = floats(t, batch, d * rows), floats(d, rows, hidden, scale=hidden**-0.5)
    scale = None
    if storage == np.int8:
        scale = rng.uniform(0.5, 2, (d, rows)).astype(np.float32) / np.float32(70 * hidden**0.5)
        r = rng.integers(-128, 128, r.shape).astype(np.int8)
    else:
        r = r.astype(storage).astype(F32)
    h, c = (floats(d, batch, hidden) if initial else None for _ in range(2))
    bias = np.zeros((d, 2 * rows), np.float32)
    if cell == "gru":
        bias[:, -hidden:] = floats(d, hidden)
    y = np.full((t, d, batch, hidden + 1), 7, np.float32)
    state = np.full((d, batch, hidden), 7, np.float32)
    packed = recurrent_panels(r.astype(storage), width, 4 // storage.itemsize) if scale is None else None
    packed = recurrent_bytes(r, width) if packed is None else packed
    numbers = integers(
        gates.strides[0] // 4, gates.strides[1] // 4, *(s // 4 for s in y.strides[:3]), t, d, batch, hidden, per_task,
        direction == "reverse",
    )  # fmt: skip
    lib.steps.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    state_of = state if cell == "lstm" else None
    lib.steps(pointers(gates, packed, bias if cell == "gru" else None, h, c, y, state_of, scale), numbers)
    attrs: dict[str, Any] = {"direction": direction}
    attrs |= {
        "gru": {"reset_after": True},
        "relu": {"activations": ("relu",) * (2 if direction == "bidirectional" else 1)},
    }.get(cell, {})
    op = op_def("rnn" if cell == "relu" else cell)
    operands = [gates, r, None, bias if cell == "gru" else None, h, *([c] if cell == "lstm" else [])]
    operands += [None] * (SCALE_AT[op.name] - len(operands)) + [scale]
    assert op.evaluate is not None
    want = op.evaluate(
        [a if a is None or a.dtype == np.int8 else a.astype(np.float64) for a in operands], op.complete(attrs)
    )
    # The hidden state is rounded too: by at most 2^-9 of itself; on a grid a number may lie between two steps.
    bound = {"rtol": 2e-5, "atol": 2e-6} if storage in (F32, np.int8) else {"rtol": 0.0, "atol": 1e-2}
    np.testing.assert_allclose(y[..., :-1], want[0], **bound)
    assert (y[..., -1] == 7).all(), "nothing past a row is written"
    if cell == "lstm":
        np.testing.assert_allclose(state, want[1], **bound)


@pytest.mark.parametrize("isa", ISAS)
def test_how_blocks_are_shared_out_changes_no_bit(isa: str) -> None:
    lib = build(source("lstm", 2), isa)
    lib.steps.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    rng = np.random.default_rng(1)
    n = 90
    one = rng.standard_normal((3, 1, 4 * n)).astype(np.float32)
    r = recurrent_panels(rng.standard_normal((1, 4 * n, n)).astype(np.float32), WIDTH[isa])
    got = []
    for per_task in (1, 2, 9):
        y, c = np.empty((3, 1, 1, n), np.float32), np.empty((1, 1, n), np.float32)
        numbers = integers(4 * n, 4 * n, n, n, n, 3, 1, 1, n, per_task, 0)
        lib.steps(pointers(one, r, None, None, None, y, c, None), numbers)
        got.append(y)
    assert np.array_equal(got[0], got[1]) and np.array_equal(got[0], got[2])
