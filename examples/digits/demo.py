"""Compiles the digit classifier of this folder, classifies the held-out images, and times it beside ONNX Runtime.

Each engine runs in a process of its own, since idle workers of one would slow the other, with the same number of
threads; the two take turns in blocks of calls with one image, so that a change of the machine's speed meets both.
Usage: python demo.py [--threads N] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np

HERE = Path(__file__).resolve().parent
MODEL = HERE / "digits.onnx"
BLOCKS = 12
CALLS = 300
REST_S = 0.05  # after a block, so that spinning workers go to sleep before the other engine's turn
TOLERANCE = 1e-5  # of a probability

Feeds = dict[str, np.ndarray]
Runner = Callable[[Feeds], np.ndarray]


def open_opcel(path: str, threads: int) -> Runner:
    import opcel_compiler

    model = opcel_compiler.load(path, threads=threads)
    return lambda feeds: model.run(feeds)["probability"]


def open_onnxruntime(path: str, threads: int) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(["probability"], feeds)[0]


ENGINES: dict[str, Callable[[str, int], Runner]] = {"OPCEL": open_opcel, "ONNX Runtime": open_onnxruntime}


def serve(engine: str, path: str, threads: int, results: str) -> None:
    """A worker: writes the probabilities of all images to `results`, then answers each line of standard input, a
    number of calls, with the JSON list of their times in seconds."""
    images = np.load(HERE / "digits.npz")["image"]
    run = ENGINES[engine](path, threads)
    np.save(results, run({"image": images}))
    feeds = [{"image": image[None]} for image in images]
    for one in feeds[:100]:
        run(one)
    print("ready", flush=True)
    for line in sys.stdin:
        times = []
        for call in range(int(line)):
            one = feeds[call % len(feeds)]
            start = time.perf_counter()
            run(one)
            times.append(time.perf_counter() - start)
        print(json.dumps(times), flush=True)


class Worker:
    """One engine in a process of its own."""

    def __init__(self, engine: str, path: Path, threads: int, results: Path) -> None:
        self.engine, self.results = engine, results
        self.times: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", engine, str(path), str(results), "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._answer()

    def _pipe(self, pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe

    def _answer(self) -> str:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"{self.engine} stopped with exit code {self._process.wait()}; its message is above")
        return line

    def block(self, calls: int) -> None:
        pipe = self._pipe(self._process.stdin)
        pipe.write(f"{calls}\n")
        pipe.flush()
        self.times += json.loads(self._answer())
        time.sleep(REST_S)

    def close(self) -> None:
        self._pipe(self._process.stdin).close()
        self._process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE.parents[1] / "build" / "digits.opcel")
    parser.add_argument("--serve", nargs=3, metavar=("ENGINE", "PATH", "RESULTS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        engine, path, results = args.serve
        return serve(engine, path, args.threads, results)

    import opcel_compiler

    args.output.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    compiled = opcel_compiler.compile(MODEL, target="host", output=args.output, threads=args.threads)
    print(f"compiled  {MODEL.name} to {args.output} in {time.perf_counter() - start:.1f} s")
    proof = compiled.report["proof"]
    worst = max(output["max_abs"] for output in proof["outputs"])
    print(f"proof     {proof['status']} against {proof['reference']}: largest error {worst:.1e} ({proof['bound']})")

    labels = np.load(HERE / "digits_labels.npz")["label"]
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            Worker(engine, path, args.threads, Path(folder, f"{number}.npy"))
            for number, (engine, path) in enumerate({"OPCEL": args.output, "ONNX Runtime": MODEL}.items())
        ]
        for turn in range(BLOCKS):
            for worker in workers if turn % 2 == 0 else reversed(workers):
                worker.block(CALLS)
        for worker in workers:
            worker.close()
        ours, theirs = (np.load(worker.results) for worker in workers)

    right = int((ours.argmax(1) == labels).sum())
    print(f"accuracy  {right / len(labels):.2%} ({right} of {len(labels)} held-out images)")
    difference = float(np.abs(ours - theirs).max())
    agree = difference <= TOLERANCE
    print(f"outputs   {'agree' if agree else 'DIFFER'}: at most {difference:.1e} between both engines' probabilities")
    print(f"latency   one image, {args.threads} thread(s), {BLOCKS} blocks of {CALLS} calls each")
    for worker in workers:
        p50, p95 = np.percentile(worker.times, [50, 95]) * 1e6
        print(f"          {worker.engine:<13} p50 {p50:7.1f} µs   p95 {p95:7.1f} µs")
    if not agree:
        raise SystemExit(f"the outputs differ by more than {TOLERANCE}")


if __name__ == "__main__":
    main()
