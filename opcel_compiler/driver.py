"""`compile()`: one model through every stage, from ONNX to an artifact that is proved and put in place."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.calibrate.errors import CalibrationWarning
from opcel_compiler.calibration import with_statistics
from opcel_compiler.codegen.artifact import BUILD, MANIFEST, PAGE, REPORT, staged, update_json, write_json, write_page
from opcel_compiler.codegen.cpu.build import Module, build
from opcel_compiler.compilation import Compilation, Progress, check_bound, prepare
from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.exporter import write_model
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.maps import Labels, values_of_maps
from opcel_compiler.frontend.proto_types import DimValue
from opcel_compiler.ir.graph import Graph
from opcel_compiler.locate import first_wrong_node
from opcel_compiler.proof import (
    Bound,
    Feeds,
    Proof,
    ProofError,
    drawn,
    given_inputs,
    manifest_bound,
    outside,
    prove,
)
from opcel_compiler.quantization.metrics import accuracy
from opcel_compiler.quantization.recipe import Recipe
from opcel_compiler.references import reference_outputs, sampled_reference
from opcel_compiler.regions import region_models
from opcel_compiler.report import facts
from opcel_compiler.report.html import page
from opcel_compiler.runtime._runtime import usable_cpus
from opcel_compiler.runtime.decoding import load, run_whole
from opcel_compiler.runtime.integrity import stamped
from opcel_compiler.runtime.model import CompiledModel, verify
from opcel_compiler.schedule.choice.variants import Override
from opcel_compiler.schedule.coverage import Coverage
from opcel_compiler.schedule.memory import buffer_bytes
from opcel_compiler.search.lock import StaleWarning, machine_text, read_lock, sources_digest, usable
from opcel_compiler.targets import load_target
from opcel_compiler.targets.host import missing_features
from opcel_compiler.targets.schema import Target
from opcel_compiler.weights import with_weights

NEARER = ". More or other samples, --activations dynamic or a budget (--max-drop) may bring it nearer"
FALLBACK_MODES = ("allow", "warn", "error")


class FallbackError(OpcelError):
    """Nodes would run in another engine and the caller forbade it."""

    exit_code = 3


class FallbackWarning(UserWarning):
    """Nodes run in another engine."""


class ExportWarning(UserWarning):
    """An exported model is not quantized as the artifact is."""


def compile(
    model: Any, target: str = "host", output: str | os.PathLike[str] | None = None, threads: int | None = None, *,
    pipeline: str | None = None, fallback: str = "warn", inputs: str | os.PathLike[str] | Feeds | None = None,
    proof: bool = True, min_coverage: float = 0.0, dims: Mapping[str, DimValue] | None = None,
    precision: str = "f32", max_error: float | None = None, tune: str | os.PathLike[str] | None = None,
    small: bool = False, state: Sequence[str] = (), progress: Progress | None = None, recipe: Recipe | None = None,
    export_qdq: str | os.PathLike[str] | None = None,
) -> CompiledModel:  # fmt: skip
    """Compile an ONNX model (path, bytes or ModelProto) for `target` into the folder `output`, and open it.

    Without `output` the artifact lives in a temporary folder as long as the returned model. `threads` is that of the
    opened model. `inputs` are the sample inputs of the proof (a .npz file or arrays by input name), else seeded random
    ones. `dims` gives symbolic dimensions a size, or the (least, largest) size they may have, by name: `{"batch": 1,
    "seq": (1, 128)}`. `fallback` says what to do with nodes that only another engine can run: allow, warn or error;
    `min_coverage`, 0 to 1, is the least share of multiply-adds and of modelled time that must be native. `precision` is
    "f32", "bf16" for products in bf16 with sums in f32, or "int8"; `max_error` is the relative L2 error that the proof
    allows an output, in place of the precision's own. `tune` is a lock file of `opcel tune`, whose choices of kernels
    replace the compiler's own; entries of another machine, or of kernels that have changed, are left alone; that warns.
    `small` forgoes what makes weights larger to be faster.
    `state` names the caches of a decode step that grow in place, each text "inputs=outputs:capacity" with * for any
    part of a name (docs/decoding.md); the returned model is then a `Decoder`.
    With precision "int8" `recipe` names the calibration data and how the model is quantized (docs/quantization.md).
    `export_qdq` is an ONNX file to write the quantized model to, in opset 21 with QuantizeLinear and DequantizeLinear;
    warns of layers that are float in it.

    Raises ModelError for a bad model, TargetError, FallbackError, ProofError when a result is outside the bound,
    OutputError and ToolchainError; in each case nothing is left at `output`.
    """
    if fallback not in FALLBACK_MODES:
        raise OpcelError(f"fallback is one of {', '.join(FALLBACK_MODES)}, not {fallback!r}")
    Bound.of(precision, max_error)
    report = progress or (lambda what, done, of: None)
    started = time.perf_counter()
    keep: tempfile.TemporaryDirectory[str] | None = None
    if output is None:
        keep = tempfile.TemporaryDirectory(prefix="opcel-")
        output = Path(keep.name) / "model.opcel"
    place_at = Path(output)

    def placed(work: Compilation) -> None:
        _check_fallback(work, fallback)
        check_coverage(work.coverage, min_coverage)

    if precision == "int8":
        recipe = with_statistics(recipe or Recipe(), model, target, pipeline, dims, threads, report)
    if precision == "int4":
        recipe = with_weights(
            recipe or Recipe(), model, target, pipeline, dims, threads, report,
            lambda text: warnings.warn(text, CalibrationWarning, stacklevel=2),
        )  # fmt: skip
    work = prepare(
        model, target, pipeline=pipeline, progress=report, dims=dims, placed=placed, precision=precision,
        tuned=_tuned(tune, target, threads), small=small, state=state, recipe=recipe,
        export_qdq=export_qdq is not None,
    )  # fmt: skip
    if export_qdq is not None and work.qdq is not None:
        write_model(work.qdq, Path(export_qdq))
        if work.floats_in_qdq:
            text = f"{os.fspath(export_qdq)}: QDQ has no form of recurrent layers, these are float in it: "
            warnings.warn(text + ", ".join(work.floats_in_qdq), ExportWarning, stacklevel=2)
    if not work.whole:
        check_bound(work.graph)
    bound = Bound.of(precision, max_error, work.quantized)
    times = {"front": time.perf_counter() - started}
    with staged(place_at) as folder:
        _ = work.imported.model_hash  # reads the whole file
        work.imported.release()
        module = _write(work, folder, report)
        work.imported.release()
        times["build"] = time.perf_counter() - started - times["front"]
        stamp = Proof("unproved", reason="proof was turned off")
        before = time.perf_counter()
        if work.whole:
            stamp = Proof("unproved", reason="the whole model runs in ONNX Runtime, as it is")
        elif proof:
            _check_memory(work, module)
            try:
                stamp = _prove(work, model, folder, inputs, bound, report)
            except MemoryError as error:
                raise ProofError(
                    f"not enough memory to run the model on sample inputs: {error}. Limit symbolic dimensions with "
                    "--dim, or use --no-proof and prove the artifact on a larger machine"
                ) from error
        times["proof"] = time.perf_counter() - before
        told, manifest = facts.report(work, module, stamp, folder), facts.manifest(work, module, folder, stamp, bound)
        write_json(folder / REPORT, told)
        write_json(folder / MANIFEST, manifest)
        write_page(folder / PAGE, page(told, manifest))
        times["total"] = time.perf_counter() - started
        write_json(folder / BUILD, facts.build_facts(times, work, module))
    opened = load(place_at, threads=threads)
    if keep is not None:
        weakref.finalize(opened, keep.cleanup)
    return opened


def _tuned(path: str | os.PathLike[str] | None, target: str, threads: int | None) -> dict[str, Override]:
    """The choices of a lock file that hold on this machine; warns of the others."""
    if path is None:
        return {}
    machine = machine_text(load_target(target), threads or usable_cpus())
    found, stale = usable(read_lock(os.fspath(path)), machine, sources_digest())
    if stale:
        warnings.warn(f"{os.fspath(path)}: {stale}; measure again with `opcel tune`", StaleWarning, stacklevel=3)
    return found


def check_coverage(coverage: Coverage, least: float) -> None:
    """Raises FallbackError when less than `least` (0 to 1) of the multiply-adds or of the modelled time is native."""
    if coverage.share < least:
        raise FallbackError(
            f"{coverage.macs_share:.1%} of the multiply-adds and {coverage.seconds_share:.1%} of the modelled time are "
            f"native, and {least:.1%} are asked for; `opcel check` lists what is not"
        )


def _check_fallback(work: Compilation, mode: str) -> None:
    if not work.fallbacks or mode == "allow":
        return
    shown = [f"{f.op} ({', '.join(f.origin[:2]) or 'unnamed'}): {f.reason}" for f in work.fallbacks[:8]]
    more = f" and {len(work.fallbacks) - 8} more" if len(work.fallbacks) > 8 else ""
    count = len(work.fallbacks)
    text = f"{count} node{'s' * (count != 1)} cannot run natively on {work.target.id}: {'; '.join(shown)}{more}"
    if mode == "error":
        raise FallbackError(f"{text}. Use --fallback=allow to run them in ONNX Runtime")
    warnings.warn(f"{text}. They run in ONNX Runtime", FallbackWarning, stacklevel=5)


def _write(work: Compilation, folder: Path, progress: Progress) -> Module:
    assert work.program is not None
    if work.target.codegen != "cpu":
        raise OpcelError(f"target {work.target.id} has no code generator: its programs run in the interpreter only")
    for i, region in enumerate(region_models(work)):
        (folder / f"region_{i}.onnx").write_bytes(region)
    names = ((), ()) if work.whole else (work.imported.input_names, work.imported.output_names)
    return build(work.program, work.target, folder, names, progress, work.imported.release)


def _prove(work: Compilation, model: Any, folder: Path, inputs: Any, bound: Bound, progress: Progress) -> Proof:
    progress("proving", 0, 0)
    # The runtime opens only a folder with a manifest; the final one needs the proof.
    write_json(folder / MANIFEST, facts.manifest(work, None, folder, Proof("unproved"), bound))
    if missing := _cannot_run_here(work.target):
        return Proof("unproved", reason=f"this CPU lacks {missing}; run `opcel run --prove MODEL` on one that has it")
    if inputs is None and work.planner is not None and not work.planner.samples:
        return Proof("unproved", reason="there are statistics of the data alone; give a sample with --inputs")
    names, outputs = work.imported.input_names, work.imported.output_names
    feeds, engine, want = _reference(model, work.graph, names, outputs, _sample(work) if inputs is None else inputs)
    pairs = _comparable(work.graph, outputs, want, work.maps)
    if not pairs:
        return Proof("unproved", reason="every output depends on random numbers")
    want = [value for _, value in pairs]
    with load(folder) as compiled:
        stamp = prove(lambda f: run_whole(compiled, f), pairs, feeds, engine, bound)
        work.accuracy = _accuracy(work, compiled)
    if stamp.status != "proved":
        where = f". {first_wrong_node(work, feeds, want, engine, bound)}" if len(pairs) == len(outputs) else ""
        advice = NEARER if work.planner is not None else ""
        raise ProofError(outside(stamp) + where + advice)
    return stamp


def _accuracy(work: Compilation, compiled: CompiledModel) -> dict[str, Any]:
    """How far a model that was quantized is from the float one, on the samples that its layers were measured on."""
    planner = work.planner
    if planner is None or not planner.references:
        return {}
    order = work.graph.output_names
    gots = []
    for feeds in planner.samples:
        given = {n: feeds[v.name] for n, v in zip(work.imported.input_names, work.graph.inputs, strict=True)}
        results = run_whole(compiled, given)
        gots.append({name: np.asarray(results[n]) for name, n in zip(order, work.imported.output_names, strict=True)})
    return accuracy(planner.references, gots)


def _sample(work: Compilation) -> dict[str, np.ndarray] | None:
    """A calibration sample of a model that was quantized: the plan holds for such data, not for random numbers."""
    if work.planner is None or not work.planner.samples:
        return None
    feeds = work.planner.samples[0]
    return {n: feeds[v.name] for n, v in zip(work.imported.input_names, work.graph.inputs, strict=True)}


def _check_memory(work: Compilation, module: Module) -> None:
    """Raises ProofError when the program's memory, where it is known, is more than the machine's."""
    assert work.program is not None
    sizes = [module.memory.arena, *(buffer_bytes(b) for b in (*work.program.inputs, *work.program.outputs))]
    need = module.weights.size + sum(s for s in sizes if isinstance(s, int))
    have = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if need > have:
        raise ProofError(
            f"the model needs {need / (1 << 30):.1f} GiB to run and this machine has {have / (1 << 30):.1f}, so it "
            "cannot be proved here; use --no-proof and prove the artifact on a larger machine"
        )


def _reference(
    model: Any, graph: Graph, names: Sequence[str], outputs: Sequence[str], inputs: Any
) -> tuple[dict[str, np.ndarray], str, list[np.ndarray]]:
    """(inputs, engine, outputs): on the given inputs, else on samples."""
    if inputs is None:
        return sampled_reference(model, graph, names, outputs)
    feeds = given_inputs(inputs, graph, names)
    return (feeds, *reference_outputs(model, graph, names, outputs, feeds))


def _comparable(
    graph: Graph, names: Sequence[str], want: Sequence[np.ndarray], maps: Mapping[str, Labels]
) -> list[tuple[str, np.ndarray]]:
    """The outputs that do not depend on random numbers, with the values of maps as tensors; an engine that runs our
    graph gives those already."""
    random, pairs = drawn(graph), list(zip(names, want, strict=True))
    return [
        (n, values_of_maps(v, maps[n]) if n in maps and v.dtype == object else v)
        for i, (n, v) in enumerate(pairs) if i not in random
    ]  # fmt: skip


def _cannot_run_here(target: Target) -> str:
    return ", ".join(missing_features(target))


def prove_artifact(
    artifact: str | os.PathLike[str], model: Any, inputs: str | os.PathLike[str] | Feeds | None = None
) -> Proof:
    """Prove an artifact on this machine against the ONNX model it was made from, and stamp it.

    Raises ProofError when it is outside its bound or was made from another model; the artifact is then unchanged.
    """
    verify(artifact)
    with load(artifact) as compiled:
        bound = manifest_bound(compiled.manifest)
        given = {n: v if isinstance(v, int) else (v[0], v[1]) for n, v in compiled.manifest.get("dims", {}).items()}
        imported = import_model(model, dims=given)
        if compiled.manifest.get("model_sha256") != imported.model_hash:
            raise ProofError(f"{artifact} was not compiled from this model: the hash of the model file differs")
        names, outputs = imported.input_names, imported.output_names
        graph = imported.graph
        feeds, engine, want = _reference(model, graph, names, outputs, inputs)
        pairs = _comparable(graph, outputs, want, compiled.manifest.get("maps", {}))
        stamp = prove(lambda f: run_whole(compiled, f), pairs, feeds, engine, bound)
        if stamp.status != "proved":
            raise ProofError(outside(stamp))
        folder = Path(artifact)
        told = {**compiled.report, "proof": stamp.as_dict()}
        manifest = stamped({**compiled.manifest, "proof": stamp.summary})
        update_json(folder / REPORT, told)
        update_json(folder / MANIFEST, manifest)
        write_page(folder / PAGE, page(told, manifest))
    return stamp
