"""Further twins: recurrent layers, a segmenter, vision and speech encoders, single steps of two decoders."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from .builder import Net
from .twins import INDEX_LIMIT, LOWEST, TWINS, Dim, Twin

HEADS, SIZE = 2, 16
HIDDEN = HEADS * SIZE


# -- recurrent layers --------------------------------------------------------------------------------------------------


def lstm(batch: Dim = 1, length: Dim = 7, hidden: int = 24) -> onnx.ModelProto:
    """Two layers over a batch-first input, zero states made as exporters make them, then a linear layer."""
    net = Net("lstm")
    x = net("Transpose", net.input("x", batch, length, 10), perm=[1, 0, 2])
    for size in (10, hidden):
        rows = net("Unsqueeze", net("Gather", net("Shape", x), np.array(1), axis=0), np.array([0]))
        shape = net("Concat", np.array([1]), rows, np.array([hidden]), axis=0)
        states = [net("Expand", np.zeros((1, 1, hidden), np.float32), shape) for _ in range(2)]
        weights = net.weight(1, 4 * hidden, size, scale=size**-0.5), net.weight(1, 4 * hidden, hidden, scale=0.2)
        y, last, cell = net.many(
            3, "LSTM", x, *weights, net.weight(1, 8 * hidden, scale=0.1), None, *states, hidden_size=hidden
        )
        x = net("Squeeze", y, np.array([1]))
    out = net("MatMul", net("Transpose", x, perm=[1, 0, 2]), net.weight(hidden, 5, scale=0.2))
    net.output("y", net("Add", net.weight(5), out))
    net.output("last", last)
    net.output("cell", cell)
    return net.model()


def gru(batch: Dim = 3, length: Dim = 5, hidden: int = 20, last: int = 9) -> onnx.ModelProto:
    """Both directions, a given state, as PyTorch exports it; the directions joined, then one backward tanh layer."""
    net = Net("gru")
    x = net.input("x", length, batch, 6)
    weights = net.weight(2, 3 * hidden, 6, scale=0.4), net.weight(2, 3 * hidden, hidden, scale=0.2)
    attrs = {"direction": "bidirectional", "linear_before_reset": 1, "hidden_size": hidden}
    state = net.input("state", 2, batch, hidden)
    y, end = net.many(2, "GRU", x, *weights, net.weight(2, 6 * hidden, scale=0.2), None, state, **attrs)
    joined = net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), np.array([0, 0, -1]))
    net.output("last", end)
    weights = net.weight(1, last, 2 * hidden, scale=0.2), net.weight(1, last, last, scale=0.9 * last**-0.5)
    y, end = net.many(2, "RNN", joined, *weights, hidden_size=last, direction="reverse")
    net.output("y", net("Squeeze", y, np.array([1])))
    net.output("first", end)
    return net.model()


# -- images ------------------------------------------------------------------------------------------------------------


def unet(batch: Dim = 1, width: int = 16, image: int = 24, upsample: str = "linear") -> onnx.ModelProto:
    """Down twice, up twice with skip connections, then a resize to twice the size."""
    net = Net("unet")

    def conv(x: str, channels: int, filters: int, size: int = 3) -> str:
        weights = net.weight(filters, channels, size, size), net.weight(filters, scale=0.1)
        return net("Conv", x, *weights, kernel_shape=[size, size], pads=[size // 2] * 4)

    def pair(x: str, channels: int, filters: int) -> str:
        return net("Relu", conv(net("Relu", conv(x, channels, filters)), filters, filters))

    x = pair(net.input("x", batch, 3, image, image), 3, width)
    skips = []
    for level in (1, 2):
        skips.append(x)
        pooled = net("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        x = pair(pooled, width * 2 ** (level - 1), width * 2**level)
    for level in (1, 0):
        filters = width * 2**level
        weights = net.weight(2 * filters, filters, 2, 2, scale=0.1), net.weight(filters, scale=0.1)
        x = net("ConvTranspose", x, *weights, kernel_shape=[2, 2], strides=[2, 2])
        x = pair(net("Concat", x, skips[level], axis=1), 2 * filters, filters)
    x = conv(x, width, 2, 1)
    attrs = {"mode": upsample, "coordinate_transformation_mode": "half_pixel"}
    scales = np.array([1, 1, 2, 2], np.float32)
    net.output("y", net("Resize", x, None, scales, **attrs))
    return net.model()


def generator(batch: Dim = 2) -> onnx.ModelProto:
    """Transposed convolutions as in image generators: overlapping, with activations after them."""
    net = Net("generator")
    x = net.input("x", batch, 20, 3, 4)
    for channels, filters, size, attrs in (
        (20, 16, 4, {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
        (16, 12, 3, {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
        (12, 8, 3, {"strides": [1, 1], "pads": [1, 1, 1, 1]}),
        (8, 4, 2, {"strides": [3, 3]}),
        (4, 3, 5, {"strides": [2, 2], "pads": [2, 2, 2, 2], "dilations": [2, 1]}),
    ):
        weights = net.weight(channels, filters, size, size, scale=0.15), net.weight(filters, scale=0.1)
        x = net("Tanh", net("ConvTranspose", x, *weights, kernel_shape=[size, size], **attrs))
    net.output("y", x)
    return net.model()


# -- transformers ------------------------------------------------------------------------------------------------------


def _linear(net: Net, x: str, fan_in: int, fan_out: int, bias: bool = True) -> str:
    y = net("MatMul", x, net.weight(fan_in, fan_out, scale=fan_in**-0.5))
    return net("Add", net.weight(fan_out, scale=0.1), y) if bias else y


def _heads(net: Net, x: str, heads: int = HEADS) -> str:
    return net("Transpose", net("Reshape", x, np.array([0, 0, heads, SIZE])), perm=[0, 2, 1, 3])


def _joined(net: Net, x: str) -> str:
    return net("Reshape", net("Transpose", x, perm=[0, 2, 1, 3]), np.array([0, 0, HIDDEN]))


def _norm(net: Net, x: str) -> str:
    scale = net.random.uniform(0.5, 1.5, HIDDEN).astype(np.float32)
    return net("LayerNormalization", x, scale, net.weight(HIDDEN, scale=0.1), axis=-1)


def _gelu(net: Net, x: str) -> str:
    y = net("Add", net("Erf", net("Div", x, float(np.sqrt(2)))), 1.0)
    return net("Mul", net("Mul", x, y), 0.5)


def _encoder_layer(net: Net, x: str) -> str:
    y = _norm(net, x)
    q, k, v = (_heads(net, _linear(net, y, HIDDEN, HIDDEN, bias)) for bias in (True, False, True))
    scores = net("MatMul", net("Mul", q, SIZE**-0.25), net("Mul", net("Transpose", k, perm=[0, 1, 3, 2]), SIZE**-0.25))
    y = _joined(net, net("MatMul", net("Softmax", scores, axis=-1), v))
    x = net("Add", x, _linear(net, y, HIDDEN, HIDDEN))
    y = _linear(net, _gelu(net, _linear(net, _norm(net, x), HIDDEN, 2 * HIDDEN)), 2 * HIDDEN, HIDDEN)
    return net("Add", x, y)


def vit(batch: Dim = 2) -> onnx.ModelProto:
    """Patches by a convolution, a class token in front, positions, two layers, the class token's logits."""
    net = Net("vit")
    x = net.input("pixels", batch, 3, 12, 12)
    x = net("Conv", x, net.weight(HIDDEN, 3, 4, 4), net.weight(HIDDEN, scale=0.1), kernel_shape=[4, 4], strides=[4, 4])
    x = net("Transpose", net("Reshape", x, np.array([0, HIDDEN, -1])), perm=[0, 2, 1])
    rows = net("Slice", net("Shape", x), np.array([0]), np.array([1]), np.array([0]))
    token = net("Expand", net.weight(1, 1, HIDDEN, scale=1), net("Concat", rows, np.array([-1, -1]) * -1, axis=0))
    x = net("Add", net("Concat", token, x, axis=1), net.weight(1, 10, HIDDEN, scale=0.3))
    for _ in range(2):
        x = _encoder_layer(net, x)
    first = net("Gather", _norm(net, x), np.array(0), axis=1)
    net.output("logits", net("Gemm", first, net.weight(10, HIDDEN), net.weight(10), transB=1))
    return net.model()


def whisper(batch: Dim = 1, frames: int = 30) -> onnx.ModelProto:
    """Two convolutions over time with GELU, positions, two layers."""
    net = Net("whisper")
    x = net.input("features", batch, 20, frames)
    for channels, stride in ((20, 1), (HIDDEN, 2)):
        weights = net.weight(HIDDEN, channels, 3), net.weight(HIDDEN, scale=0.1)
        x = _gelu(net, net("Conv", x, *weights, kernel_shape=[3], strides=[stride], pads=[1, 1]))
    x = net("Add", net("Transpose", x, perm=[0, 2, 1]), net.weight(frames // 2, HIDDEN, scale=0.3))
    for _ in range(2):
        x = _encoder_layer(net, x)
    net.output("y", _norm(net, x))
    return net.model()


def _cache(net: Net, layer: int, name: str, x: str, heads: int, batch: Dim, past: Dim) -> str:
    """`x` appended to the keys or values of the steps before, which is also an output."""
    joined = net("Concat", net.input(f"past_{name}_{layer}", batch, heads, past, SIZE), x, axis=2)
    net.output(f"{name}_{layer}", joined)
    return joined


def gpt(batch: Dim = 1, past: Dim = 9) -> onnx.ModelProto:
    """A decode step: one token, the caches of the steps before, GELU by tanh, q, k and v in one product."""
    net = Net("gpt")
    ids = net.input("ids", batch, 1, dtype=TensorProto.INT64)
    position = net.weight(1, 1, HIDDEN, scale=0.3)
    x = net("Add", net("Gather", net.weight(INDEX_LIMIT, HIDDEN, scale=0.5), ids), position)
    for layer in range(2):
        y = _linear(net, _norm(net, x), HIDDEN, 3 * HIDDEN)
        parts = net.many(3, "Split", y, np.array([HIDDEN] * 3), axis=2)
        q, k, v = (_heads(net, p) for p in parts)
        k, v = (_cache(net, layer, n, p, HEADS, batch, past) for n, p in (("key", k), ("value", v)))
        scores = net("Mul", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])), SIZE**-0.5)
        y = _joined(net, net("MatMul", net("Softmax", scores, axis=-1), v))
        x = net("Add", x, _linear(net, y, HIDDEN, HIDDEN))
        y = _linear(net, _norm(net, x), HIDDEN, 2 * HIDDEN)
        inner = net("Add", y, net("Mul", net("Pow", y, 3.0), 0.044715))
        y = net("Mul", net("Mul", y, 0.5), net("Add", net("Tanh", net("Mul", inner, float(np.sqrt(2 / np.pi)))), 1.0))
        x = net("Add", x, _linear(net, y, 2 * HIDDEN, HIDDEN))
    net.output("logits", net("MatMul", _norm(net, x), net.weight(HIDDEN, INDEX_LIMIT, scale=0.2)))
    return net.model()


def llama(batch: Dim = 1, past: Dim = 9) -> onnx.ModelProto:
    """A decode step: rotary positions, RMS norms, fewer key heads than query heads, gated SiLU, a mask."""
    net, groups = Net("llama"), 1
    ids = net.input("ids", batch, 1, dtype=TensorProto.INT64)
    x = net("Gather", net.weight(INDEX_LIMIT, HIDDEN, scale=0.5), ids)
    angle = 9.0 * 100.0 ** (-np.arange(0, SIZE, 2) / SIZE)
    angles = net.const(np.concatenate([angle, angle]).astype(np.float32)[None, None, None])
    cos, sin = net("Cos", angles), net("Sin", angles)

    def rms(x: str) -> str:
        mean = net("ReduceMean", net("Pow", x, 2.0), axes=[-1])
        y = net("Mul", x, net("Reciprocal", net("Sqrt", net("Add", mean, 1e-5))))
        return net("Mul", net.random.uniform(0.5, 1.5, HIDDEN).astype(np.float32), y)

    def rotary(x: str) -> str:
        first, second = (
            net("Slice", x, np.array([a]), np.array([b]), np.array([3])) for a, b in ((0, SIZE // 2), (SIZE // 2, SIZE))
        )
        turned = net("Concat", net("Neg", second), first, axis=3)
        return net("Add", net("Mul", x, cos), net("Mul", turned, sin))

    def repeated(x: str) -> str:
        wide = net("Unsqueeze", x, np.array([2]))
        sizes = net("Concat", net("Shape", x, end=2), np.array([HEADS // groups]), net("Shape", x, start=2), axis=0)
        flat = net("Concat", net("Shape", x, end=1), np.array([HEADS]), net("Shape", x, start=2), axis=0)
        return net("Reshape", net("Expand", wide, sizes), flat)

    for layer in range(2):
        y = rms(x)
        q = rotary(_heads(net, _linear(net, y, HIDDEN, HIDDEN, False)))
        k = rotary(_heads(net, _linear(net, y, HIDDEN, groups * SIZE, False), groups))
        v = _heads(net, _linear(net, y, HIDDEN, groups * SIZE, False), groups)
        k, v = (repeated(_cache(net, layer, n, p, groups, batch, past)) for n, p in (("key", k), ("value", v)))
        scores = net("Mul", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])), SIZE**-0.5)
        length = net("Gather", net("Shape", k), np.array(2), axis=0)
        seen = net("Less", net("Range", np.array(0), length, np.array(1)), np.array(1 << 30))
        scores = net("Add", scores, net("Where", seen, 0.0, LOWEST))
        y = _joined(net, net("MatMul", net("Softmax", scores, axis=-1), v))
        x = net("Add", x, _linear(net, y, HIDDEN, HIDDEN, False))
        y = rms(x)
        gate, up = (_linear(net, y, HIDDEN, 2 * HIDDEN, False) for _ in range(2))
        gated = net("Mul", net("Mul", gate, net("Sigmoid", gate)), up)
        x = net("Add", x, _linear(net, gated, 2 * HIDDEN, HIDDEN, False))
    net.output("logits", _linear(net, rms(x), HIDDEN, INDEX_LIMIT, False))
    return net.model()


IMAGES = frozenset({"conv.blocked"})
ATTENTION = frozenset({"attention", "gemm"})
DECODE = frozenset({"gemm", "attention.append"})
PASTS = ({"batch": 1, "past": 1}, {"batch": 2, "past": 5}, {"batch": 1, "past": 40})
SEQUENCES = ({"batch": 1, "length": 1}, {"batch": 3, "length": 6}, {"batch": 7, "length": 2})

ALL: dict[str, Twin] = {
    **TWINS,
    "lstm": Twin(lstm, families=frozenset({"lstm", "gemm"})),
    "lstm-symbolic": Twin(lambda: lstm("batch", "length"), SEQUENCES, frozenset({"lstm"})),
    "lstm-wide": Twin(lambda: lstm(hidden=128), families=frozenset({"lstm"})),
    "gru": Twin(gru, families=frozenset({"gru", "rnn", "gemm"})),
    "gru-symbolic": Twin(lambda: gru("batch", "length"), SEQUENCES, frozenset({"gru", "rnn"})),
    "unet": Twin(unet, families=IMAGES | {"pool.blocked"}),
    "unet-odd": Twin(lambda: unet(2, 10, 12, "nearest"), families=IMAGES),
    "unet-symbolic": Twin(lambda: unet("batch", image=8), ({"batch": 1}, {"batch": 3}), IMAGES),
    "generator": Twin(generator, families=IMAGES | {"conv_transpose"}),
    "vit": Twin(lambda: vit("batch"), ({"batch": 1}, {"batch": 3}), ATTENTION | {"layer_norm"}, frozenset({"gelu"})),
    "whisper": Twin(whisper, families=ATTENTION | IMAGES, recognized=frozenset({"gelu"})),
    "gpt": Twin(gpt, families=DECODE, recognized=frozenset({"gelu", "attention"})),
    "gpt-symbolic": Twin(lambda: gpt("batch", "past"), PASTS, DECODE),
    "llama": Twin(llama, families=DECODE | {"rms_norm"}, recognized=frozenset({"silu", "rms_norm"})),
    "llama-symbolic": Twin(lambda: llama("batch", "past"), PASTS, DECODE | {"rms_norm"}),
}
"""Every twin by name."""
