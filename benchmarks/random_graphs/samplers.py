"""How each operator is applied at random. What has no sampler of its own is tried by its definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from benchmarks.random_graphs.values import Sample
from opcel_compiler.ir.dims import Dim, Expr, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.opdef import OpDef, op_def
from opcel_compiler.ir.types import DTYPES, I32, I64, DType

Sampler = Callable[[Sample], bool]
SAMPLERS: dict[str, Sampler] = {}

JUMPS = frozenset("floor ceil round sign equal less less_equal mod arg_max arg_min is_nan is_inf".split())
"""Operators that make a small error a large one."""

EXACT = frozenset("neg abs relu floor ceil round sign min max where".split())
"""Operators that add no rounding."""

STRINGS = {"approximate": ("none", "tanh"), "mode": ("constant", "reflect", "edge", "wrap"),
            "direction": ("forward", "reverse", "bidirectional"), "activation": ("tanh", "relu")}  # fmt: skip


def samples(*names: str) -> Callable[[Sampler], Sampler]:
    def register(fn: Sampler) -> Sampler:
        for name in names:
            SAMPLERS[name] = fn
        return fn

    return register


def _static(v: Value) -> bool:
    return v.tensor.is_static


def any_value(s: Sample, kinds: str = "fiub", least: int = 0, most: int = 5) -> Value | None:
    return s.recent([v for v in s.values(kinds) if least <= len(v.tensor.dims) <= most])


def elementwise(s: Sample, d: OpDef) -> bool:
    """Operands of one type that broadcast, or what the definition allows after some tries."""
    x = any_value(s)
    if x is None:
        return False
    dtype = x.tensor.dtype
    if d.name in JUMPS and x not in s.exact:
        return False
    operands: list[Value] = [x]
    for _ in d.operands[1:]:
        operands.append(_partner(s, x, dtype))
    if d.name == "where":
        operands = [_partner(s, x, DTYPES["bool"]), *operands[:2]]
    if d.name in JUMPS and any(v not in s.exact for v in operands):
        return False
    if d.name == "cast":
        return _cast(s, x)
    if d.name in ("div", "mod") and (np.abs(s.arrays[operands[1]].astype(np.float64)) < 0.2).any():
        return False
    if d.name == "pow" and dtype.is_float and (s.arrays[x].astype(np.float64) <= 0.1).any():
        return False
    if d.name in ("log", "sqrt", "reciprocal") and (np.abs(s.arrays[x].astype(np.float64)) < 0.05).any():
        return False
    if len(operands) == 2 and s.chance(0.5):
        operands.reverse()
    exact = d.name in EXACT and all(v in s.exact for v in operands)
    return s.add(d.name, operands, exact=exact, **attributes(s, d, 1))


def _partner(s: Sample, x: Value, dtype: DType) -> Value:
    """A value that broadcasts with x: one that is there, or a new one."""
    dims = x.tensor.dims
    fits = [v for v in s.values(dtype=dtype) if fits_with(v.tensor.dims, dims)]
    if fits and s.chance(0.6):
        found = s.recent(fits)
        assert found is not None
        return found
    shape: list[Dim] = [1 if s.chance(0.3) else d for d in dims]
    shape = shape[int(s.rng.integers(len(shape) + 1)) :] if s.chance(0.3) else shape
    if s.chance(0.1) and len(shape) < 4 and _static(x):
        shape = [s.size() or 1, *[1] * (len(dims) - len(shape)), *shape]
    return s.leaf(shape, dtype)


def fits_with(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> bool:
    return all(p == q or p == 1 or q == 1 for p, q in zip(reversed(a), reversed(b), strict=False))


def _cast(s: Sample, x: Value) -> bool:
    to = s.dtype()
    if not to.is_float and x.tensor.dtype.is_float and x not in s.exact:
        return False
    if to.kind == "u" and (s.arrays[x].astype(np.float64) < 0).any():
        return False
    wide = to.bits >= x.tensor.dtype.bits and to.is_float
    return s.add("cast", [x], exact=x in s.exact and wide, dtype=to)


def attributes(s: Sample, d: OpDef, rank: int) -> dict[str, object]:
    """A random value of its kind for each attribute."""
    out: dict[str, object] = {}
    for name, a in d.attrs.items():
        if a.default is not ... and s.chance(0.4):
            continue
        if a.kind == "float":
            out[name] = float(s.pick((2.0**-16, 0.125, 0.25, 0.5, 1.0)))  # type: ignore[arg-type]
        elif a.kind == "bool":
            out[name] = s.chance(0.5)
        elif a.kind == "int":
            out[name] = int(s.rng.integers(max(rank, 1)))
        elif a.kind == "str" and name in STRINGS:
            out[name] = s.pick(STRINGS[name])
        elif a.kind == "dtype":
            out[name] = s.dtype()
        elif a.kind in ("ints", "dims"):
            out[name] = tuple(int(s.rng.integers(0, 3)) for _ in range(int(s.pick((rank, rank, 1, 2)))))  # type: ignore[call-overload]
    return out


def generic(s: Sample, d: OpDef) -> bool:
    """An operator without a sampler: values that are there, and what its definition lets pass."""
    first = any_value(s, "fiub", 1)
    if first is None:
        return False
    operands: list[Value | None] = [first]
    for name in d.operands[1:]:
        if name.endswith("?") and s.chance(0.5):
            operands.append(None)
        elif s.chance(0.5):
            operands.append(any_value(s))
        else:
            operands.append(_partner(s, first, first.tensor.dtype))
    while operands and operands[-1] is None:
        operands.pop()
    return s.add(d.name, operands, **attributes(s, d, len(first.tensor.dims)))


# -- movement --------------------------------------------------------------------------------------------------------


@samples("reshape")
def reshape(s: Sample) -> bool:
    x = any_value(s)
    if x is None:
        return False
    dims, shape = list(x.tensor.dims), []
    if not _static(x) or s.chance(0.5):
        while dims:
            take = int(s.rng.integers(1, 3))
            shape.append(product(dims[:take]))
            del dims[:take]
    else:
        left = int(math.prod(x.tensor.static_shape))
        while left > 1:
            divisors = [k for k in range(2, left + 1) if left % k == 0]
            shape.append(int(s.pick(divisors)))  # type: ignore[call-overload]
            left //= int(shape[-1])
        if not left:
            shape = list(s.rng.permutation([0, *[s.size() for _ in range(int(s.rng.integers(3)))]]))
            shape = [int(n) for n in shape]
    if s.chance(0.3):
        shape.insert(int(s.rng.integers(len(shape) + 1)), 1)
    return s.add("reshape", [x], exact=x in s.exact, shape=tuple(shape))


@samples("transpose")
def transpose(s: Sample) -> bool:
    x = any_value(s, least=2)
    if x is None:
        return False
    perm = tuple(int(i) for i in s.rng.permutation(len(x.tensor.dims)))
    return s.add("transpose", [x], exact=x in s.exact, perm=perm)


@samples("expand")
def expand(s: Sample) -> bool:
    x = any_value(s, most=4)
    if x is None:
        return False
    shape: list[Dim] = [int(s.size()) if d == 1 and s.chance(0.7) else d for d in x.tensor.dims]
    if s.chance(0.3):
        shape.insert(0, s.size())
    return s.add("expand", [x], exact=x in s.exact, shape=tuple(shape))


@samples("slice")
def slice_(s: Sample) -> bool:
    x = any_value(s, least=1)
    if x is None:
        return False
    starts: list[Dim] = []
    sizes: list[Dim] = []
    steps: list[int] = []
    for d in x.tensor.dims:
        if isinstance(d, Expr):
            step, start, size = (-1, d - 1, d) if s.chance(0.3) else (1, 0, d)
        elif d == 0 or s.chance(0.3):
            step, start, size = 1, 0, d
        else:
            step = int(s.pick((1, 1, 1, 2, 3, -1, -2)))  # type: ignore[call-overload]
            start = int(s.rng.integers(d))
            most = (d - start + step - 1) // step if step > 0 else start // -step + 1
            size = int(s.rng.integers(1 if s.chance(0.95) else 0, most + 1))
        starts.append(start)
        sizes.append(size)
        steps.append(step)
    return s.add("slice", [x], exact=x in s.exact, starts=tuple(starts), sizes=tuple(sizes), steps=tuple(steps))


@samples("concat")
def concat(s: Sample) -> bool:
    x = any_value(s, least=1)
    if x is None:
        return False
    dims, axis = x.tensor.dims, int(s.rng.integers(len(x.tensor.dims)))
    others = [
        v
        for v in s.values(dtype=x.tensor.dtype, rank=len(dims))
        if all(p == q for i, (p, q) in enumerate(zip(v.tensor.dims, dims, strict=True)) if i != axis)
    ]
    xs = [x]
    for _ in range(int(s.rng.integers(1, 4))):
        found = s.recent(others) if s.chance(0.6) else None
        xs.append(found or s.leaf([s.size() if i == axis else d for i, d in enumerate(dims)], x.tensor.dtype))
    xs = [xs[int(i)] for i in s.rng.permutation(len(xs))]
    return s.add("concat", xs, exact=all(v in s.exact for v in xs), axis=axis)


@samples("pad")
def pad(s: Sample) -> bool:
    x = any_value(s, least=1)
    if x is None:
        return False
    pads = tuple(int(s.rng.integers(3)) if s.chance(0.6) else 0 for _ in range(2 * len(x.tensor.dims)))
    mode = s.pick(STRINGS["mode"]) if s.chance(0.4) else "constant"
    value = s.leaf((), x.tensor.dtype) if mode == "constant" and s.chance(0.5) else None
    return s.add("pad", [x] if value is None else [x, value], exact=x in s.exact, pads=pads, mode=mode)


@samples("gather")
def gather(s: Sample) -> bool:
    x = any_value(s, least=1)
    if x is None:
        return False
    axis = int(s.rng.integers(len(x.tensor.dims)))
    n = s.concrete(x.tensor.dims)[axis]
    if n == 0 or isinstance(x.tensor.dims[axis], Expr):
        return False
    dtype, shape = (I64 if s.chance(0.7) else I32), s.shape(int(s.rng.integers(3)))
    at = s.leaf(shape, dtype, s.data(shape, dtype, n))
    return s.add("gather", [x, at], exact=x in s.exact, axis=axis)


@samples("gather_elements")
def gather_elements(s: Sample) -> bool:
    x = any_value(s, least=1)
    if x is None or not _static(x) or 0 in x.tensor.static_shape:
        return False
    axis = int(s.rng.integers(len(x.tensor.dims)))
    shape = tuple(s.size() if i == axis else int(s.rng.integers(1, d + 1)) for i, d in enumerate(x.tensor.static_shape))
    at = s.leaf(shape, I64, s.data(shape, I64, x.tensor.static_shape[axis]))
    return s.add("gather_elements", [x, at], exact=x in s.exact, axis=axis)


@samples("gather_nd")
def gather_nd(s: Sample) -> bool:
    x = any_value(s, least=1)
    if x is None or not _static(x) or 0 in x.tensor.static_shape:
        return False
    shape = x.tensor.static_shape
    batch = int(s.rng.integers(len(shape))) if s.chance(0.4) else 0
    depth = int(s.rng.integers(1, len(shape) - batch + 1))
    outer = (*shape[:batch], *s.shape(int(s.rng.integers(1, 3))))
    columns = [s.data(outer, I64, shape[batch + i]) for i in range(depth)]
    at = np.stack(columns, -1)
    return s.add("gather_nd", [x, s.leaf(at.shape, I64, at)], exact=x in s.exact, batch_dims=batch)


# -- rows and reductions ---------------------------------------------------------------------------------------------


@samples("softmax", "log_softmax")
def softmax(s: Sample, name: str = "") -> bool:
    x = any_value(s, "f", 1)
    return x is not None and s.add(
        str(s.pick(("softmax", "softmax", "log_softmax"))), [x], axis=int(s.rng.integers(len(x.tensor.dims)))
    )


@samples("layer_norm", "rms_norm")
def norm(s: Sample) -> bool:
    x = any_value(s, "f", 1)
    if x is None:
        return False
    axis = int(s.rng.integers(len(x.tensor.dims)))
    dims = x.tensor.dims[axis:]
    operands: list[Value | None] = [x]
    name = str(s.pick(("layer_norm", "rms_norm")))
    for _ in op_def(name).operands[1:]:
        operands.append(s.leaf(dims, x.tensor.dtype) if s.chance(0.7) else None)
    while operands[-1] is None:
        operands.pop()
    return s.add(name, operands, axis=axis, epsilon=float(s.pick((2.0**-16, 2.0**-10))))  # type: ignore[arg-type]


@samples("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")
def reduce(s: Sample) -> bool:
    x = any_value(s, "fiu")
    if x is None:
        return False
    rank = len(x.tensor.dims)
    axes = tuple(i for i in range(rank) if s.chance(0.4))
    name = str(s.pick(("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")))
    if name == "reduce_prod" and x.tensor.dtype.is_float and math.prod(s.arrays[x].shape[i] for i in axes) > 64:
        return False
    exact = x in s.exact and name in ("reduce_max", "reduce_min")
    return s.add(name, [x], exact=exact, axes=axes, keepdims=s.chance(0.5))


@samples("arg_max", "arg_min")
def arg(s: Sample) -> bool:
    x = any_value(s, "fiu", 1)
    if x is None or x not in s.exact:
        return False
    axis = int(s.rng.integers(len(x.tensor.dims)))
    name = str(s.pick(("arg_max", "arg_min")))
    return s.add(name, [x], axis=axis, keepdims=s.chance(0.5), last=s.chance(0.3))


# -- values from nothing ---------------------------------------------------------------------------------------------


@samples("dims")
def dims(s: Sample) -> bool:
    x = s.recent([v for v in s.arrays if v.tensor.dims])
    if x is None:
        return False
    return s.add("dims", [], values=tuple(x.tensor.dims), scalar=False)


@samples("range_")
def range_(s: Sample) -> bool:
    x = s.recent([v for v in s.arrays if v.tensor.dims])
    size: Dim = s.size() if x is None or s.chance(0.5) else x.tensor.dims[0]
    dtype = s.dtype()
    if dtype.kind not in "fi" or dtype.bits < 16:
        dtype = I64
    start = int(s.rng.integers(-3, 4))
    return s.add(
        "range_", [], exact=True, start=(start,), size=(size,), step=int(s.pick((-2, -1, 1, 2, 3))), dtype=dtype
    )
