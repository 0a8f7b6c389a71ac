"""Which built-in CPU target this machine can run."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

from opcel_compiler.targets.load import TargetError, list_targets, load_target
from opcel_compiler.targets.schema import Target

CPUINFO = Path("/proc/cpuinfo")
ISA_VARIABLE = "OPCEL_ISA"


def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """The features of the first CPU that `cpuinfo` lists, in its own names; empty when it cannot be read."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.split(":")[0].strip() in ("flags", "Features")), "")
    return frozenset(flags.partition(":")[2].split())


def missing_features(target: Target, features: frozenset[str] | None = None) -> tuple[str, ...]:
    """The CPU features that `target` needs and `features`, by default this machine's, lack."""
    have = cpu_features() if features is None else features
    return tuple(f for f in (target.isa.features if target.isa else ()) if f not in have)


def cpu_levels() -> tuple[Target, ...]:
    """The built-in targets for x86-64 CPUs, the one with the fewest features first."""
    cpus = [target for target in map(load_target, list_targets()) if target.codegen == "cpu" and target.isa]
    return tuple(sorted(cpus, key=lambda target: len(target.isa.features if target.isa else ())))


def host_target(
    features: frozenset[str] | None = None, environment: Mapping[str, str] = os.environ, machine: str | None = None
) -> Target:
    """The best CPU target whose features this machine has, or the level that OPCEL_ISA forces.

    Raises TargetError: not an x86-64 machine, an unknown level, or a forced level that this machine cannot run.
    `features` and `machine` stand for this machine's when given.
    """
    machine = platform.machine() if machine is None else machine
    if machine.lower() not in ("x86_64", "amd64"):
        raise TargetError(f"no target describes this machine, {machine}; name one of {', '.join(list_targets())}")
    have = cpu_features() if features is None else features
    levels = {target.isa.level: target for target in cpu_levels() if target.isa}
    forced = environment.get(ISA_VARIABLE)
    if not forced:
        return [target for target in levels.values() if not missing_features(target, have)][-1]
    if forced not in levels:
        raise TargetError(f"{ISA_VARIABLE}={forced} is no level; those are {', '.join(levels)}")
    target = levels[forced]
    missing = missing_features(target, have)
    if missing:
        raise TargetError(
            f"{ISA_VARIABLE}={forced} needs {', '.join(missing)}, which this machine's CPU lacks; "
            f"to compile for another machine, name the target {target.id}"
        )
    return target
