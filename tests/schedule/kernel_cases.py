"""Bodies of every kind of anchor, with the types of their inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from hand_programs import Build

from opcel_compiler.ir.dims import symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.types import TensorType, tensor

N = symbol("n", 1)


def op(name: str, **attrs: Any) -> Build:
    return lambda g, *xs: g.add(name, list(xs), attrs).result


def conv(strides: tuple[int, ...], pads: tuple[int, ...], dilations: tuple[int, ...], groups: int = 1) -> Build:
    return op("conv", strides=strides, pads=pads, dilations=dilations, groups=groups)


def pool(name: str, **attrs: Any) -> Build:
    return op(name, **{"kernel": (3, 2), "strides": (2, 1), "pads": (1, 0, 1, 1), "dilations": (1, 1), **attrs})


def gemm(g: Graph, a: Value, b: Value, c: Value) -> Value:
    return g.add("relu", [g.add("add", [g.add("matmul", [a, b]).result, c]).result]).result


def scaled_rows(g: Graph, x: Value, w: Value) -> Value:
    """exp before the matmul, a softmax after it."""
    return g.add("softmax", [g.add("matmul", [g.add("tanh", [x]).result, w]).result], {"axis": 1}).result


def rearranged(g: Graph, x: Value) -> Value:
    y = g.add("transpose", [x], {"perm": (0, 2, 1)}).result
    y = g.add("slice", [y], {"starts": (0, 4, 1), "sizes": (N, 3, 2), "steps": (1, -2, 3)}).result
    y = g.add("reshape", [y], {"shape": (N, 1, 3, 2)}).result
    y = g.add("expand", [y], {"shape": (N, 4, 3, 2)}).result
    return g.add("add", [y, g.constant(Constant(np.arange(6, dtype=np.float32).reshape(3, 2)))]).result


def positions(g: Graph, x: Value) -> Value:
    i = g.add("range_", [], {"start": (N,), "size": (N,), "step": 2, "dtype": tensor("f32").dtype}).result
    return g.add("add", [x, i]).result


def two_reads(g: Graph, x: Value) -> Value:
    """One input read by two different maps."""
    return g.add("add", [x, g.add("transpose", [x], {"perm": (1, 0)}).result]).result


def centred(g: Graph, x: Value) -> Value:
    """An output larger than the anchor's result."""
    return g.add("sub", [x, g.add("reduce_mean", [x], {"axes": (1,), "keepdims": True}).result]).result


F = "f32"
CASES: dict[str, tuple[Build, tuple[TensorType, ...]]] = {
    "elementwise": (op("add"), (tensor(F, N, 1, 5), tensor(F, 4, 1))),
    "gemm": (gemm, (tensor(F, N, 9), tensor(F, 9, 7), tensor(F, 7))),
    "gemm-f16": (gemm, (tensor("f16", N, 9), tensor("f16", 9, 7), tensor("f16", 7))),
    "gemm-int": (gemm, (tensor("i32", N, 9), tensor("i32", 9, 7), tensor("i32", 7))),
    "matmul-batched": (op("matmul"), (tensor(F, N, 1, 3, 5), tensor(F, 4, 5, 2))),
    "matmul-vector": (op("matmul"), (tensor(F, N, 6), tensor(F, 6))),
    "matmul-rows": (scaled_rows, (tensor(F, N, 5), tensor(F, 5, 6))),
    "conv": (conv((2, 1), (1, 2, 0, 1), (1, 2)), (tensor(F, N, 5, 7, 8), tensor(F, 4, 5, 3, 2), tensor(F, 4))),
    "conv-1d": (conv((1,), (2, 2), (2,)), (tensor(F, N, 3, 9), tensor(F, 2, 3, 3))),
    "conv-grouped": (conv((1, 1), (1, 1, 1, 1), (1, 1), 2), (tensor(F, N, 6, 5, 5), tensor(F, 4, 3, 3, 3))),
    "conv-depthwise": (conv((1, 2), (1, 1, 1, 1), (1, 1), 6), (tensor(F, N, 6, 5, 5), tensor(F, 6, 1, 3, 3))),
    "conv-transpose": (
        op("conv_transpose", strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1), groups=1, output_padding=(1, 0)),
        (tensor(F, N, 3, 4, 4), tensor(F, 3, 2, 3, 3)),
    ),
    "max-pool": (pool("max_pool"), (tensor(F, N, 3, 7, 6),)),
    "max-pool-ceil": (pool("max_pool", ceil_mode=True, strides=(2, 3)), (tensor(F, N, 3, 8, 6),)),
    "avg-pool": (pool("avg_pool"), (tensor(F, N, 3, 7, 6),)),
    "avg-pool-ceil": (
        pool("avg_pool", ceil_mode=True, count_include_pad=True, strides=(2, 3)),
        (tensor(F, N, 3, 8, 6),),
    ),
    "sum": (op("reduce_sum", axes=(0, 2), keepdims=False), (tensor(F, N, 3, 7),)),
    "mean": (op("reduce_mean", axes=(1,), keepdims=True), (tensor(F, N, 5, 3),)),
    "mean-int": (op("reduce_mean", axes=(1,), keepdims=False), (tensor("i32", N, 5),)),
    "max": (op("reduce_max", axes=(1,), keepdims=False), (tensor(F, N, 5),)),
    "prod": (op("reduce_prod", axes=(1,), keepdims=False), (tensor(F, N, 5),)),
    "arg-max": (op("arg_max", axis=1, keepdims=False), (tensor(F, N, 5),)),
    "centred": (centred, (tensor(F, N, 5),)),
    "softmax": (op("softmax", axis=1), (tensor(F, N, 5, 3),)),
    "layer-norm": (op("layer_norm", axis=1, epsilon=1e-5), (tensor(F, N, 5), tensor(F, 5), tensor(F, 5))),
    "attention": (
        op("attention", scale=0.5, causal=True),
        (tensor(F, N, 4, 5, 3), tensor(F, N, 2, 7, 3), tensor(F, N, 2, 7, 2)),
    ),
    "attention-mask": (
        op("attention", scale=0.5),
        (tensor(F, N, 2, 5, 3), tensor(F, N, 2, 7, 3), tensor(F, N, 2, 7, 2), tensor(F, 5, 7)),
    ),
    "rearranged": (rearranged, (tensor(F, N, 5, 6),)),
    "positions": (positions, (tensor(F, 3, N),)),
    "two-reads": (two_reads, (tensor(F, N, N),)),
    "concat": (op("concat", axis=1), (tensor(F, N, 2), tensor(F, N, 3))),
    "pad": (op("pad", pads=(0, 1, 0, 2), mode="reflect"), (tensor(F, N, 5),)),
    "gather": (op("gather", axis=1), (tensor(F, N, 4), tensor("i64", 2, 3))),
    "gather-elements": (op("gather_elements", axis=1), (tensor(F, N, 4), tensor("i64", N, 3))),
    "gather-nd": (op("gather_nd"), (tensor(F, 3, 4), tensor("i64", N, 2))),
    "linear-attention": (
        lambda g, *xs: g.add("linear_attention", list(xs)).results[0],
        (tensor(F, N, 3, 4, 5), tensor(F, N, 3, 2, 5), tensor(F, N, 3, 2, 6)),
    ),
    "scatter-elements": (op("scatter_elements", axis=1), (tensor(F, N, 4), tensor("i64", N, 3), tensor(F, N, 3))),
    "scatter-nd": (op("scatter_nd", reduction="add"), (tensor(F, 3, 4), tensor("i64", N, 1), tensor(F, N, 4))),
    "cast": (op("cast", dtype=tensor("i64").dtype), (tensor(F, N, 4),)),
}  # fmt: skip
