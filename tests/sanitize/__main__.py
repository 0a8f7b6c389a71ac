"""Runtime and generated kernels under sanitizers: python -m tests.sanitize plain|address|thread [--seconds N]

Networks and random graphs are compiled with the sanitizer's flags and run by hammer.c from eight threads, each tensor
between pages that nobody may touch. A read or write outside, undefined behaviour, a data race or a result that differs
ends with status 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx

from benchmarks.random_graphs.compiled import joined
from benchmarks.random_graphs.generate import sample
from opcel_compiler.codegen.cpu.build import CSRC, build
from opcel_compiler.compilation import prepare
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.ir.interpret import run
from opcel_compiler.proof import Bound, compare

FLAGS = {
    "plain": "",
    "address": "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-sanitize=alignment -g1",
    "thread": "-fsanitize=thread -g1",
}
"""Kernels read vectors from addresses that need no alignment, and say so to the compiler by the type alone."""

CALLERS = 8


def models(graphs: int, networks: str, target: str) -> Iterator[tuple[str, onnx.ModelProto]]:
    from tests.e2e.twins_more import ALL

    fixed = [s for s in map(sample, range(graphs)) if not s.sizes]
    if fixed:
        yield f"{len(fixed)} random graphs", joined(fixed, target)[0]
    for name in filter(None, networks.split(",")):
        twin = next((t for key, t in ALL.items() if key.startswith(name)), None)
        if twin is not None:
            yield name, twin.build()


def hammered(name: str, model: onnx.ModelProto, mode: str, target: str, seconds: float, folder: Path) -> str:
    """Why the model fails, or ""."""
    sizes = {d.dim_param: 2 for v in model.graph.input for d in v.type.tensor_type.shape.dim if d.HasField("dim_param")}
    work = prepare(model, target, dims=sizes)
    if work.fallbacks:
        return f"it needs another engine: {work.fallbacks[0].reason}"
    rng, feeds = np.random.default_rng(0), {}
    graph = import_model(model, dims=sizes).graph
    for v in graph.inputs:
        shape, dtype = v.tensor.static_shape, v.tensor.dtype
        data = rng.integers(0, 2, shape) if not dtype.is_float else rng.standard_normal(shape)
        feeds[v.name] = np.asarray(data, np.float32 if dtype.is_float else None).astype(dtype.numpy)
    artifact = folder / "model"
    artifact.mkdir()
    assert work.program is not None
    build(work.program, work.target, artifact, (work.imported.input_names, work.imported.output_names))
    (folder / "in").write_bytes(b"".join(np.ascontiguousarray(a).tobytes() for a in feeds.values()))
    driver = folder / "hammer"
    flags = FLAGS[mode].split()
    command = ["gcc", "-std=gnu11", "-O1", *flags, f"-I{CSRC / 'runtime'}", str(Path(__file__).with_name("hammer.c"))]
    subprocess.run([*command, "-o", str(driver), "-ldl", "-lpthread"], check=True)
    # Kept waiting threads end with the process; what they hold is no leak.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "TSAN_OPTIONS": "halt_on_error=1"}
    arguments = [str(driver), str(artifact), str(folder / "in"), str(folder / "out"), str(CALLERS), str(seconds)]
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode:
        return f"status {done.returncode}: {done.stdout[-500:]} {done.stderr[:3000]}"
    want = run(graph, feeds)
    data, at = (folder / "out").read_bytes(), 0
    for key, array in want.items():
        got = np.frombuffer(data, array.dtype, array.size, at).reshape(array.shape)
        at += array.nbytes
        found = compare(key, got, array, Bound(1e-2, 1e-2, 1e-2))
        if not found.within:
            return f"output {key} is off by {found.max_abs:.3g}"
    print(f"{name}: {done.stdout.strip()}", flush=True)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sanitize", description=__doc__.split("\n")[0])
    parser.add_argument("mode", choices=FLAGS)
    parser.add_argument("--seconds", type=float, default=5, help="how long each model runs")
    parser.add_argument("--graphs", type=int, default=30, help="random graphs; 0 for none")
    parser.add_argument("--networks", default="mlp,mobilenet,lstm,bert", help="twins of the benchmark networks")
    parser.add_argument("--target", default="host")
    args = parser.parse_args()
    os.environ["OPCEL_CXXFLAGS"] = FLAGS[args.mode]
    warnings.simplefilter("ignore")
    failed = 0
    for name, model in models(args.graphs, args.networks, args.target):
        with tempfile.TemporaryDirectory(prefix="opcel-sanitize-") as folder:
            if reason := hammered(name, model, args.mode, args.target, args.seconds, Path(folder)):
                failed += 1
                print(f"{name}: {reason}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
