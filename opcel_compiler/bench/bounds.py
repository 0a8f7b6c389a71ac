"""What an artifact's kernels do, how fast, and how near to what the machine allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from opcel_compiler.bench.machine import Machine
from opcel_compiler.ir.dims import as_symbol, evaluate
from opcel_compiler.ir.parse_dims import parse_dim


@dataclass(frozen=True)
class Bound:
    """The least time that a machine needs: `compute_s` for the arithmetic, `memory_s` for reading and writing.

    Weights come from where all the weights of the model fit, the other operands from where they fit themselves: the
    program is taken to leave them in the caches that are large enough.
    """

    compute_s: float
    memory_s: float

    @property
    def seconds(self) -> float:
        return max(self.compute_s, self.memory_s)

    @property
    def by(self) -> str:
        return "compute" if self.compute_s >= self.memory_s else "memory"


@dataclass(frozen=True)
class StepTime:
    """One step of a program: `seconds` measured; `flops` and `bytes` from the report, a multiply-add being two.

    The kernel family, or "onnxruntime" for a region, which has no bound and whose work is not known.
    """

    name: str
    family: str
    origin: tuple[str, ...]
    seconds: float
    flops: int = 0
    bytes: int = 0
    bound: Bound | None = None

    @property
    def share(self) -> float | None:
        """The bound over the time; above 1 when operands come from a nearer cache than assumed."""
        return self.bound.seconds / self.seconds if self.bound is not None and self.seconds else None


def symbol_sizes(manifest: Mapping[str, Any], feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The sizes that `feeds` give to the symbols of an artifact's inputs."""
    out = {}
    for value in manifest["inputs"]:
        for dim, size in zip(value["shape"], feeds[value["name"]].shape, strict=True):
            found = as_symbol(parse_dim(dim)) if isinstance(dim, str) else None
            if found is not None:
                out[found.name] = int(size)
    return out


def evaluated(dim: int | str, sizes: Mapping[str, int]) -> int:
    """A dim as reports write it."""
    return evaluate(parse_dim(dim) if isinstance(dim, str) else dim, sizes)


def program_bound(report: Mapping[str, Any], sizes: Mapping[str, int], machine: Machine) -> Bound:
    """The bound of a whole run: its FLOPs at the peak, and each of its weights read once."""
    coverage, weights = report["coverage"], report["memory"]["weights_bytes"]
    flops = sum(evaluated(coverage[part], sizes) for part in ("native_flops", "fallback_flops"))
    return Bound(flops / machine.peak, weights / machine.bandwidth(weights))


def step_times(
    report: Mapping[str, Any], seconds: Sequence[float], sizes: Mapping[str, int], machine: Machine
) -> list[StepTime]:
    """The steps of an artifact in their order, from its report and what each took."""
    steps: dict[int, StepTime] = {}
    weights = report["memory"]["weights_bytes"]
    for entry in report["kernels"]:
        i = entry["step"]
        flops, moved, read = (evaluated(entry[key], sizes) for key in ("flops", "bytes", "weight_bytes"))
        memory = read / machine.bandwidth(weights) + (moved - read) / machine.bandwidth(moved - read)
        bound = Bound(flops / machine.peak, memory)
        steps[i] = StepTime(entry["name"], entry["family"], tuple(entry["origin"]), seconds[i], flops, moved, bound)
    for n, entry in enumerate(report.get("regions", ())):
        i = entry["step"]
        steps[i] = StepTime(f"region_{n}", "onnxruntime", tuple(entry["origin"]), seconds[i])
    return [steps[i] for i in sorted(steps)]
