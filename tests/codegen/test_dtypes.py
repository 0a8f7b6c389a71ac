"""Compiled code for every element type, against the operators' definitions: several outputs a compile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import opcel_compiler as oc
from opcel_compiler.frontend.importer import import_model
from opcel_compiler.frontend.proto_types import code_of
from opcel_compiler.ir.interpret import run
from opcel_compiler.ir.types import DTYPES, DType, dtype_of

RNG = np.random.default_rng(0)
EDGES = np.float32([0, -0.0, 1.5, 2.5, -2.5, 1e-8, 1e-5, 300, -300, 65519, 65520, 1e6, -1e6, np.inf, -np.inf, np.nan])

Nodes = list[tuple[str, str, str, dict[str, Any]]]
Graph = tuple[Nodes, dict[str, np.ndarray]]


def model_of(nodes: Nodes, feeds: dict[str, np.ndarray], opset: int = 24) -> onnx.ModelProto:
    """Nodes as (operator, inputs, output, attributes); every value that no node reads is an output."""
    read = {name for _, inputs, _, _ in nodes for name in inputs.split()}
    inputs = [helper.make_tensor_value_info(n, code_of(dtype_of(a)), a.shape) for n, a in feeds.items()]
    outputs = [helper.make_empty_tensor_value_info(o) for _, _, o, _ in nodes if o not in read]
    made = [helper.make_node(op, i.split(), [o], name=o, **a) for op, i, o, a in nodes]
    graph = helper.make_graph(made, "g", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


def check(nodes: Nodes, feeds: dict[str, np.ndarray], opset: int = 24, ulps: float = 0) -> None:
    """Compile and compare with the interpreter; `ulps` is the error allowed relative to the type's precision."""
    model = model_of(nodes, feeds, opset)
    imported = import_model(model)
    with np.errstate(all="ignore"):
        named = {v.name: feeds[n] for v, n in zip(imported.graph.inputs, imported.input_names, strict=True)}
        want = run(imported.graph, named)
    with oc.compile(model, fallback="error", threads=2, proof=False) as compiled:
        got = compiled.run(feeds)
    for name, w in want.items():
        g = got[name]
        assert g.dtype == w.dtype and g.shape == w.shape, name
        if dtype_of(w).is_float:
            g, w = g.astype(np.float64), w.astype(np.float64)
            eps = float(ml_dtypes.finfo(want[name].dtype).eps)
            np.testing.assert_allclose(g, w, rtol=ulps * eps, atol=ulps * eps, err_msg=name)
        else:
            np.testing.assert_array_equal(g, w, err_msg=name)


def values(dtype: DType, n: int) -> np.ndarray:
    """`n` values of a type: those of EDGES that it has, then others."""
    if dtype.kind == "b":
        return RNG.integers(0, 2, n).astype(bool)
    if dtype.is_integer:
        low, high = (
            (-(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1) if dtype.kind == "i" else (0, (1 << dtype.bits) - 1)
        )
        return RNG.integers(low, high, n, dtype.numpy if dtype.bits >= 8 else np.int8, endpoint=True).astype(
            dtype.numpy
        )
    with np.errstate(all="ignore"):
        return np.concatenate([EDGES, RNG.standard_normal(n) * 100])[:n].astype(dtype.numpy)


NARROW = ["f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "f8e5m2fnuz", "f4e2m1", "i4", "u4", "i2", "u2", "bool"]


def casts() -> Graph:
    """From f32 and back through every narrow type, and between types that share no lanes."""
    nodes: Nodes = []
    feeds = {"x": EDGES[:13], "d": values(DTYPES["f64"], 13), "w": np.arange(-20, 19).astype(np.int32)}
    for name in NARROW:
        to = code_of(DTYPES[name])
        source = "w" if name[0] in "iu" else "x"
        nodes += [("Cast", source, f"to_{name}", {"to": to}), ("Cast", f"to_{name}", f"from_{name}", {"to": 1})]
    for mode in ("up", "down", "nearest"):
        nodes.append(("Cast", "x", f"power_{mode}", {"to": TensorProto.FLOAT8E8M0, "round_mode": mode}))
    nodes += [("Cast", "x", f"loose_{n}", {"to": code_of(DTYPES[n]), "saturate": 0}) for n in NARROW[2:6]]
    nodes += [("Cast", "d", f"half_{n}", {"to": code_of(DTYPES[n])}) for n in NARROW[:3]]
    nodes += [("Cast", "to_bool", "count", {"to": TensorProto.INT64}), ("Cast", "to_f16", "twice", {"to": 11})]
    return nodes, feeds


def test_casts() -> None:
    check(*casts())


FUNCTIONS = ["Exp", "Tanh", "Erf", "Sigmoid", "Softplus", "Sin", "Gelu", "LeakyRelu", "Elu", "HardSigmoid", "Cos"]


def arithmetic(name: str) -> Graph:
    dtype = DTYPES[name]
    feeds = {"x": values(dtype, 35), "y": np.roll(values(dtype, 35), 3)}
    feeds["z"] = np.clip(np.nan_to_num(feeds["x"].astype(np.float32)), -8, 8).astype(dtype.numpy)
    nodes: Nodes = [
        ("Add", "x y", "add", {}), ("Less", "x y", "less", {}), ("Where", "less add y", "where", {}),
        ("Max", "where x", "max", {}), ("Floor", "max", "floor", {}), ("Div", "floor y", "div", {}),
        ("Mod", "x y", "mod", {"fmod": 1}), ("IsNaN", "mod", "nan", {}), ("Sign", "x", "sign", {}),
        ("Sqrt", "y", "sqrt", {}),
    ]  # fmt: skip
    return nodes, feeds


@pytest.mark.parametrize("name", ["f16", "bf16", "f64"])
def test_arithmetic(name: str) -> None:
    nodes, feeds = arithmetic(name)
    check(nodes, feeds)
    check([(op, "z", op.lower(), {}) for op in FUNCTIONS], feeds, ulps=64 if name == "f64" else 1)


def integers() -> Graph:
    nodes: Nodes = []
    feeds: dict[str, np.ndarray] = {}
    for name in ("i8", "u8", "i16", "u16", "u32", "u64"):
        dtype = DTYPES[name]
        feeds[f"x_{name}"], feeds[f"y_{name}"] = values(dtype, 21), np.maximum(values(dtype, 21), 1)
        feeds[f"s_{name}"] = np.resize(np.arange(dtype.bits + 2), 21).astype(dtype.numpy)
        x, y, s = f"x_{name}", f"y_{name}", f"s_{name}"
        nodes += [
            ("Add", f"{x} {y}", f"add_{name}", {}), ("Div", f"add_{name} {y}", f"div_{name}", {}),
            ("Min", f"div_{name} {x}", f"min_{name}", {}), ("Mod", f"min_{name} {y}", f"mod_{name}", {}),
            ("BitwiseXor", f"{x} mod_{name}", f"xor_{name}", {}), ("BitwiseNot", f"xor_{name}", f"not_{name}", {}),
            ("BitwiseAnd", f"not_{name} {x}", f"and_{name}", {}), ("BitwiseOr", f"and_{name} {y}", f"or_{name}", {}),
            ("BitShift", f"{x} {s}", f"left_{name}", {"direction": "LEFT"}),
            ("BitShift", f"{x} {s}", f"right_{name}", {"direction": "RIGHT"}),
        ]  # fmt: skip
    return nodes, feeds


def test_integers() -> None:
    check(*integers(), opset=26)


def same_bits() -> Graph:
    pairs = (("f32", "i32"), ("f16", "u16"), ("u8", "f8e5m2"), ("i4", "u4"), ("f64", "u64"))
    feeds = {a: values(DTYPES[a], 17) for a, _ in pairs}
    return [("BitCast", a, b, {"to": code_of(DTYPES[b])}) for a, b in pairs], feeds


def test_the_same_bits() -> None:
    check(*same_bits(), opset=26)


def quantized() -> Iterator[tuple[str, Nodes, dict[str, np.ndarray]]]:
    x = np.concatenate([EDGES[:-1], RNG.standard_normal(45).astype(np.float32) * 40]).reshape(2, 6, 5)
    for name in ("u8", "i8", "u16", "i16", "u4", "i4", "u2", "i2"):
        feeds = {
            f"x_{name}": x, f"s_{name}": np.float32([0.5, 2, 1, 0.1, 3, 0.25]),
            f"z_{name}": np.arange(6).astype(np.uint8).astype(DTYPES[name].numpy),
        }  # fmt: skip
        given = " ".join(feeds)
        yield name, [
            ("QuantizeLinear", given, f"q_{name}", {"axis": 1}),
            ("DequantizeLinear", f"q_{name} s_{name} z_{name}", f"d_{name}", {"axis": 1}),
        ], feeds  # fmt: skip
    for name in ("f8e4m3fn", "f8e5m2fnuz", "f4e2m1"):
        feeds = {
            f"x_{name}": np.clip(x, -6e4, 6e4).astype(np.float16),
            f"s_{name}": np.float16(RNG.uniform(0.5, 4, (2, 3, 5))),
        }
        yield name, [
            ("QuantizeLinear", " ".join(feeds), f"q_{name}", {"block_size": 2, "output_dtype": code_of(DTYPES[name])}),
            ("DequantizeLinear", f"q_{name} s_{name}", f"d_{name}", {"block_size": 2}),
        ], feeds  # fmt: skip
    feeds = {"x_b": x, "s_b": np.float32(RNG.uniform(0.5, 4, (2, 2, 5)))}
    yield "blocks that end early", [("QuantizeLinear", "x_b s_b", "q_b", {"block_size": 4, "axis": 1})], feeds
    feeds = {"x_i": np.int32([[7, -9, 1 << 30]]), "s_i": np.float32([0.3])}
    yield "of i32", [("DequantizeLinear", "x_i s_i", "d_i", {})], feeds


def quantization() -> Graph:
    nodes: Nodes = []
    feeds: dict[str, np.ndarray] = {}
    for _, more, given in quantized():
        nodes += more
        feeds |= given
    read = [n for n in nodes if n[0] == "QuantizeLinear"]
    return [*nodes, *(("Identity", o, f"{o}_out", {}) for _, _, o, _ in read)], feeds


def test_quantization() -> None:
    check(*quantization())


def anchors(name: str) -> Graph:
    """Products, convolutions, rows and reductions in types that their kernels take, or are computed in f32."""
    dtype = DTYPES[name].numpy

    def some(*shape: int) -> np.ndarray:
        return RNG.standard_normal(shape).astype(dtype)

    feeds = {
        "x": some(2, 5, 12),
        "w": some(12, 7),
        "i": some(1, 3, 9, 9),
        "f": some(4, 3, 3, 3),
        "b": some(4),
        "s": some(12),
    }
    nodes: Nodes = [
        ("MatMul", "x w", "product", {}), ("Relu", "product", "relu", {}), ("Softmax", "relu", "softmax", {}),
        ("LayerNormalization", "x s s", "norm", {}), ("LogSoftmax", "norm", "log", {"axis": 1}),
        ("Conv", "i f b", "conv", {"pads": [1, 1, 1, 1]}), ("MaxPool", "conv", "max", {"kernel_shape": [2, 2]}),
        ("ConvTranspose", "i g", "transposed", {"strides": [2, 2]}), ("ReduceMax", "x", "top", {"keepdims": 0}),
        ("ReduceMean", "conv", "mean", {}), ("ArgMax", "x", "arg", {"axis": 2}), ("Transpose", "x", "turned", {}),
        ("Concat", "x x", "twice", {"axis": 1}), ("Pad", "x p", "padded", {}),
    ]  # fmt: skip
    feeds |= {"g": some(3, 2, 3, 3)}
    if name == "f64":
        nodes = [n for n in nodes if n[0] != "MaxPool"]
    constants = [("Constant", "", "p", {"value_ints": [0, 1, 0, 0, 0, 2]})]
    return [*constants, *nodes], feeds


@pytest.mark.parametrize("name", ["f16", "bf16", "f64"])
def test_operators_with_anchors(name: str) -> None:
    check(*anchors(name), ulps=8 if name == "f64" else 2, opset=22)


def models() -> list[onnx.ModelProto]:
    """What is compiled here, for those who want its kernels."""
    graphs = [
        casts(),
        integers(),
        same_bits(),
        quantization(),
        *(make(n) for n in ("f16", "f64") for make in (arithmetic, anchors)),
    ]
    functions = [([(op, "z", op.lower(), {}) for op in FUNCTIONS], arithmetic("bf16")[1])]
    return [
        model_of(*graph, opset=22 if any(n[0] == "MatMul" for n in graph[0]) else 26) for graph in [*graphs, *functions]
    ]


def test_sums_of_integers_are_exact() -> None:
    """Sizes at which kernels for real numbers would scale, split or transform what they multiply."""
    a, b = RNG.integers(0, 256, (9, 3000), np.uint8), RNG.integers(0, 256, (3000, 70), np.uint8)
    x, w = RNG.integers(0, 256, (1, 64, 20, 20), np.uint8), RNG.integers(-128, 128, (32, 64, 3, 3), np.int8)
    feeds = {"a": a, "b": b, "x": x, "za": np.array(255, np.uint8), "zb": np.array(3, np.uint8)}
    constants = [("Constant", "", "w", {"value": numpy_helper.from_array(w)})]
    products: Nodes = [("MatMulInteger", "a b za zb", "m", {}), ("ConvInteger", "x w za", "c", {})]
    with oc.compile(model_of([*constants, *products], feeds), fallback="error", threads=2, proof=False) as compiled:
        got = compiled.run(feeds)
        assert not {"conv.winograd", "gemm.strassen"} & {k["family"] for k in compiled.report["kernels"]}
    np.testing.assert_array_equal(got["m"], (a.astype(np.int64) - 255) @ (b.astype(np.int64) - 3))
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(np.int64) - 255, (3, 3), (1, 2))
    np.testing.assert_array_equal(got["c"][0], np.einsum("chwij,ocij->ohw", windows, w.astype(np.int64)))
