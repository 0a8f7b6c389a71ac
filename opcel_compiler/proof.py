"""Proof that an artifact computes what its model says: sample inputs, reference engines, error bounds."""

from __future__ import annotations

import itertools
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.dims import Dim, evaluate, symbols_of
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import DType, TensorType, dtype_of
from opcel_compiler.schedule.assumed import assumed

Feeds = Mapping[str, np.ndarray]
SIZES = ((3, 7, 5, 2, 11, 13), (2, 64, 96, 32, 128), (64,))
"""What symbolic sizes are bound to in sample inputs, one after another, within their ranges; the first that the graph's
shapes and the reference allow."""


BF16_NORM = 2e-2
"""The relative L2 error that is allowed with products in bf16: ten roundings, of 2**-9 at most, all the same way."""
GRID_NORM = 0.1
"""The same where a model rounds to grids of 8 bits: of two right engines one may round up and the other down, each time
by a whole step, and layer after layer builds on that. On a deep network two modes of one engine are 5 % apart."""


INT4_NORM = 0.25
"""The same with weights that are rounded to 4 bits: a product is 8 to 10 % off, and layers add up."""


class ProofError(OpcelError):
    """The compiled model is outside its bound, or no reference could run it."""

    exit_code = 6


@dataclass(frozen=True)
class Bound:
    """|error| ≤ absolute·max(1, r) + relative·|reference| for every element, r the root mean square of the output's
    reference, and ‖error‖₂ ≤ norm·‖reference‖₂ per output.

    r is there because a sum that cancels is as far off as its terms are large. An infinite `absolute` limits no single
    element.
    """

    absolute: float = 1e-4
    relative: float = 1e-3
    norm: float = 1e-4
    grid: bool = False
    """Whether integers of 16 bits and less are on a grid that a real number was rounded to, and judged as it is."""

    @staticmethod
    def of(precision: str, max_error: float | None = None, quantized: bool = False) -> Bound:
        """The bound of an artifact. With products in bf16 (8 bits of precision, each operand rounded) the error is that
        of the norm alone: a value near zero that is the difference of large ones has no relative precision. So it is
        for a model that quantizes: what lies between two steps of a grid may be rounded to either.

        `max_error` replaces the relative L2 error that is allowed. Raises OpcelError unless it is positive and finite.
        """
        if max_error is not None and not 0 < max_error < float("inf"):
            raise OpcelError(f"the largest error is a positive number, not {max_error}")
        plain = precision == "f32" and not quantized
        norm = INT4_NORM if precision == "int4" else GRID_NORM if quantized else BF16_NORM
        bound = Bound() if plain else Bound(float("inf"), 0.0, norm, quantized)
        return bound if max_error is None else replace(bound, norm=max_error)

    def at_least(self, dtype: DType) -> Bound:
        """This bound, or that of four units in the last place of `dtype` where it is a float under 32 bits."""
        if not dtype.is_float or dtype.bits >= 32:
            return self
        info = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
        ulps, smallest = 4 * float(info.eps), 4 * float(info.smallest_normal) * float(info.eps)
        return Bound(max(self.absolute, smallest), max(self.relative, ulps), max(self.norm, ulps), self.grid)

    def __str__(self) -> str:
        element = f"|err| <= {self.absolute:g}*max(1, rms) + {self.relative:g}*|ref|, "
        return f"{element if self.absolute < float('inf') else ''}relative L2 <= {self.norm:g}"


@dataclass(frozen=True)
class OutputError_:
    """How far one output is from the reference; integers and booleans must be equal."""

    name: str
    max_abs: float
    relative_l2: float
    within: bool


@dataclass
class Proof:
    """The stamp of an artifact."""

    status: str
    reference: str = ""
    bound: str = ""
    outputs: list[OutputError_] = field(default_factory=list)
    reason: str = ""

    @property
    def summary(self) -> dict[str, str]:
        """What the manifest says of the proof."""
        return {"status": self.status, "reference": self.reference}

    def as_dict(self) -> dict[str, Any]:
        rows = [{"name": o.name, "max_abs": o.max_abs, "relative_l2": o.relative_l2} for o in self.outputs]
        out: dict[str, Any] = {"status": self.status, "reference": self.reference, "bound": self.bound, "outputs": rows}
        return {**out, "reason": self.reason} if self.reason else out


def manifest_bound(manifest: Mapping[str, Any]) -> Bound:
    """The bound of the artifact that a manifest describes."""
    return Bound.of(manifest.get("precision", "f32"), manifest.get("max_error"), manifest.get("quantized", False))


def outside(stamp: Proof) -> str:
    """A sentence about the worst output of a proof that failed."""
    worst = max(stamp.outputs, key=lambda o: (not o.within, o.max_abs))
    return (
        f"the compiled model is outside its bound ({stamp.bound}) on output {worst.name!r}: largest error "
        f"{worst.max_abs:.3g}, relative L2 {worst.relative_l2:.3g}, against {stamp.reference}"
    )


def compare(name: str, got: np.ndarray, want: np.ndarray, bound: Bound) -> OutputError_:
    """Measure one output against the reference. NaNs and infinities must be in the same places.

    Floats under 32 bits may differ by roundings: the bound is widened to four units of their precision.
    """
    if got.shape != want.shape or got.dtype != want.dtype:
        return OutputError_(name, float("inf"), float("inf"), False)
    dtype = dtype_of(want)
    if not dtype.is_float and not (bound.grid and dtype.is_integer and dtype.bits <= 16):
        same = bool(np.array_equal(got, want))
        return OutputError_(name, 0.0 if same else float("inf"), 0.0 if same else float("inf"), same)
    bound = bound.at_least(dtype)
    g, w = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(w)
    same = bool(np.array_equal(g[~finite], w[~finite], equal_nan=True))
    diff = np.abs(g[finite] - w[finite])
    largest = float(diff.max(initial=0.0))
    norm = float(np.sqrt(np.sum(np.square(w[finite]))))
    l2 = float(np.sqrt(np.sum(np.square(diff)))) / norm if norm else float(np.sqrt(np.sum(np.square(diff))))
    absolute = bound.absolute * max(1.0, norm / math.sqrt(max(1, diff.size)))
    within = same and bool(np.all(diff <= absolute + bound.relative * np.abs(w[finite]))) and l2 <= bound.norm
    return OutputError_(name, largest if same else float("inf"), l2, within)


# -- sample inputs -----------------------------------------------------------------------------------------------------


def sample_inputs(
    graph: Graph, names: Sequence[str], seed: int = 0, sizes: Mapping[str, int] | None = None
) -> dict[str, np.ndarray]:
    """Seeded random inputs for a graph, keyed by `names`: normal floats, integers valid as indices where they index,
    else zeros and ones that begin with one. `sizes` gives the values of symbols; the others come from SIZES."""
    return next(candidates(graph, names, seed, sizes))


def candidates(
    graph: Graph, names: Sequence[str], seed: int = 0, sizes: Mapping[str, int] | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Sample inputs, the best first; later ones, for models that fail on the earlier, have other sizes, then other
    values for integers that become sizes, axes and the like, then zeros and ones for all integers."""
    tables = [_bind(graph, extents, sizes or {}) for extents in SIZES]
    distinct = [t for i, t in enumerate(tables) if t not in tables[:i]]
    distinct.sort(key=lambda t: not _possible(graph, t))
    limits, read = index_limits(graph), read_inputs(graph)
    for limit in (limits, {}) if limits else ({},):
        for fills in _fills([v for v in graph.inputs if v in read and v not in limit]):
            for chosen in distinct:
                rng = np.random.default_rng(seed)
                feeds = {v: _sample(v, rng, chosen, limit.get(v)) for v in graph.inputs}
                for v, fill in fills.items():
                    made = fill(feeds[v].size).reshape(feeds[v].shape)
                    feeds[v] = (np.maximum(made, 1) if v.tensor.dtype.is_float else made).astype(feeds[v].dtype)
                yield {n: feeds[v] for n, v in zip(names, graph.inputs, strict=True)}


Fill = Callable[[int], np.ndarray]
READ_VALUES: tuple[Fill, ...] = (
    lambda n: np.ones(n, np.int64),
    lambda n: np.where(np.arange(n) == 0, -1, 1),
    lambda n: np.arange(n),
    lambda n: np.full(n, 2),
    lambda n: np.zeros(n, np.int64),
)
"""Values for n integers that a model reads as sizes, axes, starts or counts, likely ones first: a valid size of most
things, a shape that fits any tensor, distinct axes, another size, the first axis or an empty thing."""
MOST_FILLS = 40
"""How many combinations of such values are tried."""


def _fills(read: Sequence[Value]) -> Iterator[dict[Value, Fill]]:
    """Values for the inputs that are read: the same kind for all, then combinations of kinds."""
    for fill in READ_VALUES if read else READ_VALUES[:1]:
        yield dict.fromkeys(read, fill)
    mixed = (kinds for kinds in itertools.product(READ_VALUES, repeat=len(read)) if len(set(kinds)) > 1)
    for kinds in itertools.islice(mixed, MOST_FILLS):
        yield dict(zip(read, kinds, strict=True))


def read_inputs(graph: Graph) -> set[Value]:
    """The inputs of few numbers that reach a `read_dims`: integers by any operators on few, floats only by such as move
    elements or work on each alone, as those of scales do."""
    out: set[Value] = set()
    stack = [(v, True) for node in graph.walk() if node.op == "read_dims" for v in node.operands if v is not None]
    seen = set(stack)
    while stack:
        v, alone = stack.pop()
        if v.producer is None:
            if alone or not v.tensor.dtype.is_float:
                out.add(v)
            continue
        alone = alone and bool(v.producer.definition.traits & {"elementwise", "movement", "control"})
        new = {(u, alone) for u in v.producer.operands if u is not None and _few_numbers(u)} - seen
        seen |= new
        stack += new
    return {v for v in graph.inputs if v in out and _few_numbers(v)}


def _few_numbers(value: Value) -> bool:
    t = value.type
    return isinstance(t, TensorType) and t.dtype.kind in "iubf" and t.is_static and math.prod(t.static_shape) <= 64


def _bind(graph: Graph, extents: Sequence[int], sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes` and a value for every other symbol in the shapes of the inputs."""
    chosen = dict(sizes)
    for value in graph.inputs:
        if isinstance(value.type, TensorType) and value.type.shape is not None:
            for dim in value.type.shape:
                for s in symbols_of(dim):
                    if s.name not in chosen:
                        size = extents[len(chosen) % len(extents)]
                        chosen[s.name] = min(max(size, s.lo), s.hi if s.hi is not None else size)
    return chosen


def _possible(graph: Graph, sizes: Mapping[str, int]) -> bool:
    """Whether every size in the graph that these symbols decide is at least 1, and what nodes take for granted of such
    sizes holds."""
    for node in graph.nodes if sizes else ():
        for a in assumed(node):
            if all(s.name in sizes for d in (a.left, a.right) for s in symbols_of(d)):
                left, right = evaluate(a.left, sizes), evaluate(a.right, sizes)
                if not (left == right if a.exact else left >= right):
                    return False
    for value in graph.values():
        if isinstance(value.type, TensorType) and value.type.shape is not None:
            for dim in value.type.shape:
                known = not isinstance(dim, int) and all(s.name in sizes for s in symbols_of(dim))
                if known and evaluate(dim, sizes) < 1:
                    return False
    return True


def _sample(value: Value, rng: np.random.Generator, sizes: Mapping[str, int], limit: int | None) -> np.ndarray:
    t = value.tensor
    shape = tuple(evaluate(d, sizes) for d in t.dims)
    if t.dtype.is_float:
        return rng.standard_normal(shape).astype(t.dtype.numpy)
    if t.dtype.kind == "s":
        return np.full(shape, "a", object)
    if limit is not None:
        return rng.integers(0, max(1, limit), shape).astype(t.dtype.numpy)
    bits = rng.integers(0, 2, shape)
    if bits.ndim:
        bits[..., :1] = 1
    else:
        bits = np.ones_like(bits)
    return bits.astype(t.dtype.numpy)


def given_inputs(inputs: str | os.PathLike[str] | Feeds, graph: Graph, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Sample inputs that a user gave, an .npz file or arrays by name, in the order of `names`.

    Raises OpcelError when the file cannot be read, or an input is missing or does not fit the model's type.
    """
    if isinstance(inputs, Mapping):
        found = {k: np.asarray(v) for k, v in inputs.items()}
    else:
        try:
            with np.load(inputs, allow_pickle=False) as file:
                found = {k: file[k] for k in file.files}
        except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
            raise OpcelError(f"cannot read the sample inputs {inputs} as an .npz file: {error}") from error
    missing = [n for n in names if n not in found]
    if missing:
        raise OpcelError(f"the sample inputs lack {', '.join(missing)}; they hold {', '.join(found) or 'nothing'}")
    for name, value in zip(names, graph.inputs, strict=True):
        t, array = value.tensor, found[name]
        if array.ndim == len(t.dims) and array.dtype == t.dtype.numpy:
            pairs = zip(t.dims, array.shape, strict=True)
            if all(d == size for d, size in pairs if isinstance(d, int)):
                continue
        raise OpcelError(f"the sample input {name} is {array.dtype}{list(array.shape)}; the model takes {t}")
    return {n: found[n] for n in names}


FOLLOWED = frozenset({"cast", "reshape", "transpose", "expand", "slice", "concat", "where", "fused"})


INDEXING = frozenset({"gather", "gather_elements", "gather_nd", "scatter_elements", "scatter_nd"})


def _indexed(node: Node) -> tuple[Dim, ...]:
    """The axes that the indices, operand 1, are for."""
    dims = node.operand(0).tensor.dims
    if "axis" in node.attrs:
        return (dims[node.attrs["axis"]],)
    first, depth = node.attrs.get("batch_dims", 0), node.operand(1).tensor.dims[-1]
    return dims[first : first + depth] if isinstance(depth, int) else dims[first:]


def index_limits(graph: Graph) -> dict[Value, int]:
    """The size of the smallest axis that each integer graph input is used to index, where there is one."""
    out: dict[Value, int] = {}
    for start in graph.inputs:
        if not (isinstance(start.type, TensorType) and start.type.dtype.is_integer):
            continue
        seen: set[Value] = {start}
        stack = [start]
        while stack:
            v = stack.pop()
            for node in v.users:
                if node.op in INDEXING and node.operands[1] is v:
                    sizes = [d for d in _indexed(node) if isinstance(d, int)]
                    out[start] = min([*sizes, out.get(start, 1 << 62)])
                elif node.op in FOLLOWED:
                    new = [r for r in node.results if r not in seen]
                    seen.update(new)
                    stack += new
    return out


def drawn(graph: Graph) -> frozenset[int]:
    """The numbers of the outputs that depend on random numbers, which no other engine draws the same."""
    found: set[Value] = set()
    for node in graph.nodes:
        inner = (n for region in node.regions for n in region.walk())
        if any(n.op == "random_uniform" for n in (node, *inner)) or any(v in found for v in node.operands):
            found.update(node.results)
    return frozenset(i for i, v in enumerate(graph.outputs) if v in found)


def prove(
    runnable: Callable[[Feeds], Mapping[str, np.ndarray]], want: Iterable[tuple[str, np.ndarray]], feeds: Feeds,
    reference: str, bound: Bound,
) -> Proof:  # fmt: skip
    """Run and compare. The proof's status is `proved` only when every output is within the bound."""
    got = runnable(feeds)
    rows = [compare(name, np.asarray(got[name]), value, bound) for name, value in want]
    status = "proved" if all(r.within for r in rows) else "refuted"
    return Proof(status, reference, str(bound), rows)
