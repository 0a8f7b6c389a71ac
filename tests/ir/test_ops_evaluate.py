"""Evaluation of every operator against ONNX Runtime, or ONNX's reference where that has no kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from opcel_compiler.ir.opdef import InferenceError, all_ops, op_def
from opcel_compiler.ir.types import BF16, BOOL, DTYPES, F16, F32, F64, I32, U8, DType, TensorType, dtype_of

Arrays = Sequence["np.ndarray | None"]
RNG = np.random.default_rng(0)


def f(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def ours(op: str, arrays: Arrays, attrs: dict[str, Any]) -> np.ndarray:
    """The result of `op`, of the type that inference promises."""
    d = op_def(op)
    full = d.complete(attrs)
    d.check_operands(arrays)
    types = d.infer([None if a is None else TensorType(dtype_of(a), a.shape) for a in arrays], full)
    assert d.evaluate is not None
    results = d.evaluate(arrays, full)
    assert all(isinstance(out, np.ndarray) for out in results)
    assert types == tuple(TensorType(dtype_of(out), out.shape) for out in results)
    return results[0]


def onnx_result(op: str, arrays: Arrays, attrs: dict[str, Any], reference: bool) -> np.ndarray:
    names = ["" if a is None else f"i{k}" for k, a in enumerate(arrays)]
    fed = {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in fed.items()
    ]
    node = helper.make_node(op, names, ["o"], **attrs)
    graph = helper.make_graph([node], "g", infos, [helper.make_empty_tensor_value_info("o")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23 if reference else 22)], ir_version=10)
    if reference:
        return np.asarray(ReferenceEvaluator(model).run(None, fed)[0])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = onnx.shape_inference.infer_shapes(model).SerializeToString()
    return np.asarray(onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, fed)[0])


class Case:
    """`op`(arrays){attrs} is ONNX's `onnx_op`(onnx_arrays){onnx_attrs}."""

    def __init__(
        self, op: str, onnx_op: str, arrays: Arrays, attrs: dict[str, Any] | None = None, *,
        onnx_arrays: Arrays | None = None, onnx_attrs: dict[str, Any] | None = None, tol: float = 1e-6,
        reference: bool = False,
    ) -> None:  # fmt: skip
        self.op, self.onnx_op, self.arrays, self.attrs = op, onnx_op, arrays, attrs or {}
        self.onnx_arrays = arrays if onnx_arrays is None else onnx_arrays
        self.onnx_attrs = self.attrs if onnx_attrs is None else onnx_attrs
        self.tol, self.reference = tol, reference


WILD = np.concatenate([f(100) * 4, np.array([np.nan, np.inf, -np.inf, 0, -0.0], np.float32)])
INTS = RNG.integers(-9, 9, 40)
DIVISORS = np.where(INTS[::-1] == 0, 3, INTS[::-1])

UNARY = {
    "neg": "Neg", "abs": "Abs", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "reciprocal": "Reciprocal", "erf": "Erf",
    "tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "floor": "Floor", "ceil": "Ceil", "round": "Round",
    "sign": "Sign", "sin": "Sin", "cos": "Cos", "is_nan": "IsNaN", "is_inf": "IsInf", "softplus": "Softplus",
    "asin": "Asin", "acos": "Acos", "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh",
    "atanh": "Atanh",
}  # fmt: skip
BINARY = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "min": "Min", "max": "Max", "equal": "Equal",
    "less": "Less", "less_equal": "LessOrEqual",
}  # fmt: skip


def elementwise() -> Iterator[Case]:
    for op, name in UNARY.items():
        yield Case(op, name, [WILD], tol=2e-6)
    tame = WILD[:100]
    yield Case("gelu", "Gelu", [tame])
    yield Case("gelu", "Gelu", [tame], {"approximate": "tanh"})
    yield Case("leaky_relu", "LeakyRelu", [WILD], {"alpha": 0.1})
    yield Case("elu", "Elu", [WILD], {"alpha": 1.5})
    yield Case("hard_sigmoid", "HardSigmoid", [WILD], {"alpha": 0.2, "beta": 0.5})
    yield Case("not", "Not", [WILD > 0])
    a, b = f(3, 1, 4), f(5, 1)
    for op, name in BINARY.items():
        yield Case(op, name, [a, b])
        yield Case(op, name, [INTS, DIVISORS])
    for op in ("min", "max"):
        yield Case(op, op.capitalize(), [WILD, WILD[::-1].copy()])
    yield Case("pow", "Pow", [abs(a), b], tol=1e-5)
    yield Case("pow", "Pow", [INTS, abs(DIVISORS)])
    yield Case("mod", "Mod", [INTS, DIVISORS])
    yield Case("mod", "Mod", [INTS, DIVISORS], {"fmod": True}, onnx_attrs={"fmod": 1})
    yield Case("mod", "Mod", [a, b], {"fmod": True}, onnx_attrs={"fmod": 1})
    for op in ("and", "or", "xor"):
        yield Case(op, op.capitalize(), [INTS > 0, DIVISORS > 0])
    yield Case("where", "Where", [INTS > 0, INTS, DIVISORS])
    for dtype, code in ((I32, "INT32"), (F64, "DOUBLE"), (F16, "FLOAT16"), (U8, "UINT8"), (BOOL, "BOOL")):
        yield Case("cast", "Cast", [abs(tame)], {"dtype": dtype}, onnx_attrs={"to": getattr(TensorProto, code)})


def contractions() -> Iterator[Case]:
    for x, y in ((f(2, 1, 3, 4), f(5, 4, 6)), (f(4), f(5, 4, 6)), (f(3, 4), f(4)), (f(4), f(4))):
        yield Case("matmul", "MatMul", [x, y], tol=1e-5)
    yield Case("matmul", "MatMul", [f(3, 4).astype("e"), f(4, 2).astype("e")], tol=1e-2)
    yield Case("matmul", "MatMul", [INTS.reshape(8, 5), DIVISORS.reshape(5, 8)])
    for size, kernel in (((9,), (3,)), ((9, 8), (3, 2)), ((5, 6, 7), (2, 3, 2))):
        n = len(size)
        for stride, pad, dilation, groups in ((1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 4)):
            pads = (pad,) * n + (max(pad - 1, 0),) * n
            window = {"strides": (stride,) * n, "pads": pads, "dilations": (dilation,) * n}
            attrs, theirs = {**window, "groups": groups}, {**window, "group": groups}
            x = f(2, 4, *size)
            yield Case("conv", "Conv", [x, f(8, 4 // groups, *kernel), f(8)], attrs, onnx_attrs=theirs, tol=1e-4)
            for extra in sorted({0, stride - 1}):
                more = {"output_padding": (extra,) * n}
                yield Case("conv_transpose", "ConvTranspose", [x, f(4, 8 // groups, *kernel), f(8)], {**attrs, **more},
                           onnx_attrs={**theirs, **more}, tol=1e-4)  # fmt: skip
            if pad >= min(kernel):
                continue
            window["strides"] = (stride + 1,) * n
            for ceil in (False, True):
                attrs, theirs = {**window, "kernel": kernel}, {**window, "kernel_shape": kernel, "ceil_mode": int(ceil)}
                yield Case("max_pool", "MaxPool", [x], {**attrs, "ceil_mode": ceil}, onnx_attrs=theirs)
                for include in (False, True):
                    ours_too = {**attrs, "ceil_mode": ceil, "count_include_pad": include}
                    theirs_too = {**theirs, "count_include_pad": int(include)}
                    yield Case("avg_pool", "AveragePool", [x], ours_too, onnx_attrs=theirs_too)
    q, k, v = f(2, 4, 3, 8), f(2, 2, 6, 8), f(2, 2, 6, 5)
    for arrays in ([q, k, v], [q, k, v, f(1, 1, 3, 6)], [q, k, v, f(3, 6)]):
        yield Case("attention", "Attention", arrays, {"scale": 0.3}, tol=1e-5, reference=True)
    yield Case("attention", "Attention", [q, f(2, 2, 3, 8), f(2, 2, 3, 5)], {"scale": 0.3, "causal": True},
               onnx_attrs={"scale": 0.3, "is_causal": 1}, tol=1e-5, reference=True)  # fmt: skip


def recurrent() -> Iterator[Case]:
    for op, gates, attrs, theirs in (
        ("lstm", 4, {}, {}), ("gru", 3, {}, {}), ("rnn", 1, {}, {}),
        ("gru", 3, {"reset_after": True}, {"linear_before_reset": 1}),
        ("rnn", 1, {"activations": ("relu", "relu")}, {"activations": ["Relu", "Relu"]}),
    ):  # fmt: skip
        x, r, w, b = f(4, 2, 3), f(2, gates * 5, 5), f(2, gates * 5, 3), f(2, 10 * gates)
        states = [f(2, 2, 5) for _ in range(2 if op == "lstm" else 1)]
        theirs = {"direction": "bidirectional", "hidden_size": 5, **theirs}
        yield Case(op, op.upper(), [x, r, w, b, *states], {"direction": "bidirectional", **attrs},
                   onnx_arrays=[x, w, r, b, None, *states], onnx_attrs=theirs, tol=1e-5)  # fmt: skip


def reductions() -> Iterator[Case]:
    x = f(3, 4, 5)
    for op in ("sum", "mean", "max", "min", "prod"):
        for data in (x, (x * 5).astype(np.int32)):
            for axes, keep in (((0, 2), False), ((1,), True)):
                yield Case(f"reduce_{op}", f"Reduce{op.capitalize()}", [data], {"axes": axes, "keepdims": keep},
                           onnx_arrays=[data, np.array(axes)], onnx_attrs={"keepdims": int(keep)})  # fmt: skip
    ties = RNG.integers(0, 3, (4, 9)).astype(np.float32)
    for op, name in (("arg_max", "ArgMax"), ("arg_min", "ArgMin")):
        for last in (False, True):
            for axis, keep in ((0, True), (1, False)):
                theirs = {"axis": axis, "keepdims": int(keep), "select_last_index": int(last)}
                yield Case(op, name, [ties], {"axis": axis, "keepdims": keep, "last": last}, onnx_attrs=theirs)
    for axis in (0, 1, 2):
        yield Case("softmax", "Softmax", [x], {"axis": axis})
        yield Case("log_softmax", "LogSoftmax", [x], {"axis": axis})
        side = f(*x.shape[axis:])
        yield Case("layer_norm", "LayerNormalization", [x, side, side + 1], {"axis": axis, "epsilon": 1e-5}, tol=1e-5)
        yield Case("rms_norm", "RMSNormalization", [x, side], {"axis": axis, "epsilon": 1e-5}, tol=1e-5, reference=True)


def movement() -> Iterator[Case]:
    x = f(3, 4, 5)
    yield Case("reshape", "Reshape", [x], {"shape": (5, 12)}, onnx_arrays=[x, np.array([5, 12])], onnx_attrs={})
    yield Case("transpose", "Transpose", [x], {"perm": (2, 0, 1)})
    column = f(3, 1)
    yield Case(
        "expand", "Expand", [column], {"shape": (2, 3, 4)}, onnx_arrays=[column, np.array([2, 3, 4])], onnx_attrs={}
    )
    ends = [np.array(v) for v in ([3, 4], [0, -100], [1, 2], [-1, -2])]
    yield Case("slice", "Slice", [x], {"starts": (0, 3, 4), "sizes": (3, 3, 3), "steps": (1, -1, -2)},
               onnx_arrays=[x, *ends], onnx_attrs={})  # fmt: skip
    yield Case("slice", "Slice", [x], {"starts": (0, 0, 9), "sizes": (3, 4, 0), "steps": (1, 1, 1)},
               onnx_arrays=[x, np.array([9]), np.array([9]), np.array([2])], onnx_attrs={})  # fmt: skip
    yield Case("concat", "Concat", [f(2, 3), f(2, 4), f(2, 0)], {"axis": 1})
    for mode in ("constant", "reflect", "edge", "wrap"):
        yield Case("pad", "Pad", [x], {"pads": (1, 0, 2, 0, 1, 1), "mode": mode},
                   onnx_arrays=[x, np.array([1, 0, 2, 0, 1, 1])], onnx_attrs={"mode": mode})  # fmt: skip
    value = np.array(7, np.float32)
    yield Case("pad", "Pad", [x, value], {"pads": (0, 0, 1, 0, 0, 0)},
               onnx_arrays=[x, np.array([0, 0, 1, 0, 0, 0]), value], onnx_attrs={})  # fmt: skip
    yield Case("gather", "Gather", [x, np.array([[0, -1], [2, 1]])], {"axis": 1})
    yield Case("gather", "Gather", [x, np.array(-2)], {"axis": 2})
    yield Case("gather_elements", "GatherElements", [x, RNG.integers(-4, 4, (2, 6, 3))], {"axis": 1})
    yield Case("gather_nd", "GatherND", [x, RNG.integers(-3, 3, (2, 2))])
    yield Case("gather_nd", "GatherND", [x, RNG.integers(-4, 4, (3, 2, 1))], {"batch_dims": 1})
    yield Case("gather_nd", "GatherND", [f(3, 3, 5, 2), RNG.integers(0, 2, (3, 3, 2))], {"batch_dims": 2})


def sampled() -> Iterator[Case]:
    image, grid = f(2, 3, 5, 6), f(2, 4, 3, 2)
    for mode in ("nearest", "linear", "cubic"):
        for padding in ("zeros", "border", "reflection"):
            for corners in (False, True):
                theirs = {"mode": mode, "padding_mode": padding, "align_corners": int(corners)}
                attrs = {"mode": mode, "padding": padding, "align_corners": corners}
                yield Case("grid_sample", "GridSample", [image, grid], attrs, onnx_attrs=theirs, tol=1e-4)
                if mode != "cubic":
                    volumes = [f(1, 2, 3, 4, 5), f(1, 2, 2, 3, 3)]
                    yield Case("grid_sample", "GridSample", volumes, attrs, onnx_attrs=theirs, tol=1e-4)
    corners_of = np.array([[0, 0, 4, 3], [1.3, 2.1, 5.5, 4.9], [-3, -2, 9, 9], [2, 2, 2, 2]], np.float32)
    regions = [image, corners_of, np.array([0, 1, 1, 0])]
    for mode in ("avg", "max"):
        for samples in (0, 2):
            for half in (False, True):
                attrs = {"size": (2, 3), "mode": mode, "samples": samples, "scale": 0.9, "half_pixel": half}
                how = "half_pixel" if half else "output_half_pixel"
                theirs = {"output_height": 2, "output_width": 3, "mode": mode, "sampling_ratio": samples,
                          "spatial_scale": 0.9, "coordinate_transformation_mode": how}  # fmt: skip
                yield Case("roi_align", "RoiAlign", regions, attrs, onnx_attrs=theirs, tol=1e-4, reference=True)
    picks = np.tile(np.eye(4, dtype=np.float32), (4, 1)).reshape(16, 1, 2, 2)
    window = {"strides": (2, 1), "pads": (1, 0, 1, 1), "dilations": (1, 2)}
    x, offset, mask = f(2, 4, 5, 6), f(2, 16, 3, 5), f(2, 8, 3, 5)
    for extra in (None, mask):
        yield Case("deform_columns", "DeformConv", [x, offset, extra], {**window, "kernel": (2, 2), "groups": 2},
                   onnx_arrays=[x, picks, offset, None, extra], onnx_attrs={**window, "group": 4, "offset_group": 2},
                   reference=True)  # fmt: skip
    columns, sizes = f(2, 12, 15), [np.array([5, 6]), np.array([2, 2])]
    yield Case("col2im", "Col2Im", [columns], {**window, "size": (5, 6), "kernel": (2, 2)},
               onnx_arrays=[columns, *sizes], onnx_attrs=window, tol=1e-5)  # fmt: skip


def scatters() -> Iterator[Case]:
    x, places = f(3, 4, 5), np.array([[[0, -1, 2]], [[1, 1, 3]]])
    for reduction in ("none", "add", "mul", "min", "max"):
        attrs: dict[str, Any] = {"reduction": reduction}
        if reduction != "none":  # without a reduction, the order of equal places is open
            yield Case("scatter_elements", "ScatterElements", [x, places, f(2, 1, 3)], {"axis": 1, **attrs})
            yield Case("scatter_nd", "ScatterND", [x, np.array([[0, -1], [2, 1], [0, 3]]), f(3, 5)], attrs)
        yield Case(
            "scatter_elements", "ScatterElements", [x, np.array([[[0], [-3]]]), f(1, 2, 1)], {"axis": 2, **attrs}
        )
        yield Case("scatter_nd", "ScatterND", [x, np.array([[[2]], [[0]]]), f(2, 1, 4, 5)], attrs)


def quantizations() -> Iterator[Case]:
    x, scale = np.float32([[-300, -3, -1.5, 0.5, 2.5, 900]]).T * f(6, 3), np.float32([0.5, 2, 0.1])
    axis = {"onnx_attrs": {"axis": 1}, "reference": True}
    for dtype in (DTYPES[name] for name in ("u8", "i8", "i16", "i4", "u2")):
        grid = np.resize(np.array([1, 0, 2]), (6, 3)).astype(np.uint8).astype(dtype.numpy)
        yield Case("quantize", "QuantizeLinear", [x, scale, grid[0]], {"dtype": dtype}, **axis)
        yield Case("dequantize", "DequantizeLinear", [grid, scale, grid[0]], {"dtype": F32}, **axis)
    for name, code in (("f8e4m3fn", "FLOAT8E4M3FN"), ("f8e5m2", "FLOAT8E5M2"), ("f4e2m1", "FLOAT4E2M1")):
        for saturate in (True, False)[: 1 + name.startswith("f8")]:
            attrs = {"output_dtype": getattr(TensorProto, code), "saturate": int(saturate)}
            given = {"dtype": DTYPES[name], "saturate": saturate}
            yield Case("quantize", "QuantizeLinear", [x, np.float32(0.5)], given, onnx_attrs=attrs, reference=True)
    a, b = RNG.integers(0, 256, (2, 20), np.uint8)
    for op, name in (("bit_and", "BitwiseAnd"), ("bit_or", "BitwiseOr"), ("bit_xor", "BitwiseXor")):
        yield Case(op, name, [a, b], {})
    yield Case("bit_not", "BitwiseNot", [a], {})
    yield Case("shift_left", "BitShift", [a, b % 8], {}, onnx_attrs={"direction": "LEFT"})
    yield Case("shift_right", "BitShift", [a, b % 8], {}, onnx_attrs={"direction": "RIGHT"})
    half, one = x.astype("e"), scale[:1].reshape(())
    yield Case("quantize", "QuantizeLinear", [half, one.astype("e")], {"dtype": U8}, onnx_attrs={})
    yield Case("dequantize", "DequantizeLinear", [np.int32([7, -9]), one], {"dtype": F32}, onnx_attrs={})


CASES = [
    *quantizations(),
    *elementwise(),
    *contractions(),
    *recurrent(),
    *reductions(),
    *movement(),
    *scatters(),
    *sampled(),
]


@pytest.mark.parametrize("case", CASES, ids=[f"{i}-{c.op}" for i, c in enumerate(CASES)])
def test_against_onnx(case: Case) -> None:
    actual = ours(case.op, case.arrays, case.attrs)
    expected = onnx_result(case.onnx_op, case.onnx_arrays, case.onnx_attrs, case.reference)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if dtype_of(actual).is_float:
        actual, expected = (a.astype(np.float64 if a.dtype.itemsize == 8 else np.float32) for a in (actual, expected))
        np.testing.assert_allclose(actual, expected, rtol=case.tol, atol=case.tol, equal_nan=True)
    else:
        np.testing.assert_array_equal(actual, expected)


def numpy_only() -> list[tuple[str, Arrays, dict[str, Any], np.ndarray]]:
    """What ONNX has no operator for, or leaves open."""
    x, half = np.array([-1.0, 2.0], np.float32), np.array([0.5, -1.5], ml_dtypes.bfloat16)
    nothing = np.zeros((2, 0), np.float32)
    silu = x / (1 + np.exp(-x))
    pixels, winners = np.array([[[1, 4, 2]]], np.float32), np.array([[[0, 1, 1]]])
    square, triangle = np.array([[0, 2], [4, 6]], np.float32), np.array([[4, 6], [0, -2]], np.float32)
    places, both = np.array([[2, 0, -1, 5]], np.int32), np.array([[0, 1, 0], [1, 0, 2]], np.int32)
    mixed = np.array([[[[2.5, 4, 4]]]], np.float32)
    return [
        ("silu", [x], {}, silu),
        ("bit_cast", [x], {"dtype": I32}, x.view(np.int32)),
        ("shift_right", [np.int8([-7, 7, -7]), np.int8([1, 9, -1])], {}, np.int8([-4, 0, -1])),
        ("echelon", [square], {}, triangle),
        (
            "matmul_nbits",
            [np.float32([[1, 2, 3]]), np.uint8([[9], [8], [4]]), np.float32([[2], [0.5]]), np.uint8([[8], [2]])],
            {"group": 2}, np.float32([[1 * 2 + 0 + 3 * 2 * 0.5]]),
        ),
        ("arg_max_pool", [pixels], {"kernel": (2,), "strides": (1,), "pads": (1, 0), "dilations": (1,)}, winners),
        ("resample", [pixels[..., None], places, None], {}, pixels[:, :, [2, 0, 0, 2], None]),
        ("resample", [pixels[:, :, None], None, None, both, np.float32([[0.5, 1, 0], [0.5, 0, 2]])], {}, mixed),
        ("linear_attention", [np.float32(a).reshape(1, 2, 1, 1) for a in ([1, 1], [1, 2], [3, 4])] + [None]
         + [np.full((1, 2, 1, 1), 0.5, np.float32)] * 2, {"delta": True}, np.float32([1.5, 3.25]).reshape(1, 2, 1, 1)),
        ("dims", [], {"values": (3, 4)}, np.array([3, 4])),
        ("dims", [], {"values": (3,), "scalar": True}, np.array(3)),
        ("range_", [], {"start": (5,), "size": (3,), "step": -2, "dtype": I32}, np.array([5, 3, 1], np.int32)),
        ("pow", [np.array([1, -1, -1, 2, 0]), np.array([-3, -3, -2, -1, 0])], {}, np.array([1, -1, 1, 0, 1])),
        ("div", [np.array([-7, 7, 7], np.int8), np.array([2, -2, 2], np.int8)], {}, np.array([-3, -3, 3], np.int8)),
        ("round", [np.array([0.5, 1.5, -2.5], np.float32)], {}, np.array([0, 2, -2], np.float32)),
        ("mul", [half, half], {}, np.array([0.25, 2.25], ml_dtypes.bfloat16)),
        ("reduce_sum", [half], {"axes": (0,), "keepdims": False}, np.array(-1, ml_dtypes.bfloat16)),
        ("reduce_max", [nothing], {"axes": (1,), "keepdims": False}, np.full(2, -np.inf, np.float32)),
        ("reduce_min", [nothing], {"axes": (1,), "keepdims": True}, np.full((2, 1), np.inf, np.float32)),
        ("reduce_max", [np.array([False, True])], {"axes": (0,), "keepdims": False}, np.array(True)),
        ("reduce_sum", [x], {"axes": (), "keepdims": True}, x),
        ("softmax", [nothing], {"axis": 1}, nothing),
        ("equal", [np.array(["a", "b"], object), np.array(["a", "c"], object)], {}, np.array([True, False])),
        ("rms_norm", [x[:1]], {"axis": 0, "epsilon": 0.0}, np.array([-1], np.float32)),
        ("cast", [np.array([1.7, -2.5], np.float32)], {"dtype": DTYPES["i4"]}, np.array([1, -2], ml_dtypes.int4)),
        ("cast", [np.array([1, -2], ml_dtypes.int4)], {"dtype": F32}, np.array([1, -2], np.float32)),
        ("cast", [WILD[-5:-2]], {"dtype": DTYPES["f8e4m3fn"]}, np.array([np.nan, 448, -448], ml_dtypes.float8_e4m3fn)),
        ("cast", [np.array([1000.0, 0.3])], {"dtype": DTYPES["f4e2m1"]}, np.array([6, 0.5], ml_dtypes.float4_e2m1fn)),
        ("cast", [x], {"dtype": BF16}, x.astype(ml_dtypes.bfloat16)),
        ("cast", [np.array(["1.5", "-2"], object)], {"dtype": F32}, np.array([1.5, -2], np.float32)),
        ("cast", [np.array([1, -2])], {"dtype": DTYPES["string"]}, np.array(["1", "-2"], object)),
    ]  # fmt: skip


def counted(bins: dict[int, int]) -> np.ndarray:
    out = np.zeros(2049, np.uint32)
    for place, count in bins.items():
        out[place] = count
    return out


def dynamic() -> list[tuple[str, Arrays, dict[str, Any], np.ndarray]]:
    x = np.array([[1, 0, 2], [0, np.nan, -0.0]], np.float32)
    many = np.array([[3, 1, 3], [np.nan, 3, 2]], np.float32)
    rows = np.array([[2, 1], [0, 1], [2, 1], [0, 0]], np.int32)
    boxes = np.array([[[0, 0, 1, 1], [0, 0.1, 1, 1.1], [0, 2, 1, 3]]], np.float32)
    scores = np.array([[[0.5, 0.75, 0.25], [0.5, 0.125, 0.25]]], np.float32)
    limits = [np.array(2), np.array(0.5, np.float32), np.array(0.2, np.float32)]
    line = np.arange(20, dtype=np.float32).reshape(1, 2, 10)
    down = {"axis": 0, "kind": "product", "exclusive": True, "reverse": True}
    return [
        ("nonzero", [x], {"count": (3,)}, np.stack(np.nonzero(x))),
        ("topk", [many], {"axis": 1, "k": (2,)}, np.array([[3, 3], [np.nan, 3]], np.float32)),
        ("topk", [many], {"axis": 0, "k": (1,), "largest": False}, np.array([[3, 1, 2]], np.float32)),
        ("unique", [rows], {}, np.array([3, 1, 0, 0])),
        ("unique", [rows], {"sorted": False}, np.array([0, 1, 3, 0])),
        ("suppress", [boxes, scores, *limits], {"room": (3,)}, np.array([[[1, 2, -1], [0, 2, -1]]])),
        ("cumulate", [rows], {"axis": 1}, np.array([[2, 3], [0, 1], [2, 3], [0, 0]], np.int32)),
        ("cumulate", [rows], down, np.array([[0, 0], [0, 0], [0, 0], [1, 1]], np.int32)),
        ("observe", [x, np.float32([-127, 0])], {}, counted({0: 3, 512: 1, 1024: 1, 2048: 1})),
        ("observe", [x, np.float32([3, -5])], {}, counted({5: 5, 2048: 1})),
        ("observe", [line, np.float32([0, 0])], {"axis": 0, "every": 8}, counted({0: 1, 15: 1})),
    ]


def trees() -> Iterator[tuple[str, Arrays, dict[str, Any], np.ndarray]]:
    x = np.float32([-np.inf, -1, -0.0, 0, 1e-45, np.inf, np.nan])
    keys = np.uint32([0x7FFFFF, 0x407FFFFF, 1 << 31, 1 << 31, (1 << 31) + 1, 0xFF800000, 0xFFFFFFFF])
    yield "order_key", [x], {}, keys
    draws = np.float32([6540257, 281660, 15112256, 9779947]) / np.float32(1 << 24)
    yield "random_uniform", [], {"shape": (2, 2), "key": 7}, draws.reshape(2, 2)
    yield "order_key", [x[6:]], {"nan": "low"}, np.uint32([0x7FFFFE])
    yield "order_key", [np.float64([-1, 1])], {}, np.uint64([(0x400 << 52) + (1 << 52) - 1, 0xBFF << 52])
    # x0 < 8 ? 5 : (x1 < 6 ? 3 : 1), and a leaf that is 7
    nodes = np.uint32([[8, 2 << 16], [0, 0], [6, 1 + (2 << 16)], [2, 0], [0, 0], [1, 0], [3, 0]])
    leaves, feeds = np.float32([[1], [3], [5], [7]]), np.uint32([[7, 0], [8, 5], [9, 6]])
    roots = np.int32([[0, 0, 0, 2], [6, 1, 0, 0]])
    for parts, expected in ((1, [[[5, 7], [3, 7], [1, 7]]]), (2, [[[5, 0], [3, 0], [1, 0]], [[0, 7]] * 3])):
        attrs = {"targets": 2, "parts": (parts,)}
        yield "tree_ensemble", [feeds, nodes, leaves, roots], attrs, np.float32(expected)


NUMPY_ONLY = [*numpy_only(), *dynamic(), *trees()]


@pytest.mark.parametrize(
    ("op", "arrays", "attrs", "expected"), NUMPY_ONLY, ids=[f"{i}-{c[0]}" for i, c in enumerate(NUMPY_ONLY)]
)
def test_against_written_results(op: str, arrays: Arrays, attrs: dict[str, Any], expected: np.ndarray) -> None:
    actual = ours(op, arrays, attrs)
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    if dtype_of(actual).is_float:
        actual, expected = actual.astype(np.float64), expected.astype(np.float64)
    np.testing.assert_array_equal(actual, expected)


def test_every_evaluation_is_tested() -> None:
    tested = {c.op for c in CASES} | {c[0] for c in NUMPY_ONLY} | {"constant", "sequence"}
    assert tested == {name for name, d in all_ops().items() if d.evaluate is not None}


def test_a_query_that_sees_no_key_is_nan() -> None:
    y = ours("attention", [f(1, 1, 3, 4), f(1, 1, 2, 4), f(1, 1, 2, 4)], {"scale": 1.0, "causal": True})
    assert np.isnan(y[0, 0, 0]).all() and np.isfinite(y[0, 0, 1:]).all()


def test_sums_of_float32_are_taken_in_float64() -> None:
    x = np.concatenate([[1e8], np.ones(1000), [-1e8]]).astype(np.float32)
    attrs = {"axes": (0,), "keepdims": False}
    assert ours("reduce_sum", [x], attrs) == 1000
    assert ours("reduce_mean", [x], attrs) == np.float32(1000 / 1002)


@pytest.mark.parametrize("dtype", [F16, BF16, DTYPES["f8e5m2"], DTYPES["i4"], DTYPES["u8"], I32, F64, BOOL], ids=str)
def test_elementwise_keeps_every_dtype_that_it_accepts(dtype: DType) -> None:
    ran: list[str] = []
    for name, d in all_ops().items():
        if "elementwise" not in d.traits or name in ("cast", "quantize", "dequantize", "order_key"):
            continue
        arrays: list[np.ndarray] = [np.ones(2, dtype.numpy)] * len(d.operands)
        if name == "where":
            arrays[0] = np.ones(2, bool)
        attrs = {a.name: 0.5 for a in d.attrs.values() if a.default is ...}
        try:
            assert ours(name, arrays, attrs).dtype in (dtype.numpy, np.dtype(bool))
        except InferenceError:
            continue
        ran.append(name)
    assert "where" in ran and ("add" in ran) == (dtype is not BOOL) and ("exp" in ran) == dtype.is_float
