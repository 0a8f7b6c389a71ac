"""`compile()`: one model through every stage, from ONNX to an artifact that is proved and put in place."""

from __future__ import annotations

import dataclasses
import os
import platform
import tempfile
import time
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.codegen.artifact import BUILD, FORMAT, MANIFEST, REPORT, file_sha256, staged, write_json
from opcel_compiler.codegen.cpu.build import Module, build
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.frontend.importer import Imported, import_model
from opcel_compiler.ir.dims import Dim
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.program import Kernel, Program, Region
from opcel_compiler.locate import first_wrong_node
from opcel_compiler.proof import Bound, Feeds, Proof, ProofError, prove, reference_outputs, sample_inputs
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.instruments import Counters, Instrument, Timing
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.runtime.model import CompiledModel
from opcel_compiler.schedule.lower import lower
from opcel_compiler.schedule.placement import Fallback, place
from opcel_compiler.targets import load_target
from opcel_compiler.targets.constraints import constraints_of, violations
from opcel_compiler.targets.cpu.constraints import cpu_constraints
from opcel_compiler.targets.schema import Target
from opcel_compiler.version import VERSION

Progress = Callable[[str, int, int], None]
FALLBACK_MODES = ("allow", "warn", "error")


class FallbackError(OpcelError):
    """Nodes would run in another engine and the caller forbade it."""

    exit_code = 3


class FallbackWarning(UserWarning):
    """Nodes run in another engine."""


@dataclasses.dataclass
class Compilation:
    """Everything one compile knows, stage by stage."""

    imported: Imported
    target: Target
    pipeline: Pipeline
    context: PassContext
    timing: Timing
    counters: Counters
    fallbacks: list[Fallback] = dataclasses.field(default_factory=list)
    regions: list[Graph] = dataclasses.field(default_factory=list)
    program: Program | None = None
    native_nodes: int = 0
    imported_nodes: int = 0

    @property
    def graph(self) -> Graph:
        return self.imported.graph


def compile(
    model: Any, target: str = "host", output: str | os.PathLike[str] | None = None, threads: int | None = None, *,
    pipeline: str | None = None, fallback: str = "warn", inputs: str | os.PathLike[str] | Feeds | None = None,
    proof: bool = True, progress: Progress | None = None,
) -> CompiledModel:  # fmt: skip
    """Compile an ONNX model (path, bytes or ModelProto) for `target` into the folder `output`, and open it.

    Without `output` the artifact lives in a temporary folder as long as the returned model. `threads` is that of the
    opened model. `inputs` are the sample inputs of the proof (a .npz file or arrays by input name), else seeded random
    ones. `fallback` says what to do with nodes that only another engine can run: allow, warn or error.

    Raises ModelError for a bad model, TargetError, FallbackError, ProofError when a result is outside the bound,
    OutputError and ToolchainError; in each case nothing is left at `output`.
    """
    if fallback not in FALLBACK_MODES:
        raise OpcelError(f"fallback is one of {', '.join(FALLBACK_MODES)}, not {fallback!r}")
    report = progress or (lambda what, done, of: None)
    started = time.perf_counter()
    keep: tempfile.TemporaryDirectory[str] | None = None
    if output is None:
        keep = tempfile.TemporaryDirectory(prefix="opcel-")
        output = Path(keep.name) / "model.opcel"
    place_at = Path(output)
    work = prepare(model, target, pipeline=pipeline, progress=report)
    _check_fallback(work, fallback)
    times = {"front": time.perf_counter() - started}
    with staged(place_at) as folder:
        module = _write(work, folder, report)
        times["build"] = time.perf_counter() - started - times["front"]
        stamp = Proof("unproved", reason="proof was turned off")
        before = time.perf_counter()
        if proof:
            stamp = _prove(work, model, folder, inputs, report)
        times["proof"] = time.perf_counter() - before
        facts = _report(work, module, stamp, folder)
        write_json(folder / REPORT, facts)
        manifest = {**_manifest(work, module, folder), "proof": {"status": stamp.status, "reference": stamp.reference}}
        write_json(folder / MANIFEST, manifest)
        times["total"] = time.perf_counter() - started
        write_json(folder / BUILD, _build_facts(times, work, module))
    opened = CompiledModel(place_at, threads=threads)
    if keep is not None:
        weakref.finalize(opened, keep.cleanup)
    return opened


def prepare(
    model: Any,
    target: str = "host",
    *,
    pipeline: str | None = None,
    progress: Progress | None = None,
    instruments: tuple[Instrument, ...] = (),
) -> Compilation:
    """Import, run the passes, place and lower: everything before code generation."""
    report = progress or (lambda what, done, of: None)
    description = load_target(target)
    passes = Pipeline.parse(pipeline or description.pipeline)
    report("importing", 0, 0)
    imported = import_model(model)
    work = Compilation(imported, description, passes, PassContext(target=description), Timing(), Counters())
    work.imported_nodes = len(work.graph)
    report("optimizing", 0, 0)
    tools = (work.timing, work.counters, *instruments)
    PassManager.run(work.graph, passes.at("graph"), work.context, tools)
    constraints = (*cpu_constraints(), *constraints_of(description))
    work.fallbacks = place(work.graph, lambda node: _reason(node, constraints))
    work.regions = [n.regions[0] for n in work.graph.nodes if n.op == "external"]
    work.native_nodes = sum(_weight(n) for n in work.graph.nodes if n.op not in ("constant", "external"))
    work.program = lower(work.graph)
    PassManager.run(work.program, passes.at("program"), work.context, tools)
    return work


def _reason(node: Node, constraints: Any) -> str | None:
    nodes = list(node.regions[0].nodes) if node.op == "fused" else [node]
    for inner in nodes:
        if inner.op == "constant":
            continue
        found = violations(inner, constraints)
        if found:
            return found[0]
    return None


def _weight(node: Node) -> int:
    return max(1, len(node.origin))


def _check_fallback(work: Compilation, mode: str) -> None:
    if not work.fallbacks or mode == "allow":
        return
    shown = [f"{f.op} ({', '.join(f.origin[:2]) or 'unnamed'}): {f.reason}" for f in work.fallbacks[:8]]
    more = f" and {len(work.fallbacks) - 8} more" if len(work.fallbacks) > 8 else ""
    count = len(work.fallbacks)
    text = f"{count} node{'s' * (count != 1)} cannot run natively on {work.target.id}: {'; '.join(shown)}{more}"
    if mode == "error":
        raise FallbackError(f"{text}. Use --fallback=allow to run them in ONNX Runtime")
    warnings.warn(f"{text}. They run in ONNX Runtime", FallbackWarning, stacklevel=3)


def _write(work: Compilation, folder: Path, progress: Progress) -> Module:
    assert work.program is not None
    if work.target.codegen != "cpu":
        raise OpcelError(f"target {work.target.id} has no code generator: its programs run in the interpreter only")
    for i, region in enumerate(work.regions):
        (folder / f"region_{i}.onnx").write_bytes(export_model(region).SerializeToString(deterministic=True))
    names = (work.imported.input_names, work.imported.output_names)
    return build(work.program, work.target, folder, names, progress)


def _prove(work: Compilation, model: Any, folder: Path, inputs: Any, progress: Progress) -> Proof:
    progress("proving", 0, 0)
    # The manifest of an artifact is complete only with its proof; the runtime needs the rest of it to open the folder.
    write_json(folder / MANIFEST, {**_manifest(work, None, folder), "proof": {"status": "unproved"}})
    if missing := _cannot_run_here(work.target):
        return Proof("unproved", reason=f"this CPU lacks {missing}; run `opcel run --prove` on one that has it")
    names, outputs = work.imported.input_names, work.imported.output_names
    feeds = _given_inputs(inputs, names) if inputs is not None else sample_inputs(work.graph, names)
    engine, want = reference_outputs(model, work.graph, names, outputs, feeds)
    with CompiledModel(folder) as compiled:
        stamp = prove(lambda f: compiled.run(dict(f)), zip(outputs, want, strict=True), feeds, engine, Bound())
    if stamp.status != "proved":
        worst = max(stamp.outputs, key=lambda o: (not o.within, o.max_abs))
        where = first_wrong_node(work, feeds, want, engine)
        raise ProofError(
            f"the compiled model is outside its bound ({stamp.bound}) on output {worst.name!r}: largest error "
            f"{worst.max_abs:.3g}, relative L2 {worst.relative_l2:.3g}, against {engine}. {where}"
        )
    return stamp


def _cannot_run_here(target: Target) -> str:
    from opcel_compiler.targets.host import missing_features

    return ", ".join(missing_features(target))


def _given_inputs(inputs: Any, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    if isinstance(inputs, Mapping):
        found = {k: np.asarray(v) for k, v in inputs.items()}
    else:
        try:
            with np.load(inputs, allow_pickle=False) as file:
                found = {k: file[k] for k in file.files}
        except (OSError, ValueError) as error:
            raise OpcelError(f"cannot read the sample inputs {inputs}: {error}") from error
    missing = [n for n in names if n not in found]
    if missing:
        raise OpcelError(f"the sample inputs lack {', '.join(missing)}; they hold {', '.join(found) or 'nothing'}")
    return {n: found[n] for n in names}


# -- what the artifact says of itself ----------------------------------------------------------------------------------


def _manifest(work: Compilation, module: Module | None, folder: Path) -> dict[str, Any]:
    assert work.program is not None

    def values(names: tuple[str, ...], buffers: Any) -> list[dict[str, Any]]:
        return [
            {"name": n, "dtype": b.type.dtype.name, "shape": [_dim(d) for d in b.type.dims]}
            for n, b in zip(names, buffers, strict=True)
        ]

    modules: list[dict[str, Any]] = [{"kind": "cpu", "file": "model.so", "sha256": file_sha256(folder / "model.so")}]
    regions = [s for s in work.program.steps if isinstance(s, Region)]
    for i, (region, step) in enumerate(zip(work.regions, regions, strict=True)):
        modules.append({
            "kind": "onnxruntime", "file": f"region_{i}.onnx", "sha256": file_sha256(folder / f"region_{i}.onnx"),
            "inputs": [v.name for v in region.inputs], "outputs": list(region.output_names), "reason": step.reason,
        })  # fmt: skip
    weights = folder / "weights.bin"
    size = weights.stat().st_size if weights.exists() else 0
    isa = work.target.isa
    return {
        "format": FORMAT, "name": work.graph.name, "opcel": VERSION, "model_sha256": work.imported.model_hash,
        "target": {
            "id": work.target.id, "name": work.target.name, "isa": isa.level if isa else "",
            "features": list(isa.features) if isa else [],
        },
        "pipeline": str(work.pipeline), "inputs": values(work.imported.input_names, work.program.inputs),
        "outputs": values(work.imported.output_names, work.program.outputs), "modules": modules,
        "weights": {"file": "weights.bin", "bytes": size, "sha256": file_sha256(weights) if size else ""},
        "arena": _dim(module.memory.arena) if module is not None else None,
    }  # fmt: skip


def _dim(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else str(dim)


def _report(work: Compilation, module: Module, stamp: Proof, folder: Path) -> dict[str, Any]:
    assert work.program is not None
    kernels = []
    for step in work.program.steps:
        if isinstance(step, Kernel):
            flops: Dim = 0
            for node in step.body.nodes:
                types = [None if v is None else v.type for v in node.operands]
                flops = flops + node.definition.flops(types, [r.type for r in node.results], node.attrs)
            kernels.append({
                "name": step.outputs[0].buffer.name, "family": step.family, "origin": list(step.origin),
                "flops": _dim(flops), "bytes": _dim(_bytes(step)),
            })  # fmt: skip
    arena = module.memory.arena
    fallback = [{"op": f.op, "origin": list(f.origin), "reason": f.reason} for f in work.fallbacks]
    return {
        "model": {
            "name": work.graph.name, "inputs": list(work.imported.input_names),
            "outputs": list(work.imported.output_names), "nodes": work.imported_nodes,
        },
        "target": {
            "id": work.target.id, "name": work.target.name, "isa": work.target.isa.level if work.target.isa else "",
        },
        "pipeline": str(work.pipeline),
        "passes": [{"name": p, "rule": r, "changes": n} for (p, r), n in sorted(work.counters.changes.items())],
        "kernels": kernels,
        "coverage": {"native_nodes": work.native_nodes, "fallback_nodes": len(work.fallbacks)},
        "fallback": fallback,
        "memory": {"weights_bytes": module.weights.size, "arena_bytes": arena if isinstance(arena, int) else None},
        "proof": stamp.as_dict(),
        "artifact": {"bytes": sum(p.stat().st_size for p in folder.iterdir())},
    }  # fmt: skip


def _bytes(kernel: Kernel) -> Dim:
    total: Dim = 0
    for view in kernel.views:
        size: Dim = 1
        for extent, stride in zip(view.shape, view.strides, strict=True):
            size = size * (extent if stride != 0 else 1)
        total = total + size * ((view.dtype.bits + 7) // 8)
    return total


def _build_facts(times: Mapping[str, float], work: Compilation, module: Module) -> dict[str, Any]:
    return {
        "seconds": {k: round(v, 3) for k, v in times.items()}, "host": platform.node(), "machine": platform.machine(),
        "python": platform.python_version(), "kernels_compiled": module.compiled, "kernels_cached": module.cached,
        "passes": str(work.timing).splitlines(),
    }  # fmt: skip
