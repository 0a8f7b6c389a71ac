"""From a CPU Program to the files of its module: generate, compile what is not in the object cache, link."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from opcel_compiler.codegen.cpu.cache import ObjectCache
from opcel_compiler.codegen.cpu.families import EMITTERS
from opcel_compiler.codegen.cpu.families.movement import halo_unit
from opcel_compiler.codegen.cpu.host import HostWriter, Weights
from opcel_compiler.codegen.cpu.includes import CSRC, included_digest
from opcel_compiler.codegen.cpu.pack import packed
from opcel_compiler.codegen.cpu.toolchain import COMMON, Toolchain, ToolchainError, find_toolchain
from opcel_compiler.codegen.cpu.unit import KernelUnit
from opcel_compiler.errors import OpcelError
from opcel_compiler.ir.program import Buffer, Kernel, Program
from opcel_compiler.schedule.memory import MemoryPlan, plan_memory
from opcel_compiler.targets.schema import Target

RELEASE_EVERY = 32 << 20
"""Bytes of packed weights after which pages of the model's file are let go."""

Progress = Callable[[str, int, int], None]
"""Called with (what, done, of)."""


class CodegenError(OpcelError):
    """A kernel that no generator exists for; a defect of the compiler, not of the model."""


@dataclass
class Module:
    """What was built: the plan, the weights' places, sources by name, and how many objects came from the cache."""

    memory: MemoryPlan
    weights: Weights
    units: list[list[KernelUnit]]
    sources: dict[str, str] = field(default_factory=dict)
    compiled: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Job:
    """One translation unit, the flags of its target, and the ONNX nodes that it is for."""

    source: str
    flags: tuple[str, ...]
    origin: tuple[str, ...] = ()


def generate(program: Program, target: Target) -> list[list[KernelUnit]]:
    """The units of each step of the program, in order; none for regions."""
    units: list[list[KernelUnit]] = []
    bordered: set[Buffer] = set()
    for step in program.steps:
        units.append([])
        if not isinstance(step, Kernel):
            continue
        emitter = EMITTERS.get(step.family)
        if emitter is None:
            raise CodegenError(f"{', '.join(step.origin) or 'a step'}: no CPU generator for family {step.family!r}")
        if step.family != "relayout":
            units[-1] += [halo_unit(v) for v in step.outputs if v.buffer.layout.halo and v.buffer not in bordered]
            bordered.update(v.buffer for v in step.outputs)
        made = emitter(step, target)
        units[-1] += made if isinstance(made, list) else [made]
    return units


def weight_buffers(program: Program, units: Iterable[list[KernelUnit]]) -> list[Buffer]:
    """The weights that the generated code reads, in order of first use."""
    seen: dict[Buffer, None] = {}
    for step, calls in zip(program.steps, units, strict=True):
        views = [v for unit in calls for v in unit.pointers] if calls else step.inputs
        seen.update(dict.fromkeys(v.buffer for v in views if v.buffer.kind == "weight"))
    return list(seen)


def write_weights(buffers: Sequence[Buffer], file: BinaryIO, release: Callable[[], None] | None = None) -> Weights:
    """Pack the buffers into `file` one after another, equal contents once; constants are read one at a time.

    `release` is called every RELEASE_EVERY bytes: what was read of the model's file need not stay in memory.
    """
    weights = Weights()
    unreleased = 0
    seen: dict[str, int] = {}
    for b in buffers:
        array = packed(b)
        data = np.ascontiguousarray(array).view(np.uint8).data
        digest = hashlib.sha256(data).hexdigest()
        if digest not in seen:
            file.write(bytes(-weights.size % 64))
            weights.size += -weights.size % 64
            seen[digest] = weights.size
            file.write(data)
            weights.size += len(data)
            packing = b.packing.partition(":")[0]
            weights.packings[packing] = weights.packings.get(packing, 0) + len(data)
        weights.offsets[b] = seen[digest]
        unreleased += len(data)
        if release is not None and unreleased >= RELEASE_EVERY:
            unreleased = 0
            release()
    return weights


def fingerprint(path: Path, size: int) -> int:
    """`opcel_weights_check` of a weights file (FNV-1a over its size and 64 samples of up to 64 bytes)."""
    value = 14695981039346656037
    sampled = size.to_bytes(8, "little")
    if size:
        data = np.memmap(path, np.uint8, "r", shape=(size,))
        for i in range(64):
            begin = i * (size // 64)
            sampled += data[begin : min(begin + 64, size)].tobytes()
    for byte in sampled:
        value = (value ^ byte) * 1099511628211 % (1 << 64)
    return value or 1


def build(
    program: Program, target: Target, folder: Path, names: tuple[Sequence[str], Sequence[str]],
    progress: Progress | None = None, release: Callable[[], None] | None = None,
) -> Module:  # fmt: skip
    """Write model.so and weights.bin into `folder`; `release` is that of `write_weights`.

    Raises ToolchainError or CodegenError.
    """
    toolchain = find_toolchain()
    units = generate(program, target)
    weights_path = folder / "weights.bin"
    with weights_path.open("wb") as file:
        weights = write_weights(weight_buffers(program, units), file, release)
    if weights.size:
        weights.check = fingerprint(weights_path, weights.size)
    else:
        weights_path.unlink()
    used = [[v.buffer for unit in calls for v in unit.pointers] for calls in units]
    module = Module(plan_memory(program, used), weights, units)
    features = target.isa.features if target.isa is not None else ()
    host = HostWriter(program, units, module.memory, weights, names, features).text()
    flags = target.flags(toolchain.kind)
    base = base_flags(flags)
    jobs = {"runtime": Job(_runtime_source(), base), "host": Job(host, base)}
    for step, calls in zip(program.steps, units, strict=True):
        for unit in calls:
            jobs.setdefault(unit.name, Job(unit.source.replace("KERNEL", unit.name), flags, step.origin))
    module.sources = {name: job.source for name, job in jobs.items()}
    with ObjectCache() as cache:
        objects = _compile_all(toolchain, jobs, cache, module, progress)
        toolchain.link(objects, folder / "model.so", base)
    return module


def base_flags(flags: Iterable[str]) -> tuple[str, ...]:
    """Those of `flags` that name the machine without its extensions; zig compiles for this CPU without them."""
    return tuple(f for f in flags if f.startswith(("--target=", "-march=")))


def _runtime_source() -> str:
    return (CSRC / "runtime" / "runtime.cpp").read_text()


def _compile_all(
    toolchain: Toolchain, jobs: Mapping[str, Job], cache: ObjectCache, module: Module, progress: Progress | None
) -> list[Path]:
    """The objects of all jobs, ordered by name."""
    keys: dict[str, str] = {}
    for name, job in jobs.items():
        told = (*toolchain.command, *COMMON, *job.flags, *toolchain.extra)
        parts = [toolchain.version, *told, included_digest(job.source), job.source]
        keys[name] = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    missing = [name for name, key in keys.items() if not cache.fetch(key)]
    module.cached, module.compiled = len(jobs) - len(missing), len(missing)
    if progress and missing:
        progress("compiling kernels", 0, len(missing))
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        running = [pool.submit(_compile_one, toolchain, jobs[n], n, cache, keys[n]) for n in missing]
        try:
            for done, future in enumerate(as_completed(running), 1):
                future.result()
                if progress:
                    progress("compiling kernels", done, len(missing))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [cache.object(keys[n]) for n in sorted(keys)]


def _compile_one(toolchain: Toolchain, job: Job, name: str, cache: ObjectCache, key: str) -> None:
    source = cache.work / f"{name}.cpp"
    source.write_text(job.source)
    try:
        toolchain.compile(source, cache.object(key), CSRC, job.flags)
    except ToolchainError as error:
        if not job.origin:
            raise
        raise ToolchainError(f"the kernel of {', '.join(job.origin[:3])}: {error}") from error
    cache.store(key)
