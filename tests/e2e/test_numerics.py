"""NaN, infinities, zeros' signs and denormals in each kernel family: docs/numerics.md."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

import opcel_compiler as oc

from .builder import Net
from .conftest import reference

SPECIAL = np.array(
    [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40, -1e-40, 1e-45, 3e38, -3e38, 1, -1, 1.5, -2.5, 0.5, -0.5, 2.5, 88, -88,
     104, -104, 1e-5, 20], np.float32,
)  # fmt: skip
"""A prime number of values: whole vectors and a tail at every width."""
N = len(SPECIAL)
Arrays = dict[str, np.ndarray]


def run(net: Net, given: Arrays) -> tuple[Arrays, Arrays]:
    """What the native kernels and what ONNX Runtime's unoptimized ones compute."""
    model = net.model()
    with oc.compile(model, proof=False, fallback="error") as compiled:
        return compiled.run(given), reference(model, given)


def same_specials(name: str, got: np.ndarray, want: np.ndarray, rtol: float = 1e-5, atol: float = 1e-7) -> None:
    """NaNs and infinities in the same places, the rest close."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), name)
    np.testing.assert_allclose(got, want, rtol, atol, err_msg=name)


def same_bits(name: str, got: np.ndarray, want: np.ndarray) -> None:
    """Equal to the last bit, signs of zeros and denormals included; one NaN is as good as another."""
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want), name)
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(got[numbers].view(np.uint32), want[numbers].view(np.uint32), name)


# -- elementwise -------------------------------------------------------------------------------------------------------

EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Neg": np.negative, "Abs": np.abs, "Sqrt": np.sqrt, "Floor": np.floor, "Ceil": np.ceil, "Round": np.rint,
    "Reciprocal": np.reciprocal, "Relu": lambda x: np.where(x < 0, np.float32(0), x),
    "LeakyRelu": lambda x: np.where(x < 0, x * np.float32(0.01), x),
}  # fmt: skip


def test_exact_functions() -> None:
    """Against NumPy. Relu leaves -0 as it is, and NaN."""
    net = Net("exact", 20)
    x = net.input("x", N)
    for op in EXACT:
        net.output(op, net(op, x))
    net.output("Clip", net("Clip", x, -1.0, 2.0))
    net.output("HalfClip", net("Clip", x, -1.0))
    got, _ = run(net, {"x": SPECIAL})
    with np.errstate(all="ignore"):
        for op, function in EXACT.items():
            same_bits(op, got[op], function(SPECIAL).astype(np.float32))
        same_bits("Clip", got["Clip"], np.clip(SPECIAL, np.float32(-1), np.float32(2)))
        same_bits("HalfClip", got["HalfClip"], np.maximum(SPECIAL, np.float32(-1)))


def test_approximated_functions() -> None:
    net = Net("close", 20)
    x = net.input("x", N)
    for op in ("Exp", "Log", "Erf", "Tanh", "Sigmoid", "Sin", "Cos", "Softplus", "Gelu", "Elu", "HardSigmoid"):
        value = x if op not in ("Sin", "Cos") else net("Clip", x, -1000.0, 1000.0)
        net.output(op, net(op, value))
    net.output("silu", net("Mul", x, net("Sigmoid", x)))
    net.output("tanh gelu", net("Gelu", x, approximate="tanh"))
    for exponent in (2.0, 0.5, 0.0, -1.0, 3.0):
        net.output(f"pow {exponent}", net("Pow", x, exponent))
    got, want = run(net, {"x": SPECIAL})
    for name, value in want.items():
        same_specials(name, got[name], value)


def test_two_operands() -> None:
    """Every pair: division by zero, inf - inf, 0 * inf, comparisons with NaN."""
    net = Net("pairs", 17)
    a, b = net.input("a", N, N), net.input("b", N, N)
    exact = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
    extreme = {"Min": np.minimum, "Max": np.maximum}
    compare = {"Less": np.less, "Equal": np.equal, "GreaterOrEqual": np.greater_equal}
    for op in (*exact, *extreme, "Pow"):
        net.output(op, net(op, a, b))
    for op in compare:
        net.output(op, net(op, a, b), TensorProto.BOOL)
    net.output("IsNaN", net("IsNaN", a), TensorProto.BOOL)
    net.output("Where", net("Where", net("Less", a, b), a, b))
    x, y = np.repeat(SPECIAL, N).reshape(N, N), np.tile(SPECIAL, N).reshape(N, N)
    got, want = run(net, {"a": x, "b": y})
    with np.errstate(all="ignore"):
        for op, function in exact.items():
            same_bits(op, got[op], function(x, y))
        for op, function in (extreme | compare).items():  # the sign of min(0, -0) is free
            np.testing.assert_array_equal(got[op], function(x, y), op)
        same_bits("Where", got["Where"], np.where(x < y, x, y))
    np.testing.assert_array_equal(got["IsNaN"], np.isnan(x))
    same_specials("Pow", got["Pow"], want["Pow"], 1e-4)


def test_denormals_on_every_thread() -> None:
    net = Net("denormal", 17)
    net.output("y", net("Mul", net.input("x", 1 << 19), 0.25))
    x = np.linspace(-1e-38, 1e-38, 1 << 19, dtype=np.float32)
    with oc.compile(net.model(), threads=2, proof=False) as compiled:
        same_bits("y", compiled.run({"x": x})["y"], x * np.float32(0.25))


# -- rows --------------------------------------------------------------------------------------------------------------


def special_rows(columns: int = 40) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((12, columns)).astype(np.float32)
    x[0, 3] = x[6, -1] = np.nan
    x[1, 5], x[2, 7] = np.inf, -np.inf
    x[3], x[5] = -np.inf, np.inf
    x[4, 1], x[4, 2] = np.inf, -np.inf
    x[7], x[8], x[9] = 1e-40, 1e37, -0.0
    return x


def test_rows() -> None:
    """A softmax of -inf alone is NaN, one of some -inf has zeros there; a norm of a row with an infinity is NaN; sums
    are what addition gives. No row touches another."""
    net = Net("special", 17)
    x = net.input("x", 12, 40)
    net.output("softmax", net("Softmax", x, axis=-1))
    net.output("columns", net("Softmax", x, axis=0))
    net.output("log", net("LogSoftmax", x, axis=-1))
    masked = net("Where", net("Less", x, 0.0), net.const(np.array(-np.inf, np.float32)), x)
    net.output("masked", net("Softmax", masked, axis=-1))
    for axis in (0, 1):
        net.output(f"sum {axis}", net("ReduceSum", x, np.array([axis])))
        for op in ("ReduceMean", "ReduceProd", "ReduceL2"):
            net.output(f"{op} {axis}", net(op, x, axes=[axis]))
    with np.errstate(all="ignore"):
        got, want = run(net, {"x": special_rows()})
    for name, value in want.items():
        same_specials(name, got[name], value, 1e-4)
    assert np.isnan(got["softmax"][3]).all() and got["softmax"][2, 7] == 0


def test_layer_norm() -> None:
    net = Net("norm", 17)
    x = net.input("x", 12, 40)
    net.output("y", net("LayerNormalization", x, net.weight(40), net.weight(40), axis=-1))
    x_ = special_rows()
    x_[8] = 1
    got, want = run(net, {"x": x_})
    same_specials("y", got["y"], want["y"], 1e-4, 1e-5)
    assert [bool(np.isnan(row).all()) for row in got["y"]] == [r in (0, 1, 2, 3, 4, 5, 6) for r in range(12)]


def test_extremes_hand_nan_on() -> None:
    """As NumPy does; ONNX Runtime forgets it, and gives -3.4e38 for a window of -inf alone."""
    net = Net("extremes", 17)
    x = net.input("x", 12, 40)
    for op in ("ReduceMax", "ReduceMin"):
        for axis in (0, 1):
            net.output(f"{op} {axis}", net(op, x, axes=[axis], keepdims=0))
    image = net("Reshape", x, np.array([1, 12, 5, 8]))
    net.output("pool", net("MaxPool", image, kernel_shape=[2, 2]))
    net.output("whole", net("GlobalMaxPool", image))
    given = special_rows()
    got, _ = run(net, {"x": given})
    for axis in (0, 1):
        np.testing.assert_array_equal(got[f"ReduceMax {axis}"], given.max(axis))
        np.testing.assert_array_equal(got[f"ReduceMin {axis}"], given.min(axis))
    planes = given.reshape(1, 12, 5, 8)
    windows = np.lib.stride_tricks.sliding_window_view(planes, (2, 2), (2, 3))
    np.testing.assert_array_equal(got["pool"], windows.max((4, 5)))
    np.testing.assert_array_equal(got["whole"], planes.max((2, 3), keepdims=True))


# -- contractions ------------------------------------------------------------------------------------------------------


def test_products() -> None:
    """NaN and infinities go where the sum takes them and nowhere else: not into padded rows, columns or channels."""
    net = Net("products", 17)
    x = net.input("x", 12, 40)
    net.output("plain", net("MatMul", x, net.weight(40, 50)))
    net.output("zeros", net("MatMul", x, np.zeros((40, 20), np.float32)))
    net.output("relu", net("Relu", net("Gemm", x, net.weight(7, 40), net.weight(7), transB=1)))
    given = special_rows()
    got, want = run(net, {"x": given})
    for name, value in want.items():
        same_specials(name, got[name], value, 1e-3, 1e-5)
    finite = np.isfinite(given).all(1)
    assert np.isfinite(got["plain"][finite]).all() and not np.isfinite(got["plain"][~finite]).any()
    assert np.isnan(got["zeros"][~finite]).all()


def special_image() -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((1, 5, 12, 12)).astype(np.float32)
    x[0, 0, 3, 3], x[0, 1, 5, 5], x[0, 2, 0, 0] = np.nan, np.inf, -np.inf
    x[0, 4] = 1e-40
    return x


def test_images() -> None:
    net = Net("images", 17)
    x = net.input("x", 1, 5, 12, 12)
    net.output("three", net("Conv", x, net.weight(7, 5, 3, 3), pads=[1] * 4))
    net.output("one", net("Conv", x, net.weight(20, 5, 1, 1)))
    net.output("depthwise", net("Conv", x, net.weight(5, 1, 3, 3), pads=[1] * 4, group=5))
    net.output("strided", net("Relu", net("Conv", x, net.weight(33, 5, 3, 3), pads=[1] * 4, strides=[2, 2])))
    net.output("mean", net("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]))
    net.output("padded", net("AveragePool", x, kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1))
    net.output("whole", net("GlobalAveragePool", x))
    got, want = run(net, {"x": special_image()})
    for name, value in want.items():
        same_specials(name, got[name], value, 1e-3, 1e-5)


def test_attention() -> None:
    """Masks of -inf (a whole row of them gives NaN), of the lowest float, NaN and inf; NaN and inf in q, k, v."""
    net = Net("attention", 17)
    q, k, v = (net.input(name, 1, 2, 9, 8) for name in "qkv")
    mask = net.input("mask", 1, 1, 9, 9)
    scores = net("Mul", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])), 0.35)
    net.output("y", net("MatMul", net("Softmax", net("Add", scores, mask), axis=-1), v))
    random = np.random.default_rng(0)
    clean = {name: random.standard_normal((1, 2, 9, 8)).astype(np.float32) for name in "qkv"}
    masks = np.zeros((1, 1, 9, 9), np.float32)
    masks[0, 0, 0] = masks[0, 0, 1, 2:] = -np.inf
    masks[0, 0, 2, 3], masks[0, 0, 4, 4] = np.nan, np.inf
    masks[0, 0, 3] = np.finfo(np.float32).min
    got, want = run(net, {**clean, "mask": masks})
    same_specials("masks", got["y"], want["y"], 1e-3, 1e-5)
    assert np.isnan(got["y"][0, :, 0]).all()
    clean["v"][0, 0, 3, 2], clean["v"][0, 1, 4, 4] = np.inf, np.nan
    clean["k"][0, 0, 1, 1], clean["q"][0, 1, 3, 3] = np.nan, np.inf
    got, want = run(net, {**clean, "mask": np.zeros_like(masks)})
    same_specials("operands", got["y"], want["y"], 1e-3, 1e-5)
