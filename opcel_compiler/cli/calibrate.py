"""`opcel calibrate`: what a model's values are over samples, for compiles in 8 bits."""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opcel_compiler.cli import options
from opcel_compiler.cli.console import Progress, UsageError, bytes_text, note, seconds_text, write_rows

if TYPE_CHECKING:
    from opcel_compiler.ir.statistics import Statistics

NAME = "calibrate"
SUMMARY = "observe a model's values over samples, for --precision int8"
DESCRIPTION = """\
Runs a model on samples, counts the values that a quantization rounds, and writes these statistics into a file, for
`opcel compile --precision int8 --calibrate FILE` with any scheme. DATA is an .npz file (arrays by input name, samples
along the first axis), a folder of .npz files (each one sample), a folder of images with a preprocess.yaml, or a Python
reader `module.py:function`. One sample is in memory at a time."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    parser.add_argument("--data", metavar="DATA", help="the samples")
    parser.add_argument("--output", "-o", type=Path, metavar="OUT", help="the file (default: ./<model>.stats.json)")
    options.add_target(parser, "host", "what to compile for; this machine must be able to run it")
    options.add_threads(parser)
    options.add_pipeline(parser, "the target's own")
    options.add_dims(parser)
    options.add_data(parser)
    parser.add_argument(
        "--input-range", type=options.interval, action="append", default=[], metavar="NAME=LOW..HIGH",
        help="what an input's elements lie between; samples outside are told of; may be repeated",
    )  # fmt: skip
    parser.add_argument("--samples", type=options.positive, metavar="N", help="use at most N samples")
    options.add_json(parser, "what was seen of each value")
    options.add_quiet(parser)


def execute(args: argparse.Namespace) -> int:
    from opcel_compiler.calibrate.data import Data
    from opcel_compiler.calibrate.errors import CalibrationWarning
    from opcel_compiler.calibration import collect
    from opcel_compiler.cli.files import replacing
    from opcel_compiler.ir.statistics import statistics_text

    if args.data is None and not args.allow_random_calibration:
        raise UsageError("--data is missing: samples of what the model will see, or --allow-random-calibration")
    data = Data(
        args.data, args.preprocess, dict(args.input_range), args.on_bad_sample, args.allow_random_calibration,
        args.samples,
    )  # fmt: skip
    output = args.output or Path(f"{args.model.stem}.stats.json")
    start = time.perf_counter()
    with warnings.catch_warnings(), Progress(not args.quiet, live_only=args.json) as progress:
        warnings.simplefilter("always", CalibrationWarning)
        warnings.showwarning = lambda message, *_: note(str(message))
        found = collect(
            args.model, data, args.target, dims=dict(args.dim), pipeline=args.pipeline, threads=args.threads,
            progress=progress,
        ).statistics  # fmt: skip
    with replacing(output) as file:
        file.write(statistics_text(found).encode())
    if args.json:
        print(json.dumps(_facts(found), indent=1))
    elif not args.quiet:
        write_rows(_rows(found))
        took = seconds_text(time.perf_counter() - start)
        write_rows([("statistics", f"{output}, {bytes_text(output.stat().st_size)}"), ("time", took)])
    return 0


def _facts(found: Statistics) -> dict[str, Any]:
    return {
        "samples": found.samples, "skipped": found.skipped, "random": found.random, "warnings": list(found.warnings),
        "model_sha256": found.model_hash, "data_sha256": found.data_hash,
        "values": [
            {"name": t.name, "minimum": t.minimum, "maximum": t.maximum, "elements": t.count,
             "dead_channels": list(t.dead_channels)}
            for t in found.tensors.values()
        ],
    }  # fmt: skip


def _rows(found: Statistics) -> Iterator[tuple[str, str]]:
    skipped = f", {found.skipped} left out" if found.skipped else ""
    kind = "random samples" if found.random else "samples"
    elements = sum(t.count for t in found.tensors.values())
    yield "calibrated", f"{found.samples} {kind}{skipped}, {len(found.tensors)} values, {elements:,} elements"
    dead = [(t.name, t.dead_channels) for t in found.tensors.values() if t.dead_channels]
    for name, channels in dead[:DEAD_SHOWN]:
        shown = ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")
        yield "dead", f"%{name}: {len(channels)} channels are zero in all samples: {shown}"
    if len(dead) > DEAD_SHOWN:
        yield "", f"and in {len(dead) - DEAD_SHOWN} more values"


DEAD_SHOWN = 5
