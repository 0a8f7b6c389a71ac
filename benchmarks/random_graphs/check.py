"""Whether a graph means the same at every stage: what each stage gives for the same feeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from benchmarks.random_graphs.values import Sample
from opcel_compiler.compilation import place_for
from opcel_compiler.frontend.exporter import export_model
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.limits import ExportError
from opcel_compiler.ir import compare
from opcel_compiler.ir.clone import clone
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import InterpretError, run
from opcel_compiler.ir.parse import parse_graph
from opcel_compiler.ir.program import Program, Region
from opcel_compiler.ir.program_interpret import run_program
from opcel_compiler.ir.program_text import equal_programs, parse_program, print_program
from opcel_compiler.ir.program_verify import verify_program
from opcel_compiler.ir.text import print_graph
from opcel_compiler.ir.types import dtype_of
from opcel_compiler.ir.verify import verify
from opcel_compiler.rewrite.context import PassContext
from opcel_compiler.rewrite.instruments import Verify
from opcel_compiler.rewrite.pipeline import PassManager, Pipeline
from opcel_compiler.schedule.lower import lower
from opcel_compiler.targets import load_target

Arrays = Mapping[str, np.ndarray]
TARGETS = ("x86-64", "x86-64-avx2", "x86-64-avx512", "null")
_TOLERANCE = {64: 1e-9, 32: 2e-4, 16: 3e-2, 8: 0.3}


class WrongResult(AssertionError):
    """A stage gives another result than the graph before it."""


class Unbound(Exception):
    """A region wants a symbol that its inputs' shapes do not tell; the artifact passes it along."""


def compare_outputs(stage: str, want: Arrays, got: Arrays, scale: float = 1.0) -> None:
    """Raises WrongResult where `got` is not `want` within what `scale` times the rounding of the types allows."""
    for name, w in want.items():
        g = got[name]
        if g.shape != w.shape or g.dtype != w.dtype:
            raise WrongResult(f"{stage}: output {name} is {g.dtype}{g.shape}, not {w.dtype}{w.shape}")
        d = dtype_of(w)
        if not d.is_float:
            if not np.array_equal(g, w):
                raise WrongResult(f"{stage}: output {name} differs at {int((g != w).sum())} of {w.size} places")
            continue
        a, b = g.astype(np.float64), w.astype(np.float64)
        tolerance = scale * _TOLERANCE.get(d.bits, 1.0)
        largest = np.abs(b[np.isfinite(b)]).max(initial=0)
        with np.errstate(invalid="ignore"):
            bad = ~(np.abs(a - b) <= tolerance * (1 + np.maximum(np.abs(b), largest / 8)))
        bad &= ~(np.isnan(a) & np.isnan(b)) & (a != b)
        if bad.any():
            i = int(np.argmax(bad))
            raise WrongResult(
                f"{stage}: output {name} {w.dtype}{w.shape} differs at {int(bad.sum())} of {w.size} places, first at "
                f"{i}: {a.reshape(-1)[i]:.7g}, not {b.reshape(-1)[i]:.7g}"
            )


def through_text(graph: Graph) -> None:
    data: dict[str, Constant] = {}
    text = print_graph(graph, constants=data, origins=True)
    if reason := compare.equal(graph, parse_graph(text, data), names=True, origins=True):
        raise WrongResult(f"text: {reason}")


def through_onnx(graph: Graph, feeds: Arrays, want: Arrays) -> None:
    """Export, import, run. What ONNX cannot express is left out."""
    try:
        model = export_model(clone(graph))
    except ExportError:
        return
    read = import_model(model)
    if read.foreign:
        return
    verify(read.graph)
    given = dict(zip((v.name for v in read.graph.inputs), (feeds[n] for n in read.input_names), strict=True))
    got = run(read.graph, given)
    names = dict(zip(read.graph.output_names, read.output_names, strict=True))
    compare_outputs("onnx", want, {names[n]: a for n, a in got.items()})


def through_passes(graph: Graph, feeds: Arrays, want: Arrays, target: str) -> Graph:
    """A copy of the graph after the target's passes."""
    description = load_target(target)
    passes = Pipeline.parse(description.pipeline)
    after = clone(graph)
    PassManager.run(after, passes.at("graph"), PassContext(target=description), [Verify(verify)])
    compare_outputs(f"passes for {target}", want, run(after, feeds))
    return after


def through_program(graph: Graph, feeds: Arrays, want: Arrays, target: str) -> Program:
    """The Program of a graph that went through its passes, with the nodes that have no kernel in regions."""
    description = load_target(target)
    passes = Pipeline.parse(description.pipeline)
    place_for(graph, description)
    regions = [n.regions[0] for n in graph.nodes if n.op == "external"]
    program = lower(graph)

    def region(step: Region, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        inner = regions[step.index]
        try:
            return list(run(inner, {v.name: a for v, a in zip(inner.inputs, arrays, strict=True)}).values())
        except InterpretError as error:
            if "do not determine the symbols" in str(error):
                raise Unbound from error
            raise

    verify_program(program)
    compare_outputs("lowered", want, run_program(program, feeds, None, region))
    PassManager.run(program, passes.at("program"), PassContext(target=description), [Verify(verify_program)])
    compare_outputs(f"program passes for {target}", want, run_program(program, feeds, description, region))
    data: dict[str, Constant] = {}
    text = print_program(program, constants=data)
    nodes = {s.index: s.nodes for s in program.steps if isinstance(s, Region)}
    if reason := equal_programs(program, parse_program(text, data, nodes)):
        raise WrongResult(f"program text: {reason}")
    return program


def check(s: Sample, target: str, compiled: Callable[[Graph, Arrays], Arrays] | None = None) -> None:
    """Raises WrongResult, or what a stage raises, when the graph does not survive every stage."""
    verify(s.graph)
    want = run(s.graph, s.feeds)
    through_text(s.graph)
    through_onnx(s.graph, s.feeds, want)
    after = through_passes(s.graph, s.feeds, want, target)
    through_program(after, s.feeds, want, target)
    if compiled is not None:
        compare_outputs("code", want, compiled(s.graph, s.feeds))


def well_conditioned(s: Sample) -> bool:
    """Whether inputs that are off by a rounding of the graph's smallest float leave the outputs nearly as they are."""
    rng = np.random.default_rng(1)
    bits = min((v.tensor.dtype.bits for v in s.graph.values() if v.tensor.dtype.is_float), default=32)
    error = {64: 1e-14, 32: 1e-6, 16: 4e-3}.get(bits, 0.1)
    want = run(s.graph, s.feeds)
    moved = {}
    for name, a in s.feeds.items():
        float_ = dtype_of(a).is_float
        moved[name] = (
            np.asarray(a.astype(np.float64) * (1 + error * rng.uniform(-1, 1, a.shape)), a.dtype) if float_ else a
        )
    try:
        compare_outputs("moved", want, run(s.graph, moved), 0.05)
    except WrongResult:
        return False
    return True
