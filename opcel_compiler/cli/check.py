"""`opcel check`: what a compile would do with a model, before it is compiled."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from opcel_compiler.cli import options
from opcel_compiler.cli.compile import coverage_text, quantized_rows
from opcel_compiler.cli.console import count_text, write_rows

NAME = "check"
SUMMARY = "say what of a model would run natively, fall back or be refused"
DESCRIPTION = """\
Says, in seconds and without compiling, what of an ONNX model would run natively on a target, and lists each node that
would run in ONNX Runtime or that makes a compile fail: its operator and opset, the reason, its share of the
multiply-adds and of the modelled time. Exit status 1 when a compile would fail, 3 below --min-coverage."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="the ONNX file")
    options.add_target(parser, "host", "what to check for: host, a name of `opcel info --targets`, or a description")
    options.add_pipeline(parser, "the target's own")
    options.add_dims(parser)
    options.add_precision(parser)
    options.add_limits(parser)
    options.add_min_coverage(parser)
    options.add_json(parser, "the findings")


def execute(args: argparse.Namespace) -> int:
    from opcel_compiler.check import check
    from opcel_compiler.driver import FallbackError
    from opcel_compiler.frontend.limits import LIMITS, Limits

    LIMITS.set(Limits.of(dict(args.limit)))
    found = check(args.model, args.target, pipeline=args.pipeline, dims=dict(args.dim), precision=args.precision)
    facts = found.as_dict()
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        write_rows(rows(args.model, facts))
    if found.share < args.min_coverage:
        what = "a compile would fail" if found.refused else f"only {found.share:.1%} is native"
        if not args.json:
            write_rows([("failed", f"{what}, and --min-coverage asks for {args.min_coverage:.1%}")])
        return FallbackError.exit_code
    return 1 if found.refused else 0


def rows(model: Path, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What `Check.as_dict` tells, for people."""
    coverage = facts["coverage"]
    yield "checked", f"{model} for {facts['target']}"
    yield "nodes", coverage_text(coverage)
    macs = coverage["native_macs"] + coverage["fallback_macs"]
    seconds = coverage["native_seconds_modelled"] + coverage["fallback_seconds_modelled"]
    for entry in facts["fallback"]:
        shares = [f"{entry['macs'] / macs:.1%} of the multiply-adds ({count_text(entry['macs'])})"] if macs else []
        shares += [f"{entry['seconds_modelled'] / seconds:.1%} of the modelled time"] if seconds else []
        yield "falls back", f"{_named(entry)}: {entry['reason']}"
        yield "", ", ".join(shares)
    for entry in facts["refused"]:
        yield "refused", f"{_named(entry)}: {entry['reason']}" if entry["op"] else entry["reason"]
    if "quantization" in facts:
        yield from quantized_rows(facts["quantization"]["imported"])
    if not facts["fallback"] and not facts["refused"]:
        yield "result", "everything runs natively"


def _named(entry: Mapping[str, Any]) -> str:
    origin = ", ".join(entry["origin"][:3]) or "unnamed"
    operators = (f"{name} of opset {opset}" for name, _, opset in (o.rpartition(":") for o in entry["operators"]))
    return f"{origin} ({', '.join(operators) or entry['op']})"
