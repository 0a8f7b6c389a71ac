"""Engines that say what a model computes, strongest first. A large model runs in a process of its own, so that its
weights are not in ours a second time.

As a program, `python -m opcel_compiler.references MODEL FEEDS.npz OUTPUTS.npz NAME ...` saves what ONNX Runtime makes.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from opcel_compiler.ir.graph import Graph
from opcel_compiler.ir.interpret import run as interpret
from opcel_compiler.proof import Feeds, ProofError, candidates
from opcel_compiler.runtime.ort_values import run_session

ORT = "ONNX Runtime, optimizations off"
LARGE = 8 << 20
"""Bytes of a model file from which it gets a process of its own; a smaller one is not worth starting it."""


FEW_SAMPLES = 12
"""How many sample inputs a large model is tried on, as each starts the engine anew."""


def sampled_reference(
    model: Any, graph: Graph, names: Sequence[str], outputs: Sequence[str]
) -> tuple[dict[str, np.ndarray], str, list[np.ndarray]]:
    """(sample inputs, engine, outputs) of the first sample inputs that the model runs on. Raises ProofError."""
    first: dict[str, np.ndarray] | None = None
    is_large = isinstance(model, (str, Path)) and _bytes_of(Path(model)) >= LARGE
    for feeds in islice(candidates(graph, names), FEW_SAMPLES if is_large else None):
        first = first if first is not None else feeds
        try:
            return feeds, ORT, _onnxruntime(model, outputs, feeds)
        except Exception:  # its errors have no common base; the model may run on other inputs
            continue
    assert first is not None
    return (first, *reference_outputs(model, graph, names, outputs, first))


def reference_outputs(
    model: Any, graph: Graph, names: Sequence[str], outputs: Sequence[str], feeds: Feeds
) -> tuple[str, list[np.ndarray]]:
    """(engine, outputs) of the strongest reference that runs the model: ONNX Runtime without optimizations, else the
    ONNX reference evaluator, else the interpreter. Raises ProofError when none does."""
    attempts: list[tuple[str, Callable[[], list[np.ndarray]]]] = [
        (ORT, lambda: _onnxruntime(model, outputs, feeds)),
        ("ONNX reference evaluator", lambda: _onnx_reference(model, outputs, feeds)),
        ("OPCEL interpreter", lambda: _interpreter(graph, names, feeds)),
    ]
    reasons = []
    for engine, attempt in attempts:
        try:
            return engine, attempt()
        except Exception as error:  # each engine has its own exceptions; the next one is tried
            reasons.append(f"{engine}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
    raise ProofError(
        "no reference could run the model on the sample inputs, so nothing can be proved. "
        f"{'; '.join(reasons)}. Give valid inputs with --inputs, or use --no-proof"
    )


def _onnxruntime(model: Any, outputs: Sequence[str], feeds: Feeds) -> list[np.ndarray]:
    plain = all(np.asarray(v).dtype.kind in "fiub" for v in feeds.values())
    if isinstance(model, (str, Path)) and plain and _bytes_of(Path(model)) >= LARGE:
        return _apart(Path(model), outputs, feeds)
    return run_onnxruntime(model, outputs, feeds)


def _bytes_of(path: Path) -> int:
    """A model file's size, external data beside it included."""
    beside = path.with_name(path.name + ".data")
    return sum(p.stat().st_size for p in (path, beside) if p.is_file())


def _apart(model: Path, outputs: Sequence[str], feeds: Feeds) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory(prefix="opcel-") as folder:
        given, made = Path(folder) / "feeds.npz", Path(folder) / "outputs.npz"
        np.savez(given, **{f"i{i}": v for i, v in enumerate(feeds.values())}, names=np.array(list(feeds)))  # type: ignore[arg-type]
        command = [sys.executable, "-m", "opcel_compiler.references", str(model.resolve()), str(given), str(made)]
        done = subprocess.run([*command, *outputs], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1])
        with np.load(made) as file:
            return [file[f"o{i}"] for i in range(len(outputs))]


def run_onnxruntime(model: Any, outputs: Sequence[str], feeds: Feeds) -> list[np.ndarray]:
    """The outputs by ONNX Runtime without optimizations, in this process. Raises what ONNX Runtime raises."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    source = (
        str(model)
        if isinstance(model, (str, Path))
        else model
        if isinstance(model, bytes)
        else model.SerializeToString()
    )
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return [np.asarray(v) for v in run_session(session, outputs, feeds)]


def _onnx_reference(model: Any, outputs: Sequence[str], feeds: Feeds) -> list[np.ndarray]:
    from opcel_compiler.frontend.reference import evaluate_onnx

    return evaluate_onnx(model, outputs, feeds)


def _interpreter(graph: Graph, names: Sequence[str], feeds: Feeds) -> list[np.ndarray]:
    got = interpret(graph, {v.name: feeds[n] for n, v in zip(names, graph.inputs, strict=True)})
    return list(got.values())


def main() -> None:
    model, given, made, *outputs = sys.argv[1:]
    with np.load(given) as file:
        feeds = {str(name): file[f"i{i}"] for i, name in enumerate(file["names"])}
    results = run_onnxruntime(model, outputs, feeds)
    np.savez(made, **{f"o{i}": v for i, v in enumerate(results)})  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
