"""`opcel opt`: runs passes on a graph or a Program and shows what they do."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opcel_compiler.cli import options
from opcel_compiler.cli.console import CommandError, UsageError, note, write_rows

if TYPE_CHECKING:
    import numpy as np

    from opcel_compiler.cli.source import Source, Subject
    from opcel_compiler.rewrite.context import PassContext
    from opcel_compiler.rewrite.instruments import Instrument, Printer
    from opcel_compiler.rewrite.pipeline import Pipeline

NAME = "opt"
SUMMARY = "run passes on a model, and print, check, time or dump what they do"
DESCRIPTION = """\
Runs a pipeline of passes on an ONNX model or on text (.txt, .opcel-ir) and prints the result, unless -o or --run says
otherwise. A pass that fails leaves a reproducer, a text that `opcel opt` runs again."""

REPRODUCER_ELEMENTS = 1 << 16
"""Constants up to so many elements are written out in a reproducer; larger ones only as a digest."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", metavar="INPUT", type=Path, nargs="?", help="an ONNX file, or text")
    options.add_pipeline(parser, "the target's own with --target, else none; of it the part for graphs without --lower")
    options.add_target(parser, None, "the target that the passes see (default: none; host with --lower)")
    options.add_precision(parser)
    parser.add_argument("--lower", action="store_true", help="lower the graph to a Program and run the passes on it")
    parser.add_argument("--list", action="store_true", help="list the passes with their options")
    show = parser.add_argument_group("what to show")
    show.add_argument("--print", action="store_true", help="print the result, also with -o or --run")
    show.add_argument("--print-after", metavar="PASS", action="append", default=[], help="print after a pass, or `all`")
    show.add_argument("--full", action="store_true", help="write all elements of constants, so that the text parses")
    show.add_argument("--origins", action="store_true", help="print the ONNX nodes that each node came from")
    show.add_argument("--time", action="store_true", help="print the seconds of each pass and rule")
    show.add_argument("--stats", action="store_true", help="print how often each rule of each pass was applied")
    show.add_argument("--dump", metavar="DIR", type=Path, help="write the text after each pass to numbered files")
    show.add_argument("--verify-each", action="store_true", help="check the graph after each pass")
    parser.add_argument("--output", "-o", type=Path, metavar="OUT", help="write the result: .onnx, or text")
    parser.add_argument("--run", type=Path, metavar="X.npz", help="interpret the result on these inputs")
    parser.add_argument("--reproducer", type=Path, metavar="FILE", help="where a failing pass leaves its reproducer")
    find = parser.add_argument_group("what to find out, instead of a result")
    find.add_argument(
        "--bisect", action="store_true",
        help="interpret against the input graph, and find the first pass and rewrite that spoil an output (status 6)",
    )  # fmt: skip
    options.add_inputs(find, "inputs for --bisect (default: random ones)")
    find.add_argument(
        "--explain", nargs=2, metavar=("RULE", "NODE"),
        help="how far a rule matched at a node, a %%value or an ONNX node's name, and which check failed",
    )  # fmt: skip


def execute(args: argparse.Namespace) -> int:
    if args.list:
        return _list()
    if args.input is None:
        raise UsageError("INPUT is missing: an ONNX file or text; or use --list")
    from opcel_compiler.cli.source import lowered, read_source
    from opcel_compiler.compilation import check_precision
    from opcel_compiler.ir.graph import Graph
    from opcel_compiler.ir.nbits import WeightScheme
    from opcel_compiler.rewrite.context import PassContext
    from opcel_compiler.rewrite.instruments import Counters, Timing
    from opcel_compiler.rewrite.pipeline import Pipeline
    from opcel_compiler.targets import load_target

    name = args.target or ("host" if args.lower else None)
    target = load_target(name) if name else None
    given = None if args.pipeline is None else Pipeline.parse(args.pipeline)
    _check_names(args.print_after)
    source = read_source(args.input)
    if given is None:
        given = source.pipeline or Pipeline.parse(target.pipeline if args.target and target else "")
        if not args.lower and isinstance(source.subject, Graph):
            given = given.at("graph")
    pipeline = given
    if target is not None:
        check_precision(target, args.precision)
    weights = WeightScheme() if args.precision == "int4" else None
    ctx = PassContext(target=target, precision=args.precision, weights=weights)
    timing, counters = Timing(), Counters()
    subject = source.subject
    if args.bisect:
        return _bisect(source, pipeline, ctx, args)
    if args.explain:
        return _explain(subject, pipeline, ctx, args)
    tools = (timing, counters)
    try:
        if isinstance(subject, Graph):
            if not args.lower and pipeline.at("program").passes:
                names = ", ".join(p.name for p in pipeline.at("program").passes)
                raise UsageError(f"{names} works on a Program; add --lower to make one of the graph")
            _run(subject, pipeline.at("graph"), ctx, tools, args)
            if args.lower:
                subject = lowered(subject)
                _run(subject, pipeline.at("program"), ctx, tools, args)
        else:
            _run(subject, pipeline, ctx, tools, args)
    finally:
        if args.stats:
            sys.stderr.write((str(counters) or "no pass changed anything") + "\n")
        if args.time:
            sys.stderr.write(f"{timing}\n")
    if args.output:
        _write(subject, source, args)
    if args.run:
        _interpret(subject, source, args.run, target)
    if args.print or not (args.output or args.run):
        sys.stdout.write(_printer(subject, args)(subject))
    return 0


# -- running -----------------------------------------------------------------------------------------------------------


def _check_names(names: list[str]) -> None:
    from opcel_compiler.rewrite.errors import PipelineError, suggest
    from opcel_compiler.rewrite.pipeline import discover

    known = discover()
    for name in names:
        if name != "all" and name not in known:
            raise PipelineError(f"--print-after: no pass is called {name!r}{suggest(name, known)}")


def _printer(subject: Subject, args: argparse.Namespace, full: int | None = None) -> Printer:
    """How the subject's text is printed; constants of more than `full` elements, or the usual few, by their digest."""
    from opcel_compiler.ir.graph import Graph
    from opcel_compiler.ir.text import MAX_ELEMENTS, print_graph

    elements = sys.maxsize if args.full else MAX_ELEMENTS if full is None else full
    if isinstance(subject, Graph):
        return partial(print_graph, max_elements=elements, origins=args.origins)
    from opcel_compiler.ir.program_text import print_program

    return partial(print_program, max_elements=elements)


def _run(
    subject: Subject, pipeline: Pipeline, ctx: PassContext, tools: Sequence[Instrument], args: argparse.Namespace
) -> None:
    from opcel_compiler.cli.source import check
    from opcel_compiler.cli.watch import LeaveReproducer, PrintAfter
    from opcel_compiler.errors import OpcelError
    from opcel_compiler.ir.clone import clone
    from opcel_compiler.ir.graph import Graph
    from opcel_compiler.rewrite.instruments import Dumps, Verify
    from opcel_compiler.rewrite.pipeline import PassManager

    printer = _printer(subject, args)
    graph = isinstance(subject, Graph)
    text = _printer(subject, args, REPRODUCER_ELEMENTS)
    # A copy of a graph shares the constants; of a Program only the text is kept.
    left = LeaveReproducer(_reproducer_path(args), clone if graph else text, text if graph else str)
    instruments: list[Instrument] = [*tools]
    if args.verify_each:
        instruments.append(Verify(check))
    if args.dump:
        instruments.append(Dumps(args.dump if graph else args.dump / "program", printer))
    if args.print_after:
        instruments.append(PrintAfter(frozenset(args.print_after), printer))
    check(subject)
    try:
        PassManager.run(subject, pipeline, ctx, [*instruments, left])
        check(subject)
    except OpcelError:
        if left.failure:
            note(left.failure)
        raise


def _reproducer_path(args: argparse.Namespace) -> Path:
    if args.reproducer is not None:
        return Path(args.reproducer)
    return Path(args.dump or ".") / f"{args.input.stem}.reproducer.txt"


def _alone(args: argparse.Namespace, option: str) -> None:
    if args.output or args.run or args.print or args.dump or (args.bisect and args.explain):
        raise UsageError(f"{option} gives no result; leave out -o, --run, --print, --dump, and ask one thing at a time")


def _bisect(source: Source, pipeline: Pipeline, ctx: PassContext, args: argparse.Namespace) -> int:
    from opcel_compiler.cli.investigate import bisect
    from opcel_compiler.proof import ProofError

    _alone(args, "--bisect")
    rows = list(bisect(source, pipeline, ctx, args.inputs, args.lower))
    ran = len(pipeline if args.lower else pipeline.at("graph"))
    write_rows(rows or [("all good", f"{ran} passes keep every output within its bound on these inputs")])
    return ProofError.exit_code if rows else 0


def _explain(subject: Subject, pipeline: Pipeline, ctx: PassContext, args: argparse.Namespace) -> int:
    from opcel_compiler.cli.investigate import explain
    from opcel_compiler.ir.graph import Graph

    _alone(args, "--explain")
    if not isinstance(subject, Graph):
        raise CommandError("rules work on graphs, and this is a Program")
    upper, (rule, node) = pipeline.at("graph"), args.explain
    write_rows(explain(subject, upper, rule, node, ctx.target))
    return 0


# -- results -----------------------------------------------------------------------------------------------------------


def _write(subject: Subject, source: Source, args: argparse.Namespace) -> None:
    from opcel_compiler.cli.files import replacing
    from opcel_compiler.ir.graph import Graph

    if args.output.suffix == ".onnx":
        if not isinstance(subject, Graph):
            raise CommandError("a Program has no ONNX form; write it as text, or leave out --lower")
        from opcel_compiler.frontend.exporter import export_model

        data = export_model(subject, names=source.imported).SerializeToString(deterministic=True)
    else:
        data = _printer(subject, args)(subject).encode("utf-8")
    with replacing(args.output) as file:
        file.write(data)


def _interpret(subject: Subject, source: Source, path: Path, target: Any) -> None:
    from opcel_compiler.cli.arrays import array_rows
    from opcel_compiler.cli.files import read_arrays, select
    from opcel_compiler.ir.graph import Graph

    names = source.input_names
    given = select(read_arrays(path), names, path)
    inside = [value.name for value in subject.inputs]
    feeds = {name: given[user] for name, user in zip(inside, names, strict=True)}
    outputs: dict[str, np.ndarray]
    if isinstance(subject, Graph):
        from opcel_compiler.ir.interpret import run

        outputs = run(subject, feeds)
    else:
        from opcel_compiler.ir.program_interpret import run_program

        outputs = run_program(subject, feeds, target)
        if isinstance(source.subject, Graph):
            outputs = dict(zip(source.subject.output_names, outputs.values(), strict=True))
    write_rows(array_rows(outputs))


# -- the list of passes ------------------------------------------------------------------------------------------------


def _list() -> int:
    from opcel_compiler.rewrite.pipeline import discover

    known = discover()
    width = max(map(len, known), default=0)
    for name, cls in known.items():
        print(f"{name:<{width}}  {cls.level:<7}  {cls.summary}")
        if options_ := str(cls()).removeprefix(name):
            print(f"{'':<{width}}  {'':<7}  {options_}")
    return 0
