"""Small networks as graphs: a perceptron, a convolutional network, a transformer block."""

from __future__ import annotations

import numpy as np

from opcel_compiler.ir.dims import Dim, symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.types import tensor

N = symbol("n", 1)


class Builder:
    """A graph with seeded weights."""

    def __init__(self, name: str) -> None:
        self.graph = Graph(name)
        self.rng = np.random.default_rng(7)

    def weight(self, *shape: int, scale: float = 0.3) -> Value:
        data = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        return self.graph.constant(Constant(data), name="w")

    def op(self, name: str, *operands: Value, **attrs: object) -> Value:
        return self.graph.add(name, list(operands), attrs, origin=[f"{name.title()}_{len(self.graph)}"]).result

    def dense(self, x: Value, inner: int, outer: int) -> Value:
        return self.op("add", self.op("matmul", x, self.weight(inner, outer)), self.weight(outer))

    def conv(self, x: Value, inner: int, outer: int, k: int = 3, stride: int = 1, groups: int = 1) -> Value:
        p = k // 2
        w = self.weight(outer, inner // groups, k, k)
        return self.op(
            "conv", x, w, self.weight(outer), strides=(stride, stride), pads=(p,) * 4, dilations=(1, 1), groups=groups
        )


def perceptron(batch: Dim = N) -> Graph:
    b = Builder("perceptron")
    x = b.graph.add_input("x", tensor("f32", batch, 24))
    h = b.op("relu", b.dense(x, 24, 40))
    h = b.op("gelu", b.dense(h, 40, 33))
    b.graph.add_output(b.op("softmax", b.dense(h, 33, 10), axis=1), "p")
    return b.graph


def convnet(batch: Dim = N) -> Graph:
    """A stem, a residual block, a strided depthwise-separable block, pools, a concat, a classifier."""
    b = Builder("convnet")
    x = b.graph.add_input("x", tensor("f32", batch, 3, 14, 14))
    x = b.op("relu", b.conv(x, 3, 18))
    x = b.op("max_pool", x, kernel=(3, 3), strides=(2, 2), pads=(1, 1, 1, 1), dilations=(1, 1))
    y = b.op("relu", b.conv(x, 18, 18))
    x = b.op("relu", b.op("add", b.conv(y, 18, 18), x))
    y = b.op("relu", b.conv(x, 18, 18, stride=2, groups=18))
    y = b.conv(y, 18, 20, k=1)
    z = b.op(
        "avg_pool", b.conv(x, 18, 12, k=1), kernel=(2, 2), strides=(2, 2), pads=(0, 0, 1, 1), dilations=(1, 1)
    )  # fmt: skip
    x = b.op("concat", y, z, axis=1)
    x = b.op("reduce_mean", x, axes=(2, 3), keepdims=False)
    b.graph.add_output(b.dense(x, 32, 10), "scores")
    return b.graph


def transformer(batch: Dim = N, length: int = 12, width: int = 32, heads: int = 4) -> Graph:
    b = Builder("transformer")
    ids = b.graph.add_input("ids", tensor("i64", batch, length))
    x = b.op("add", b.op("gather", b.weight(50, width), ids, axis=0), b.weight(length, width))
    h = b.op("layer_norm", x, b.weight(width), b.weight(width), axis=2, epsilon=1e-5)

    def split(v: Value) -> Value:
        v = b.op("reshape", v, shape=(batch, length, heads, width // heads))
        return b.op("transpose", v, perm=(0, 2, 1, 3))

    q, k, v = (split(b.dense(h, width, width)) for _ in range(3))
    y = b.op("attention", q, k, v, scale=(width // heads) ** -0.5, causal=True)
    y = b.op("reshape", b.op("transpose", y, perm=(0, 2, 1, 3)), shape=(batch, length, width))
    x = b.op("add", b.dense(y, width, width), x)
    h = b.op("rms_norm", x, b.weight(width), axis=2, epsilon=1e-5)
    gate, up = b.op("silu", b.dense(h, width, 64)), b.dense(h, width, 64)
    x = b.op("add", b.dense(b.op("mul", gate, up), 64, width), x)
    b.graph.add_output(b.op("reduce_sum", x, axes=(1,), keepdims=False), "pooled")
    b.graph.add_output(b.op("matmul", x, b.op("transpose", b.weight(50, width), perm=(1, 0))), "logits")
    return b.graph


NETWORKS = {"perceptron": perceptron, "convnet": convnet, "transformer": transformer}
