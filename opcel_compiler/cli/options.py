"""The options that several commands have, and the parser that reads them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NoReturn

from opcel_compiler.cli.console import printable


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, like all other errors; an option's name is never guessed from a part."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"opcel: error: {printable(message)}; see `{self.prog} --help`\n")
        sys.exit(2)


def positive(text: str) -> int:
    """An integer of at least 1. Raises ArgumentTypeError, which argparse turns into a message."""
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def size(text: str) -> tuple[str, int]:
    """`name=value` with a size of at least 1."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    return name.strip(), positive(value.strip())


def dim(text: str) -> tuple[str, int | tuple[int, int | None]]:
    """`name=value`, or `name=least..largest`, where either end may be left out."""
    name, equals, value = text.partition("=")
    least, dots, largest = (part.strip() for part in value.partition(".."))
    if not dots:
        return size(text)
    if not equals or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=least..largest")
    return name.strip(), (positive(least) if least else 0, positive(largest) if largest else None)


def add_dims(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dim", type=dim, action="append", default=[], metavar="NAME=VALUE",
        help="fix a symbolic dimension (batch=1) or limit it (seq=1..128); may be repeated",
    )  # fmt: skip


def add_random_dims(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dim", type=size, action="append", default=[], metavar="NAME=VALUE",
        help="a size for random inputs (default: 1)",
    )  # fmt: skip


def add_limits(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=size, action="append", default=[], metavar="NAME=VALUE",
        help="what a model may take while it is read: nodes, seconds, rank, tensor-bytes; may be repeated",
    )  # fmt: skip


def share(text: str) -> float:
    """A percentage such as `95%`, or a fraction such as `0.95`: 0 to 1."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write 95% or 0.95")
    return value


def add_min_coverage(parser: argparse.ArgumentParser) -> None:
    help_ = "fail, with status 3, when less of the multiply-adds or of the modelled time is native, as in 95%%"
    parser.add_argument("--min-coverage", type=share, default=0.0, metavar="SHARE", help=help_)


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision", choices=("f32", "bf16", "int8", "int4"), default="f32",
        help="what products are computed in (default: f32); int8 needs --calibrate or --statistics; int4: the weights",
    )  # fmt: skip


def add_quantization(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("precision int8 (docs/quantization.md)")
    group.add_argument(
        "--calibrate", metavar="DATA",
        help="samples of what the model will see: an .npz file, a folder of them or of images, reader.py:function; or "
        "what `opcel calibrate` wrote",
    )  # fmt: skip
    add_data(group)
    group.add_argument(
        "--statistics", type=Path, metavar="FILE", help="what was seen of samples; written if there is no such file"
    )
    group.add_argument(
        "--threshold", choices=("auto", "mse", "minmax", "percentile", "entropy"), default="auto",
        help="how an activation's range follows from what was seen of it; auto (default): mse, or minmax where the "
        "outputs of a network of matrix products are measured to be nearer",
    )  # fmt: skip
    group.add_argument(
        "--activations", choices=("auto", "static", "dynamic"), default="auto",
        help="scales known when compiling, or for matrix products one a row, computed as it runs; auto (default): a "
        "row's own where the outputs are measured to be much nearer",
    )  # fmt: skip


def add_data(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--preprocess", type=Path, metavar="FILE",
        help="how the images become an input (default: preprocess.yaml beside them)",
    )  # fmt: skip
    parser.add_argument(
        "--on-bad-sample", choices=("error", "skip"), default="error", help="what to do with samples that are unfit"
    )
    parser.add_argument(
        "--allow-random-calibration", action="store_true",
        help="without samples take random numbers, whose ranges mean nothing, and stamp the artifact",
    )  # fmt: skip


def add_budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("precision int8 within a budget")
    group.add_argument(
        "--max-drop", type=share, metavar="DROP",
        help="give layers back to f32 until the metric, measured on the samples, is at most this (0.5%% or 0.005)",
    )  # fmt: skip
    group.add_argument(
        "--metric", default="kl", metavar="METRIC",
        help="kl, top1 (the share of changed first choices), sqnr (as relative L2), module.py:function (default: kl)",
    )  # fmt: skip
    group.add_argument(
        "--max-latency", type=limit, metavar="SECONDS", help="what a run may take, as far as the drop allows"
    )
    group.add_argument("--sensitivity", type=Path, metavar="FILE", help="keep what is measured of layers in this file")
    group.add_argument("--search-seconds", type=limit, metavar="S", help="end the search with the best so far")


def add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group", type=positive, default=128, metavar="K",
        help="with --precision int4: how many weights of a column share a scale (default: 128)",
    )  # fmt: skip
    parser.add_argument("--symmetric", action="store_true", help="with --precision int4: scales without zero points")
    parser.add_argument(
        "--clip", choices=("mse", "none"), default="mse",
        help="with --precision int4: the range of a group that loses least, or all of it (default: mse)",
    )  # fmt: skip


def interval(text: str) -> tuple[str, tuple[float, float]]:
    """`name=low..high`."""
    name, equals, value = text.partition("=")
    low, dots, high = value.partition("..")
    try:
        found = float(low), float(high)
    except ValueError:
        found = 1.0, 0.0
    if not (equals and dots and name.strip() and found[0] <= found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=low..high")
    return name.strip(), found


def recipe_of(args: argparse.Namespace) -> Any:
    """The recipe that the options say."""
    from opcel_compiler.ir.nbits import WeightScheme
    from opcel_compiler.quantization.recipe import Recipe

    weights = WeightScheme(args.group, args.symmetric, args.clip == "mse")
    return Recipe(
        args.calibrate, args.statistics, args.preprocess, args.on_bad_sample, args.allow_random_calibration,
        args.threshold, args.activations, weights=weights,
    )  # fmt: skip


def add_max_error(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--max-error", type=limit, metavar="L2",
        help="the relative L2 error the proof allows an output (default: 1e-4 for f32, 2e-2 for bf16, 0.1 for int8)",
    )  # fmt: skip


def limit(text: str) -> float:
    """A positive finite number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return value


def add_json(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON and nothing else")


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", "-q", action="store_true", help="print nothing but errors")


def add_threads(parser: argparse.ArgumentParser) -> None:
    help_ = "threads to run with (default: one per usable CPU)"
    parser.add_argument("--threads", type=positive, metavar="N", help=help_)


def add_inputs(parser: argparse._ActionsContainer, what: str) -> None:
    parser.add_argument("--inputs", type=Path, metavar="X.npz", help=what)


def add_target(parser: argparse.ArgumentParser, default: str | None, help_: str) -> None:
    parser.add_argument("--target", default=default, metavar="TARGET", help=help_)


def add_pipeline(parser: argparse.ArgumentParser, default: str) -> None:
    help_ = f"passes to run, as `fold-constants{{max-bytes=4096}},fuse` (default: {default})"
    parser.add_argument("--pipeline", metavar="TEXT", help=help_)
