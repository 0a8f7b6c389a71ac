"""Weights of few bits found with data: the layers' inputs, seen while our own code runs the model on samples."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.calibrate.errors import CalibrationError
from opcel_compiler.calibrate.gptq import improved
from opcel_compiler.calibrate.readers import read_samples
from opcel_compiler.calibrate.samples import LEAST_SAMPLES, Journal, Sample, checked, inputs_of
from opcel_compiler.calibration import write_unproved
from opcel_compiler.compilation import Compilation, Progress, place_for
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.maps import without_maps
from opcel_compiler.frontend.proto_types import DimValue
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.dims import product
from opcel_compiler.ir.graph import Graph, Node
from opcel_compiler.ir.nbits import GroupedWeights
from opcel_compiler.passes.quantize_weights import is_head, why_float
from opcel_compiler.quantization.recipe import Recipe
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.instruments import Counters, Timing
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.runtime.model import CompiledModel
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target

AT_ONCE = 256 << 20
"""Bytes of the sums that are collected in one run over the samples."""
HELD_OUT = 8
"""Every such sample is held out."""
BEFORE = "quantize-weights"

Log = Callable[[str], None]
Sums = dict[str, tuple[np.ndarray, np.ndarray]]
"""XᵀX over the samples seen and over those held out, by the name of the value X."""


def with_weights(
    recipe: Recipe, model: Any, target: str = "host", pipeline: str | None = None,
    dims: Mapping[str, DimValue] | None = None, threads: int | None = None, progress: Progress | None = None,
    log: Log | None = None,
) -> Recipe:  # fmt: skip
    """The recipe with weights of 4 bits that GPTQ found on its data; without data the recipe as it is.

    Layers are taken in groups whose sums fit into 256 MiB; the samples are read once for each. `log` is told where
    another method than GPTQ is used, and why. Raises CalibrationError for data that do not fit the model.
    """
    if recipe.calibrate is None:
        return recipe
    report, tell = progress or (lambda what, done, of: None), log or (lambda text: None)
    work = _before_weights(model, target, pipeline, dims)
    layers = [n for n in work.graph.nodes if n.op == "matmul" and not why_float(n, recipe.weights) and not is_head(n)]
    found: dict[str, GroupedWeights] = {}
    groups = list(_groups(layers))
    for i, group in enumerate(groups):
        report("collecting", i, len(groups))
        sums = _collected(work, group, recipe, threads)
        for node in group:
            seen, held_out = sums[node.operand(0).name]
            data = node.operand(1).constant
            assert data is not None
            name = ", ".join(node.origin[:1]) or node.result.name
            made = improved(np.asarray(data.array), seen, held_out, 4, recipe.weights, tell, name)
            found[node.result.name] = made
            report("rounding weights", len(found), len(layers))
    return dataclasses.replace(recipe, weights=dataclasses.replace(recipe.weights, found=found))


def _before_weights(model: Any, target: str, pipeline: str | None, dims: Mapping[str, DimValue] | None) -> Compilation:
    """The model as it stands before the pass that quantizes weights."""
    description = load_target(target)
    passes = Pipeline.parse(pipeline or description.pipeline)
    imported = import_model(model, dims=dims)
    without_maps(imported.graph, imported.output_names)
    work = Compilation(imported, description, passes, PassContext(target=description), Timing(), Counters())
    PassManager.run(work.graph, Pipeline(passes.at("graph").passes[: _place(passes)]), work.context)
    return work


def _place(passes: Pipeline) -> int:
    names = [p.name for p in passes.at("graph").passes]
    return names.index(BEFORE) if BEFORE in names else len(names)


def _groups(layers: Sequence[Node]) -> Iterator[list[Node]]:
    """The layers in order, so many together that the sums of their inputs have AT_ONCE bytes, or one's."""
    group: list[Node] = []
    inputs: dict[str, int] = {}
    for node in layers:
        k = node.operand(1).tensor.static_shape[0]
        size = 2 * 8 * k * k
        if group and node.operand(0).name not in inputs and sum(inputs.values()) + size > AT_ONCE:
            yield group
            group, inputs = [], {}
        group.append(node)
        inputs[node.operand(0).name] = size
    if group:
        yield group


def _collected(work: Compilation, layers: Sequence[Node], recipe: Recipe, threads: int | None) -> Sums:
    names = list(dict.fromkeys(n.operand(0).name for n in layers))
    sizes = [next(n for n in layers if n.operand(0).name == v).operand(1).tensor.static_shape[0] for v in names]
    sums = {v: (np.zeros((k, k)), np.zeros((k, k))) for v, k in zip(names, sizes, strict=True)}
    inputs = inputs_of(work.graph, work.imported.input_names)
    journal = Journal()
    with tempfile.TemporaryDirectory(prefix="opcel-") as folder:
        outputs = _build(work, names, Path(folder))
        with CompiledModel(folder, threads=threads) as opened:
            last: Sample | None = None
            for sample in read_samples(recipe.calibrate, inputs, recipe.preprocess):
                last = checked(sample, inputs)
                made = opened.run(last.feeds)
                held_out = journal.total % HELD_OUT == HELD_OUT - 1
                for v, output in zip(names, outputs, strict=True):
                    if not np.isfinite(made[output]).all():
                        raise CalibrationError(
                            f"{last} makes elements of %{v} NaN or infinite, or too large to be squared; leave the "
                            "sample out", sample=last.index, tensor=v,
                        )  # fmt: skip
                    total = sums[v][held_out]
                    total += made[output]
                journal.add(last)
    if journal.total < LEAST_SAMPLES:
        raise CalibrationError(
            f"GPTQ needs {LEAST_SAMPLES} samples or more, and the calibration data hold {journal.total}; give more, or "
            "none to round weights without data"
        )
    return sums


def _build(work: Compilation, values: Sequence[str], folder: Path) -> list[str]:
    """Compile the model with XᵀX of the values X as further outputs; gives those outputs' names."""
    graph = clone(work.graph)
    known = {v.name: v for v in graph.values()}
    outputs = [f"opcel.products.{i}" for i in range(len(values))]
    for value, output in zip(values, outputs, strict=True):
        graph.add_output(_products(graph, known[value]), output)
    imported = dataclasses.replace(work.imported, graph=graph, output_names=(*work.imported.output_names, *outputs))
    context = PassContext(target=work.target)
    made = dataclasses.replace(work, imported=imported, context=context)
    passes = work.pipeline
    PassManager.run(graph, Pipeline(passes.at("graph").passes[_place(passes) + 1 :]), context)
    made.fallbacks = place_for(graph, work.target)
    made.regions = [n.regions[0] for n in graph.nodes if n.op == "external"]
    made.program = lower(graph)
    PassManager.run(made.program, passes.at("program"), context)
    write_unproved(made, folder, None)
    return outputs


def _products(graph: Graph, x: Any) -> Any:
    rows = graph.add("reshape", [x], {"shape": (product(x.tensor.dims[:-1]), x.tensor.dims[-1])}).result
    turned = graph.add("transpose", [rows], {"perm": (1, 0)}).result
    return graph.add("matmul", [turned, rows]).result
