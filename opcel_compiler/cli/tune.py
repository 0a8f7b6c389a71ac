"""`opcel tune`: measures kernels' candidates and writes the best into a lock file."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opcel_compiler.cli import options
from opcel_compiler.cli.console import UsageError, note, seconds_text, write_rows

if TYPE_CHECKING:
    from opcel_compiler.search.lock import Entry
    from opcel_compiler.search.tune import Found

NAME = "tune"
SUMMARY = "measure other choices of a model's kernels, and keep the best in a lock file"
DESCRIPTION = """\
Compiles each kernel of a model with other tiles and task sizes than the compiler's own choice, measures them against it
on this machine, and writes those that are faster into a text file to review, for `opcel compile --tune FILE`. Kernels
that take the most time come first. An existing file keeps its other entries. Sizes must be known: --dim or --inputs
fix symbolic ones."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    options.add_target(parser, "host", "what to compile for; this machine must be able to run it")
    options.add_threads(parser)
    options.add_precision(parser)
    options.add_dims(parser)
    options.add_inputs(parser, "inputs whose shapes fix the symbolic sizes")
    parser.add_argument(
        "--seconds", type=options.positive, metavar="N", help="begin no kernel after so long (default: measure all)"
    )
    parser.add_argument("--output", "-o", type=Path, metavar="OUT", help="the lock file (default: ./<model>.tune)")
    options.add_json(parser, "what was measured")
    options.add_quiet(parser)


def execute(args: argparse.Namespace) -> int:
    from opcel_compiler.compilation import prepare
    from opcel_compiler.runtime._runtime import usable_cpus
    from opcel_compiler.search.lock import machine_text, merged, read_lock, sources_digest, write_lock
    from opcel_compiler.search.tune import tune
    from opcel_compiler.targets.host import missing_features

    output = args.output or Path(f"{args.model.stem}.tune")
    old = read_lock(output) if output.exists() else []
    work = prepare(args.model, args.target, dims={**_sizes(args), **dict(args.dim)}, precision=args.precision)
    if work.target.codegen != "cpu" or missing_features(work.target):
        raise UsageError(f"this machine cannot run {work.target.id}, so nothing can be measured")
    assert work.program is not None
    threads = args.threads or usable_cpus()
    machine, sources = machine_text(work.target, threads), sources_digest()
    entries: list[Entry] = []
    every: list[Found] = []
    for found in tune(work.program, work.target, threads, args.seconds):
        entry = found.entry(machine, sources)
        entries += [entry] if entry is not None else []
        every.append(found)
        if not (args.quiet or args.json):
            better = f"{found.gain:.2f} times faster: {found.family} {found.params}"
            gain = better if entry is not None else "the choice is the best"
            names = ", ".join(found.kernel.origin[:2])
            write_rows([(seconds_text(found.chosen_s), f"{found.kernel.family}, {names}: {gain}")])
    write_lock(output, merged(old, entries, [found.text for found in every], machine))
    if args.json:
        print(json.dumps({"machine": machine, "kernels": [_facts(found) for found in every]}, indent=1))
    elif not args.quiet:
        if not every:
            note("no kernel has other candidates")
        before, after = sum(f.count * f.chosen_s for f in every), sum(f.count * f.best_s for f in every)
        write_rows([
            ("measured", f"{len(every)} kernels on {machine}"),
            ("sum", f"{seconds_text(before)} as chosen, {seconds_text(after)} with the best of each"),
            ("written", f"{output}, {len(entries)} choices of other parameters"),
        ])  # fmt: skip
    return 0


def _facts(found: Found) -> dict[str, Any]:
    return {
        "kernel": found.text, "family": found.kernel.family, "origin": list(found.kernel.origin), "count": found.count,
        "best_family": found.family, "candidates": found.candidates, "chosen_s": found.chosen_s, "best_s": found.best_s,
        "params": {k: list(v) if isinstance(v, tuple) else v for k, v in found.params.items()},
    }  # fmt: skip


def _sizes(args: argparse.Namespace) -> dict[str, int]:
    """What the given inputs' shapes make of the model's symbols."""
    from opcel_compiler.cli.files import read_arrays
    from opcel_compiler.frontend.importer import import_model
    from opcel_compiler.ir.dims import as_symbol

    if not args.inputs:
        return {}
    arrays, imported, out = read_arrays(args.inputs), import_model(args.model), {}
    for name, value in zip(imported.input_names, imported.graph.inputs, strict=True):
        for dim, size in zip(value.tensor.dims, arrays[name].shape if name in arrays else (), strict=False):
            symbol = as_symbol(dim)
            if symbol is not None:
                out[symbol.name] = int(size)
    return out
