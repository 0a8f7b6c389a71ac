"""Fuzz one target: python -m tests.fuzz TARGET --runs N --seed S [--corpus DIR]

With the package `atheris` the code under test guides the search, and DIR keeps what was found for the next run;
without it inputs are changed blindly. An exception that is no OpcelError ends the run with the input saved, and so do
an execution that takes longer than --timeout seconds and a process of more than --memory MiB.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import signal
import sys
import time
import warnings
from pathlib import Path

NAMES = ("importer", "text", "artifact", "target", "run")
UNGUIDED = frozenset({"run"})
"""Targets whose work is in native code: all inputs cover the same Python, and libFuzzer would keep one of them."""


def blind(name: str, runs: int, seed: int, timeout: int, save: Path) -> int:
    """Executions with inputs that are changed without looking at what they reach; gives how many there were."""
    from tests.fuzz.mutate import mutate
    from tests.fuzz.seeds import SEEDS
    from tests.fuzz.targets import TARGETS

    rng, execute = random.Random(seed), TARGETS[name]
    pool = list(SEEDS[name]())
    for i in range(runs):
        data = rng.choice(pool)
        for _ in range(rng.choice((1, 1, 2, 4))):
            data = mutate(name, data, rng)
        signal.alarm(timeout)
        try:
            execute(data[: 1 << 16])
        except BaseException:
            save.mkdir(parents=True, exist_ok=True)
            (save / f"{name}-{seed}-{i}").write_bytes(data)
            print(
                f"{name}: execution {i} of seed {seed} failed; its input is {save / f'{name}-{seed}-{i}'}", flush=True
            )
            raise
        finally:
            signal.alarm(0)
        if len(pool) < 2000 and rng.random() < 0.05:
            pool.append(data)
    return runs


def guided(args: argparse.Namespace, atheris: object) -> None:
    """Runs libFuzzer, which ends the process."""
    with atheris.instrument_imports(include=["opcel_compiler"]):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz.mutate import mutate
    from tests.fuzz.seeds import SEEDS

    corpus = args.corpus / args.target
    corpus.mkdir(parents=True, exist_ok=True)
    for i, data in enumerate(SEEDS[args.target]()):
        (corpus / f"seed{i:03}").write_bytes(data)

    def custom(data: bytes, size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.3:
            return bytes(atheris.Mutate(data, size))
        return mutate(args.target, bytes(data), rng)[:size]

    options = [
        sys.argv[0], str(corpus), f"-runs={args.runs}", f"-seed={args.seed}", f"-timeout={args.timeout}",
        f"-rss_limit_mb={args.memory}", "-max_len=16384", f"-artifact_prefix={args.save}/{args.target}-",
        f"-max_total_time={args.seconds}", "-print_final_stats=1", "-verbosity=1", "-reload=0",
    ]  # fmt: skip
    args.save.mkdir(parents=True, exist_ok=True)
    atheris.Setup(options, TARGETS[args.target], custom_mutator=custom)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--runs", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=0, help="end after this many seconds; 0: never")
    parser.add_argument("--timeout", type=int, default=10, help="seconds that one execution may take")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that the process may take")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz/corpus"))
    parser.add_argument("--save", type=Path, default=Path("fuzz/found"), help="where inputs that fail go")
    parser.add_argument("--blind", action="store_true", help="do without atheris")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not args.blind and args.target not in UNGUIDED:
        try:
            import atheris
        except ImportError:
            pass
        else:
            guided(args, atheris)
            return 0
    started = time.perf_counter()
    resource.setrlimit(resource.RLIMIT_AS, (args.memory << 21, args.memory << 21))
    blind(args.target, args.runs, args.seed, args.timeout, args.save)
    print(f"{args.target}: {args.runs} executions of seed {args.seed} in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
