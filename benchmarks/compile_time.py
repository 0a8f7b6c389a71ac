"""Compile time and memory: python -m benchmarks.compile_time MODEL.onnx ... [--json F]

Each model is compiled by `opcel compile` in a fresh process, first with an empty object cache (cold), then twice with
a full one (warm; the better counts). Wall time is the whole process's, Python's start included. Peak memory is that of
our process (VmHWM); the processes it starts, compilers and the reference, are reported apart (the largest of them).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

WORKER = """
import json, resource, sys
from opcel_compiler.cli import main
code = main(["compile", sys.argv[1], "-o", sys.argv[2], "--fallback=error", "--quiet", *sys.argv[3:]])
peak = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmHWM"))
children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps({"code": code, "peak_mib": peak / 1024, "children_peak_mib": children / 1024}))
"""


def once(model: Path, folder: str, cache: str, options: Sequence[str] = ()) -> dict[str, float]:
    """Compile a model with the object cache in the folder `cache`; gives seconds and MiB."""
    command = [sys.executable, "-c", WORKER, str(model), str(Path(folder) / "model.opcel"), *options]
    start = time.perf_counter()
    environment = {**os.environ, "OPCEL_CACHE": cache}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    seconds = time.perf_counter() - start
    if done.returncode or not done.stdout.strip():
        raise SystemExit(done.stderr)
    facts: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if facts["code"]:
        raise SystemExit(done.stderr)
    return {"seconds": seconds, **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    print(f"{'model':24} {'cold s':>7} {'warm s':>7} {'peak MiB':>9} {'model MiB':>10} {'children MiB':>13}")
    for model in args.models:
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
            cold = once(model, folder, cache)
            warm = min((once(model, folder, cache) for _ in range(2)), key=lambda r: r["seconds"])
        size = sum(p.stat().st_size for p in (model, model.with_name(model.name + ".data")) if p.exists()) / 2**20
        row = {
            "model": model.stem, "cold_s": cold["seconds"], "warm_s": warm["seconds"], "model_mib": size,
            "peak_mib": max(cold["peak_mib"], warm["peak_mib"]), "children_peak_mib": cold["children_peak_mib"],
        }  # fmt: skip
        rows.append(row)
        print(
            f"{model.stem:24} {row['cold_s']:7.1f} {row['warm_s']:7.2f} {row['peak_mib']:9.0f} {size:10.1f} "
            f"{row['children_peak_mib']:13.0f}", flush=True,
        )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
