"""One artifact for many sizes: python -m benchmarks.dynamic MODEL.onnx [--sizes NAME=LOW..HIGH ...] [--json FILE]

The model is compiled once with its symbolic sizes. Then, with the same threads for all:

  right        its results at the corners and at random sizes beside ONNX Runtime with its optimizations off
  specialized  at the --fixed sizes, its time over that of an artifact compiled for those sizes alone
  changing     beside ONNX Runtime and OpenVINO with sizes that no call before had; blocks of calls by turns, each
               engine in a process of its own; ratios are a peer's time over ours, of blocks (median) and of all calls

Exit status 1 when a result is outside the proof's bound.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import opcel_compiler
from benchmarks.networks import machine_facts
from opcel_compiler.bench.engines import OPCEL, OPCEL_RESIDENT, PEERS
from opcel_compiler.bench.measure import ratios_by_round
from opcel_compiler.bench.turns import Worker
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.proof import Bound, Feeds, compare, sample_inputs
from opcel_compiler.references import reference_outputs

Sizes = Mapping[str, int]
Row = dict[str, Any]
BLOCK = 20
"""Calls of a turn with changing sizes."""


def corners(spans: Mapping[str, tuple[int, int]], count: int, seed: int = 0) -> list[Sizes]:
    """Every combination of least and largest sizes, and `count` in between, evenly on a logarithmic scale."""
    ends = [dict(zip(spans, values, strict=True)) for values in itertools.product(*spans.values())]
    return [*ends, *changing_sizes(spans, count, seed)]


def changing_sizes(spans: Mapping[str, tuple[int, int]], count: int, seed: int = 1) -> list[Sizes]:
    """`count` different sizes, evenly on a logarithmic scale."""
    rng, found = np.random.default_rng(seed), dict[tuple[int, ...], Sizes]()
    while len(found) < count:
        sizes = {
            name: int(np.exp(rng.uniform(np.log(low), np.log(high + 1)))) for name, (low, high) in spans.items()
        }  # fmt: skip
        found.setdefault(tuple(sizes.values()), sizes)
    return list(found.values())


class Subject:
    """A model with symbolic sizes and its artifact."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        imported = import_model(model)
        self.graph, self.names, self.outputs = imported.graph, imported.input_names, imported.output_names
        self.artifact = folder / "symbolic.opcel"
        opcel_compiler.compile(model, output=self.artifact, fallback="error").close()

    def feeds(self, sizes: Sizes) -> Feeds:
        return sample_inputs(self.graph, self.names, sizes=dict(sizes))


def right(subject: Subject, points: Sequence[Sizes]) -> Iterator[Row]:
    with opcel_compiler.load(subject.artifact) as model:
        for sizes in points:
            feeds = subject.feeds(sizes)
            _, want = reference_outputs(subject.model, subject.graph, subject.names, subject.outputs, feeds)
            got = model.run(feeds)
            errors = [compare(n, got[n], w, Bound()) for n, w in zip(subject.outputs, want, strict=True)]
            yield {
                **sizes, "max_abs": max(e.max_abs for e in errors), "relative_l2": max(e.relative_l2 for e in errors),
                "within": all(e.within for e in errors),
            }  # fmt: skip


def specialized(subject: Subject, fixed: Sequence[Sizes], threads: int, rounds: int) -> Iterator[Row]:
    for sizes in fixed:
        path = subject.folder / ("x".join(map(str, sizes.values())) + ".opcel")
        opcel_compiler.compile(subject.model, output=path, fallback="error", dims=sizes).close()
        time.sleep(0.5)  # what the compilers left running
        feeds = subject.folder / "feeds.npz"
        np.savez(feeds, **subject.feeds(sizes))  # type: ignore[arg-type]
        blocks: dict[Path, list[float]] = {subject.artifact: [], path: []}
        with contextlib.ExitStack() as stack:
            workers = {p: stack.enter_context(Worker(OPCEL_RESIDENT, p, feeds, threads)) for p in blocks}
            for i in range(-2, rounds):
                for p in list(blocks)[:: -1 if i % 2 else 1]:
                    seconds = workers[p].ask(calls=6)["seconds"][1:]
                    blocks[p] += [float(np.percentile(seconds, 25))] * (i >= 0)
        low, ratio, high = ratios_by_round(blocks[subject.artifact], blocks[path])
        yield {**sizes, "ratio": ratio, "ratio_low": low, "ratio_high": high}


def changing(subject: Subject, points: Sequence[Sizes], threads: int) -> Iterator[Row]:
    """Each engine does each of `points` once, after one call of other sizes."""
    series = {f"{i}/{name}": v for i, sizes in enumerate(points) for name, v in subject.feeds(sizes).items()}
    feeds = subject.folder / "series.npz"
    np.savez(feeds, **series)  # type: ignore[arg-type]
    engines = [OPCEL, *(PEERS[name] for name in ("ort", "openvino") if PEERS[name].is_installed)]
    blocks: dict[str, list[float]] = {engine.name: [] for engine in engines}
    with contextlib.ExitStack() as stack:
        paths = [subject.artifact if engine is OPCEL else subject.model for engine in engines]
        workers = [stack.enter_context(Worker(e, p, feeds, threads)) for e, p in zip(engines, paths, strict=True)]
        for i in range((len(points) - 1) // BLOCK):
            for worker in workers[:: -1 if i % 2 else 1]:
                blocks[worker.engine.name].append(sum(worker.ask(calls=BLOCK)["seconds"]))
    ours = blocks.pop(OPCEL.name)
    ratios = {name: ratios_by_round(theirs, ours)[1] for name, theirs in blocks.items()}
    totals = {name: sum(theirs) / sum(ours) for name, theirs in blocks.items()}
    yield {
        "calls": BLOCK * len(ours),
        "ratios": ratios,
        "totals": totals,
        "ms_a_call": statistics.fmean(ours) / BLOCK * 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--sizes", nargs="+", default=("batch=1..32", "length=1..512"), metavar="NAME=LOW..HIGH")
    parser.add_argument("--fixed", nargs="+", default=("1,128", "8,128"), metavar="SIZE,...")
    parser.add_argument("--points", type=int, default=12, help="random sizes whose results are compared (default: 12)")
    parser.add_argument("--calls", type=int, default=200, help="calls with changing sizes (default: 200)")
    parser.add_argument("--rounds", type=int, default=30, help="turns beside the specialized ones (default: 30)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    spans = {}
    for text in args.sizes:
        name, _, span = text.partition("=")
        low, _, high = span.partition("..")
        spans[name] = (int(low), int(high))
    fixed = [dict(zip(spans, map(int, text.split(",")), strict=True)) for text in args.fixed]
    facts: dict[str, Any] = {"network": args.model.stem, "threads": args.threads, "machine": machine_facts()}
    with tempfile.TemporaryDirectory(prefix="opcel-dynamic-") as scratch:
        subject = Subject(args.model, Path(scratch))
        for part, rows in (
            ("right", right(subject, corners(spans, args.points))),
            ("specialized", specialized(subject, fixed, args.threads, args.rounds)),
            ("changing", changing(subject, changing_sizes(spans, args.calls + 1), args.threads)),
        ):
            facts[part] = []
            for row in rows:
                facts[part].append(row)
                print(part, json.dumps(row), flush=True)
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    sys.exit(not all(row["within"] for row in facts["right"]))


if __name__ == "__main__":
    main()
