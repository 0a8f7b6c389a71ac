"""Compare compiled models with ONNX Runtime: python -m benchmarks.compare NETWORKS_DIR [NAME ...]

NETWORKS_DIR holds NAME.onnx with NAME.npz (feeds by input name). Each engine runs in its own process with the same
threads; they take turns in blocks of calls, and whoever is not measured is stopped (SIGSTOP), so that idle workers
cannot disturb. A round is one block of each; the figure is the median over rounds of the ratio of the blocks' medians.
Outputs are compared in the same run with the bound of the proof.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import opcel_compiler
from opcel_compiler.proof import Bound, compare


@dataclass
class Row:
    """Times in milliseconds: the medians over rounds of each engine's block medians. ratio = ours / theirs."""

    network: str
    ours: float
    onnxruntime: float
    ratio: float
    ratio_low: float
    ratio_high: float
    max_abs: float
    within: bool


class Engine:
    """A worker process, stopped whenever it is not asked for something."""

    def __init__(self, engine: str, model: Path, feeds: Path, threads: int) -> None:
        command = [sys.executable, "-m", "benchmarks.engine", engine, str(model), str(feeds), f"--threads={threads}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.load = float(self._read()["ready"])
        self._stop()

    def ask(self, order: dict[str, object]) -> dict[str, object]:
        os.kill(self.process.pid, signal.SIGCONT)
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        got = self._read()
        self._stop()
        return got

    def block(self, calls: int) -> list[float]:
        seconds = self.ask({"calls": calls})["seconds"]
        assert isinstance(seconds, list)
        return seconds

    def close(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    def _stop(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def _read(self) -> dict[str, object]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("an engine's process ended early; its message is above")
        value: dict[str, object] = json.loads(line)
        return value


def measure(name: str, artifact: Path, model: Path, feeds: Path, threads: int, rounds: int) -> Row:
    ours, theirs = (Engine(e, p, feeds, threads) for e, p in (("opcel", artifact), ("onnxruntime", model)))
    try:
        once = min(ours.block(3)[1:])
        theirs.block(3)
        calls = max(3, min(2000, int(0.15 / max(once, 1e-6))))
        for engine in (ours, theirs):
            engine.block(calls)
        pairs = []
        for i in range(rounds):
            order = (ours, theirs) if i % 2 == 0 else (theirs, ours)
            got = {engine: statistics.median(engine.block(calls)) for engine in order}
            pairs.append((got[ours], got[theirs]))
        worst, within = check(ours, theirs)
    finally:
        ours.close()
        theirs.close()
    ratios = sorted(a / b for a, b in pairs)
    quarter = len(ratios) // 4
    return Row(
        name, 1e3 * statistics.median(a for a, _ in pairs), 1e3 * statistics.median(b for _, b in pairs),
        statistics.median(ratios), ratios[quarter], ratios[-1 - quarter], worst, within,
    )  # fmt: skip


def check(ours: Engine, theirs: Engine) -> tuple[float, bool]:
    """The largest absolute difference of the two engines' outputs, and whether all are within the bound."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / "ours.npz", Path(folder) / "theirs.npz"]
        for engine, path in zip((ours, theirs), paths, strict=True):
            engine.ask({"save": str(path)})
        with np.load(paths[0]) as a, np.load(paths[1]) as b:
            rows = [compare(n, a[n], b[n], Bound()) for n in b.files]
    return max(r.max_abs for r in rows), all(r.within for r in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--target", default="host")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    args = parser.parse_args()
    names = args.names or sorted(p.stem for p in args.folder.glob("*.onnx") if p.with_suffix(".npz").exists())
    rows = []
    print(
        f"{args.threads} threads, {args.rounds} rounds; ratio = ours / ONNX Runtime, below 1 is faster"
    )
    print(f"{'network':16} {'ours ms':>9} {'ORT ms':>9} {'ratio':>7} {'quartiles':>13}  outputs")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            model, feeds = args.folder / f"{name}.onnx", args.folder / f"{name}.npz"
            artifact = Path(folder) / f"{name}.opcel"
            opcel_compiler.compile(model, args.target, artifact, inputs=feeds, fallback="error").close()
            time.sleep(1)
            row = measure(name, artifact, model, feeds, args.threads, args.rounds)
            rows.append(row)
            state = f"max difference {row.max_abs:.2g}" if row.within else f"OUTSIDE THE BOUND by {row.max_abs:.2g}"
            print(
                f"{name:16} {row.ours:9.3f} {row.onnxruntime:9.3f} {row.ratio:7.3f} "
                f"{row.ratio_low:6.3f}-{row.ratio_high:.3f}  {state}", flush=True,
            )  # fmt: skip
    if args.json:
        facts = {
            "threads": args.threads,
            "rounds": args.rounds,
            "machine": _machine(),
            "rows": [asdict(r) for r in rows],
        }
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    if not all(r.within for r in rows):
        sys.exit(1)


def _machine() -> dict[str, str | int]:
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    import onnxruntime

    return {
        "cpu": models[0] if models else platform.machine(),
        "cpus": os.cpu_count() or 0,
        "onnxruntime": onnxruntime.__version__,
    }


if __name__ == "__main__":
    main()
