"""Fuzz one target: python -m tests.fuzz TARGET --runs N --seed S [--corpus DIR]

The blocks of our Python code that an input reaches guide the search, and DIR keeps what was found for the next run.
A worker makes the executions; when a signal ends it, its last input is saved and another worker goes on. An exception
that is no OpcelError, an execution that takes longer than --timeout seconds or adds much memory, and a process of more
than --memory MiB are failures: each place in the code that fails is saved once, and the status is 1.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import warnings
from pathlib import Path

from tests.fuzz.coverage import Coverage, install

NAMES = ("importer", "text", "artifact", "target", "run")
_HEAD = struct.Struct("<QQ")
"""Executions of the worker so far, and the bytes of the input at hand, which follow."""

STOPPED = "stopped"
"""What a worker ends of when somebody ends the run."""


def work(
    args: argparse.Namespace, coverage: Coverage, seeds: list[bytes], done: int, end: float, shared: mmap.mmap
) -> None:
    """The worker: ends its process, with status 0 after all executions or at `end`, and 3 when its memory has grown."""
    from tests.fuzz.loop import Loop

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (args.memory << 21, args.memory << 21))
    loop = Loop(args.target, args.seed + done, args.save, args.corpus / args.target, coverage, args.timeout)
    for i, data in enumerate(loop.steps(seeds)):
        shared[: _HEAD.size] = _HEAD.pack(i, len(data))
        shared[_HEAD.size : _HEAD.size + len(data)] = data
        over = done + i >= args.runs or time.monotonic() > end
        if over or i % 1024 == 0:
            status = 3 if not over and _resident() > args.memory else 0
            r = loop.result
            state = {"accepted": r.accepted, "slowest": round(r.slowest, 3), "failures": sorted(r.failures)}
            state |= {"inputs": len(loop.pool), "blocks": coverage.reached, "of": coverage.blocks}
            _state(args, done).write_text(json.dumps(state))
            if over or status:
                os._exit(status)


def _state(args: argparse.Namespace, done: int) -> Path:
    """Where the worker that began after `done` executions says how it stands."""
    return args.save / f".{args.target}-{args.seed}-{done}.json"


def _resident() -> float:
    """MiB of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)


def watch(child: int, shared: mmap.mmap, timeout: float) -> str:
    """Waits for a worker; "" for a good end, or what it died of. One whose executions stand still is killed."""
    last, since = -1, time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return {0: "", 3: "the worker's memory has grown", -15: STOPPED}.get(code, f"status {code}")
        count = _HEAD.unpack(shared[: _HEAD.size])[0]
        if count != last:
            last, since = count, time.monotonic()
        elif time.monotonic() - since > 3 * timeout:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return "an execution that nothing could interrupt"
        time.sleep(0.2)


def fuzz(args: argparse.Namespace, coverage: Coverage) -> dict[str, object]:
    """All executions, by one worker after the other; gives the run as it is recorded."""
    from tests.fuzz.seeds import SEEDS
    from tests.fuzz.targets import clean_up, warm_up

    for folder in (args.save, args.corpus / args.target):
        folder.mkdir(parents=True, exist_ok=True)
    seeds = list(SEEDS[args.target]())
    warm_up(args.target)
    shared = mmap.mmap(-1, 1 << 20)
    run = {"target": args.target, "seed": args.seed, "executions": 0, "accepted": 0, "slowest": 0.0}
    failures, deaths, began = set(), [], time.monotonic()
    end = began + (args.seconds or float("inf"))
    while len(deaths) <= 20:
        done = run["executions"]
        shared[: _HEAD.size] = _HEAD.pack(0, 0)
        if (child := os.fork()) == 0:
            work(args, coverage, seeds, done, end, shared)
        why = watch(child, shared, args.timeout)
        count, size = _HEAD.unpack(shared[: _HEAD.size])
        run["executions"] += count
        if (file := _state(args, done)).exists():
            state = json.loads(file.read_text())
            file.unlink()
            failures |= set(state.pop("failures"))
            state["accepted"] += run["accepted"]
            state["slowest"] = max(run["slowest"], state["slowest"])
            run |= state
        if not why or why == STOPPED:
            break
        file = args.save / f"{args.target}-{args.seed}-{run['executions']}"
        run["executions"] += 1
        file.write_bytes(shared[_HEAD.size : _HEAD.size + size])
        deaths.append(why)
        print(f"{args.target}: {why} after {run['executions']} executions; the input is {file}", flush=True)
    clean_up()
    return {**run, "seconds": round(time.monotonic() - began), "failures": sorted(failures), "deaths": deaths}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--runs", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=0, help="end after this many seconds; 0: never")
    parser.add_argument("--timeout", type=float, default=10, help="seconds that one execution may take")
    parser.add_argument("--memory", type=int, default=2048, help="MiB that the process may take")
    parser.add_argument("--corpus", type=Path, default=Path("fuzz/corpus"))
    parser.add_argument("--save", type=Path, default=Path("fuzz/found"), help="where inputs that fail go")
    parser.add_argument("--record", type=Path, help="a file of JSON lines that the run is added to")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    run = fuzz(args, install("opcel_compiler"))
    print(json.dumps(run), flush=True)
    if args.record:
        with args.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(run) + "\n")
    return 1 if run["deaths"] or run.get("failures") else 0


if __name__ == "__main__":
    sys.exit(main())
