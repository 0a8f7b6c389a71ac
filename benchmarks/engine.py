"""One engine in its own process: loads a model, then runs blocks of calls when it is told to.

Protocol on stdin/stdout, one JSON object a line: {"calls": n} answers {"seconds": [...]}; {"save": path} writes the
outputs of one call as .npz and answers {"saved": path}. The first line written is {"ready": seconds to load}.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

Run = Callable[[], dict[str, np.ndarray]]


def open_opcel(path: str, feeds: dict[str, np.ndarray], threads: int) -> Run:
    import opcel_compiler

    model = opcel_compiler.load(path, threads=threads)
    return lambda: model.run(feeds)


def open_onnxruntime(path: str, feeds: dict[str, np.ndarray], threads: int) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return lambda: dict(zip(names, session.run(names, feeds), strict=True))


ENGINES = {"opcel": open_opcel, "onnxruntime": open_onnxruntime}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("model")
    parser.add_argument("feeds", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    with np.load(args.feeds) as file:
        feeds = {k: file[k] for k in file.files}
    start = time.perf_counter()
    run = ENGINES[args.engine](args.model, feeds, args.threads)
    answer({"ready": time.perf_counter() - start})
    for line in sys.stdin:
        order = json.loads(line)
        if "save" in order:
            np.savez(order["save"], **run())
            answer({"saved": order["save"]})
            continue
        seconds = []
        for _ in range(order["calls"]):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        answer({"seconds": seconds})


def answer(value: dict[str, object]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
