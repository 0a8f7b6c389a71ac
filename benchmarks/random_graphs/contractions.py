"""Contractions, pools, attention and recurrent layers at random."""

from __future__ import annotations

import math

from benchmarks.random_graphs.samplers import STRINGS, any_value, fits_with, samples
from benchmarks.random_graphs.values import Sample
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.opdef import op_def
from opcel_compiler.ir.types import F32


@samples("matmul")
def matmul(s: Sample) -> bool:
    a = any_value(s, "fiu", 1, 4) if s.chance(0.8) else s.leaf(s.shape(2), F32)
    if a is None or (a.tensor.dtype != F32 and s.chance(0.6)):
        return False
    dims = a.tensor.dims
    fits = [
        v
        for v in s.values(dtype=a.tensor.dtype)
        if len(v.tensor.dims) >= 2 and v.tensor.dims[-2] == dims[-1] and fits_with(v.tensor.dims[:-2], dims[:-2])
    ]
    if fits and s.chance(0.4):
        b = s.recent(fits)
        assert b is not None
    else:
        batch = [1 if s.chance(0.4) else d for d in dims[:-2]] if s.chance(0.4) else []
        tail: list[Dim] = [dims[-1]] if s.chance(0.1) else [dims[-1], s.size()]
        b = s.leaf([*batch, *tail] if len(tail) == 2 else tail, a.tensor.dtype)
    if len(b.tensor.dims) >= 2 and len(dims) >= 2 and s.chance(0.2) and s.add("transpose", [a], perm=_swap(len(dims))):
        turned = list(s.arrays)[-1]
        return s.add("matmul", [turned, a]) if len(dims) == 2 else False
    return s.add("matmul", [a, b])


def _swap(rank: int) -> tuple[int, ...]:
    return (*range(rank - 2), rank - 1, rank - 2)


def image(s: Sample) -> Value | None:
    found = s.recent([v for v in s.values("f") if 3 <= len(v.tensor.dims) <= 5])
    if found is not None and s.chance(0.6):
        return found
    channels = int(s.pick((1, 2, 3, 4, 8, 12, 16, 17, 24, 32)))  # type: ignore[call-overload]
    spatial = int(s.pick((1, 2, 2, 2, 2, 3)))  # type: ignore[call-overload]
    sizes = [int(s.pick((1, 2, 3, 4, 5, 7, 8, 9))) for _ in range(spatial)]  # type: ignore[call-overload]
    while channels * math.prod(sizes) > 2048:
        channels = max(1, channels // 2)
    return s.leaf((int(s.pick((1, 1, 2))), channels, *sizes), F32)  # type: ignore[call-overload]


def window(s: Sample, rank: int) -> dict[str, tuple[int, ...]]:
    pads = tuple(int(s.rng.integers(3)) if s.chance(0.6) else 0 for _ in range(2 * rank))
    return {
        "strides": tuple(int(s.pick((1, 1, 2, 3))) for _ in range(rank)),  # type: ignore[call-overload]
        "pads": pads[:rank] * 2 if s.chance(0.6) else pads,
        "dilations": tuple(int(s.pick((1, 1, 1, 2))) for _ in range(rank)),  # type: ignore[call-overload]
    }


def _divisor(s: Sample, n: int) -> int:
    return int(s.pick([k for k in range(1, n + 1) if n % k == 0]))  # type: ignore[call-overload]


@samples("conv", "conv_transpose")
def conv(s: Sample) -> bool:
    x = image(s)
    if x is None or not isinstance(x.tensor.dims[1], int) or x.tensor.dims[1] == 0:
        return False
    channels, rank = x.tensor.dims[1], len(x.tensor.dims) - 2
    groups = int(s.pick((1, 1, 1, channels, _divisor(s, channels))))  # type: ignore[call-overload]
    kernel = tuple(int(s.pick((1, 1, 2, 3, 3, 5))) for _ in range(rank))  # type: ignore[call-overload]
    kernel = kernel[:1] * rank if s.chance(0.6) else kernel
    out = int(s.pick((1, 2, 3, 4, 8, 16, 17)))  # type: ignore[call-overload]
    attrs: dict[str, object] = {**window(s, rank), "groups": groups}
    if s.chance(0.75):
        out = out if groups == 1 else groups * int(s.pick((1, 1, 2, 3)))  # type: ignore[call-overload]
        name, shape = "conv", (out, channels // groups, *kernel)
    else:
        attrs["output_padding"] = (0,) * rank
        name, shape, out = "conv_transpose", (channels, out, *kernel), out * groups
    dtype = x.tensor.dtype
    w = s.leaf(shape, dtype) if s.chance(0.3) else s.constant(s.data(shape, dtype), dtype)
    operands = [x, w]
    if s.chance(0.5):
        operands.append(s.leaf((out,), dtype))
    return s.add(name, operands, **attrs)


@samples("max_pool", "avg_pool")
def pool(s: Sample) -> bool:
    x = image(s)
    if x is None:
        return False
    rank = len(x.tensor.dims) - 2
    attrs: dict[str, object] = {**window(s, rank), "ceil_mode": s.chance(0.3)}
    attrs["kernel"] = tuple(int(s.pick((1, 2, 2, 3, 4))) for _ in range(rank))  # type: ignore[call-overload]
    name = str(s.pick(("max_pool", "avg_pool")))
    if name == "avg_pool":
        attrs["count_include_pad"] = s.chance(0.5)
    return s.add(name, [x], exact=name == "max_pool" and x in s.exact, **attrs)


@samples("attention")
def attention(s: Sample) -> bool:
    b, g, t, d = int(s.rng.integers(1, 3)), int(s.rng.integers(1, 3)), s.size() or 1, int(s.pick((1, 4, 8, 16, 17)))  # type: ignore[call-overload]
    h, length = g * int(s.pick((1, 1, 2))), s.size() or 1  # type: ignore[call-overload]
    shapes = [(b, h, length, d), (b, g, t, d), (b, g, t, int(s.pick((d, d, 5))))]  # type: ignore[call-overload]
    operands = [s.leaf(shape, F32) for shape in shapes]
    if s.chance(0.3):
        operands.append(s.leaf(tuple(1 if s.chance(0.3) else n for n in (b, h, length, t)), F32))
    causal = s.chance(0.3) and t >= length
    return s.add("attention", operands, scale=float(s.pick((0.25, 1.0, 0.125))), causal=causal)  # type: ignore[arg-type]


@samples("lstm", "gru", "rnn")
def recurrent(s: Sample) -> bool:
    name = str(s.pick(("lstm", "gru", "rnn")))
    gates = {"lstm": 4, "gru": 3, "rnn": 1}[name]
    t, b, i, n = (int(s.pick(c)) for c in ((1, 2, 5), (1, 2, 3), (1, 4, 7), (1, 4, 8, 9)))  # type: ignore[call-overload]
    direction = str(s.pick(STRINGS["direction"]))
    d = 2 if direction == "bidirectional" else 1
    shapes = [(t, b, i), (d, gates * n, n), (d, gates * n, i), (d, 2 * gates * n), (d, b, n), (d, b, n)]
    shapes = shapes[: len(op_def(name).operands)]
    operands: list[Value | None] = [s.leaf(shape, F32) for shape in shapes[:3]]
    operands += [s.leaf(shape, F32) if s.chance(0.6) else None for shape in shapes[3:]]
    while operands[-1] is None:
        operands.pop()
    attrs: dict[str, object] = {"direction": direction}
    if name == "gru":
        attrs["reset_after"] = s.chance(0.5)
    if name == "rnn":
        attrs["activation"] = s.pick(STRINGS["activation"])
    return s.add(name, operands, **attrs)
