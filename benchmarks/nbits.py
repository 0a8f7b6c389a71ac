"""Models of MatMulNBits nodes: what every engine runs with weights of 4 bits."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

MICROSOFT = "com.microsoft"
LONGEST_BLOCK = 128


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
