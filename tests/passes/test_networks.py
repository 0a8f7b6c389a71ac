"""The whole pipeline on small twins of networks, and on random graphs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Value
from opcel_compiler.ir.types import F32, tensor

PIPELINE = (
    "simplify-shapes,fold-constants,common-subexpressions,recognize-norms,recognize-activations,recognize-attention,"
    "simplify,move-transposes,fold-affine,simplify,simplify-shapes,recognize-attention,fold-constants,"
    "common-subexpressions,dead-code"
)


class Net:
    """Builds a graph with random weights."""

    def __init__(self, *shape: int) -> None:
        self.graph = Graph()
        self.rng = np.random.default_rng(7)
        self.x = self.graph.add_input("x", tensor(F32, *shape))

    def __call__(self, op: str, *operands: Value, **attrs: object) -> Value:
        return self.graph.add(op, operands, attrs).result

    def weights(self, *shape: int) -> Value:
        return self.graph.constant(Constant(self.rng.uniform(0.5, 1.5, shape).astype(np.float32)))

    def number(self, number: float) -> Value:
        return self.graph.constant(Constant(np.array(number, np.float32)))

    def linear(self, x: Value, n: int) -> Value:
        k = x.tensor.dims[-1]
        assert isinstance(k, int)
        w = self("mul", self.weights(k, n), self.number(1 / k))
        return self("add", self.weights(n), self("matmul", x, w))

    def layer_norm(self, x: Value) -> Value:
        rank, width = len(x.tensor.dims), x.tensor.dims[-1]
        assert isinstance(width, int)
        d = self("sub", x, self("reduce_mean", x, axes=(rank - 1,), keepdims=True))
        v = self("reduce_mean", self("pow", d, self.number(2)), axes=(rank - 1,), keepdims=True)
        y = self("div", d, self("sqrt", self("add", v, self.number(1e-5))))
        return self("add", self("mul", y, self.weights(width)), self.weights(width))

    def batch_norm(self, x: Value) -> Value:
        channels = x.tensor.dims[1]
        assert isinstance(channels, int)
        deviation = self("sqrt", self("add", self.weights(channels, 1, 1), self.number(1e-5)))
        scale = self("div", self.weights(channels, 1, 1), deviation)
        shift = self("sub", self.weights(channels, 1, 1), self("mul", self.weights(channels, 1, 1), scale))
        return self("add", self("mul", x, scale), shift)


def encoder(heads: int, width: int, layers: int) -> Graph:
    """A transformer encoder in the spelling of exporters that know none of its parts."""
    net = Net(2, 5, width)
    h, size = net.x, width // heads
    for _ in range(layers):
        split = [net("reshape", net.linear(h, width), shape=(2, 5, heads, size)) for _ in range(3)]
        q, v = (net("transpose", split[i], perm=(0, 2, 1, 3)) for i in (0, 2))
        k = net("transpose", split[1], perm=(0, 2, 3, 1))
        scores = net("add", net("div", net("matmul", q, k), net.number(size**0.5)), net.weights(2, 1, 1, 5))
        o = net("transpose", net("matmul", net("softmax", scores, axis=3), v), perm=(0, 2, 1, 3))
        h = net.layer_norm(net("add", net.linear(net("reshape", o, shape=(2, 5, width)), width), h))
        f = net.linear(h, 2 * width)
        e = net("add", net("erf", net("div", f, net.number(2**0.5))), net.number(1))
        f = net("mul", net("mul", f, e), net.number(0.5))
        h = net.layer_norm(net("add", h, net.linear(f, width)))
    net.graph.add_output(h, "y")
    return net.graph


def test_encoder(apply) -> None:
    out = apply(encoder(2, 8, 2), PIPELINE, tolerance=2e-5)
    assert Counter(out.ops) == {
        "matmul": 12, "add": 16, "reshape": 8, "transpose": 8, "attention": 2, "layer_norm": 4, "gelu": 2,
    }  # fmt: skip


def test_residual_network(apply) -> None:
    net = Net(1, 3, 8, 8)
    conv = {"strides": (1, 1), "pads": (1, 1, 1, 1), "dilations": (1, 1)}
    h = net("max", net.batch_norm(net("conv", net.x, net.weights(4, 3, 3, 3), **conv)), net.number(0))
    for _ in range(2):
        f = net("max", net.batch_norm(net("conv", h, net.weights(4, 4, 3, 3), **conv)), net.number(0))
        f = net.batch_norm(net("conv", f, net.weights(4, 4, 3, 3), **conv))
        h = net("mul", net("relu", net("add", f, h)), net.number(0.01))
    pooled = net("reduce_mean", h, axes=(2, 3), keepdims=True)
    net.graph.add_output(net.linear(net("reshape", pooled, shape=(1, 4)), 3), "y")
    out = apply(net.graph, PIPELINE, tolerance=1e-4)
    assert Counter(out.ops) == {"conv": 5, "relu": 5, "add": 3, "mul": 2, "reduce_mean": 1, "reshape": 1, "matmul": 1}


def test_channels_last_network(apply) -> None:
    net = Net(1, 6, 6, 3)
    conv = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    h = net.x
    for channels in (4, 4, 4):
        width = h.tensor.dims[-1]
        assert isinstance(width, int)
        y = net("conv", net("transpose", h, perm=(0, 3, 1, 2)), net.weights(channels, width, 1, 1), **conv)
        h = net("relu", net("add", net("transpose", y, perm=(0, 2, 3, 1)), net.weights(channels)))
    net.graph.add_output(h, "y")
    out = apply(net.graph, PIPELINE, tolerance=1e-5)
    assert Counter(out.ops)["transpose"] == 2


UNARY = ["neg", "relu", "abs", "tanh", "sigmoid"]
BINARY = ["add", "sub", "mul", "max", "min"]


def random_graph(seed: int) -> Graph:
    """Twenty operators on values of shape [2, 3, 4] or a permutation, with constants that rules look for."""
    rng = np.random.default_rng(seed)
    net = Net(2, 3, 4)
    values = [net.x]
    numbers = [0.0, 1.0, -1.0, 2.0, 0.5]
    for _ in range(20):
        x = values[rng.integers(len(values))]
        kind = rng.integers(7)
        if kind == 0:
            y = net(str(rng.choice(UNARY)), x)
        elif kind == 1:
            alike = [v for v in values if v.type == x.type]
            y = net(str(rng.choice(BINARY)), x, alike[rng.integers(len(alike))])
        elif kind == 2:
            y = net(str(rng.choice(BINARY)), x, net.number(float(rng.choice(numbers))))
        elif kind == 3:
            last = x.tensor.static_shape[-1]
            y = net(str(rng.choice([*BINARY, "div"])), x, net.weights(last))
        elif kind == 4:
            y = net("transpose", x, perm=tuple(int(p) for p in rng.permutation(len(x.tensor.dims))))
        elif kind == 5:
            y = net("expand", net("reshape", x, shape=(1, *x.tensor.dims)), shape=(1, *x.tensor.dims))
            y = net("reshape", y, shape=x.tensor.dims)
        else:
            size = x.tensor.dims
            y = net("slice", net("concat", x, x, axis=0), starts=(0, 0, 0), sizes=size, steps=(1, 1, 1))
        values.append(y)
    for i, v in enumerate(values[-3:]):
        net.graph.add_output(v, f"y{i}")
    return net.graph


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(apply, seed: int) -> None:
    out = apply(random_graph(seed), PIPELINE, tolerance=1e-4)
    assert len(out.graph) <= len(out.before)
