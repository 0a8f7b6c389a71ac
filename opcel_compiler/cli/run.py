"""`opcel run`: runs an artifact and times it."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opcel_compiler.cli import options
from opcel_compiler.cli.console import CommandError, UsageError, seconds_text, write_rows

if TYPE_CHECKING:
    import numpy as np

    from opcel_compiler.runtime import CompiledModel

NAME = "run"
SUMMARY = "run an artifact, and time it"
DESCRIPTION = """\
Runs an artifact on given inputs, or on seeded random ones: normal floats, integers 0 and 1. Prints each output, and
with --repeat the latency."""

SEED = 0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path, help="the folder that `opcel compile` made")
    options.add_inputs(parser, "the inputs by name (default: random ones)")
    parser.add_argument("--output", "-o", type=Path, metavar="Y.npz", help="save the outputs by name")
    options.add_threads(parser)
    parser.add_argument("--repeat", type=options.positive, metavar="N", help="time N runs after the first")
    options.add_random_dims(parser)
    parser.add_argument(
        "--weights", choices=("map", "resident"), default="map",
        help="map the weights from disk, or copy them into huge pages (default: map)",
    )  # fmt: skip
    parser.add_argument(
        "--prove", type=Path, metavar="MODEL",
        help="prove the artifact on this machine against the ONNX model it was made from, and stamp it",
    )  # fmt: skip
    options.add_json(parser, "the outputs' facts and the latency")
    options.add_quiet(parser)


def execute(args: argparse.Namespace) -> int:
    from opcel_compiler import runtime
    from opcel_compiler.cli.arrays import array_rows, describe
    from opcel_compiler.cli.files import read_arrays, select, write_arrays

    if args.inputs and args.dim:
        raise UsageError("--dim gives sizes to random inputs; with --inputs the arrays have their own")
    if args.artifact.is_file():
        raise CommandError(f"{args.artifact} is a file, not a compiled model; compile it with `opcel compile` first")
    manifest = runtime.read_manifest(args.artifact)
    try:
        names = tuple(str(value["name"]) for value in manifest["inputs"])
        feeds = random_inputs(manifest["inputs"], dict(args.dim)) if not args.inputs else None
    except (KeyError, TypeError, ValueError) as error:
        raise CommandError(f"{args.artifact} is damaged: its manifest's inputs are not whole ({error})") from error
    if feeds is None:
        feeds = select(read_arrays(args.inputs), names, args.inputs)
    proof = None
    if args.prove:
        from opcel_compiler.driver import prove_artifact

        proof = prove_artifact(args.artifact, args.prove, feeds if args.inputs else None).as_dict()
    with runtime.load(args.artifact, threads=args.threads, weights=args.weights) as model:
        outputs = model.run(feeds)
        latency = measure(model, feeds, args.repeat) if args.repeat else None
        threads = model.threads
    if args.output:
        write_arrays(args.output, outputs)
    if args.json:
        facts: dict[str, Any] = {"outputs": [describe(name, array) for name, array in outputs.items()]}
        if latency:
            facts["latency"] = {**latency, "runs": args.repeat, "threads": threads, "weights": args.weights}
        if proof:
            facts["proof"] = proof
        print(json.dumps(facts, indent=1, allow_nan=False))
    elif not args.quiet:
        if proof:
            write_rows([("proof", f"{proof['status']} against {proof['reference']}")])
        write_rows(array_rows(outputs))
        if latency:
            times = ", ".join(f"{key.removesuffix('_s')} {seconds_text(value)}" for key, value in latency.items())
            how = f"{args.repeat} runs, {threads} thread{'s' * (threads != 1)}, weights: {args.weights}"
            write_rows([("latency", f"{times} ({how})")])
        if args.output:
            write_rows([("saved", str(args.output))])
    return 0


def random_inputs(values: list[Mapping[str, Any]], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Seeded random inputs for a manifest's inputs; `sizes` names symbols, the others are 1.

    Raises CommandError for a name that is no symbol of the inputs.
    """
    from opcel_compiler.ir.dims import symbols_of
    from opcel_compiler.ir.graph import Graph
    from opcel_compiler.ir.parse_dims import parse_dim
    from opcel_compiler.ir.types import DTYPES, TensorType
    from opcel_compiler.proof import sample_inputs

    graph = Graph()
    known = set()
    for value in values:
        if value["shape"] is None:
            raise CommandError(
                f"the input {value['name']} is {value['dtype']}, of which there are no random ones; run it from Python"
            )
        dims = tuple(parse_dim(d) if isinstance(d, str) else d for d in value["shape"])
        known |= {s.name for d in dims for s in symbols_of(d)}
        graph.add_input(value["name"], TensorType(DTYPES[value["dtype"]], dims))
    for name in sizes:
        if name not in known:
            raise CommandError(f"no input has a dimension {name!r}; there are {', '.join(sorted(known)) or 'none'}")
    names = [value["name"] for value in values]
    return sample_inputs(graph, names, SEED, {name: sizes.get(name, 1) for name in known})


def measure(model: CompiledModel, feeds: dict[str, np.ndarray], repeat: int) -> dict[str, float]:
    """Seconds of `repeat` runs: the least, the median and the 95th percentile."""
    import numpy as np

    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        model.run(feeds)
        times.append(time.perf_counter() - start)
    p50, p95 = np.percentile(times, [50, 95])
    return {"min_s": min(times), "p50_s": float(p50), "p95_s": float(p95)}
