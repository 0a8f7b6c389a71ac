"""What must hold between the fields of a description, beyond each field's own kind."""

from __future__ import annotations

from collections.abc import Iterator

from opcel_compiler.targets.schema import MemoryLevel, Target

TOLERANCE = 0.05
"""How far units x operations per cycle x clock may lie from a claimed peak: a missed factor of two, from sparsity or a
wrong number of units, lies well outside, rounded clocks inside."""


def check_target(target: Target) -> Iterator[tuple[str, str]]:
    """A (field path, reason) for each contradiction in the description."""
    yield from _memories(target)
    yield from _units(target)
    yield from _peaks(target)
    if target.executes == "native" and target.isa is None:
        yield "isa", "is missing, and a target that executes native code has one"
    if target.vector is not None:
        yield from _power_of_two("vector.alignment", target.vector.alignment)
        for kernel in target.kernels:
            used = kernel.vectors * kernel.rows[0] + kernel.vectors
            if used > target.vector.registers:
                yield (
                    f"kernels.{kernel.name}",
                    f"a tile of {kernel.rows[0]} rows x {kernel.vectors} vectors keeps {used} registers busy; "
                    f"there are {target.vector.registers}",
                )
    if target.power is not None and target.power.idle is not None and target.power.idle > target.power.load:
        yield "power.idle", f"{target.power.idle} W is more than the {target.power.load} W under load"


def _power_of_two(field: str, size: int) -> Iterator[tuple[str, str]]:
    if size & (size - 1):
        yield field, f"{size} bytes is not a power of two"


def _memories(target: Target) -> Iterator[tuple[str, str]]:
    levels = {memory.name: memory for memory in target.memories}
    roots = [memory.name for memory in target.memories if memory.parent is None]
    if len(roots) != 1:
        yield "memories", f"one memory has no parent, the outermost; here it is {' and '.join(roots) or 'none'}"
    for memory in target.memories:
        field = f"memories.{memory.name}"
        yield from _power_of_two(f"{field}.alignment", memory.alignment)
        if memory.size % memory.alignment:
            yield f"{field}.size", f"{memory.size} bytes is no multiple of the alignment, {memory.alignment}"
        if memory.parent is None:
            continue
        parent = levels.get(memory.parent)
        if parent is None:
            yield f"{field}.parent", f"{memory.parent!r} is no memory; those are {', '.join(levels)}"
        elif _circular(memory, levels):
            yield f"{field}.parent", f"{memory.name!r} is filled from itself"
        elif memory.bandwidth < parent.bandwidth:
            yield (
                f"{field}.bandwidth",
                f"{memory.bandwidth / 1e9:g} GB/s is less than the {parent.bandwidth / 1e9:g} GB/s of its parent "
                f"{parent.name!r}",
            )


def _circular(memory: MemoryLevel, levels: dict[str, MemoryLevel]) -> bool:
    seen = {memory.name}
    at: MemoryLevel | None = memory
    while at is not None and at.parent is not None:
        if at.parent in seen:
            return at.parent == memory.name
        seen.add(at.parent)
        at = levels.get(at.parent)
    return False


def _units(target: Target) -> Iterator[tuple[str, str]]:
    names = [memory.name for memory in target.memories]
    for unit in target.units:
        field = f"units.{unit.name}"
        if unit.memory not in names:
            yield f"{field}.memory", f"{unit.memory!r} is no memory; those are {', '.join(names)}"
        if unit.kind == "matrix" and unit.shape is None:
            yield field, "a matrix unit has a shape, [m, n, k]"
        for rate in unit.rates:
            for dtype in dict.fromkeys((rate.dtype, rate.weight or rate.dtype)):
                if dtype not in target.dtypes:
                    yield f"{field}.rates.{rate.name}", f"{dtype} is not among the target's dtypes"
            if rate.sparse_ops_per_cycle is not None and rate.sparse_ops_per_cycle < rate.ops_per_cycle:
                yield (
                    f"{field}.rates.{rate.name}.sparse_ops_per_cycle",
                    f"{rate.sparse_ops_per_cycle:g} is less than the dense {rate.ops_per_cycle:g}",
                )


def _peaks(target: Target) -> Iterator[tuple[str, str]]:
    for claim in target.claimed_peaks:
        derived = target.peak(claim.dtype, sparse=claim.sparse)
        if abs(derived - claim.throughput) > TOLERANCE * claim.throughput:
            products = f"2:4 sparse {claim.dtype}" if claim.sparse else f"dense {claim.dtype}"
            claimed = f"{claim.throughput / 1e9:g} Gop/s"
            yield f"claimed_peaks.{claim.name}", f"{claimed}, but the units reach {derived / 1e9:g} Gop/s on {products}"
