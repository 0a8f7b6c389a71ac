"""What a target description says. `load.py` reads these classes from YAML; their fields are its keys.

Sizes are in bytes, bandwidths in bytes/s, clocks in Hz, durations in s, power in W. An operation is a multiplication or
an addition: a fused multiply-add counts as two. Every class that holds figures has a `source`, which says where they
come from: a document, or what was measured on which machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from opcel_compiler.targets import fields as f

Named = TypeVar("Named", "Unit", "MemoryLevel")


def _descending_to_one(heights: tuple[int, ...]) -> None:
    if list(heights) != sorted(set(heights), reverse=True) or heights[-1:] != (1,):
        raise ValueError(f"{list(heights)} does not descend to 1, so that some row counts could not be cut")


def _three(numbers: tuple[int, ...]) -> None:
    if len(numbers) != 3:
        raise ValueError(f"{list(numbers)} is not [m, n, k]")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompilerFlags:
    """The flags, for each kind of C++ compiler, that allow the target's instructions."""

    gnu: tuple[str, ...] = f.many(f.read_text)
    clang: tuple[str, ...] = f.many(f.read_text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Isa:
    """An instruction set: its level's name, the CPU features it needs (as /proc/cpuinfo names them), how to compile."""

    level: str = f.text()
    features: tuple[str, ...] = f.many(f.read_text)
    flags: CompilerFlags = f.record(CompilerFlags)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector:
    """Vector registers: lanes of f32 in one, how many there are, and the alignment in bytes that loads like best."""

    width_f32: int = f.count()
    registers: int = f.count()
    alignment: int = f.quantity("size")
    source: str = f.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Operations per cycle of one unit that multiplies `dtype` by `weight` and adds in `accumulate`.

    `weight` and `accumulate` are `dtype` when the description does not say. `sparse_ops_per_cycle` counts the skipped
    operations of 2:4 sparse weights too; None where there is no such mode.
    """

    name: str
    dtype: str = f.dtype()
    weight: str | None = f.dtype(None)
    accumulate: str | None = f.dtype(None)
    ops_per_cycle: float = f.number()
    sparse_ops_per_cycle: float | None = f.number(None)
    source: str = f.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """`count` equal compute units that read from `memory`; `shape` is a matrix unit's native tile [m, n, k].

    A CPU description counts one core: the number of cores is not the instruction set's.
    """

    name: str
    kind: str = f.choice("vector", "matrix", "scalar", "fixed")
    count: int = f.count()
    clock: float = f.quantity("frequency")
    memory: str = f.text()
    rates: tuple[Rate, ...] = f.records(Rate)
    shape: tuple[int, ...] | None = f.many(f.read_count, None, _three)
    source: str = f.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryLevel:
    """A memory that serves what lies inside it at `bandwidth`; `parent` is the memory it is filled from.

    `managed: software` memories are the program's to fill; hardware fills the others (caches).
    """

    name: str
    size: int = f.quantity("size")
    bandwidth: float = f.quantity("bandwidth")
    latency: float | None = f.quantity("duration", None)
    parent: str | None = f.text(None)
    managed: str = f.choice("hardware", "software")
    alignment: int = f.quantity("size")
    source: str = f.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPreference:
    """The register tile that suits a kernel family: `vectors` wide, and the heights to cut rows (or pixels) into."""

    name: str
    vectors: int = f.count()
    rows: tuple[int, ...] = f.many(f.read_count, check=_descending_to_one)
    source: str = f.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What any kernel of the target must keep to."""

    max_rank: int = f.count()
    static_shapes: bool = f.flag(False)
    source: str = f.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimedPeak:
    """A peak that a vendor states. The units' rates must agree with it within 5 %; nothing else reads it."""

    name: str
    dtype: str = f.dtype()
    sparse: bool = f.flag(False)
    throughput: float = f.quantity("throughput")
    source: str = f.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Power under sustained load, and idle."""

    load: float = f.quantity("power")
    idle: float | None = f.quantity("power", None)
    source: str = f.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What an hour of the chip cost on `date` at a provider."""

    name: str
    usd_per_hour: float = f.number()
    provider: str = f.text()
    region: str = f.text()
    date: str = f.date()
    source: str = f.text()


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One chip, or one level of an instruction set.

    `executes` says how its programs run: `native` code, or the IR's `interpreter` alone. `dtypes` are the element
    types that its kernels may read and write. `memories` are ordered outermost first.
    """

    id: str = f.text()
    name: str = f.text()
    kind: str = f.choice("cpu", "gpu", "npu", "tpu", "fpga", "virtual")
    status: str = f.choice("measured", "modelled", "unverified")
    executes: str = f.choice("native", "interpreter")
    codegen: str = f.choice("cpu", "cuda", "npu", "interpreter")
    pipeline: str = f.text()
    dtypes: tuple[str, ...] = f.many(f.read_dtype)
    isa: Isa | None = f.record(Isa, None)
    vector: Vector | None = f.record(Vector, None)
    units: tuple[Unit, ...] = f.records(Unit)
    memories: tuple[MemoryLevel, ...] = f.records(MemoryLevel)
    kernels: tuple[KernelPreference, ...] = f.records(KernelPreference, ())
    limits: Limits = f.record(Limits)
    claimed_peaks: tuple[ClaimedPeak, ...] = f.records(ClaimedPeak, ())
    power: Power | None = f.record(Power, None)
    price: tuple[Price, ...] = f.records(Price, ())

    def memory(self, name: str) -> MemoryLevel:
        """The memory of that name. Raises KeyError when there is none."""
        return _named(self.memories, name)

    def unit(self, name: str) -> Unit:
        """The unit of that name. Raises KeyError when there is none."""
        return _named(self.units, name)

    def kernel(self, family: str) -> KernelPreference | None:
        """The register tile for a kernel family, or None when the description states none."""
        return next((k for k in self.kernels if k.name == family), None)

    def peak(self, dtype: str, weight: str | None = None, *, sparse: bool = False) -> float:
        """The most operations/s on products of `dtype` by `weight` (`dtype` when None): the best unit kind, all its
        units. 0.0 when no unit computes them."""
        wanted = (dtype, weight or dtype)
        found = [
            unit.count * unit.clock * ((rate.sparse_ops_per_cycle or 0.0) if sparse else rate.ops_per_cycle)
            for unit in self.units
            for rate in unit.rates
            if (rate.dtype, rate.weight or rate.dtype) == wanted
        ]
        return max(found, default=0.0)

    def flags(self, compiler: str) -> tuple[str, ...]:
        """The flags for a compiler of kind `gnu` or `clang`; none for a target without an instruction set."""
        if compiler not in ("gnu", "clang"):
            raise ValueError(f"{compiler!r} is no kind of compiler; those are gnu and clang")
        if self.isa is None:
            return ()
        return self.isa.flags.gnu if compiler == "gnu" else self.isa.flags.clang


def _named(items: tuple[Named, ...], name: str) -> Named:
    for item in items:
        if item.name == name:
            return item
    raise KeyError(f"{name!r} is none of {', '.join(item.name for item in items)}")
