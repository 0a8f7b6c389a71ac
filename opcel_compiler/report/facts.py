"""The facts that an artifact carries: its manifest, its report, and how it was built."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from opcel_compiler.codegen.artifact import FORMAT
from opcel_compiler.codegen.cpu.build import Module
from opcel_compiler.compilation import Compilation
from opcel_compiler.ir.analysis import flops
from opcel_compiler.ir.dims import Dim, dim_min, floordiv
from opcel_compiler.ir.program import Kernel, Region, View
from opcel_compiler.ir.types import TensorType, Type
from opcel_compiler.proof import Bound, Proof
from opcel_compiler.quantization.explain import summary
from opcel_compiler.report.layers import layer_kernels
from opcel_compiler.report.quantized import multiplies_integers, quantized_facts
from opcel_compiler.report.sketch import program_sketch, whole_sketch
from opcel_compiler.runtime.integrity import file_sha256, stamped
from opcel_compiler.schedule.choice.strassen import combined_bytes
from opcel_compiler.schedule.choice.winograd import transformed_bytes
from opcel_compiler.schedule.cost import gathered_bytes, kernel_cost
from opcel_compiler.schedule.coverage import Coverage
from opcel_compiler.schedule.placement import Fallback
from opcel_compiler.targets.schema import Target
from opcel_compiler.version import VERSION


def manifest(work: Compilation, module: Module | None, folder: Path, stamp: Proof, bound: Bound) -> dict[str, Any]:
    """What is needed to run the artifact, and to tell whether it is whole. Deterministic."""
    assert work.program is not None

    def values(names: tuple[str, ...], typed: Any) -> list[dict[str, Any]]:
        return [{"name": n, **_type(v.type, bool(work.whole))} for n, v in zip(names, typed, strict=True)]

    modules: list[dict[str, Any]] = [{"kind": "cpu", "file": "model.so", "sha256": file_sha256(folder / "model.so")}]
    regions = [s for s in work.program.steps if isinstance(s, Region)]
    for i, (region, step) in enumerate(zip(work.regions, regions, strict=True)):
        modules.append({
            "kind": "onnxruntime", "file": f"region_{i}.onnx", "sha256": file_sha256(folder / f"region_{i}.onnx"),
            "inputs": [v.name for v in region.inputs], "outputs": list(region.output_names), "reason": step.reason,
        })  # fmt: skip
    ends: Any = work.graph if work.whole else work.program
    if work.whole:
        modules.append({
            "kind": "onnxruntime", "file": "region_0.onnx", "sha256": file_sha256(folder / "region_0.onnx"),
            "inputs": list(work.imported.input_names), "outputs": list(work.imported.output_names),
            "reason": work.whole, "whole": True,
        })  # fmt: skip
    weights = folder / "weights.bin"
    size = weights.stat().st_size if weights.exists() else 0
    isa = work.target.isa
    return stamped({
        "format": FORMAT, "name": work.graph.name, "opcel": VERSION, "model_sha256": work.imported.model_hash,
        "target": {
            "id": work.target.id, "name": work.target.name, "isa": isa.level if isa else "",
            "features": list(isa.features) if isa else [],
        },
        "pipeline": str(work.pipeline), "dims": {n: v if isinstance(v, int) else list(v) for n, v in work.dims.items()},
        "precision": work.context.precision, "max_error": bound.norm, **({"quantized": True} if bound.grid else {}),
        **({"quantization": work.planner.origin} if work.planner is not None else {}),
        "inputs": values(work.imported.input_names, ends.inputs),
        "outputs": values(work.imported.output_names, ends.outputs), "modules": modules,
        **({"maps": work.maps} if work.maps and not work.whole else {}),
        "states": [
            {
                "input": work.imported.input_names[work.program.inputs.index(s.past)],
                "output": work.imported.output_names[work.program.outputs.index(s.present)],
                "axis": s.axis, "capacity": s.capacity,
                "appended": _dim(s.present.type.dims[s.axis] - s.past.type.dims[s.axis]),
            }
            for s in work.program.states
        ],
        "weights": {"file": "weights.bin", "bytes": size, "sha256": file_sha256(weights) if size else ""},
        "arena": _dim(module.memory.arena) if module is not None else None, "proof": stamp.summary,
    })  # fmt: skip


def _calibration(work: Compilation) -> dict[str, Any]:
    """What the ranges of an artifact's numbers were seen in, and what was odd about it."""
    seen = work.planner.statistics if work.planner is not None else None
    if seen is None:
        return {}
    told = {"samples": seen.samples, "skipped": seen.skipped, "random": seen.random, "warnings": list(seen.warnings)}
    return {"calibration": told}


def _type(t: Type, whole: bool) -> dict[str, Any]:
    """Element type and shape, or another type and no shape; of a model that runs whole also NumPy's name."""
    if not isinstance(t, TensorType):
        return {"dtype": str(t), "shape": None, "numpy": "object"}
    shape = None if t.shape is None else [_dim(d) for d in t.shape]
    return {"dtype": t.dtype.name, "shape": shape, **({"numpy": t.dtype.numpy.name} if whole else {})}


def _dim(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else str(dim)


def report(work: Compilation, module: Module, stamp: Proof, folder: Path) -> dict[str, Any]:
    """What was compiled, what fell back and why, kernel by kernel; FLOPs count a multiply-add as two."""
    assert work.program is not None
    kernels = []
    for i, step in enumerate(work.program.launches):
        if isinstance(step, Kernel):
            kernels.append({
                "step": i,
                "name": step.outputs[0].buffer.name, "family": step.family, "origin": list(step.origin),
                "integers": multiplies_integers(step),
                "flops": _dim(_flops(step)), "bytes": _dim(_bytes(step, range(len(step.views)))),
                "weight_bytes": _dim(
                    _bytes(step, [j for j, v in enumerate(step.inputs) if v.buffer.kind == "weight"])
                ),
                **_modelled(step, work.target),
            })  # fmt: skip
    arena = module.memory.arena
    names = (work.imported.input_names, work.imported.output_names)
    fallback = [fallback_facts(f, work) for f in work.fallbacks]
    return {
        "model": {
            "name": work.graph.name, "inputs": list(work.imported.input_names),
            "outputs": list(work.imported.output_names), "nodes": work.imported_nodes,
            "parameters": work.parameters,
            "unread_inputs": [
                n for n, v in zip(work.imported.input_names, work.graph.inputs, strict=True) if not v.uses
            ],
        },
        "target": {
            "id": work.target.id, "name": work.target.name, "isa": work.target.isa.level if work.target.isa else "",
        },
        "pipeline": str(work.pipeline), "precision": work.context.precision, **_calibration(work),
        "passes": [{"name": p, "rule": r, "changes": n} for (p, r), n in sorted(work.counters.changes.items())],
        "kernels": kernels,
        "regions": [
            {"step": i, "origin": list(s.origin), "reason": s.reason}
            for i, s in enumerate(work.program.launches) if isinstance(s, Region)
        ] + ([{"step": 0, "origin": [], "reason": work.whole}] if work.whole else []),
        "coverage": {
            **coverage_facts(work.coverage),
            "native_flops": _dim(work.native_flops), "fallback_flops": _dim(work.fallback_flops),
        },
        **({"quantization": told} if (told := _quantization(work, kernels)) else {}),
        "fallback": fallback,
        "tuned_kernels": work.context.overridden,
        "memory": {
            "weights_bytes": module.weights.size, "weights_by_packing": dict(sorted(module.weights.packings.items())),
            "transformed_bytes": _transformed_bytes(module),
            "arena_bytes": arena if isinstance(arena, int) else None,
        },
        "proof": stamp.as_dict(),
        "graphs": {
            "before": work.sketch,
            "after": whole_sketch(*names) if work.whole else program_sketch(work.program, *names),
        },
        "artifact": {"bytes": sum(p.stat().st_size for p in folder.iterdir())},
    }  # fmt: skip


def _quantization(work: Compilation, kernels: list[dict[str, Any]]) -> dict[str, Any]:
    """What the compiler quantized, layer by layer, with the kernel that each became, and what that costs in accuracy;
    and what the model brought quantized, as `imported`. Empty where neither is anything."""
    found = {"imported": quantized_facts(work)} if work.quantized_layers else {}
    planner = work.planner
    if planner is None:
        return found
    rows = []
    for row in planner.layers:
        made = layer_kernels(kernels, row["origin"])
        family = ", ".join(dict.fromkeys(k["family"] for k in made))
        rows.append({**row, "kernel": family, "integers": bool(made) and all(k["integers"] for k in made)})
    told = planner.statistics.warnings if planner.statistics is not None else ()
    return {**summary(planner.layers), "accuracy": work.accuracy, "warnings": list(told), "rows": rows, **found}


def _transformed_bytes(module: Module) -> int:
    """What weights take beyond their size in the model because they are transformed."""
    total = 0
    for weight in module.weights.offsets:
        sizes = {"winograd": transformed_bytes, "strassen": combined_bytes}.get(weight.packing.partition(":")[0])
        if sizes is not None:
            shape = tuple(int(d) for d in weight.type.dims)  # type: ignore[arg-type]
            total += sizes(shape, weight.packing) - 4 * math.prod(shape)
    return total


def coverage_facts(coverage: Coverage) -> dict[str, Any]:
    """What runs natively and what in another engine; seconds are modelled, with nominal sizes for symbols."""
    out: dict[str, Any] = {}
    for part, work in (("native", coverage.native), ("fallback", coverage.fallback)):
        out |= {f"{part}_nodes": work.nodes, f"{part}_macs": work.macs, f"{part}_seconds_modelled": work.seconds}
    return {**out, "share": coverage.share}


def fallback_facts(fallback: Fallback, work: Compilation) -> dict[str, Any]:
    """A node that another engine runs, with its operator and opset in the model."""
    known = work.imported.operators
    return {
        "op": fallback.op, "origin": list(fallback.origin),
        "operators": list(dict.fromkeys(known[o] for o in fallback.origin if o in known)),
        "reason": fallback.reason, "macs": fallback.work.macs, "seconds_modelled": fallback.work.seconds,
    }  # fmt: skip


def _modelled(kernel: Kernel, target: Target) -> dict[str, Any]:
    """What a kernel takes by the roofline of the target's description, at nominal sizes, and what bounds it there."""
    cost = kernel_cost(kernel, target)
    return {"seconds_modelled": cost.seconds, "bound_by": cost.bound_by}


def _flops(kernel: Kernel) -> Dim:
    total: Dim = 0
    for node in kernel.body.nodes:
        total = total + flops(node)
    return total


def _bytes(kernel: Kernel, views: Iterable[int]) -> Dim:
    """What some of a kernel's views hold, each once; of a table that is gathered from, what is taken."""
    total: Dim = 0
    gathered = gathered_bytes(kernel)
    for i in views:
        size = _view_bytes(kernel.views[i])
        total = total + (dim_min(size, gathered[i]) if i in gathered else size)
    return total


def _view_bytes(view: View) -> Dim:
    size: Dim = 1
    for extent, stride in zip(view.shape, view.strides, strict=True):
        size = size * (extent if stride != 0 else 1)
    if view.buffer.packing.startswith("nbits:"):
        return floordiv(size * view.dtype.bits, 8)
    return size * view.buffer.element_bytes


def build_facts(times: Mapping[str, float], work: Compilation, module: Module) -> dict[str, Any]:
    """When and where it was built: what differs from build to build."""
    return {
        "seconds": {k: round(v, 3) for k, v in times.items()}, "host": platform.node(), "machine": platform.machine(),
        "python": platform.python_version(), "kernels_compiled": module.compiled, "kernels_cached": module.cached,
        "passes": str(work.timing).splitlines(),
    }  # fmt: skip
