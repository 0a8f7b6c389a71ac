"""One engine in a process of its own: `python -m opcel_compiler.bench.worker ENGINE MODEL FEEDS.npz THREADS`.

FEEDS.npz holds arrays by input name, or, for calls that differ, by "0/name", "1/name", ...: each call takes the next.
Orders and answers are JSON objects, one a line, on the standard input and output. First it says {"import_s", "load_s",
"first_s", "version"}: importing the engine, opening the model, the first call. Then it answers

  {"calls": n}      {"seconds": [...], "failures": k, "error": text of the first failure}
  {"save": path}    {"saved": path}, after writing the outputs of one call as .npz: "0", "1", ... in the model's order
  {"profile": n}    {"seconds": [...]}, of each step, summed over n runs; opcel alone
  {"many": n, "streams": k}   {"seconds": of n runs, k at a time}; opcel alone
  {"memory": true}  {"peak_bytes": most memory that was resident at one time}

What cannot be done is answered {"error": text}.
"""

from __future__ import annotations

import ctypes
import importlib
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.bench.engines import ENGINES, OPCEL, Call, Feeds

Order = dict[str, Any]
Run = Callable[[], list[np.ndarray]]
PR_SET_PDEATHSIG, SIGKILL = 1, 9


def main(argv: list[str]) -> None:
    name, model, feeds_file, threads = argv
    # A stopped process would outlive a parent that is killed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL)
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what engines print must not come between the answers

    def answer(value: Order) -> None:
        channel.write(json.dumps(value) + "\n")
        channel.flush()

    series = feeds_in(feeds_file)
    feeds = dict(series[0])
    engine = ENGINES[name]
    opened: list[Run] = []

    def start(_: Order) -> Order:
        before = time.perf_counter()
        module = importlib.import_module(engine.module)
        imported = time.perf_counter()
        call = engine.open(module, Path(model), feeds, int(threads))
        opened.append(partial(call, feeds) if len(series) == 1 else in_turn(call, series))
        loaded = time.perf_counter()
        opened[0]()
        first = time.perf_counter() - loaded
        version = getattr(module, "__version__", None) or importlib.import_module("opcel_compiler").__version__
        return {"import_s": imported - before, "load_s": loaded - imported, "first_s": first, "version": str(version)}

    def profile(order: Order) -> Order:
        if engine.module != OPCEL.module:
            return {"error": f"{engine.title} is not profiled"}
        from opcel_compiler.runtime import load

        with load(model, threads=int(threads)) as again:
            again.run(feeds)
            return {"seconds": again.profile(feeds, int(order["profile"]))}

    def many(order: Order) -> Order:
        from opcel_compiler.runtime import load

        with load(model, threads=int(threads)) as again:
            again.run_many([feeds] * int(order["streams"]), int(order["streams"]))
            before = time.perf_counter()
            again.run_many([feeds] * int(order["many"]), int(order["streams"]))
            return {"seconds": time.perf_counter() - before}

    orders: dict[str, Callable[[Order], Order]] = {
        "calls": lambda order: block(opened[0], int(order["calls"])),
        "save": lambda order: save(opened[0], str(order["save"])),
        "profile": profile,
        "many": many,
        "memory": lambda _: {"peak_bytes": peak_bytes()},
    }
    answer(guarded(start, {}))
    for line in sys.stdin:
        order = json.loads(line)
        answer(guarded(next(run for key, run in orders.items() if key in order), order))


def feeds_in(path: str) -> Sequence[dict[str, np.ndarray]]:
    """The feeds of each call, by their number."""
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    if not all(re.match(r"\d+/", key) for key in arrays):
        return [arrays]
    calls: dict[int, dict[str, np.ndarray]] = {}
    for key, array in arrays.items():
        number, _, name = key.partition("/")
        calls.setdefault(int(number), {})[name] = array
    return [calls[number] for number in sorted(calls)]


def in_turn(call: Call, series: Sequence[Feeds]) -> Run:
    """`call` with the next of `series` each time, over and over."""
    following = itertools.cycle(series)
    return lambda: call(next(following))


def guarded(run: Callable[[Order], Order], order: Order) -> Order:
    try:
        return run(order)
    except Exception as error:  # every engine has exceptions of its own
        return {"error": first_line(error)}


def first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__).strip()


def block(run: Run, calls: int) -> Order:
    """Time `calls` calls, one after the other."""
    seconds, failures, fault = [], 0, ""
    for _ in range(calls):
        start = time.perf_counter()
        try:
            run()
        except Exception as error:
            failures, fault = failures + 1, fault or first_line(error)
        else:
            seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "failures": failures, **({"error": fault} if not seconds else {})}


def save(run: Run, path: str) -> Order:
    outputs = run()
    np.savez(path, **{str(i): np.asarray(value) for i, value in enumerate(outputs)})  # type: ignore[arg-type]
    return {"saved": path}


def peak_bytes() -> int:
    """The most memory of this process that was resident at one time. (getrusage would count that of its parent.)"""
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


if __name__ == "__main__":
    main(sys.argv[1:])
