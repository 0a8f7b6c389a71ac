"""What a kernel costs on a target, by the roofline model (Williams, Waterman and Patterson, CACM 52(4), 2009).

The time is the longest of the arithmetic at the target's peak and, for each memory, the bytes that cross from it into
the next inner one at its bandwidth: all of them overlap perfectly. It is a lower bound, good for ordering choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from opcel_compiler.ir.access import TileBytes
from opcel_compiler.ir.dims import Dim, evaluate, product, symbols_of
from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.program import Kernel, Program
from opcel_compiler.ir.types import DType, TensorType
from opcel_compiler.schedule.domain import domain
from opcel_compiler.targets.schema import Target

__all__ = [
    "NOMINAL", "Cost", "domain", "gathered_bytes", "kernel_cost", "kernel_flops", "nominal", "nominal_sizes", "peak",
    "program_cost", "traffic",
]  # fmt: skip

NOMINAL = 128
"""The size assumed for a symbol that may be larger."""


@dataclass(frozen=True)
class Cost:
    """`bytes`: per memory, what crosses between it and the next inner memory. `bound_by`: "compute" or a memory."""

    flops: float
    bytes: Mapping[str, float]
    seconds: float
    bound_by: str


def kernel_cost(kernel: Kernel, target: Target, sizes: Mapping[str, int] | None = None) -> Cost:
    """The cost of one launch; `sizes` gives the symbols, `nominal_sizes` when None.

    A kernel without tiles, or without a tile for some memory, is taken to move each operand into it once. The
    innermost memory feeds the units and bounds nothing.
    """
    sizes = nominal_sizes(kernel) if sizes is None else sizes
    if not kernel.maps:
        axes, maps = domain(kernel)
        kernel = replace(kernel, axes=axes, maps=maps)
    flops = float(kernel_flops(kernel, sizes))
    measure = TileBytes(kernel, sizes)
    most = {i: evaluate(taken, sizes) for i, taken in gathered_bytes(kernel).items()}
    moved: dict[str, float] = {}
    seconds = {"compute": flops / _peak(kernel, target)}
    outer, count = measure.extents, 1.0
    inner_levels = [m.name for m in target.memories[1:]] or [""]
    for memory, inner in zip(target.memories, inner_levels, strict=False):
        tile = outer
        if inner in kernel.tiles:
            tile = tuple(min(evaluate(t, sizes), n) for t, n in zip(kernel.tiles[inner], outer, strict=True))
        moved[memory.name] = count * traffic(measure, tile, outer, most)
        seconds[memory.name] = moved[memory.name] / memory.bandwidth
        for t, n in zip(tile, outer, strict=True):
            count *= max(n, 1) / max(t, 1)
        outer = tile
    bound_by = max(seconds, key=lambda name: seconds[name])
    return Cost(flops, moved, seconds[bound_by], bound_by)


def program_cost(program: Program, target: Target, sizes: Mapping[str, int] | None = None) -> Cost:
    """The sum over the kernels, which run one after the other; `bound_by` is where most of the time goes."""
    flops, seconds = 0.0, 0.0
    moved: dict[str, float] = {}
    shares: dict[str, float] = {}
    for kernel in program.kernels:
        cost = kernel_cost(kernel, target, sizes)
        flops, seconds = flops + cost.flops, seconds + cost.seconds
        shares[cost.bound_by] = shares.get(cost.bound_by, 0.0) + cost.seconds
        for name, count in cost.bytes.items():
            moved[name] = moved.get(name, 0.0) + count
    return Cost(flops, moved, seconds, max(shares, key=lambda name: shares[name]) if shares else "compute")


def kernel_flops(kernel: Kernel, sizes: Mapping[str, int]) -> int:
    """Multiplies and adds of the body, one each, as the operators' definitions count them."""
    total: Dim = 0
    for node in kernel.body.nodes:
        operands = [None if v is None else v.type for v in node.operands]
        total = total + node.definition.flops(operands, [r.type for r in node.results], node.attrs)
    return evaluate(total, sizes)


def nominal_sizes(kernel: Kernel) -> dict[str, int]:
    """A size for each symbol of a kernel: NOMINAL, or the end of its range that is nearest."""
    types = [v.type for v in kernel.body.values()]
    dims = [d for t in types if isinstance(t, TensorType) for d in t.dims]
    for view in kernel.views:
        dims += [*view.shape, *view.strides, view.offset, *view.buffer.type.dims]
    return nominal(*dims, *(a.extent for a in kernel.axes))


def nominal(*dims: Dim) -> dict[str, int]:
    """The same for the symbols of some dims."""
    out: dict[str, int] = {}
    for dim in dims:
        for s in symbols_of(dim):
            out[s.name] = max(s.lo, NOMINAL if s.hi is None else min(s.hi, NOMINAL))
    return out


GATHERS = frozenset({"gather", "gather_elements", "gather_nd"})


def gathered_bytes(kernel: Kernel) -> dict[int, Dim]:
    """Of each input that is a table, from which the body only gathers, the bytes that it takes."""
    out: dict[int, Dim] = {}
    for i, value in enumerate(kernel.body.inputs):
        users = [node for node, at in value.uses if isinstance(node, Node) and node.op in GATHERS and at == 0]
        if users and len(users) == len(value.uses):
            results = [n.result.tensor for n in users]
            out[i] = sum((product(t.dims) * ((t.dtype.bits + 7) // 8) for t in results), start=0)
    return out


def traffic(
    measure: TileBytes, tile: Sequence[int], outer: Sequence[int], most: Mapping[int, int] | None = None
) -> float:
    """Bytes that enter or leave a memory while its tiles sweep a tile `outer` of the next outer one.

    The loops run in the order of the axes, reduce axes innermost. An operand stays while the loops inside the last
    axis that it depends on turn; outputs are accumulated in place and written once. `most` limits what an input takes.
    """
    total = 0.0
    last = len(tile) - len(measure.reduce)
    for i, access in enumerate(measure.maps):
        depends = {a for index in access for a, _ in index.terms}
        loops = range(len(tile)) if i < measure.inputs else range(last)
        turning = [a for a in loops if tile[a] < outer[a]]
        inner = max((a for a in turning if a in depends), default=-1)
        times = 1.0
        for a in turning:
            if a <= inner:
                times *= outer[a] / tile[a] if a in depends else -(-outer[a] // tile[a])
        moved = measure.view(i, tile) * times
        total += min(moved, most[i]) if most and i in most else moved
    return total


def _peak(kernel: Kernel, target: Target) -> float:
    """Operations/s for the kernel's principal dtype."""
    dtype: DType | None = None
    if kernel.anchor is not None and kernel.anchor.operands and (x := kernel.anchor.operands[0]) is not None:
        dtype = x.tensor.dtype
    elif kernel.outputs:
        dtype = kernel.outputs[0].dtype
    return peak(dtype, target)


def peak(dtype: DType | None, target: Target) -> float:
    """Operations/s for a dtype; the best of all dtypes where it is None or the target states no rate for it."""
    named = target.peak(dtype.name) if dtype is not None else 0.0
    return named or max((target.peak(name) for name in target.dtypes), default=0.0) or float("inf")
