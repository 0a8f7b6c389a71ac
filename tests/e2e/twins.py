"""Small twins of the benchmark networks, with the graphs that exporters write for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from .builder import Net

INDEX_LIMIT = 50
"""Integer inputs are below it; every table that they index has as many rows."""
LOWEST = float(np.finfo(np.float32).min)
Dim = int | str


@dataclass(frozen=True)
class Twin:
    """A model; the sizes of its symbols to try; the kernel families that it must have, and operators that must go."""

    build: Callable[[], onnx.ModelProto]
    sizes: tuple[Mapping[str, int], ...] = ({},)
    families: frozenset[str] = frozenset()
    recognized: frozenset[str] = frozenset()
    gone: frozenset[str] = frozenset()


def feeds(model: onnx.ModelProto, sizes: Mapping[str, int] | None = None, seed: int = 1) -> dict[str, np.ndarray]:
    """Random inputs: normal floats, ones and zeros for masks (each row begins with a one), else valid indices."""
    random = np.random.default_rng(seed)
    result: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        t = value.type.tensor_type
        shape = [(sizes or {})[d.dim_param] if d.dim_param else d.dim_value for d in t.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(t.elem_type)
        if dtype.kind == "f":
            result[value.name] = random.standard_normal(shape).astype(dtype)
        elif "mask" in value.name:
            result[value.name] = random.integers(0, 2, shape).astype(dtype)
            result[value.name][..., :1] = 1
        else:
            result[value.name] = random.integers(0, INDEX_LIMIT, shape).astype(dtype)
    return result


# -- perceptron, convolutional networks --------------------------------------------------------------------------------


def mlp(batch: Dim = 4) -> onnx.ModelProto:
    net = Net("mlp")
    x = net.input("x", batch, 20)
    for fan_in, fan_out in ((20, 48), (48, 48)):
        x = net("Relu", net("Gemm", x, net.weight(fan_out, fan_in), net.weight(fan_out, scale=0.1), transB=1))
    net.output("y", net("Gemm", x, net.weight(10, 48), net.weight(10, scale=0.1), transB=1))
    return net.model()


def _conv(net: Net, x: str, shape: tuple[int, int, int], stride: int = 1, groups: int = 1) -> str:
    """A convolution of (filters, channels, kernel size), padded to keep the image's size at stride 1, without bias."""
    filters, channels, size = shape
    weight = net.weight(filters, channels // groups, size, size)
    return net(
        "Conv", x, weight, kernel_shape=[size, size], strides=[stride, stride], pads=[size // 2] * 4, group=groups
    )  # fmt: skip


def _batch_norm(net: Net, x: str, channels: int) -> str:
    scale = net.random.uniform(0.5, 1.5, channels).astype(np.float32)
    variance = net.random.uniform(0.5, 2, channels).astype(np.float32)
    bias, mean = net.weight(channels, scale=0.2), net.weight(channels, scale=0.2)
    return net("BatchNormalization", x, scale, bias, mean, variance, epsilon=1e-5)


def _bottleneck(net: Net, x: str, channels: int, width: int, stride: int) -> str:
    out = 4 * width
    y = net("Relu", _batch_norm(net, _conv(net, x, (width, channels, 1)), width))
    y = net("Relu", _batch_norm(net, _conv(net, y, (width, width, 3), stride), width))
    y = _batch_norm(net, _conv(net, y, (out, width, 1)), out)
    if channels != out or stride != 1:
        x = _batch_norm(net, _conv(net, x, (out, channels, 1), stride), out)
    return net("Relu", net("Add", y, x))


def resnet(batch: Dim = 1, stem: int = 16, width: int = 8, image: int = 24) -> onnx.ModelProto:
    """Bottlenecks as in ResNet-50: two of one width, then one of twice the width at half the size."""
    net = Net("resnet")
    x = net.input("x", batch, 3, image, image)
    x = net("Relu", _batch_norm(net, _conv(net, x, (stem, 3, 7), 2), stem))
    x = net("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = _bottleneck(net, x, stem, width, 1)
    x = _bottleneck(net, x, 4 * width, width, 1)
    x = _bottleneck(net, x, 4 * width, 2 * width, 2)
    x = net("Flatten", net("GlobalAveragePool", x))
    net.output("y", net("Gemm", x, net.weight(10, 8 * width), net.weight(10, scale=0.1), transB=1))
    return net.model()


def mobilenet(batch: Dim = 1) -> onnx.ModelProto:
    """Inverted residuals: expansion, depthwise, linear projection; ReLU6 written as Clip with two constants."""
    net = Net("mobilenet")

    def relu6(x: str) -> str:
        return net("Clip", x, 0.0, 6.0)

    def block(x: str, channels: int, out: int, stride: int) -> str:
        wide = 3 * channels
        y = relu6(_batch_norm(net, _conv(net, x, (wide, channels, 1)), wide))
        y = relu6(_batch_norm(net, _conv(net, y, (wide, wide, 3), stride, wide), wide))
        y = _batch_norm(net, _conv(net, y, (out, wide, 1)), out)
        return net("Add", x, y) if stride == 1 and channels == out else y

    x = net.input("x", batch, 3, 20, 20)
    x = relu6(_batch_norm(net, _conv(net, x, (12, 3, 3), 2), 12))
    x = block(block(block(x, 12, 12, 1), 12, 24, 2), 24, 24, 1)
    x = net("Reshape", net("GlobalAveragePool", x), np.array([0, -1]))
    net.output("y", net("Gemm", x, net.weight(10, 24), net.weight(10, scale=0.1), transB=1))
    return net.model()


def digits(batch: Dim = 2) -> onnx.ModelProto:
    """A small image classifier that ends in probabilities and the most likely class."""
    net = Net("digits", 13)
    x = net.input("x", batch, 1, 8, 8)
    for filters, channels in ((12, 1), (20, 12)):
        x = net("Conv", x, net.weight(filters, channels, 3, 3), net.weight(filters, scale=0.1), pads=[1, 1, 1, 1])
        x = net("MaxPool", net("Relu", x), kernel_shape=[2, 2], strides=[2, 2])
    x = net("Gemm", net("Flatten", x), net.weight(80, 10), net.weight(10, scale=0.1))
    net.output("p", net("Softmax", x, axis=-1))
    net.output("label", net("ArgMax", x, axis=-1, keepdims=0), TensorProto.INT64)
    return net.model()


def channels_last(batch: Dim = 2) -> onnx.ModelProto:
    """An image input as TensorFlow's exporter leaves it: NHWC, transposed around the convolutions."""
    net = Net("channels_last", 13)
    x = net("Transpose", net.input("x", batch, 9, 9, 3), perm=[0, 3, 1, 2])
    x = net("Relu", net("Conv", x, net.weight(17, 3, 3, 3), net.weight(17, scale=0.1), strides=[2, 2]))
    x = net("Conv", x, net.weight(8, 17, 1, 1), net.weight(8, scale=0.1))
    net.output("y", net("Transpose", x, perm=[0, 2, 3, 1]))
    return net.model()


# -- transformers ------------------------------------------------------------------------------------------------------


class _Bert:
    """An encoder of two layers, spelled as one of the exporters spells it."""

    HIDDEN, HEADS, INNER, POSITIONS = 32, 2, 64, 64

    def __init__(self, spelling: str, batch: Dim, length: Dim) -> None:
        self.net = Net(f"bert_{spelling}", {"torchscript": 17, "decomposed": 13, "dynamo": 20}[spelling])
        self.spelling, self.batch, self.length = spelling, batch, length
        self.dynamic = isinstance(batch, str) or isinstance(length, str)

    def model(self) -> onnx.ModelProto:
        net, hidden = self.net, self.HIDDEN
        ids = net.input("input_ids", self.batch, self.length, dtype=TensorProto.INT64)
        mask = net.input("attention_mask", self.batch, self.length, dtype=TensorProto.INT64)
        self.ids = ids
        tables = [net.weight(rows, hidden, scale=0.5) for rows in (INDEX_LIMIT, 2, self.POSITIONS)]
        length = self._size(1, vector=True)
        position = net("Slice", np.arange(self.POSITIONS)[None], np.array([0]), length, np.array([1]))
        x = net("Add", net("Gather", tables[0], ids), net("Gather", tables[1], self._types(position)))
        x = self._norm(net("Add", x, net("Gather", tables[2], position)))
        bias = self._mask(mask)
        for _ in range(2):
            x = self._norm(net("Add", self._linear(self._attention(x, bias), hidden, hidden), x))
            y = self._linear(self._gelu(self._linear(x, hidden, self.INNER)), self.INNER, hidden)
            x = self._norm(net("Add", y, x))
        net.output("last_hidden_state", x)
        first = net("Gather", x, np.array(0), axis=1)
        net.output("pooled", net("Tanh", net("Gemm", first, net.weight(hidden, hidden), net.weight(hidden), transB=1)))
        return net.model()

    def _size(self, axis: int, vector: bool = False) -> str:
        """The run-time length of an axis of the ids: a scalar, or a vector of one element."""
        net = self.net
        if not self.dynamic:
            return net.const(np.array([(self.batch, self.length)[axis]] if vector else (self.batch, self.length)[axis]))
        if self.spelling == "dynamo":
            size = net("Shape", self.ids, start=axis, end=axis + 1)
            return size if vector else net("Squeeze", size, np.array([0]))
        size = net("Gather", net("Shape", self.ids), np.array(axis), axis=0)
        return net("Unsqueeze", size, np.array([0])) if vector else size

    def _types(self, position: str) -> str:
        """Token types: zeros of the ids' shape, read from a table at the positions."""
        net = self.net
        shape = net("Concat", self._size(0, vector=True), self._size(1, vector=True), axis=0)
        if self.spelling == "decomposed":
            return net("ConstantOfShape", shape, value=onnx.numpy_helper.from_array(np.array([0])))
        length = self._size(1, vector=True)
        zeros = net("Slice", np.zeros((1, self.POSITIONS), np.int64), np.array([0]), length, np.array([1]))
        return net("Expand", net("GatherElements", zeros, position, axis=1), shape)

    def _mask(self, mask: str) -> str:
        net = self.net
        if self.spelling == "dynamo":
            keep = net("Unsqueeze", net("Cast", mask, to=TensorProto.BOOL), np.array([1, 2]))
            square = net("Concat", np.array([1, 1]), self._size(1, vector=True), np.array([1]), axis=0)
            every = net("Expand", np.array(True), square)
            return net("Where", net("And", every, keep), 0.0, LOWEST)
        wide = net("Unsqueeze", net("Unsqueeze", mask, np.array([1])), np.array([2]))
        return net("Mul", net("Sub", 1.0, net("Cast", wide, to=TensorProto.FLOAT)), LOWEST)

    def _linear(self, x: str, fan_in: int, fan_out: int) -> str:
        net = self.net
        weight, bias = net.weight(fan_in, fan_out, scale=fan_in**-0.5), net.weight(fan_out, scale=0.1)
        y = net("MatMul", x, weight)
        return net("Add", y, bias) if self.spelling == "dynamo" else net("Add", bias, y)

    def _heads(self, x: str, perm: list[int]) -> str:
        net, size = self.net, self.HIDDEN // self.HEADS
        if self.dynamic:
            tail = np.array([self.HEADS, size])
            shape: Any = net("Concat", self._size(0, vector=True), self._size(1, vector=True), tail, axis=0)
        else:
            shape = np.array([self.batch, self.length, -1, size])
        return net("Transpose", net("Reshape", x, shape), perm=perm)

    def _attention(self, x: str, mask: str) -> str:
        net, hidden = self.net, self.HIDDEN
        q, k, v = (self._linear(x, hidden, hidden) for _ in range(3))
        q, k, v = self._heads(q, [0, 2, 1, 3]), self._heads(k, [0, 2, 3, 1]), self._heads(v, [0, 2, 1, 3])
        size = hidden // self.HEADS
        scores = net("MatMul", q, k)
        scores = net("Mul", scores, size**-0.5) if self.spelling == "dynamo" else net("Div", scores, float(size**0.5))
        mixed = net("MatMul", net("Softmax", net("Add", scores, mask), axis=-1), v)
        joined = net("Transpose", mixed, perm=[0, 2, 1, 3])
        if self.dynamic:
            sizes = self._size(0, vector=True), self._size(1, vector=True)
            shape: Any = net("Concat", *sizes, np.array([hidden]), axis=0)
        else:
            shape = np.array([self.batch, self.length, hidden])
        return net("Reshape", joined, shape)

    def _norm(self, x: str) -> str:
        net = self.net
        scale = net.random.uniform(0.5, 1.5, self.HIDDEN).astype(np.float32)
        bias = net.weight(self.HIDDEN, scale=0.2)
        if self.spelling != "decomposed":
            return net("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-12)
        centred = net("Sub", x, net("ReduceMean", x, axes=[-1]))
        variance = net("ReduceMean", net("Pow", centred, 2.0), axes=[-1])
        y = net("Div", centred, net("Sqrt", net("Add", variance, 1e-12)))
        return net("Add", net("Mul", y, scale), bias)

    def _gelu(self, x: str) -> str:
        net = self.net
        if self.spelling == "dynamo":
            return net("Gelu", x, approximate="none")
        y = net("Add", net("Erf", net("Div", x, float(np.sqrt(2)))), 1.0)
        return net("Mul", net("Mul", x, y), 0.5)


def bert(spelling: str, batch: Dim = 2, length: Dim = 12) -> onnx.ModelProto:
    return _Bert(spelling, batch, length).model()


# -- operators beside the great networks -------------------------------------------------------------------------------


def movement(batch: Dim = 3) -> onnx.ModelProto:
    """Concat, Pad, Slice (also backwards), Gather (also from the end), Split, Tile-like Expand, Transpose."""
    net = Net("movement", 13)
    x, i = net.input("x", batch, 5, 7), net.input("i", 4, dtype=TensorProto.INT64)
    part = net("Slice", x, np.array([1, 6]), np.array([4, 0]), np.array([1, 2]), np.array([1, -2]))
    net.output("slice", part)
    net.output("pad", net("Pad", x, np.array([0, 1, 0, 0, 0, 2]), 1.5))
    net.output("concat", net("Concat", x, net("Neg", x), axis=1))
    net.output("gather", net("Gather", net.weight(50, 6), i, axis=0))
    net.output("wrapped", net("Gather", x, np.array([-1, 0, -3]), axis=2))
    first, second = net.many(2, "Split", x, np.array([2, 3]), axis=1)
    row = net("Slice", first, np.array([0]), np.array([1]), np.array([1]))
    net.output("split", net("Transpose", net("Add", second, row), perm=[2, 0, 1]))
    return net.model()


def reductions(batch: Dim = 3) -> onnx.ModelProto:
    net = Net("reductions", 13)
    x = net.input("x", batch, 6, 10)
    net.output("sum", net("ReduceSum", x, np.array([2])))
    net.output("mean", net("ReduceMean", x, axes=[1], keepdims=0))
    net.output("max", net("ReduceMax", x, axes=[0, 1, 2]))
    net.output("min", net("ReduceMin", x, axes=[1, 2], keepdims=0))
    net.output("argmax", net("ArgMax", x, axis=1, keepdims=1), TensorProto.INT64)
    net.output("argmin", net("ArgMin", x, axis=2, keepdims=0, select_last_index=1), TensorProto.INT64)
    net.output("middle", net("Softmax", x, axis=1))
    net.output("log", net("LogSoftmax", net("Mul", x, 2.0), axis=2))
    return net.model()


def integers(batch: Dim = 3) -> onnx.ModelProto:
    """Integer, boolean and comparison arithmetic."""
    net = Net("integers", 13)
    i, j = net.input("i", batch, 6, dtype=TensorProto.INT64), net.input("j", 1, 6, dtype=TensorProto.INT64)
    centred = net("Sub", i, np.array(25))
    net.output("linear", net("Add", net("Mul", centred, j), np.array(3)), TensorProto.INT64)
    net.output("quotient", net("Div", centred, np.array(7)), TensorProto.INT64)
    net.output("remainder", net("Mod", centred, np.array(7)), TensorProto.INT64)
    less = net("Less", i, j)
    net.output("less", less, TensorProto.BOOL)
    net.output("either", net("Or", net("Not", less), net("Equal", i, j)), TensorProto.BOOL)
    net.output("chosen", net("Where", less, i, j), TensorProto.INT64)
    half = net("Mul", net("Cast", centred, to=TensorProto.FLOAT), 0.5)
    net.output("narrow", net("Cast", half, to=TensorProto.INT32), TensorProto.INT32)
    net.output("total", net("ReduceSum", i, np.array([1])), TensorProto.INT64)
    return net.model()


def grouped(batch: Dim = 2) -> onnx.ModelProto:
    """Unusual convolutions: groups, dilation, one and three spatial axes, asymmetric pads, average pools."""
    net = Net("grouped", 13)
    x = net.input("x", batch, 12, 9, 9)
    y = net("Conv", x, net.weight(8, 3, 3, 3), net.weight(8, scale=0.1), group=4, dilations=[2, 2], pads=[2, 1, 1, 2])
    y = net("AveragePool", net("Sigmoid", y), kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])
    net.output("two", y)
    line = net("Reshape", x, np.array([0, 12, 81]))
    net.output("one", net("Conv", line, net.weight(10, 12, 5), strides=[3], pads=[2, 2]))
    cube = net("Reshape", x, np.array([0, 4, 3, 9, 9]))
    net.output("three", net("MaxPool", net("Conv", cube, net.weight(3, 4, 2, 3, 3)), kernel_shape=[2, 2, 2]))
    return net.model()


def _batches(*values: int) -> tuple[Mapping[str, int], ...]:
    return tuple({"batch": v} for v in values)


LENGTHS: tuple[Mapping[str, int], ...] = (
    {"batch": 1, "length": 1}, {"batch": 3, "length": 7}, {"batch": 17, "length": 33}, {"batch": 1, "length": 33},
)  # fmt: skip
DENSE = frozenset({"gemm"})
IMAGE = frozenset({"conv.blocked", "pool.blocked", "gemm"})
ENCODER = frozenset({"attention", "layer_norm", "gemm"})
ENCODER_OPS = frozenset({"attention", "layer_norm", "gelu"})
SPELLED_OUT = frozenset({"softmax", "erf", "pow", "sqrt", "reduce_mean"})


def _bert(spelling: str, symbolic: bool) -> Twin:
    shape: tuple[Dim, Dim] = ("batch", "length") if symbolic else (2, 12)
    sizes = LENGTHS if symbolic else ({},)
    return Twin(lambda: bert(spelling, *shape), sizes, ENCODER, ENCODER_OPS, SPELLED_OUT)


TWINS: dict[str, Twin] = {
    "mlp": Twin(mlp, families=DENSE),
    "mlp-symbolic": Twin(lambda: mlp("batch"), _batches(1, 3, 17), DENSE),
    "resnet": Twin(resnet, families=IMAGE, gone=frozenset({"sqrt"})),
    "resnet-odd": Twin(lambda: resnet(2, 18, 5, 21), families=IMAGE),
    "resnet-symbolic": Twin(lambda: resnet("batch"), _batches(1, 3), IMAGE),
    "mobilenet": Twin(mobilenet, families=IMAGE | {"conv.depthwise"}),
    "digits": Twin(lambda: digits("batch"), _batches(1, 3, 17), IMAGE | {"softmax", "arg_max"}),
    "channels-last": Twin(channels_last, families=frozenset({"conv.blocked"})),
    **{f"bert-{s}": _bert(s, False) for s in ("torchscript", "decomposed", "dynamo")},
    **{f"bert-{s}-symbolic": _bert(s, True) for s in ("torchscript", "decomposed", "dynamo")},
    "movement": Twin(lambda: movement("batch"), _batches(1, 3), frozenset({"gather", "copy"})),
    "reductions": Twin(lambda: reductions("batch"), _batches(1, 3), frozenset({"reduce.rows", "arg_max", "softmax"})),
    "integers": Twin(lambda: integers("batch"), _batches(1, 3), frozenset({"elementwise"})),
    "grouped": Twin(grouped, families=frozenset({"conv.reference"})),
}
