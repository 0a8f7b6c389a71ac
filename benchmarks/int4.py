"""Weights of 4 bits: one product too large for the caches, and decode steps, in the same file for every engine.

    python -m benchmarks.int4 --build --networks NETS --work WORK     # files and artifacts, nothing is timed
    python -m benchmarks.int4 --networks NETS --work WORK             # the table

The file of a network is what `--precision int4` makes of it, as MatMulNBits nodes of accuracy level 4. Bytes are of
weights and caches that a step must read and write; the bandwidth is that of huge pages read with as many threads.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import opcel_compiler as oc
from opcel_compiler.bench.machine import Machine
from opcel_compiler.compilation import prepare

DECODERS = ("gpt2_decode", "llama_160m_decode")
PRODUCTS = {"gemv_4096x28672_g128": 128, "gemv_4096x28672_g32": 32}
MICROSOFT = "com.microsoft"


def product(k: int, n: int, group: int, rows: int = 1) -> onnx.ModelProto:
    """x [rows, k] times weights of 4 bits."""
    rng = np.random.default_rng(0)
    tensors = {
        "w": rng.integers(0, 256, (n, k // group, group // 2), np.uint8),
        "s": (rng.random((n, k // group), np.float32) + 0.5) / np.float32(4 * k**0.5),
    }
    attrs = {"K": k, "N": n, "bits": 4, "block_size": group, "accuracy_level": 4}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], "product", domain=MICROSOFT, **attrs)
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, n])],
        [numpy_helper.from_array(v, name) for name, v in tensors.items()],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def as_nbits(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of blocked DequantizeLinear nodes before MatMul nodes, with MatMulNBits nodes in their place."""
    graph = model.graph
    tensors = {t.name: t for t in graph.initializer}
    made = {n.output[0]: n for n in graph.node if n.op_type == "Constant"}
    dequantized = {n.output[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}

    def array(name: str) -> np.ndarray | None:
        if name in tensors:
            return numpy_helper.to_array(tensors[name])
        return numpy_helper.to_array(made[name].attribute[0].t) if name in made else None

    nodes, used = [], set()
    for node in graph.node:
        source = dequantized.get(node.input[1]) if node.op_type == "MatMul" else None
        held = None if source is None else [array(name) for name in source.input]
        if source is None or held is None or any(a is None for a in held):
            nodes.append(node)
            continue
        group = next(a.i for a in source.attribute if a.name == "block_size")
        packed, attrs = _packed(held, group)
        names = [f"{node.output[0]}.{i}" for i in range(len(packed))]
        graph.initializer.extend(numpy_helper.from_array(a, n) for a, n in zip(packed, names, strict=True))
        nodes.append(
            helper.make_node(
                "MatMulNBits",
                [node.input[0], *names],
                node.output,
                node.name,
                domain=MICROSOFT,
                accuracy_level=4,
                **attrs,
            )
        )
        used.update([source.output[0], *source.input])
    if not used:
        raise ValueError("no product in the model has weights of few bits")
    read = {name for n in nodes if n.output[0] not in used for name in n.input} | {o.name for o in graph.output}
    kept = [n for n in nodes if n.output[0] not in used or n.output[0] in read]
    del graph.node[:]
    graph.node.extend(kept)
    live = [t for t in graph.initializer if t.name not in used or t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(live)
    model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return model


LONGEST_BLOCK = 128


def _packed(held: list[np.ndarray], group: int) -> tuple[list[np.ndarray], dict[str, int]]:
    """Weights, scales and zero points of a MatMulNBits node; a scale of all of a column is repeated for blocks."""
    codes, scale, *zero = held
    bits = 4 if "4" in codes.dtype.name else 8
    signed = not codes.dtype.name.startswith("u")
    k, n = codes.shape
    block = min(group, LONGEST_BLOCK)
    times, blocks = (-(-k // block) if group >= k else group // block), -(-k // block)
    unsigned = codes.astype(np.int16) + ((1 << (bits - 1)) if signed else 0)
    wide = np.zeros((n, blocks * block), np.uint8)
    wide[:, :k] = unsigned.astype(np.uint8).T
    scales = np.repeat(scale, times, 0)[:blocks].T
    packed = [_joined(wide, bits).reshape(n, blocks, block * bits // 8), np.ascontiguousarray(scales, np.float32)]
    if zero:
        points = np.repeat(zero[0].astype(np.uint8), times, 0)[:blocks].T
        packed.append(_joined(np.pad(points, ((0, 0), (0, -blocks % (8 // bits)))), bits).reshape(-1))
    return packed, {"K": k, "N": n, "bits": bits, "block_size": block}


def _joined(a: np.ndarray, bits: int) -> np.ndarray:
    return a if bits == 8 else a[:, ::2] | a[:, 1::2] << np.uint8(4)


def build(networks: Path, work: Path, names: list[str]) -> None:
    """The files and artifacts that are missing in `work`."""
    for name in names:
        file = work / f"{name}.onnx"
        if name in PRODUCTS:
            if not file.exists():
                onnx.save(product(4096, 28672, PRODUCTS[name]), file)
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


def rows(networks: Path, work: Path, names: list[str], threads: list[int], rounds: int) -> Iterator[dict[str, Any]]:
    for count in threads:
        with Machine(count) as machine:
            stream = machine.stream
        for name in names:
            for suffix in ("", ".state"):
                artifact = work / f"{name}{suffix}.opcel"
                if artifact.exists():
                    yield {"name": name + suffix, "threads": count, "stream": stream} | _measured(
                        artifact, work / f"{name}.onnx", networks / f"{name}.npz", count, rounds
                    )


def _measured(artifact: Path, model: Path, inputs: Path, threads: int, rounds: int) -> dict[str, Any]:
    command = [
        sys.executable, "-m", "opcel_compiler.cli", "bench", artifact, "--against", "ort,openvino", "--model", model,
        "--threads", threads, "--rounds", rounds, "--weights", "resident", "--json",
        *(("--inputs", inputs) if inputs.exists() else ()),
    ]  # fmt: skip
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    report = json.loads((artifact / "report.json").read_text())
    weights = sum(int(kernel["weight_bytes"]) for kernel in report["kernels"])
    caches = 0
    if inputs.exists():
        with np.load(inputs) as arrays:
            caches = sum(arrays[n].nbytes for n in arrays.files)
    return {"measured": found, "bytes": weights + caches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--build", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--threads", default="2,1")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    names = [n for n in (*PRODUCTS, *DECODERS) if not args.only or n in args.only.split(",")]
    if args.build:
        build(args.networks, args.work, names)
        return
    threads = [int(t) for t in args.threads.split(",")]
    for row in rows(args.networks, args.work, names, threads, args.rounds):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
