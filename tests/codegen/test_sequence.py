"""Operators of sequence models, compiled many to a model and proved on given inputs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import opcel_compiler as oc
from opcel_compiler.errors import OpcelError

RNG = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@dataclass
class Net:
    """One model of many nodes that share nothing."""

    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    feeds: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)

    def add(self, op_type: str, arrays: list[np.ndarray | None], outputs: int = 1, **attrs: Any) -> None:
        names = []
        for a in arrays:
            names.append("" if a is None else f"x{len(self.feeds)}")
            if a is not None:
                self.feeds[names[-1]] = a
        made = [f"y{len(self.outputs) + i}" for i in range(outputs)]
        self.outputs += made
        self.nodes.append(helper.make_node(op_type, names, made, **attrs))

    def model(self, constants: tuple[str, ...] = ()) -> onnx.ModelProto:
        """The model, where `constants` are the inputs that it holds."""
        given = [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in self.feeds.items() if n not in constants
        ]  # fmt: skip
        stored = [numpy_helper.from_array(self.feeds[n], n) for n in constants]
        outputs = [helper.make_empty_tensor_value_info(n) for n in self.outputs]
        graph = helper.make_graph(self.nodes, "net", given, outputs, stored)
        opsets = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def prove(self, constants: tuple[str, ...] = ()) -> list[str]:
        """Compile without fallbacks, prove on the feeds; gives the kernels' families."""
        feeds = {n: a for n, a in self.feeds.items() if n not in constants}
        with oc.compile(self.model(constants), fallback="error", threads=2, inputs=feeds) as compiled:
            assert compiled.report["proof"]["status"] == "proved"
            return [k["family"] for k in compiled.report["kernels"]]


def scatters() -> Net:
    net = Net(18)
    for reduction in ("none", "add", "mul", "min", "max"):
        x, places = floats(70, 3, 130), RNG.permuted(np.tile(np.arange(-2, 1), (40, 90, 1)), axis=2).transpose(0, 2, 1)
        net.add("ScatterElements", [x, places, floats(40, 3, 90)], axis=1, reduction=reduction)
        which = np.stack([RNG.permutation(70)[:50], RNG.integers(0, 3, 50)], axis=1)
        net.add("ScatterND", [x, which, floats(50, 130)], reduction=reduction)
    again = np.array([[0, 2, -1, 2, 0]], np.int32)
    net.add("ScatterElements", [np.arange(6).reshape(2, 3), again, np.arange(5)[None]], axis=1, reduction="add")
    net.add("ScatterND", [floats(400, 300), np.array([[[399]], [[-1]]]), floats(2, 1, 300)], reduction="add")
    net.add("ScatterElements", [floats(0, 3), np.zeros((0, 2), np.int64), floats(0, 2)], axis=1)
    return net


def test_scatters() -> None:
    assert set(scatters().prove()) == {"scatter_elements", "scatter_nd"}


def test_an_index_out_of_range_is_an_error() -> None:
    net = Net(18)
    net.add("ScatterND", [floats(4, 2), np.array([[1]]), floats(1, 2)])
    with oc.compile(net.model(), fallback="error") as compiled:
        for bad in (4, -5):
            with pytest.raises(OpcelError, match="ScatterND_0: an index is out of range"):
                compiled.run({**net.feeds, "x1": np.array([[bad]])})


def weights(op_type: str, directions: int, hidden: int, size: int) -> list[np.ndarray]:
    """w, r and bias."""
    rows = {"LSTM": 4, "GRU": 3, "RNN": 1}[op_type] * hidden
    return [floats(directions, rows, size) / 2, floats(directions, rows, hidden) / 2, floats(directions, 2 * rows)]


def recurrent_layers() -> Net:
    """Weights that are computed, lengths, peepholes, clips and functions of every kind."""
    net = Net(17)
    x, lengths = floats(6, 3, 5), np.array([6, 1, 4], np.int32)
    state = floats(2, 3, 21)
    for op in ("LSTM", "GRU", "RNN"):
        outputs, more = (3, [floats(2, 3, 21), floats(2, 63)]) if op == "LSTM" else (2, [])
        layer = [x, *weights(op, 2, 21, 5), lengths, state, *more]
        net.add(op, layer, outputs, hidden_size=21, direction="bidirectional", clip=1.5)
        net.add(op, [x, *weights(op, 1, 40, 5)[:2]], outputs, hidden_size=40, direction="reverse")
    net.add("GRU", [x, *weights("GRU", 1, 7, 5)], 2, hidden_size=7, linear_before_reset=1)
    net.add("LSTM", [x, *weights("LSTM", 1, 7, 5)], 3, hidden_size=7, input_forget=1)
    forms: list[tuple[str, list[float], list[float]]] = [
        ("HardSigmoid Softsign Elu", [0.3, 0.9], [0.4]), ("Sigmoid LeakyRelu Softplus", [0.2], []),
        ("Tanh Affine Relu", [0.7], [0.1]), ("Sigmoid ScaledTanh ThresholdedRelu", [0.8, 0.2], [0.7]),
    ]  # fmt: skip
    for names, alpha, beta in forms:
        given: dict[str, Any] = {"activations": names.split(), "activation_alpha": alpha, "activation_beta": beta}
        layer = [x, *weights("LSTM", 1, 5, 5)]
        net.add("LSTM", layer, 3, hidden_size=5, **{k: v for k, v in given.items() if v})
    return net


def test_recurrent_layers_of_any_form() -> None:
    assert "recurrent.general" in recurrent_layers().prove()


def test_constant_weights_with_lengths() -> None:
    net = Net(17)
    layer = [floats(6, 3, 5), *weights("LSTM", 2, 8, 5), np.array([6, 1, 4], np.int32)]
    net.add("LSTM", layer, 3, hidden_size=8, direction="bidirectional")
    assert net.prove(constants=("x1", "x2", "x3")).count("recurrent.general") == 1


def test_plain_layers_without_biases_and_states() -> None:
    net = Net(17)
    net.add("LSTM", [floats(6, 3, 5), *weights("LSTM", 2, 8, 5)[:2]], 3, hidden_size=8, direction="bidirectional")
    net.add("RNN", [floats(6, 3, 5), *weights("RNN", 1, 8, 5)[:2]], 2, hidden_size=8, activations=["Relu"])
    families = net.prove(constants=("x1", "x2", "x4", "x5"))
    assert {"lstm", "rnn"} <= set(families) and "recurrent.general" not in families


def test_einsums() -> None:
    net = Net(17)
    for equation, shapes in (
        ("bii->bi", [(3, 5, 5)]), ("...ij->...", [(2, 3, 4)]), ("ij,jk,kl->il", [(3, 4), (4, 5), (5, 6)]),
        ("i,j->ji", [(3,), (70,)]), ("bhqd,bkd->bhqk", [(2, 3, 4, 8), (2, 5, 8)]), ("ab,ab->", [(4, 5), (4, 5)]),
    ):  # fmt: skip
        net.add("Einsum", [floats(*shape) for shape in shapes], equation=equation)
    net.prove()


def linear_attention() -> Net:
    """Every rule, with states of more columns than a task owns, against the standard's reference."""
    net = Net(27)
    for rule in ("linear", "gated", "delta", "gated_delta"):
        q, k, v = floats(2, 7, 4 * 8), floats(2, 7, 2 * 8) / 3, floats(2, 7, 2 * 70)
        decay = -np.abs(floats(2, 7, 2 if rule == "gated" else 16)) if "gated" in rule else None
        beta = np.abs(floats(2, 7, 2 if rule == "delta" else 1)) / 2 if "delta" in rule else None
        past = None if rule == "linear" else floats(2, 2, 8, 70)
        arrays = [q, k, v, past, decay, beta]
        while arrays[-1] is None:
            arrays.pop()
        net.add("LinearAttention", arrays, 2, q_num_heads=4, kv_num_heads=2, update_rule=rule)
    return net


def test_linear_attention() -> None:
    assert linear_attention().prove().count("linear_attention") == 4


def scalar(x: float, dtype: type = np.int64) -> np.ndarray:
    return np.array(x, dtype)


def test_fourier_transforms() -> None:
    """Lengths and steps that are constants, and those that are known only when the model runs."""
    net = Net(17)
    for parts in (1, 2):
        net.add("DFT", [floats(2, 12, 3, parts)], axis=1)
        net.add("DFT", [floats(2, 12, 3, parts), scalar(9)], axis=2)
    net.add("DFT", [floats(2, 7, 1)], axis=1, onesided=1)
    net.add("DFT", [floats(2, 7, 2)], axis=1, inverse=1)
    net.add("STFT", [floats(2, 60, 1), scalar(5), np.abs(floats(16)), scalar(16)])
    net.add("STFT", [floats(2, 60, 1), scalar(7), np.abs(floats(13))], onesided=0)
    fixed = tuple(n for n, a in net.feeds.items() if a.ndim == 0)
    net.prove(constants=fixed[:1] + fixed[2:])


def test_transforms_along_an_axis_that_is_computed() -> None:
    net = Net(20)
    for axis in (1, -3, 2):
        net.add("DFT", [floats(2, 6, 5, 1), None, scalar(axis)])
    net.add("DFT", [floats(2, 6, 5, 2), scalar(8), scalar(1)], inverse=1)
    net.add("DFT", [floats(2, 6, 5, 1), None, scalar(1)], onesided=1)
    net.prove()


def test_windows_and_mel_filters_of_computed_size() -> None:
    net = Net(17)
    for op_type in ("HannWindow", "HammingWindow", "BlackmanWindow"):
        for periodic in (0, 1):
            net.add(op_type, [scalar(11)], periodic=periodic)
    edges = [scalar(20.0, np.float32), scalar(7000.0, np.float32)]
    net.add("MelWeightMatrix", [scalar(20), scalar(400), scalar(16000), *edges])
    net.prove()
    net.prove(constants=tuple(net.feeds))


def test_recurrent_layers_with_weights_alone() -> None:
    net = Net(18)
    net.add("LSTM", [floats(3, 2, 5), floats(1, 16, 5), floats(1, 16, 4)], outputs=3, hidden_size=4)
    net.add("RNN", [floats(3, 2, 5), floats(1, 4, 5), floats(1, 4, 4)], outputs=2, hidden_size=4)
    assert {"lstm", "rnn"} <= set(net.prove(constants=("x1", "x2", "x4", "x5")))


def test_a_decoder_whose_cache_grows() -> None:
    net = Net(17)
    angles = [floats(40, 8), floats(40, 8)]
    for past, length in ((0, 5), (21, 1)):
        caches = [floats(2, 2, past, 16), floats(2, 2, past, 16)]
        new = [floats(2, length, n * 16) for n in (4, 2, 2)]
        lengths = [np.int32([past + length - 1] * 2), scalar(past + length, np.int32)]
        net.add(
            "GroupQueryAttention", [*new, *caches, *lengths, *angles], 3, domain="com.microsoft", num_heads=4,
            kv_num_heads=2, do_rotary=1,
        )  # fmt: skip
    assert net.prove().count("attention") == 2


def models() -> list[onnx.ModelProto]:
    """What is compiled here, for those who want its kernels."""
    return [net.model() for net in (scatters(), recurrent_layers(), linear_attention())]
