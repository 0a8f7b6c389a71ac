"""What a call of a small network costs: python -m benchmarks.tiny MODEL.onnx FEEDS.npz [--rounds N] [--json FILE]

Our Python call, the same with outputs given, and the C call (a program compiled from opcel.h) beside ONNX Runtime's
`run` and IO binding and OpenVINO. Each has a process of its own, they take turns in blocks of calls, and what each
computes is compared with the unoptimized reference. A ratio is theirs over ours, the median over rounds of medians.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import opcel_compiler
from opcel_compiler.bench.engines import ENGINES, PEERS, Engine
from opcel_compiler.bench.turns import EngineError, Worker
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.proof import Bound, compare, given_inputs
from opcel_compiler.references import reference_outputs
from opcel_compiler.runtime._runtime import usable_cpus

HERE = Path(__file__).parent
C_CALL = Engine("opcel-c", "OPCEL, C call", "", lambda *_: list)
COMPARED = {"opcel": ("ort", "openvino"), "opcel-out": ("ort", "openvino"), "opcel-c": ("ort-binding", "openvino")}


def build_c(folder: Path) -> Path:
    """The C program, compiled."""
    program = folder / "tiny"
    include = Path(opcel_compiler.__file__).parent / "csrc" / "runtime"
    command = ["cc", "-O2", "-std=c11", "-D_GNU_SOURCE", f"-I{include}", str(HERE / "tiny.c"), "-o", str(program)]
    subprocess.run([*command, "-ldl"], check=True)
    return program


def measure(model: Path, feeds: dict[str, np.ndarray], threads: int, rounds: int, calls: int) -> dict[str, Any]:
    """{"threads", "rounds", "calls", "engines": {name: figures or error}, "ratios": {"ours/theirs": times}}."""
    imported = import_model(model)
    names, outputs = imported.input_names, imported.output_names
    given = given_inputs(feeds, imported.graph, names)
    with tempfile.TemporaryDirectory() as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        artifact, file = folder / "model.opcel", folder / "feeds.npz"
        np.savez(file, **feeds)  # type: ignore[arg-type]
        opcel_compiler.compile(model, output=artifact, inputs=file).close()
        raw = [folder / f"{i}.bin" for i in range(len(names))]
        for path, name in zip(raw, names, strict=True):
            feeds[name].tofile(path)
        command = [str(build_c(folder)), str(artifact), str(threads), *map(str, raw)]
        workers: list[Worker] = []
        engines: dict[str, Any] = {}
        for name in ("opcel", "opcel-out", "opcel-c", "ort", "ort-binding", "openvino"):
            engine = C_CALL if name == C_CALL.name else ENGINES[name]
            if name in PEERS and not engine.is_installed:
                engines[name] = {"error": f"the package {engine.module} is not installed"}
                continue
            path = model if name in PEERS else artifact
            try:
                worker = Worker(engine, path, file, threads, command if engine is C_CALL else None)
            except EngineError as error:
                engines[name] = {"error": str(error)}
                continue
            workers.append(stack.enter_context(worker))
        seconds: dict[str, list[list[float]]] = {w.engine.name: [] for w in workers}
        for i in range(rounds + 1):
            for worker in workers if i % 2 == 0 else workers[::-1]:
                block = worker.ask(calls=calls + 1)["seconds"][1:]
                if i > 0:
                    seconds[worker.engine.name].append(block)
        want = reference_outputs(model, imported.graph, names, outputs, given)[1]
        for worker in workers:
            name, every = worker.engine.name, np.concatenate(seconds[worker.engine.name])
            found = results(worker, folder, want)
            rows = [compare(n, got, w, Bound()) for n, got, w in zip(outputs, found, want, strict=True)]
            p10, p50, p99 = (float(v) * 1e6 for v in np.percentile(every, (10, 50, 99)))
            engines[name] = {"p10_us": p10, "p50_us": p50, "p99_us": p99, "within": all(r.within for r in rows)}
        medians = {name: [statistics.median(block) for block in blocks] for name, blocks in seconds.items()}
        ratios = {
            f"{ours}/{theirs}": statistics.median(b / a for a, b in zip(medians[ours], medians[theirs], strict=True))
            for ours, peers in COMPARED.items()
            for theirs in peers
            if theirs in medians
        }
    return {"threads": threads, "rounds": rounds, "calls": calls, "engines": engines, "ratios": ratios}


def results(worker: Worker, folder: Path, like: list[np.ndarray]) -> list[np.ndarray]:
    """What an engine computes, in the model's order."""
    path = folder / "saved.npz"
    worker.ask(save=str(path))
    if worker.engine is not C_CALL:
        with np.load(path) as file:
            return [file[str(i)] for i in range(len(like))]
    data, found = path.read_bytes(), []
    for array in like:
        found.append(np.frombuffer(data[: array.nbytes], array.dtype).reshape(array.shape))
        data = data[array.nbytes :]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("feeds", type=Path)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--calls", type=int, default=3000, help="in a block")
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with np.load(args.feeds) as file:
        feeds = {key: file[key] for key in file.files}
    facts = measure(args.model, feeds, args.threads, args.rounds, args.calls)
    for name, row in facts["engines"].items():
        if "error" in row:
            print(f"{name:12s} {row['error']}")
            continue
        times = f"P10 {row['p10_us']:6.2f}  P50 {row['p50_us']:6.2f}  P99 {row['p99_us']:6.2f} us"
        print(f"{name:12s} {times}  outputs {'within' if row['within'] else 'OUTSIDE'} the bound")
    for pair, ratio in facts["ratios"].items():
        ours, theirs = pair.split("/")
        print(f"{theirs} takes {ratio:.2f} times as long as {ours}")
    if args.json:
        args.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 0 if all(row.get("within", True) for row in facts["engines"].values()) else 6


if __name__ == "__main__":
    sys.exit(main())
