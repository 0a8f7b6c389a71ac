"""Start-up and memory: python -m benchmarks.startup MODEL.onnx FEEDS.npz [--rounds N] [--json FILE]

Ours and ONNX Runtime in fresh processes by turns, page cache warm: the time to open the model, to the first result
(opening included), and of a steady run; plus a C program built from opcel.h alone, with its peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import opcel_compiler

WORKER = """
import sys, time, json, statistics, numpy as np
engine, path, feeds, threads = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
with np.load(feeds) as file: f = {k: file[k] for k in file.files}
if engine == "opcel":
    import opcel_compiler.runtime as rt
    start = time.perf_counter(); m = rt.load(path, threads=threads); opened = time.perf_counter() - start
    run = lambda: m.run(f)
else:
    import onnxruntime as ort
    o = ort.SessionOptions(); o.intra_op_num_threads = threads
    start = time.perf_counter(); s = ort.InferenceSession(path, o, providers=["CPUExecutionProvider"])
    opened = time.perf_counter() - start
    run = lambda: s.run(None, f)
run(); first = time.perf_counter() - start
times = []
for _ in range(9):
    t = time.perf_counter(); run(); times.append(time.perf_counter() - t)
steady = statistics.median(times)
print(json.dumps({"open_ms": 1e3 * opened, "first_result_ms": 1e3 * first, "steady_ms": 1e3 * steady,
                  "start_up_ms": 1e3 * (first - steady)}))
"""


def fresh(engine: str, path: Path, feeds: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, "-c", WORKER, engine, str(path), str(feeds), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    value: dict[str, float] = json.loads(done.stdout)
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("feeds", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "model.opcel"
        opcel_compiler.compile(args.model, output=artifact, inputs=args.feeds).close()
        rows: dict[str, list[dict[str, float]]] = {"opcel": [], "onnxruntime": []}
        for _ in range(args.rounds + 1):
            for engine, path in (("opcel", artifact), ("onnxruntime", args.model)):
                rows[engine].append(fresh(engine, path, args.feeds, args.threads))
        program = Path(folder) / "startup"
        source = Path(__file__).with_name("startup.c")
        header = Path(opcel_compiler.__file__).parent / "csrc" / "runtime"
        subprocess.run(["cc", "-O2", f"-I{header}", source, "-o", program, "-ldl"], check=True)
        done = subprocess.run([program, artifact], capture_output=True, text=True, check=True)
        in_c = json.loads(done.stdout)
    # The first of each warms the page cache.
    medians = {e: {k: statistics.median(r[k] for r in got[1:]) for k in got[0]} for e, got in rows.items()}
    ratio = medians["opcel"]["start_up_ms"] / medians["onnxruntime"]["start_up_ms"]
    facts = {"model": args.model.stem, "rounds": args.rounds, "threads": args.threads, **medians,
             "start_up_ratio": ratio, "c_program": in_c}  # fmt: skip
    extra = in_c["peak_mib"] - in_c["weights_mib"] - max(0.0, in_c["arena_mib"])
    facts["c_program_beyond_weights_and_arena_mib"] = extra
    print(json.dumps(facts, indent=1))
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
