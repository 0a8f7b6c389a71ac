"""Random graphs of every operator, through every stage, each compared with the graph as it was made.

    python -m benchmarks.random_graphs --count 1000 --compiled 200 --seed 0

Each seed is one graph; `--count` go through the text form, ONNX, the passes and both interpreters, `--compiled` of the
same seeds through generated code, many to an artifact. What fails is made small and saved with its inputs.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.random_graphs.check import TARGETS, Unbound, WrongResult, check, well_conditioned
from benchmarks.random_graphs.compiled import failures
from benchmarks.random_graphs.generate import sample
from benchmarks.random_graphs.shrink import save, shrink
from benchmarks.random_graphs.values import Sample

Found = tuple[int, Sample, Exception, Callable[[Sample], Exception | None]]


def interpreted(seeds: range) -> Iterator[Found]:
    """Those of the seeds' graphs that do not survive the stages before code."""
    for seed in seeds:
        target = TARGETS[seed % len(TARGETS)]

        def stages(s: Sample, target: str = target) -> Exception | None:
            try:
                check(s, target)
            except Unbound:
                return None
            except Exception as error:
                return error
            return None

        if seed % 500 == 499:
            print(f"seeds up to {seed} interpreted", file=sys.stderr, flush=True)
        if (error := stages(s := sample(seed))) is not None:
            yield seed, s, error, stages


def compiled(seeds: range, target: str, batch: int) -> Iterator[Found]:
    """Those of the seeds' graphs that generated code computes wrongly, or that do not compile."""

    def alone(s: Sample) -> Exception | None:
        return next((error for _, error in failures([s], target)[1]), None)

    done = 0
    for first in range(seeds.start, seeds.stop, batch):
        named = {f"g{seed}": seed for seed in range(first, min(first + batch, seeds.stop))}
        count, wrong = failures([sample(seed) for seed in named.values()], target)
        done += count
        print(f"{done} compiled, seeds up to {max(named.values())}", file=sys.stderr, flush=True)
        for s, error in wrong:
            yield named[s.graph.name], s, error, alone
    print(f"{done} of {len(seeds)} graphs ran as generated code; the others need another engine", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.random_graphs", description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=200, help="graphs through the stages before code")
    parser.add_argument("--compiled", type=int, default=0, help="graphs through generated code")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--target", default="host", help="the target of generated code")
    parser.add_argument("--batch", type=int, default=60, help="graphs in one artifact")
    parser.add_argument("--save", type=Path, default=Path("random-graphs"), help="where failing graphs go")
    args = parser.parse_args()
    started, wrong, ill = time.perf_counter(), 0, 0
    seeds = range(args.seed, args.seed + args.count), range(args.seed, args.seed + args.compiled)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        for found in (interpreted(seeds[0]), compiled(seeds[1], args.target, args.batch)):
            for seed, s, error, again in found:
                if isinstance(error, WrongResult) and not well_conditioned(s):
                    ill += 1
                    continue
                wrong += 1
                first = str(error).partition("\n")[0]
                print(f"seed {seed}: {type(error).__name__}: {first}", flush=True)
                kind = type(error)
                small = shrink(s, lambda c, kind=kind, again=again: type(again(c)) is kind)
                print(f"  saved as {save(small, args.save, f'seed{seed}')}", flush=True)
    spent = time.perf_counter() - started
    print(
        f"{args.count} graphs interpreted and {args.compiled} compiled from seed {args.seed} in {spent:.0f} s: "
        f"{wrong} wrong, {ill} passed over as ill-conditioned"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
