"""Blockwise attention against float64, over shapes, layouts, masks and special values."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import pytest
from harness import BF16_ISAS, ISAS, build

BF16 = np.dtype(ml_dtypes.bfloat16)


FLOAT = np.dtype(np.float32)
CTYPES = {np.dtype(np.float32): "float", BF16: "bf16"}


def source(d: int, dv: int, taken: np.dtype, given: np.dtype, tasks: str) -> str:
    return f"""
#include "kernels/attention/bf16.h"
#include "kernels/attention/single.h"
using namespace opcel;
using In = {CTYPES[taken]};
using Out = {CTYPES[given]};
extern "C" void attention(const In* q, const In* k, const In* v, const float* mask, Out* y, const long* s, float scale,
                          bool causal) {{
  AttentionArgs<In, Out> a{{q, k, v, mask, y, s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11],
                           s[12], s[13], s[14], s[15], s[16], s[17], s[18], s[19], s[20], scale, causal, s[21], s[22]}};
  {tasks}<{d}, {dv}>(a, 0, attention_task_count(a));
}}
"""


@dataclass(frozen=True)
class Case:
    d: int
    sq: int
    sk: int
    batch: int = 2
    heads: int = 4
    kv_heads: int = 4
    dv: int = 0
    causal: bool = False
    past: int = 0
    per_task: int = 10_000
    interleaved: bool = False  # [batch, sequence, head, d] in place of [batch, head, sequence, d]


def tensor(
    rng: np.random.Generator, case: Case, heads: int, length: int, d: int, pad: int = 0, dtype: np.dtype = FLOAT
) -> np.ndarray:
    """A view [batch, head, sequence, d], d contiguous, whose buffer ends with the last element."""
    shape = (case.batch, length, heads, d + pad) if case.interleaved else (case.batch, heads, length, d + pad)
    x = rng.normal(0, 1, shape).astype(dtype)[..., pad:]
    return x.transpose(0, 2, 1, 3) if case.interleaved else x


def strides(x: np.ndarray) -> list[int]:
    return [s // x.itemsize for s in x.strides[:3]]


def run(
    isa: str, case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, scale: float = 0.3,
    given: np.dtype = FLOAT, tasks: str = "attention_tasks",
) -> np.ndarray:  # fmt: skip
    dv = case.dv or case.d
    y = tensor(np.random.default_rng(0), case, case.heads, case.sq, dv, pad=4, dtype=given)
    outside = y.base if y.base is not None else y
    while outside.base is not None:
        outside = outside.base
    before = outside.copy()
    m = [0, 0, 0, 0]
    if mask is not None:
        mask = np.broadcast_to(mask, (case.batch, case.heads, case.sq, case.sk))
        m = [s // 4 for s in mask.strides]
    numbers = [*strides(q), *strides(k), *strides(v), *m, *strides(y), case.batch, case.heads, case.kv_heads]
    numbers += [case.sq, case.sk, case.past, case.per_task]
    build(source(case.d, dv, q.dtype, given, tasks), isa).attention(
        *(ctypes.c_void_p(None if x is None else x.ctypes.data) for x in (q, k, v, mask, y)),
        (ctypes.c_long * len(numbers))(*numbers),
        ctypes.c_float(scale),
        ctypes.c_bool(case.causal),
    )
    np.testing.assert_array_equal(outside[..., :4], before[..., :4])
    return y


def reference(
    case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, scale: float = 0.3
) -> np.ndarray:
    repeat = case.heads // case.kv_heads
    q, k, v = q.astype(np.float64), *(np.repeat(x.astype(np.float64), repeat, 1) for x in (k, v))
    s = q @ k.swapaxes(2, 3) * scale
    if mask is not None:
        s = s + mask
    if case.causal:
        s = np.where(np.arange(case.sk) <= case.past + np.arange(case.sq)[:, None], s, -np.inf)
    with np.errstate(all="ignore"):
        p = np.exp(s - s.max(-1, keepdims=True))
        out: np.ndarray = p / p.sum(-1, keepdims=True) @ v
    return out


def inputs(case: Case, seed: int = 0, dtype: np.dtype = FLOAT) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return (
        tensor(rng, case, case.heads, case.sq, case.d, dtype=dtype),
        tensor(rng, case, case.kv_heads, case.sk, case.d, dtype=dtype),
        tensor(rng, case, case.kv_heads, case.sk, case.dv or case.d, dtype=dtype),
    )


CASES = [
    Case(64, 128, 128, batch=1),
    Case(64, 197, 197, batch=1, heads=2, kv_heads=2, interleaved=True),
    Case(64, 37, 700, interleaved=True),
    Case(64, 500, 40, batch=1, heads=1, kv_heads=1),
    Case(64, 1, 300, kv_heads=2),
    Case(64, 5, 33, per_task=2),
    Case(64, 100, 600, causal=True, past=500),
    Case(64, 531, 531, batch=1, heads=2, kv_heads=1, causal=True, interleaved=True),
    Case(32, 50, 600, kv_heads=1, interleaved=True),
    Case(32, 2, 2),
    Case(32, 1, 1),
    Case(128, 30, 270, causal=True),
    Case(128, 13, 129),
    Case(4, 9, 530),
    Case(20, 17, 23, causal=True),
    Case(80, 12, 250, dv=24),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention(isa: str, case: Case) -> None:
    q, k, v = inputs(case)
    np.testing.assert_allclose(run(isa, case, q, k, v, None), reference(case, q, k, v, None), atol=6e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "case", [Case(64, 35, 600), Case(64, 35, 77, interleaved=True, causal=True, past=42), Case(20, 3, 19)], ids=str
)
@pytest.mark.parametrize("shape", ["full", "batch-key", "query-key", "query", "key"])
@pytest.mark.parametrize("masked", [-np.inf, np.finfo(np.float32).min, -1e4])
def test_mask(isa: str, case: Case, shape: str, masked: float) -> None:
    q, k, v = inputs(case)
    rng = np.random.default_rng(9)
    full = {
        "full": (case.batch, case.heads, case.sq, case.sk),
        "batch-key": (case.batch, 1, 1, case.sk),
        "query-key": (1, 1, case.sq, case.sk),
        "query": (1, 1, case.sq, 1),
        "key": (1, 1, 1, case.sk),
    }[shape]
    mask = rng.normal(0, 1, full).astype(np.float32)
    if full[3] > 1:
        mask[rng.random(full) < 0.3] = masked
        mask[..., :9] = masked  # the first keys, so that a running maximum starts there
        mask[..., 10] = 0
    np.testing.assert_allclose(run(isa, case, q, k, v, mask), reference(case, q, k, v, mask), atol=6e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_first_blocks_and_whole_rows_masked(isa: str) -> None:
    case = Case(64, 40, 700)
    q, k, v = inputs(case)
    mask = np.zeros((1, 1, case.sq, case.sk), np.float32)
    mask[:, :, :20, :600] = -np.inf
    mask[:, :, 7] = -np.inf
    mask[:, :, 9] = np.finfo(np.float32).min
    got, want = run(isa, case, q, k, v, mask), reference(case, q, k, v, mask)
    assert np.isnan(want[:, :, 7]).all()
    np.testing.assert_allclose(got, want, atol=6e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_causal_rows_without_keys_are_nan(isa: str) -> None:
    case = Case(64, 40, 50, causal=True, past=-15)
    q, k, v = inputs(case)
    got, want = run(isa, case, q, k, v, None), reference(case, q, k, v, None)
    assert np.isnan(want[:, :, :15]).all()
    np.testing.assert_allclose(got, want, atol=6e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("special", [np.nan, np.inf])
def test_special_values_stay_in_their_rows(isa: str, special: float) -> None:
    case = Case(64, 30, 300, batch=1, heads=2, kv_heads=2)
    q, k, v = inputs(case)
    q[0, 0, 3, 5] = special
    v[0, 1, 200, 6] = special
    with np.errstate(invalid="ignore"):
        want = reference(case, q, k, v, None)
    np.testing.assert_allclose(run(isa, case, q, k, v, None), want, atol=6e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("causal", [False, True])
def test_result_does_not_depend_on_the_split_into_tasks(isa: str, causal: bool) -> None:
    whole = Case(64, 101, 300, batch=1, causal=causal, past=150)
    q, k, v = inputs(whole)
    want = run(isa, whole, q, k, v, None)
    for per_task in (1, 7, 24, 60):
        case = Case(64, 101, 300, batch=1, causal=causal, past=150, per_task=per_task)
        np.testing.assert_array_equal(run(isa, case, q, k, v, None), want)


# -- one query row -----------------------------------------------------------------------------------------------------


SINGLE = [
    Case(64, 1, 300, kv_heads=2),
    Case(64, 1, 2600, heads=2, kv_heads=1, interleaved=True),
    Case(32, 1, 1),
    Case(32, 1, 17, dv=48),
    Case(16, 1, 1030, dv=80),
    Case(64, 1, 40, causal=True, past=20),
    Case(64, 1, 5, causal=True, past=-3),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("case", SINGLE, ids=str)
def test_one_row(isa: str, case: Case) -> None:
    q, k, v = inputs(case)
    want = reference(case, q, k, v, None)
    np.testing.assert_allclose(run(isa, case, q, k, v, None, tasks="attention_row_tasks"), want, atol=6e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("falling", [False, True])
def test_scores_that_grow_with_every_group_of_keys(isa: str, falling: bool) -> None:
    """The running maximum grows hundreds of times, or lies in the first key, 3000 above the last."""
    case = Case(64, 1, 1003)
    q, k, v = inputs(case)
    grown = np.linspace(0, 10, case.sk, dtype=np.float32)[:, None]
    k = np.ascontiguousarray(np.abs(k) * 0.01 + (grown[::-1] if falling else grown))
    q = np.ones_like(q)
    want = reference(case, q, k, v, None, scale=5.0)
    got = run(isa, case, q, k, v, None, scale=5.0, tasks="attention_row_tasks")
    np.testing.assert_allclose(got, want, atol=2e-3)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(2, 4, 1, 1100), (1, 1, 1, 1)])
def test_masks_of_one_row(isa: str, shape: tuple[int, ...]) -> None:
    """Whole blocks of keys masked, whole rows, and one value for all."""
    case = Case(64, 1, 1100)
    q, k, v = inputs(case)
    mask = np.random.default_rng(9).normal(0, 1, shape).astype(np.float32)
    if shape[3] > 1:
        mask[..., :1030] = -np.inf
        mask[0, 1] = -np.inf
        mask[1, 2, :, 5:] = np.finfo(np.float32).min
    want = reference(case, q, k, v, mask)
    assert np.isnan(want[0, 1]).all() or shape[3] == 1
    np.testing.assert_allclose(run(isa, case, q, k, v, mask, tasks="attention_row_tasks"), want, atol=6e-6)


@dataclass(frozen=True)
class Appended:
    """What a step holds and adds; `moved` elements lie between the results' start and a whole vector."""

    held: int
    new: int = 1
    streamed: bool = True
    moved: int = 0
    case: Case = Case(64, 1, 0, kv_heads=2)


def append_source(d: int, dv: int) -> str:
    return f"""
#include "kernels/attention/single.h"
using namespace opcel;
extern "C" void append(const float* const* p, float* y, float* k_all, float* v_all, const long* s, long begin,
                       long end, bool streamed) {{
  AttentionArgs<> a{{p[0], p[1], p[2], p[3], y, s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], 0, 0, 0,
                    p[3] != nullptr, s[9], s[10], s[11], s[12], s[13], s[14], 1, s[15] + s[16], 0.3f, true,
                    s[15] + s[16] - 1, 1}};
  AttentionAppend more{{s[15], p[4], p[5], k_all, v_all, s[17], s[18], s[19], s[20], s[21], s[22], s[23], s[24], s[25],
                       s[26], s[27], s[28], streamed}};
  attention_append_tasks<{d}, {dv}>(a, more, begin, end);
}}
"""


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    "step",
    [
        Appended(256),
        Appended(256, streamed=False),
        Appended(300, moved=1),
        Appended(0),
        Appended(7, 1),
        Appended(31, 20),
        Appended(64, 1, case=Case(32, 1, 0, heads=3, kv_heads=3, dv=48, interleaved=True)),
        Appended(33, 1, case=Case(16, 1, 0, batch=1, heads=4, kv_heads=1)),
    ],
    ids=str,
)
def test_caches_are_written_as_they_are_read(isa: str, step: Appended, masked: bool) -> None:
    """Results are those of attention over the joined caches, which lie in memory afterwards, nothing beside them; each
    head is a task of its own, the last first."""
    case = replace(step.case, sk=step.held + step.new, dv=step.case.dv or step.case.d)
    rng = np.random.default_rng(0)
    q, y = (tensor(rng, case, case.heads, 1, d) for d in (case.d, case.dv))
    parts = [[tensor(rng, case, case.kv_heads, n, d) for n in (step.held, step.new)] for d in (case.d, case.dv)]
    joined = [np.concatenate(both, 2) for both in parts]
    mask = rng.normal(0, 1, case.sk).astype(np.float32) if masked else None
    wholes = []
    for x in joined:
        memory = np.full(x.size + 64, -9, np.float32)
        start = -memory.ctypes.data // 4 % 16 + step.moved
        flat = memory[start : start + x.size]
        shape = (case.batch, case.sk, case.kv_heads, x.shape[3]) if case.interleaved else x.shape
        wholes.append(
            (memory, start, flat.reshape(shape).transpose(0, 2, 1, 3) if case.interleaved else flat.reshape(shape))
        )
    (k, k_new), (v, v_new) = parts
    numbers = [*strides(q), *strides(k), *strides(v), *strides(y), case.batch, case.heads, case.kv_heads]
    numbers += [step.held, step.new, *strides(k_new), *strides(v_new), *strides(wholes[0][2]), *strides(wholes[1][2])]
    pointers = (ctypes.c_void_p * 6)(*(None if x is None else x.ctypes.data for x in (q, k, v, mask, k_new, v_new)))
    library = build(append_source(case.d, case.dv), isa)
    for task in reversed(range(case.batch * case.heads)):
        library.append(
            pointers, *(ctypes.c_void_p(x.ctypes.data) for x in (y, wholes[0][2], wholes[1][2])),
            (ctypes.c_long * len(numbers))(*numbers), ctypes.c_long(task), ctypes.c_long(task + 1),
            ctypes.c_bool(step.streamed),
        )  # fmt: skip
    np.testing.assert_allclose(y, reference(case, q, *joined, mask), atol=6e-6)
    for (memory, start, whole), want in zip(wholes, joined, strict=True):
        np.testing.assert_array_equal(whole, want)
        assert (memory[:start] == -9).all() and (memory[start + want.size :] == -9).all()


# -- both products in bf16 ---------------------------------------------------------------------------------------------


LEVELS = BF16_ISAS[::2]
"""With the instructions and without."""


def check_bf16(isa: str, case: Case, taken: np.dtype, given: np.dtype, mask: np.ndarray | None = None) -> None:
    """On operands that bf16 holds: only the keys' weights and the result are rounded."""
    q, k, v = inputs(case, dtype=BF16)
    want = reference(case, q, k, v, mask)
    got = run(isa, case, *(x.astype(taken) for x in (q, k, v)), mask, 0.3, given, "attention_bf16_tasks")
    np.testing.assert_allclose(got.astype(np.float32), want, atol=8e-3 if given == FLOAT else 2e-2)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize(("case", "dtype"), list(zip(CASES, (FLOAT, FLOAT, BF16) * 6, strict=False)), ids=str)
def test_attention_bf16(isa: str, case: Case, dtype: np.dtype) -> None:
    check_bf16(isa, case, dtype, dtype)


@pytest.mark.parametrize("isa", LEVELS)
def test_masks_bf16(isa: str) -> None:
    """Whole blocks and rows masked; a value hidden from some rows by causality."""
    case = Case(64, 40, 700)
    mask = np.zeros((1, 1, case.sq, case.sk), np.float32)
    mask[:, :, :20, :600] = -np.inf
    mask[:, :, 7] = -np.inf
    check_bf16(isa, case, FLOAT, FLOAT, mask)
    check_bf16(isa, Case(64, 3, 19), FLOAT, BF16, np.random.default_rng(0).normal(size=(1, 1, 1, 19)).astype(FLOAT))
    check_bf16(isa, Case(64, 40, 50, causal=True, past=-15), FLOAT, BF16)


@pytest.mark.parametrize("isa", LEVELS)
def test_operands_are_rounded_to_nearest(isa: str) -> None:
    """The result of f32 operands is that of the same operands rounded beforehand."""
    case = Case(64, 50, 131)
    q, k, v = inputs(case)
    for given in (FLOAT, BF16):
        run_it = lambda *x: run(isa, case, *x, None, 0.3, given, "attention_bf16_tasks")  # noqa: B023, E731
        rounded = run_it(*(x.astype(BF16) for x in (q, k, v)))
        np.testing.assert_array_equal(run_it(q, k, v), rounded)


@pytest.mark.parametrize("isa", LEVELS)
def test_bf16_does_not_depend_on_the_split_into_tasks(isa: str) -> None:
    whole = Case(64, 501, 500, batch=1, heads=1, kv_heads=1)
    q, k, v = inputs(whole)
    want = run(isa, whole, q, k, v, None, tasks="attention_bf16_tasks")
    for per_task in (7, 240):
        case = Case(64, 501, 500, batch=1, heads=1, kv_heads=1, per_task=per_task)
        np.testing.assert_array_equal(run(isa, case, q, k, v, None, tasks="attention_bf16_tasks"), want)
