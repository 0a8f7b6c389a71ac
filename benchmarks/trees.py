"""Ensembles of decision trees: python -m benchmarks.trees [--json FILE] [--rounds N] [MODEL.onnx ...]

100 and 1,000 trees of depth 8 over 30 features, made here: complete ones, and unbalanced ones of as many leaves. One,
100 and 10,000 rows a call, 1 and 2 threads, every call with other rows. OPCEL and ONNX Runtime, each in a process of
its own, take turns; what they compute is compared. Calls are those of Python. A ratio is theirs over ours, the median
over rounds of medians. Models that are named are measured instead; they have one input of rows of floats.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

import opcel_compiler
from opcel_compiler.bench.engines import ENGINES
from opcel_compiler.bench.turns import Worker

CALLS = {1: 1000, 100: 40, 10_000: 2}
"""Calls of a round, by the rows of a call."""
DEPTH, FEATURES = 8, 30


def complete(rng: np.random.Generator, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The children (test holds, or not) of each node of a complete tree, 0 for a leaf's."""
    size = 2 ** (depth + 1) - 1
    ids = np.arange(size)
    inner = ids < size // 2
    return np.where(inner, 2 * ids + 1, 0), np.where(inner, 2 * ids + 2, 0)


def unbalanced(rng: np.random.Generator, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """A tree of 2**depth leaves, grown by splitting a leaf at random, deep ones rather."""
    yes, no, depths = [0], [0], [0]
    leaves = [0]
    while len(leaves) < 2**depth:
        picked = max(rng.integers(0, len(leaves), 2), key=lambda i: depths[leaves[i]])
        at = leaves.pop(int(picked))
        yes[at], no[at] = len(yes), len(yes) + 1
        leaves += [yes[at], no[at]]
        yes, no, depths = [*yes, 0, 0], [*no, 0, 0], depths + [depths[at] + 1] * 2
    return np.array(yes), np.array(no)


def ensemble(rng: np.random.Generator, count: int, grow: Any, features: int = FEATURES) -> onnx.ModelProto:
    """A TreeEnsembleRegressor with random tests; a subtree's values lie around its parent's, as trained ones do."""
    rows: dict[str, list[Any]] = {
        k: [] for k in ("featureids", "values", "modes", "nodeids", "treeids", "truenodeids", "falsenodeids")
    }
    leaf_trees: list[int] = []
    leaf_ids: list[int] = []
    for tree in range(count):
        yes, no = grow(rng, DEPTH)
        leaf = yes == 0
        rows["featureids"] += np.where(leaf, 0, rng.integers(0, features, len(yes))).tolist()
        rows["values"] += np.where(leaf, 0, rng.standard_normal(len(yes)).astype(np.float32)).tolist()
        rows["modes"] += np.where(leaf, "LEAF", "BRANCH_LEQ").tolist()
        rows["nodeids"] += range(len(yes))
        rows["treeids"] += [tree] * len(yes)
        rows["truenodeids"] += yes.tolist()
        rows["falsenodeids"] += no.tolist()
        leaf_ids += np.flatnonzero(leaf).tolist()
        leaf_trees += [tree] * int(leaf.sum())
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1,
        **{f"nodes_{k}": v for k, v in rows.items()}, target_ids=[0] * len(leaf_ids), target_nodeids=leaf_ids,
        target_treeids=leaf_trees, target_weights=rng.standard_normal(len(leaf_ids)).astype(np.float32).tolist(),
    )  # fmt: skip
    graph = helper.make_graph(
        [node], "trees", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", features])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 1])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def serve(name: str, model: str, feeds: str, threads: str) -> None:
    """One engine in this process, with the orders "calls" and "save" of `bench.worker`; each call has other rows."""
    engine = ENGINES[name]
    with np.load(feeds) as file:
        key = file.files[0]
        rows = file[key]
    call = engine.open(import_module(engine.module), Path(model), {key: rows[0]}, int(threads))
    sets = [{key: np.ascontiguousarray(part)} for part in rows]
    call(sets[0])
    print(json.dumps({}), flush=True)
    turn = 0
    for line in sys.stdin:
        order = json.loads(line)
        seconds = []
        for _ in range(order.get("calls", 0)):
            turn = (turn + 1) % len(sets)
            start = time.perf_counter()
            call(sets[turn])
            seconds.append(time.perf_counter() - start)
        if "save" in order:
            np.savez(order["save"], *map(np.asarray, call(sets[0])))
        print(json.dumps({"seconds": seconds}), flush=True)


def measure(model: Path, artifact: Path, count: int, threads: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Times in microseconds of calls with `count` rows, and their ratio."""
    value = onnx.load(model, load_external_data=False).graph.input[0]
    features = value.type.tensor_type.shape.dim[-1].dim_value
    sets = 64 if count < 10_000 else 2
    rows = np.random.default_rng(1).standard_normal((sets, count, features)).astype(np.float32)
    feeds = folder / "feeds.npz"
    np.savez(feeds, **{value.name: rows})
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(
                Worker(ENGINES[name], path, feeds, threads, [
                    sys.executable, "-m", "benchmarks.trees", "--serve", name, str(path), str(feeds), str(threads),
                ])
            )
            for name, path in (("opcel", artifact), ("ort", model))
        ]  # fmt: skip
        medians: list[list[float]] = [[], []]
        for i in range(rounds + 1):
            for j in (0, 1) if i % 2 else (1, 0):
                block = workers[j].ask(calls=CALLS.get(count, 2) + 1)["seconds"][1:]
                if i:
                    medians[j].append(statistics.median(block))
        found = []
        for worker in workers:
            worker.ask(save=str(folder / "out.npz"))
            with np.load(folder / "out.npz") as file:
                found.append([file[k] for k in file.files])
    error = max(
        float(np.abs(a.astype(np.float64) - b).max() / max(1.0, float(np.abs(b).max())))
        for a, b in zip(*found, strict=True) if a.dtype.kind == "f"
    )  # fmt: skip
    ours, theirs = (statistics.median(m) * 1e6 for m in medians)
    ratio = statistics.median(b / a for a, b in zip(*medians, strict=True))
    return {"rows": count, "threads": threads, "opcel_us": ours, "ort_us": theirs, "ratio": ratio, "error": error}


def main() -> int:
    if sys.argv[1:2] == ["--serve"]:
        serve(*sys.argv[2:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        models = {path.stem: path for path in args.models}
        if not models:
            for name, grow in (("complete", complete), ("unbalanced", unbalanced)):
                for count in (100, 1000):
                    models[f"{name}, {count} trees"] = path = folder / f"{name}-{count}.onnx"
                    onnx.save(ensemble(np.random.default_rng(0), count, grow), path)
        for name, path in models.items():
            artifact = folder / f"{path.stem}.opcel"
            opcel_compiler.compile(path, output=artifact, fallback="error").close()
            for threads in args.threads:
                for count in CALLS:
                    row = {"model": name, **measure(path, artifact, count, threads, args.rounds, folder)}
                    results.append(row)
                    print(
                        f"{name:24s} {count:6d} rows  {threads} threads  OPCEL {row['opcel_us']:10.1f} us  "
                        f"ONNX Runtime {row['ort_us']:10.1f} us  {row['ratio']:5.2f} times  error {row['error']:.1e}",
                        flush=True,
                    )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0 if all(row["error"] < 1e-5 for row in results) else 6


if __name__ == "__main__":
    sys.exit(main())
