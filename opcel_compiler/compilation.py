"""One compile's knowledge, stage by stage, and the stages before code generation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from onnx import ModelProto

from opcel_compiler.errors import OpcelError
from opcel_compiler.frontend.exporter import QDQ_OPSET, QUANTIZED, export_model
from opcel_compiler.frontend.importer import Imported, import_model
from opcel_compiler.frontend.limits import ExportError, ModelError
from opcel_compiler.frontend.maps import Labels, without_maps
from opcel_compiler.frontend.proto_types import DimValue
from opcel_compiler.ir.analysis import flops, made_symbols
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.dims import Dim, as_symbol, symbols_of
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.ops.control import BRANCHING
from opcel_compiler.ir.program import Program
from opcel_compiler.ir.quantization import recurrent_layers
from opcel_compiler.ir.types import TensorType
from opcel_compiler.quantization.planner import Planner
from opcel_compiler.quantization.recipe import Recipe
from opcel_compiler.report.sketch import Sketch, graph_sketch
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.driver import optimizable
from opcel_compiler.rewrite.instruments import Counters, Instrument, Timing
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.rewrite.quantized_layers import QuantizedLayer, quantized_layers
from opcel_compiler.rewrite.report import Report
from opcel_compiler.schedule.carry import stuck_boundary, stuck_in, stuck_node
from opcel_compiler.schedule.coverage import Coverage, Work, native_work, node_work
from opcel_compiler.schedule.lower import LoweringError, lower
from opcel_compiler.schedule.placement import Fallback, label, place
from opcel_compiler.schedule.states import StateSpec, append_in_place
from opcel_compiler.targets import TargetError, list_targets, load_target
from opcel_compiler.targets.constraints import constraints_of, violations
from opcel_compiler.targets.cpu.constraints import cpu_constraints
from opcel_compiler.targets.schema import Target

Progress = Callable[[str, int, int], None]
"""Called with (what, done, of); `of` is 0 where the extent is not known."""


PRECISIONS = ("f32", "bf16", "int8", "int4")
"""What products can be computed in. All other arithmetic is in f32, and so are sums, but for those of int8, which are
exact; int4 is weights of 4 bits times rows that are rounded to 8."""
KERNELS_BEGIN = "fit-dtypes"
"""The first pass that sees to kernels: the graph before it is the model, quantized and simplified."""
PLANNED = frozenset({"equalize", "quantize"})
"""The passes that carry out a plan of quantization, which is made of the graph that stands before the first of them."""


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
    maps: dict[str, Labels] = dataclasses.field(default_factory=dict)
    """The keys of the maps that an output is to the user, whose values the graph gives as a tensor."""
    whole: str = ""
    """Why the whole model runs in another engine; empty when it does not."""
    program: Program | None = None
    coverage: Coverage = dataclasses.field(default_factory=Coverage)
    imported_nodes: int = 0
    parameters: int = 0
    native_flops: Dim = 0
    fallback_flops: Dim = 0
    dims: dict[str, DimValue] = dataclasses.field(default_factory=dict)
    sketch: Sketch = dataclasses.field(default_factory=dict)
    """The graph as it was imported."""

    quantized: bool = False
    """Whether the model rounds numbers to a grid."""
    quantized_layers: list[QuantizedLayer] = dataclasses.field(default_factory=list)
    """The products of the model, as it was imported, that read quantized numbers."""
    planner: Planner | None = None
    """What planned the quantization, for precision int8."""
    accuracy: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How far the artifact is from the float model (`quantization.metrics.accuracy`)."""
    qdq: ModelProto | None = None
    """The model as it is quantized, in ONNX, where that was asked for."""
    floats_in_qdq: list[str] = dataclasses.field(default_factory=list)
    """The layers of 8 bits, by name, that are float in it: recurrent ones, for which QDQ has no form."""

    @property
    def graph(self) -> Graph:
        return self.imported.graph


def prepare(
    model: Any,
    target: str = "host",
    *,
    pipeline: str | None = None,
    progress: Progress | None = None,
    instruments: tuple[Instrument, ...] = (),
    placed: Callable[[Compilation], None] | None = None,
    dims: Mapping[str, DimValue] | None = None,
    precision: str = "f32",
    tuned: Mapping[str, Any] | None = None,
    small: bool = False,
    state: Sequence[str] = (),
    recipe: Recipe | None = None,
    export_qdq: bool = False,
) -> Compilation:
    """Import, run the passes, place and lower: everything before code generation.

    `dims` gives symbolic dimensions a size, or the (least, largest) size they may have, by name. `placed` is called
    once it is known which nodes run where, and may refuse that by raising. `precision` is "f32", or "bf16" or
    "int8" to compute products in that. Raises TargetError for a target that cannot. `tuned` are measured choices of
    kernels by their texts (`schedule.choice.variants.Override`). `small` keeps weights at their size.
    `state` are the caches that grow in place (`schedule.states.StateSpec.parse`). Raises StateError for one that can't.
    `recipe` says how precision "int8" is come to. Raises QuantizationError where it cannot be. `export_qdq` also gives
    the quantized graph as an ONNX model; raises ExportError where it is not quantized or has no such form.
    """
    report = progress or (lambda what, done, of: None)
    description = load_target(target)
    check_precision(description, precision)
    specs = [StateSpec.parse(text) for text in state]
    passes = Pipeline.parse(pipeline or description.pipeline)
    report("importing", 0, 0)
    imported = import_model(model, dims=dims)
    maps = without_maps(imported.graph, imported.output_names)
    context = PassContext(target=description, precision=precision, tuned=tuned or {}, small=small)
    work = Compilation(imported, description, passes, context, Timing(), Counters())
    work.dims, work.maps = dict(dims or {}), maps
    work.sketch = graph_sketch(imported.graph, imported.input_names)
    work.imported_nodes = len(work.graph)
    work.quantized_layers = quantized_layers(work.graph)
    work.quantized = any(n.op == "quantize" or n.attrs.get("rounded") for n in optimizable(work.graph))
    constants = [v.constant for v in work.graph.values()]
    work.parameters = sum(int(data.array.size) for data in constants if data is not None and data.dtype.is_float)
    report("optimizing", 0, 0)
    tools = (work.timing, work.counters, *instruments)
    _optimize(work, recipe or Recipe(), tools, report, export_qdq)
    if description.codegen == "cpu" and not specs:
        work.whole = stuck_boundary(work.graph) or ""
    work.fallbacks = place_for(work.graph, description)
    work.coverage = Coverage(native_work(work.graph, description), sum((f.work for f in work.fallbacks), Work()))
    if work.whole:
        leave_whole(work)
    if placed is not None:
        placed(work)
    if work.whole:
        return work
    work.regions = [n.regions[0] for n in work.graph.nodes if n.op == "external"]
    for node in work.graph.nodes:
        if node.op == "external":
            work.fallback_flops = work.fallback_flops + flops(node)
        else:
            work.native_flops = work.native_flops + flops(node)
    try:
        if any(node.op == "read_dims" for node in work.graph.nodes):
            for region in work.regions:
                export_model(region)  # a region cannot be given a size that no tensor of it carries
        work.program = lower(work.graph)
    except (LoweringError, ExportError) as error:
        if description.codegen != "cpu" or specs:
            raise
        work.whole = str(error)
        leave_whole(work)
        if placed is not None:
            placed(work)
        return work
    append_in_place(work.program, specs, (imported.input_names, imported.output_names))
    PassManager.run(work.program, passes.at("program"), work.context, tools)
    return work


def _optimize(
    work: Compilation, recipe: Recipe, tools: tuple[Instrument, ...], report: Progress, export_qdq: bool
) -> None:
    """Run the graph passes; for precision int8 plan the quantization before the first pass that carries it out."""
    passes = work.pipeline.at("graph").passes

    def run(first: int, last: int) -> None:
        PassManager.run(work.graph, Pipeline(passes[first:last]), work.context, tools)

    at = 0
    if work.context.precision == "int8":
        places = [i for i, p in enumerate(passes) if p.name in PLANNED]
        if not places or passes[places[-1]].name != "quantize":
            raise OpcelError("the pipeline has no pass quantize, so nothing becomes int8")
        recipe.check()
        run(0, places[0])
        report("calibrating", 0, 0)
        names = work.imported.input_names
        planner = Planner(recipe, work.graph, names, work.target, work.imported.model_hash)
        work.context.quantization = planner.before_equalize()
        run(places[0], places[-1])
        report("planning", 0, 0)
        work.context.quantization = planner.before_quantize()
        work.planner, work.quantized, at = planner, True, places[-1]
    if work.context.precision == "int4":
        work.context.weights, work.quantized = recipe.weights, True
        if not any(p.name == "quantize-weights" for p in passes):
            raise OpcelError("the pipeline has no pass quantize-weights, so nothing becomes int4")
    if export_qdq:
        last = next((i for i, p in enumerate(passes) if p.name == KERNELS_BEGIN), len(passes))
        plan = work.context.quantization
        work.floats_in_qdq = recurrent_layers(work.graph, plan) if plan is not None else []
        if plan is not None and work.floats_in_qdq:
            graph = clone(work.graph)
            context = dataclasses.replace(work.context, quantization=plan.without(work.floats_in_qdq), report=Report())
            PassManager.run(graph, Pipeline(passes[at:last]), context)
        else:
            run(at, last)
            graph, at = work.graph, last
        work.qdq = _as_qdq(graph, work.imported, bool(recipe.kept or work.floats_in_qdq))
    run(at, len(passes))


def _as_qdq(graph: Graph, imported: Imported, reverted: bool) -> ModelProto:
    """The graph in ONNX; a float one is an error, unless there are layers that were `reverted`."""
    if not reverted and not any(n.op in QUANTIZED for n in optimizable(graph)):
        raise ExportError("nothing in the model is quantized, so there is no QDQ form of it; see --precision int8")
    return export_model(graph, opset=QDQ_OPSET, names=imported)


def check_precision(target: Target, precision: str) -> None:
    """Raises OpcelError for an unknown precision, TargetError for one that the target cannot compute in."""
    if precision not in PRECISIONS:
        raise OpcelError(f"precision is one of {', '.join(PRECISIONS)}, not {precision!r}")
    if precision in ("f32", "int8", "int4") or (target.codegen == "cpu" and target.peak(precision)):
        return
    able = [t.id for t in map(load_target, list_targets()) if t.codegen == "cpu" and t.peak(precision)]
    raise TargetError(
        f"target {target.id} has no instructions for products in {precision}; compile with --precision f32, or for "
        f"{' or '.join(able)}"
    )


def check_bound(graph: Graph) -> None:
    """Raises ModelError for a size that neither an input's shape nor a `read_dims` tells, and that memory is therefore
    not planned for."""

    def shape(value: Value) -> tuple[Dim, ...]:
        return (value.type.shape if isinstance(value.type, TensorType) else None) or ()

    read = {s.name for v in graph.inputs for d in shape(v) if (s := as_symbol(d)) is not None}
    read.update(s.name for node in graph.walk() for s in made_symbols(node))
    for node in graph.nodes:
        for value in node.results:
            for symbol in (s for d in shape(value) for s in symbols_of(d)):
                if symbol.name not in read:
                    where = ", ".join(node.origin[:3]) or f"node {value.name!r}"
                    raise ModelError(
                        f"{where}: the size {symbol.name} of its result {value.name!r} {value.type} is known only when "
                        f"the model runs, and no input's shape tells it; fix it with --dim {symbol.name}=VALUE "
                        "(`dims` in Python), or give the dimension a value in the model"
                    )


def place_for(graph: Graph, target: Target) -> list[Fallback]:
    """Wrap the nodes that `target` cannot run into `external` nodes; gives each such node and why."""
    exists, *limits = cpu_constraints()
    constraints = (exists, *constraints_of(target), *limits)  # limits on shapes take it that there is a known rank

    def reason(node: Node) -> str | None:
        if node.op == "constant":
            return None
        if node.op in BRANCHING:
            inside = (n for region in node.regions for n in region.walk() if n.op not in BRANCHING)
            found = ((n, why) for n in inside if (why := reason(n)) is not None)
            return next((f"inside it, {', '.join(n.origin[:2]) or n.op}: {why}" for n, why in found), None)
        inner = list(node.regions[0].nodes) if node.op == "fused" else [node]
        broken = (why for n in inner if n.op != "constant" for c in constraints for why in violations(n, (c,)))
        return next(broken, None) or stuck_node(node, stuck)

    stuck = stuck_in(graph)
    return place(graph, reason, lambda node: node_work(node, target), lambda value: stuck(value.type) is not None)


def leave_whole(work: Compilation) -> None:
    """Let the whole model run in another engine: `work.whole` says why. The program is empty then."""
    nodes = [n for n in work.graph.nodes if n.op not in ("constant", "external")]
    why = f"the whole model runs in ONNX Runtime, as {work.whole}"
    work.fallbacks += [Fallback(label(n), n.origin, why, node_work(n, work.target)) for n in nodes]
    if not work.fallbacks:
        work.fallbacks = [Fallback("model", (), why)]
    work.coverage = Coverage(Work(), sum((f.work for f in work.fallbacks), Work()))
    work.fallback_flops = work.fallback_flops + sum((flops(n) for n in work.graph.nodes), 0)
    work.regions = []
    work.program = lower(Graph(work.graph.name))
