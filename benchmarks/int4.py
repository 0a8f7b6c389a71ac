"""Weights of 4 bits: products too large for the caches, and decode steps, in the same file for every engine.

    python -m benchmarks.int4 --build --networks NETS --work WORK               # files and artifacts, nothing is timed
    python -m benchmarks.int4 --networks NETS --work WORK [--peers DIR] [--json FILE] [--markdown FILE]

The file of a network is what `--precision int4` makes of it, as MatMulNBits nodes of accuracy level 4. With --peers
OpenVINO runs its own file of the network too (benchmarks.int8.peers --int4), whose outputs are compared with the float
model's in the bound of 4 bits. Bytes are of the weights, inputs and outputs that a step must read and write, caches
among them; the bandwidth is the median of readings of huge pages by as many threads, between the rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import opcel_compiler as oc
from benchmarks import figures
from benchmarks.artifacts import written_bytes
from benchmarks.int8.cases import arrays
from benchmarks.nbits import MICROSOFT, as_nbits
from benchmarks.networks import keep
from opcel_compiler.bench.machine import Machine
from opcel_compiler.bench.measure import Pace, as_dict, measure
from opcel_compiler.compilation import prepare

DECODERS = ("gpt2_decode", "llama_160m_decode")
PRODUCTS = {"gemv_4096x28672_g128": (128, 1), "gemv_4096x28672_g128_x4": (128, 4), "gemv_4096x28672_g32": (32, 1)}
"""Group and count of the matrices: some CPUs hold one of them in a cache, none four."""
DEPTH, COLUMNS = 4096, 28672
Row = dict[str, Any]


def product(k: int, n: int, group: int, count: int = 1) -> onnx.ModelProto:
    """x [1, k] times each of `count` matrices of 4 bits."""
    rng = np.random.default_rng(0)
    tensors, nodes = {}, []
    attrs = {"K": k, "N": n, "bits": 4, "block_size": group, "accuracy_level": 4}
    for i in range(count):
        tensors[f"w{i}"] = rng.integers(0, 256, (n, k // group, group // 2), np.uint8)
        tensors[f"s{i}"] = (rng.random((n, k // group), np.float32) + 0.5) / np.float32(4 * k**0.5)
        operands = ["x", f"w{i}", f"s{i}"]
        nodes.append(helper.make_node("MatMulNBits", operands, [f"y{i}"], f"product{i}", domain=MICROSOFT, **attrs))
    graph = helper.make_graph(
        nodes, "product", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, k])],
        [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [1, n]) for i in range(count)],
        [numpy_helper.from_array(v, name) for name, v in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def build(networks: Path, work: Path, names: list[str]) -> None:
    """The files and artifacts that are missing in `work`."""
    for name in names:
        file = work / f"{name}.onnx"
        if name in PRODUCTS:
            if not file.exists():
                onnx.save(product(DEPTH, COLUMNS, *PRODUCTS[name]), file)
            state: tuple[str, ...] = ()
        else:
            state = ("past_*:1024",)
            if not file.exists():
                quantized = prepare(networks / f"{name}.onnx", precision="int4", export_qdq=True).qdq
                assert quantized is not None
                onnx.save(as_nbits(quantized), file)
        inputs = networks / f"{name}.npz"
        given = {"inputs": inputs} if inputs.exists() else {}
        for suffix, options in (("", {}), (".state", {"state": state})) if state else (("", {}),):
            if not (work / f"{name}{suffix}.opcel").exists():
                oc.compile(file, output=work / f"{name}{suffix}.opcel", **options, **given).close()


def rows(args: argparse.Namespace, names: list[str], threads: list[int]) -> Iterator[Row]:
    for count in threads:
        for name in names:
            for suffix in ("", ".state"):
                artifact = args.work / f"{name}{suffix}.opcel"
                if artifact.exists():
                    yield row(args, name, artifact, count)


def row(args: argparse.Namespace, name: str, artifact: Path, threads: int) -> Row:
    """An entry of `benchmarks.figures`; `share` is that of the bandwidth, read each round while all engines rest."""
    inputs, source, theirs = args.networks / f"{name}.npz", args.networks / f"{name}.onnx", {}
    if args.peers and (file := args.peers / f"{name}.openvino-int4.xml").exists():
        theirs = dict.fromkeys(("openvino-int4", "openvino-int4-bf16"), file)
    given, readings = feeds_of(name, inputs), list[float]()
    with Machine(threads) as machine:
        result = measure(
            artifact, given, model=args.work / f"{name}.onnx", against=("ort", "openvino", *theirs),
            threads=threads, rounds=args.rounds, resident=True, pace=Pace(args.block), models=theirs,
            sources=dict.fromkeys(theirs, source),
            idle=lambda: readings.append(statistics.median(machine.sample_stream() for _ in range(3))),
        )  # fmt: skip
    report = json.loads((artifact / "report.json").read_text())
    read = sum(value.nbytes for value in given.values())
    moved = figures.decode_bytes(report, read, written_bytes(artifact, given))
    readings.sort()
    stream = statistics.median(readings)
    found: Row = {"network": artifact.stem, "weights": name, **as_dict(result), "bytes": moved, "bandwidth": stream}
    found["bandwidth_low"], found["bandwidth_high"] = readings[len(readings) // 4], readings[-1 - len(readings) // 4]
    for engine in found["engines"]:
        if "outputs" in engine:
            engine["relative_l2"] = max(each["relative_l2"] for each in engine.pop("outputs"))
    found["share"] = moved / figures.ours(found)["p50_s"] / stream
    if best := figures.best_peer(found):
        found |= {"best": best["engine"], "ratio": best["speedup"]}
    return found


def feeds_of(name: str, inputs: Path) -> dict[str, np.ndarray]:
    if inputs.exists():
        return arrays(inputs)
    return {"x": np.random.default_rng(1).standard_normal((1, DEPTH), np.float32)}


def table(found: list[Row]) -> str:
    """Markdown."""
    lines = ["| | threads | ours | ONNX Runtime / ours | OpenVINO / ours | share |", "|---|---|---|---|---|---|"]
    for each in found:
        named = {engine["engine"]: engine for engine in each["engines"]}
        openvino = [e["speedup"] for n, e in named.items() if n.startswith("openvino") and "speedup" in e]
        cells = (
            each["network"], each["threads"], f"{figures.milliseconds(figures.ours(each)['p50_s'])} ms",
            f"{named['ort']['speedup']:.2f}" if "speedup" in named.get("ort", {}) else "-",
            f"{min(openvino):.2f}" if openvino else "-", f"{each['share']:.0%}",
        )  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", type=Path, metavar="DIR", help="where NAME.openvino-int4.xml may be")
    parser.add_argument("--build", action="store_true", help="make the files and artifacts that are missing")
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", default="2,1")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--block", type=float, default=0.15, metavar="SECONDS")
    parser.add_argument("--json", type=Path, metavar="FILE", help="rows measured before and not now are kept")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    names = [n for n in (*PRODUCTS, *DECODERS) if not args.only or n in args.only.split(",")]
    if args.build:
        build(args.networks, args.work, names)
        return
    facts = json.loads(args.json.read_text()) if args.json and args.json.exists() else {"rows": []}
    known = {(each["threads"], each["network"]): each for each in facts["rows"]}
    for each in rows(args, names, [int(t) for t in args.threads.split(",")]):
        known[each["threads"], each["network"]] = each
        keep(args.json, known.values())
        print(table([each]).splitlines()[-1], flush=True)
    found = list(known.values())
    if args.markdown:
        args.markdown.write_text(table(found))


if __name__ == "__main__":
    main()
