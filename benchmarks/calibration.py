"""What calibration costs: time beside plain inference of the same samples, and memory, ours and ONNX Runtime's.

    python -m benchmarks.calibration time MODEL [--samples 48] [--threads 2]
    python -m benchmarks.calibration memory MODEL [--samples 64 512] [--peers]

`time` alternates, sample by sample, between the f32 artifact and all that calibration does with a sample (checks, the
run, statistics). `memory` gives the largest resident set (VmHWM) and the time of a child process for each: plain
inference of our artifact, our calibration (and of its compile apart), and ONNX Runtime's calibrators. Samples are
the inputs of MODEL's .npz beside it, disturbed at random; the children read them one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PEERS = ("MinMax", "Entropy", "Percentile")


def samples(model: Path, count: int) -> Iterator[dict[str, np.ndarray]]:
    base = dict(np.load(model.with_suffix(".npz")))
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield {
            name: (x + 0.1 * rng.standard_normal(x.shape)).astype(x.dtype) if x.dtype.kind == "f"
            else rng.permuted(x, axis=-1)
            for name, x in base.items()
        }  # fmt: skip


def artifact(model: Path) -> Path:
    """Our f32 artifact of the model, compiled unless an earlier run left it."""
    from benchmarks.artifacts import compiler_digest

    path = Path(tempfile.gettempdir()) / f"opcel-calibration-{os.getuid()}" / f"{model.stem}-{compiler_digest()}.opcel"
    if not path.exists():  # in a process of its own: its memory is not that of inference
        path.parent.mkdir(exist_ok=True)
        code = f"import opcel_compiler as oc; oc.compile({str(model)!r}, output={str(path)!r}, proof=False).close()"
        subprocess.run([sys.executable, "-c", code], check=True)
    return path


def measure_time(model: Path, count: int, threads: int) -> dict[str, Any]:
    import opcel_compiler
    from opcel_compiler.calibrate.accumulate import Accumulator
    from opcel_compiler.calibrate.samples import Journal, Sample, checked
    from opcel_compiler.calibration import observing
    from opcel_compiler.runtime.model import CompiledModel

    times: dict[str, list[float]] = {"plain": [], "calibration": []}
    with (
        opcel_compiler.load(artifact(model), threads=threads) as plain,
        observing(model, threads=threads) as run,
        CompiledModel(run.folder, threads=threads) as observer,
    ):
        journal, sums = Journal(), Accumulator(run.about.observed)

        def calibrate(i: int, feeds: dict[str, np.ndarray]) -> None:
            sample = checked(Sample(i, "generated", feeds), run.about.inputs)
            sums.run(observer, sample)
            journal.add(sample)

        for i, feeds in enumerate(samples(model, count + 3)):
            both = [("plain", lambda f=feeds: plain.run(f)), ("calibration", lambda i=i, f=feeds: calibrate(i, f))]
            for name, call in both if i % 2 else both[::-1]:
                start = time.perf_counter()
                call()
                if i >= 3:
                    times[name].append(time.perf_counter() - start)
        values = len(run.about.observed)
    plain_s, ours_s = (float(np.median(times[k])) for k in ("plain", "calibration"))
    return {
        "model": model.stem, "samples": count, "threads": threads, "values": values, "plain_ms": 1e3 * plain_s,
        "calibration_ms": 1e3 * ours_s, "ratio": ours_s / plain_s,
        "ratio_of_sums": sum(times["calibration"]) / sum(times["plain"]),
        "ratio_of_minima": min(times["calibration"]) / min(times["plain"]),
    }  # fmt: skip


# -- in a child --------------------------------------------------------------------------------------------------------


def peak_mib() -> float:
    """The largest resident set so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmHWM")


def reader() -> Iterator[dict[str, np.ndarray]]:
    """The samples of the model and the number that the environment names: what a calibration reads in a process."""
    return samples(Path(os.environ["CALIBRATED_MODEL"]), int(os.environ["CALIBRATED_SAMPLES"]))


def worker(model: Path, count: int, threads: int) -> dict[str, Any]:
    """The pass over the samples as `opcel calibrate` does it, in a process of its own, and that process's peak."""
    from opcel_compiler.calibrate.data import Data
    from opcel_compiler.calibrate.worker import Job
    from opcel_compiler.calibration import observing

    with observing(model, threads=threads) as run, tempfile.TemporaryDirectory() as folder:
        job, made = Path(folder) / "job", Path(folder) / "outcome"
        job.write_bytes(pickle.dumps(Job(run.folder, threads, run.about, Data(f"{__file__}:reader"))))
        code = f"from opcel_compiler.calibrate.worker import main\nmain({str(job)!r}, {str(made)!r})"
        values = len(run.about.observed)
        return {"values": values, "compile_peak_mib": peak_mib(), **alone(code, model, count)}


def inference(model: Path, count: int, threads: int) -> dict[str, Any]:
    """Our f32 artifact on the samples in a process of its own, and that process's peak."""
    code = (
        f"from opcel_compiler.runtime import load\nfrom benchmarks.calibration import reader\n"
        f"with load({str(artifact(model))!r}, threads={threads}) as model:\n    for x in reader(): model.run(x)"
    )
    return alone(code, model, count)


def alone(code: str, model: Path, count: int) -> dict[str, Any]:
    """The seconds and the peak of a process that runs `code`."""
    timed = (
        f"import sys, time\nstart = time.perf_counter()\n{code}\nprint(time.perf_counter() - start, file=sys.stderr)\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0], file=sys.stderr)"
    )
    env = {**os.environ, "CALIBRATED_MODEL": str(model), "CALIBRATED_SAMPLES": str(count)}
    done = subprocess.run([sys.executable, "-c", timed], env=env, capture_output=True, text=True, check=True)
    seconds, peak = done.stderr.split()[-2:]
    return {"seconds": float(seconds), "peak_mib": int(peak) / 1024}


def child(kind: str, model: Path, count: int, threads: int) -> dict[str, Any]:
    start = time.perf_counter()
    if kind == "plain":
        return inference(model, count, threads)
    if kind == "calibration":
        return worker(model, count, threads)
    else:
        from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
        from onnxruntime.quantization.calibrate import create_calibrator

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.given = samples(model, count)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.given, None)

        with tempfile.TemporaryDirectory() as folder:
            made = create_calibrator(
                model,
                None,
                str(Path(folder) / "a.onnx"),
                calibrate_method=CalibrationMethod[kind],
                extra_options={"num_bins": 2048} if kind == "Entropy" else {},
            )
            begin = time.perf_counter()
            made.collect_data(Reader())
            made.compute_data()
    end = time.perf_counter()
    return {"seconds": end - begin, "total_s": end - start, "peak_mib": peak_mib()}


def measure_memory(model: Path, counts: list[int], threads: int, peers: bool) -> list[dict[str, Any]]:
    rows = []
    for kind in ("plain", "calibration", *(PEERS if peers else ())):
        for count in counts:
            command = [sys.executable, "-m", "benchmarks.calibration", "child", str(model), "--kind", kind]
            command += ["--samples", str(count), "--threads", str(threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            told = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"failed": done.stderr[-300:]}
            rows.append({"model": model.stem, "kind": kind, "samples": count, **told})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("time", "memory", "child"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=[48])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kind", default="plain")
    parser.add_argument("--peers", action="store_true")
    args = parser.parse_args()
    if args.what == "time":
        print(json.dumps(measure_time(args.model, args.samples[0], args.threads)))
    elif args.what == "child":
        print(json.dumps(child(args.kind, args.model, args.samples[0], args.threads)))
    else:
        measure_memory(args.model, args.samples, args.threads, args.peers)


if __name__ == "__main__":
    main()
