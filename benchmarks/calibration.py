"""What calibration costs: memory and time beside plain inference of the same samples, ours and ONNX Runtime's.

    python -m benchmarks.calibration DIR [NAME...] --work WORK --build
    python -m benchmarks.calibration DIR [NAME...] --work WORK --json FILE --markdown docs/calibration.md

DIR holds NAME.onnx and NAME.npz, inputs whose disturbed copies are the samples. The first command compiles what is then
measured. Memory: the largest resident set (VmHWM) of a process of its own that loads our f32 artifact and runs it, and
of that which passes over the samples in `opcel calibrate`; both read samples one at a time. Time: alternating, sample
by sample, between the f32 artifact and all that calibration does with a sample (checks, run, statistics).
The JSON keeps the rows of networks that are not measured now; the table in the page is replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import calibration_data
from benchmarks.artifacts import compiler_digest
from benchmarks.calibration_data import samples
from benchmarks.tables import table
from opcel_compiler.calibrate.worker import ENVIRONMENT

Row = dict[str, Any]

NETWORKS = "resnet50 mobilenet_v2 vit_b16 bert_base minilm unet whisper_tiny_encoder".split()
PEERS = ("MinMax", "Entropy", "Percentile")
ALLOWED_KIB = 64
"""What a value may take over inference."""
MOST_TIMED_S = 7.0
WARM = 3
BEGIN, END = "<!-- benchmarks.calibration -->", "<!-- end -->"


class Subject:
    """A network, and in `folder` what is made of it: the f32 artifact and the job of the process that calibrates."""

    def __init__(self, networks: Path, name: str, work: Path, threads: int) -> None:
        self.name, self.threads = name, threads
        self.model, self.inputs = networks / f"{name}.onnx", networks / f"{name}.npz"
        self.folder = work / f"calibration-{name}-{threads}-{compiler_digest()}"
        self.plain, self.job = self.folder / "plain.opcel", self.folder / "job"

    def build(self) -> None:
        """Compile what is not there yet. In a process of its own: what that takes is not of a measurement."""
        if self.job.exists():
            return
        import opcel_compiler
        from opcel_compiler.calibrate.data import Data
        from opcel_compiler.calibrate.worker import Job
        from opcel_compiler.calibration import observing

        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.plain.exists():
            opcel_compiler.compile(self.model, output=self.plain, proof=False).close()
        with observing(self.model, threads=self.threads) as run:
            observer = self.folder / "observer"
            shutil.rmtree(observer, ignore_errors=True)
            shutil.copytree(run.folder, observer)
            data = Data(f"{calibration_data.__file__}:reader")
            self.job.write_bytes(pickle.dumps(Job(str(observer.resolve()), self.threads, run.about, data)))

    def calibration(self) -> str:
        """The code of the process that calibrates."""
        made = str(self.folder / "outcome")
        return f"from opcel_compiler.calibrate.worker import main\nmain({str(self.job)!r}, {made!r})"

    def inference(self) -> str:
        """The code of a process that only runs the samples."""
        return (
            "from opcel_compiler.runtime import load\nfrom benchmarks.calibration_data import reader\n"
            f"with load({str(self.plain)!r}, threads={self.threads}) as model:\n    for x in reader(): model.run(x)"
        )

    def peer(self, method: str) -> str:
        """The code of a process in which ONNX Runtime calibrates."""
        options = {"num_bins": 2048} if method == "Entropy" else {}
        return (
            "from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod\n"
            "from onnxruntime.quantization.calibrate import create_calibrator\n"
            "from benchmarks.calibration_data import reader\n"
            "class Reader(CalibrationDataReader):\n    given = reader()\n"
            "    def get_next(self): return next(self.given, None)\n"
            f"made = create_calibrator({str(self.model)!r}, None, {str(self.folder / 'augmented.onnx')!r},\n"
            f"    calibrate_method=CalibrationMethod.{method}, extra_options={options!r})\n"
            "made.collect_data(Reader())\nmade.compute_data()"
        )


# -- memory ------------------------------------------------------------------------------------------------------------


def alone(code: str, inputs: Path, count: int, environment: Mapping[str, str] | None = None) -> Row:
    """The seconds and the largest resident set, in MiB, of a process that runs `code`, or why it failed."""
    told = (
        "import time\nstart = time.perf_counter()\n"
        f"{code}\n"
        "import sys\nprint(time.perf_counter() - start, file=sys.stderr)\n"
        "print([l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')][0], file=sys.stderr)"
    )
    given = {"CALIBRATED_INPUTS": str(inputs.resolve()), "CALIBRATED_SAMPLES": str(count)}
    env = {**os.environ, **given, **(environment or {})}
    done = subprocess.run([sys.executable, "-c", told], env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": done.stderr[-300:]}
    seconds, peak = done.stderr.split()[-2:]
    return {"seconds": round(float(seconds), 3), "peak_mib": round(int(peak) / 1024, 2)}


def measure_memory(subject: Subject, counts: list[int], peers: bool) -> Row:
    """By kind and number of samples; and how far the peak lies over inference, of what is allowed."""
    found: Row = {}
    codes = {"inference": subject.inference(), "calibration": subject.calibration()}
    if peers:
        codes |= {method: subject.peer(method) for method in PEERS}
    for kind, code in codes.items():
        own = ENVIRONMENT if kind == "calibration" else {}
        found[kind] = {str(count): alone(code, subject.inputs, count, own) for count in counts}
    job = pickle.loads(subject.job.read_bytes())
    peaks = [found["calibration"][str(c)]["peak_mib"] for c in counts]
    base = min(found["inference"][str(c)]["peak_mib"] for c in counts)
    return {
        "values": len(job.about.observed), "allowed_mib": len(job.about.observed) * ALLOWED_KIB / 1024,
        "over_mib": round(max(peaks) - base, 2), "by_count": round(max(peaks) / min(peaks) - 1, 4), "memory": found,
    }  # fmt: skip


# -- time --------------------------------------------------------------------------------------------------------------


def measure_time(subject: Subject, count: int) -> Row:
    """Medians of a sample's milliseconds, and the ratio of the sums."""
    from opcel_compiler.calibrate.accumulate import Accumulator
    from opcel_compiler.calibrate.samples import Journal, Sample, checked
    from opcel_compiler.runtime import load
    from opcel_compiler.runtime.model import CompiledModel

    job = pickle.loads(subject.job.read_bytes())
    times: dict[str, list[float]] = {"plain": [], "calibration": []}
    with (
        load(subject.plain, threads=subject.threads) as plain,
        CompiledModel(job.folder, threads=subject.threads) as observer,
    ):
        journal, sums = Journal(), Accumulator(job.about.observed)

        def calibrate(sample: Sample) -> None:
            sample = checked(sample, job.about.inputs)
            sums.run(observer, sample)
            journal.add(sample)

        end = time.perf_counter() + MOST_TIMED_S
        for i, feeds in enumerate(samples(subject.inputs, count + WARM)):
            sample = Sample(i, "generated", feeds)
            both: list[tuple[str, Callable[[], Any]]] = [
                ("plain", lambda s=sample: plain.run(s.feeds)), ("calibration", lambda s=sample: calibrate(s)),
            ]  # fmt: skip
            for name, call in both if i % 2 else both[::-1]:
                start = time.perf_counter()
                call()
                if i >= WARM:
                    times[name].append(time.perf_counter() - start)
            if time.perf_counter() > end:
                break
    plain_s, ours_s = (statistics.median(times[kind]) for kind in ("plain", "calibration"))
    return {
        "timed": len(times["plain"]), "plain_ms": round(1e3 * plain_s, 3), "calibration_ms": round(1e3 * ours_s, 3),
        "ratio": round(ours_s / plain_s, 3), "ratio_of_sums": round(sum(times["calibration"]) / sum(times["plain"]), 3),
    }  # fmt: skip


# -- the page ----------------------------------------------------------------------------------------------------------


def page(rows: list[Row], counts: list[int]) -> str:
    """The table in Markdown."""
    few, many = (f"{c} samples, MiB" for c in (counts[0], counts[-1]))
    head = ["", "values", "inference, MiB", few, many, "over inference, of allowed, MiB", "time / inference"]
    out = []
    for row in rows:
        cells = [row["network"], *[""] * (len(head) - 1)]
        if "memory" in row:
            found = row["memory"]
            ours = [f"{found['calibration'][str(c)]['peak_mib']:.1f}" for c in (counts[0], counts[-1])]
            base = found["inference"][str(counts[0])]["peak_mib"]
            over = f"{row['over_mib']:.2f} of {row['allowed_mib']:.2f}"
            cells[1:6] = [str(row["values"]), f"{base:.1f}", *ours, over]
        if "ratio" in row:
            cells[6] = f"{row['ratio']:.2f} ({row['plain_ms']:.1f} ms)"
        out.append(cells)
    return table(head, out)


def into(path: Path, text: str) -> None:
    """Put a table in its place in a page."""
    before, rest = path.read_text(encoding="utf-8").split(BEGIN, 1)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(NETWORKS)}")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / f"opcel-calibration-{os.getuid()}")
    parser.add_argument("--build", action="store_true", help="compile and measure nothing")
    parser.add_argument("--only", choices=("memory", "time"))
    parser.add_argument("--samples", type=int, nargs="+", default=[64, 512], help="of which memory is measured")
    parser.add_argument("--timed", type=int, default=48, help="the most samples that are timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", action="store_true", help="the memory of ONNX Runtime's calibrators too")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="PAGE")
    args = parser.parse_args()
    facts = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"rows": []}
    rows: dict[str, Row] = {row["network"]: row for row in facts["rows"]}
    for name in args.names or NETWORKS:
        subject = Subject(args.folder, name, args.work.resolve(), args.threads)
        subject.build()
        if args.build:
            continue
        row: Row = {"network": name, "threads": args.threads}
        if args.only != "time":
            row |= measure_memory(subject, args.samples, args.peers)
        if args.only != "memory":
            row |= measure_time(subject, args.timed)
        rows[name] = {**rows.get(name, {}), **row}
        print(json.dumps(row), flush=True)
        if args.json:
            made = {"rows": list(rows.values()), "date": time.strftime("%Y-%m-%d %H:%M")}
            args.json.write_text(json.dumps(made, indent=1) + "\n")
    if rows and not args.build:
        text = page(list(rows.values()), args.samples)
        print(text)
        if args.markdown:
            into(args.markdown, text)


if __name__ == "__main__":
    main()
