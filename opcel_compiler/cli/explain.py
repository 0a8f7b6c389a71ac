"""`opcel explain`: why an artifact is as it is."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opcel_compiler.cli import options
from opcel_compiler.cli.compile import quantized_rows
from opcel_compiler.cli.console import CommandError, count_text, seconds_text, write_rows

NAME = "explain"
SUMMARY = "say what each layer of a quantized artifact became, and why"
BLOCKS, BLOCK_S = 7, 0.1
"""A time is the median over so many blocks, each of about so many seconds."""
DESCRIPTION = """\
Lists the layers of an artifact that was compiled with --precision int8: how each is computed, the range that it reads,
its own signal-to-noise ratio and relative entropy on calibration samples, what it takes, and why it stayed float. Of a
model that came quantized: which of its layers are computed in floats, and why.
Times are by the target's rates; with --measure they are this machine's, with --float-artifact also those of f32."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="the folder that `opcel compile` made")
    parser.add_argument("--quant", action="store_true", required=True, help="the quantization, layer by layer")
    parser.add_argument("--measure", action="store_true", help="run the artifact and measure its kernels")
    parser.add_argument(
        "--float-artifact", type=Path, metavar="ARTIFACT", help="the same model compiled in f32, measured too"
    )
    options.add_inputs(parser, "what to measure with (default: random arrays)")
    options.add_random_dims(parser)
    options.add_threads(parser)
    options.add_json(parser, "the layers")


def execute(args: argparse.Namespace) -> int:
    from opcel_compiler.runtime.decoding import load

    with load(args.artifact, threads=args.threads) as model:
        found = model.report.get("quantization")
        if found is None:
            raise CommandError(f"{args.artifact} was not compiled with --precision int8, so nothing was quantized")
        if "rows" in found and (args.measure or args.float_artifact):
            origins = [row["origin"] for row in found["rows"]]
            for row, seconds in zip(found["rows"], _layer_seconds(args.artifact, origins, args), strict=True):
                row["seconds"] = seconds
            if args.float_artifact:
                before = _layer_seconds(args.float_artifact, origins, args)
                for row, seconds in zip(found["rows"], before, strict=True):
                    row["seconds_float"] = seconds
    if args.json:
        print(json.dumps(found, indent=1))
    elif "rows" in found:
        write_rows(rows(found))
    else:
        write_rows(quantized_rows(found["imported"]))
    return 0


def rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    share = f"{found['macs_share']:.1%} of the multiply-adds"
    yield "quantized", f"{found['quantized']} of {found['layers']} layers, {share}"
    if got := found["accuracy"]:
        yield (
            "accuracy",
            (
                f"{got['sqnr_db']:.1f} dB of signal to noise on {got['samples']} samples; relative L2 "
                f"{got['relative_l2']:.2g}, KL {got['kl']:.2g}, top-1 agreement {got['top1_agreement']:.1%}"
            ),
        )
    for text in found["warnings"]:
        yield "warning", text
    yield "layers", f"{'SQNR':>6} {'KL':>8} {'f32':>9} {'now':>9} {'MACs':>6}  {'kernel':<20} range read; nodes"
    for row in found["rows"]:
        loss = f"{row['sqnr_db']:>6.1f} {row['kl']:>8.1g}" if row.get("sqnr_db") is not None else f"{'':>15}"
        before = row.get("seconds_float") or row["seconds_float_modelled"]
        now = row.get("seconds") or row["seconds_modelled"]
        grid = f"{row['low']:.4g} to {row['high']:.4g}; " if "low" in row else f"{row['scheme']}; "
        yield (
            "",
            (
                f"{loss} {seconds_text(before):>9} {seconds_text(now):>9} {count_text(row['macs']):>6}  "
                f"{row['kernel'] + (' s32' if row['integers'] else ' f32'):<20} {grid}{_nodes(row['origin'])}"
            ),
        )
        if row["reason"]:
            yield "", f"{'':>15} stays float: {row['reason']}"


def _nodes(origin: Sequence[str]) -> str:
    return ", ".join(origin[:2]) or "unnamed"


def _layer_seconds(artifact: Path, origins: Sequence[Sequence[str]], args: argparse.Namespace) -> list[float | None]:
    """What the kernels of layers take, by the layers' nodes; None where there is no kernel."""
    from opcel_compiler.cli.files import read_arrays
    from opcel_compiler.cli.run import random_inputs
    from opcel_compiler.report.layers import layer_seconds
    from opcel_compiler.runtime.decoding import load

    with load(artifact, threads=args.threads) as model:
        feeds = read_arrays(args.inputs) if args.inputs else random_inputs(model.manifest["inputs"], dict(args.dim))
        return layer_seconds(model, feeds, origins, BLOCKS, BLOCK_S)
