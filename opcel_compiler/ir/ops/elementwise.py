"""Elementwise operators with NumPy broadcasting, and the operators that make values from nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from opcel_compiler.ir.opdef import Arrays, AttrDef, Attrs, InferenceError, Operands, define
from opcel_compiler.ir.ops.common import array_at, broadcast, ints, present, quiet, same_dtype, tensor_of, widen
from opcel_compiler.ir.types import BOOL, DTYPES, I64, DType, TensorType, Type, tensor

Unary = Callable[[np.ndarray, Attrs], Any]
Binary = Callable[[np.ndarray, np.ndarray, Attrs], Any]


def _erf_table() -> np.ndarray:
    """Taylor coefficients of erf, [term, node], about the nodes i/64 in [0, 6]; derivative n+1 of erf is
    (-1)^n H_n(x) exp(-x²) 2/sqrt(pi), H the physicists' Hermite polynomials."""
    x = np.arange(6 * 64 + 1) / 64.0
    h = [np.ones_like(x), 2 * x]
    for n in range(1, 8):
        h.append(2 * x * h[n] - 2 * n * h[n - 1])
    slope = 2 / math.sqrt(math.pi) * np.exp(-x * x)
    derivatives = [(-1) ** n * h[n] * slope / math.factorial(n + 1) for n in range(8)]
    return np.stack([np.array([math.erf(v) for v in x]), *derivatives])


_ERF = _erf_table()


BLOCK = 1 << 13
"""So many elements at a time, whose intermediate results then stay in cache."""


def erf(x: np.ndarray) -> np.ndarray:
    """The error function in float64, to about 1e-16."""
    out = np.empty(x.shape, np.float64)
    given, made = x.reshape(-1), out.reshape(-1)
    part = np.empty(min(BLOCK, given.size))
    for at in range(0, given.size, BLOCK):
        signed, y = given[at : at + BLOCK], made[at : at + BLOCK]
        delta: np.ndarray = np.minimum(np.abs(signed.astype(np.float64)), 6.0)
        node = np.rint(np.nan_to_num(delta) * 64).astype(np.intp)
        delta -= node / 64.0
        row = part[: y.size]
        _ERF[-1].take(node, out=y, mode="clip")
        for coefficients in _ERF[-2::-1]:
            y *= delta
            y += coefficients.take(node, out=row, mode="clip")
        np.copysign(y, signed, out=y)
    return out


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)), x.dtype)


def _gelu(x: np.ndarray, attrs: Attrs) -> Any:
    wide = x.astype(np.float64)
    if attrs["approximate"] == "tanh":
        return 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    return 0.5 * wide * (1 + erf(wide * math.sqrt(0.5)))


def _leaky_relu(x: np.ndarray, a: Attrs) -> Any:
    return np.where(x < 0, x * x.dtype.type(a["alpha"]), x)


def _elu(x: np.ndarray, a: Attrs) -> Any:
    return np.where(x < 0, np.expm1(x) * x.dtype.type(a["alpha"]), x)


def _hard_sigmoid(x: np.ndarray, a: Attrs) -> Any:
    return np.maximum(0, np.minimum(1, x * x.dtype.type(a["alpha"]) + x.dtype.type(a["beta"])))


def _unary(
    name: str, summary: str, fn: Unary, kinds: str = "f", attrs: tuple[AttrDef, ...] = (), result: DType | None = None
) -> None:
    def infer(operands: Operands, _: Attrs) -> tuple[Type, ...]:
        x = tensor_of(operands, 0, kinds)
        return (TensorType(result or x.dtype, x.shape),)

    @quiet
    def evaluate(arrays: Arrays, a: Attrs) -> tuple[np.ndarray, ...]:
        x = array_at(arrays, 0)
        return (np.asarray(fn(widen(x), a)).astype(result.numpy if result else x.dtype, copy=False),)

    define(name, summary, "x", infer, evaluate, attrs, traits="elementwise")


_ALPHA = AttrDef("alpha", "float")

_unary("neg", "-x", lambda x, _: np.negative(x), "fiuc")
_unary("abs", "|x|", lambda x, _: np.abs(x), "fiu")
_unary("exp", "e to the x", lambda x, _: np.exp(x), "fc")
_unary("log", "Natural logarithm; NaN below 0", lambda x, _: np.log(x), "fc")
_unary("sqrt", "Square root; NaN below 0", lambda x, _: np.sqrt(x))
_unary("reciprocal", "1 / x", lambda x, _: 1 / x)
_unary("erf", "Error function", lambda x, _: erf(x))
_unary("tanh", "Hyperbolic tangent", lambda x, _: np.tanh(x))
_unary("sigmoid", "1 / (1 + exp(-x))", lambda x, _: sigmoid(x))
_unary("relu", "max(x, 0); NaN stays", lambda x, _: np.maximum(x, x.dtype.type(0)), "fiu")
_unary("floor", "Largest integer not above x", lambda x, _: np.floor(x))
_unary("ceil", "Smallest integer not below x", lambda x, _: np.ceil(x))
_unary("round", "Nearest integer, ties to even", lambda x, _: np.rint(x))
_unary("sign", "-1, 0 or 1; NaN stays", lambda x, _: np.sign(x), "fiu")
_unary("sin", "Sine of radians", lambda x, _: np.sin(x))
_unary("cos", "Cosine of radians", lambda x, _: np.cos(x))
_unary("asin", "Arc sine in radians; NaN outside of [-1, 1]", lambda x, _: np.arcsin(x))
_unary("acos", "Arc cosine in radians; NaN outside of [-1, 1]", lambda x, _: np.arccos(x))
_unary("atan", "Arc tangent in radians", lambda x, _: np.arctan(x))
_unary("sinh", "Hyperbolic sine", lambda x, _: np.sinh(x))
_unary("cosh", "Hyperbolic cosine", lambda x, _: np.cosh(x))
_unary("asinh", "Inverse hyperbolic sine", lambda x, _: np.arcsinh(x))
_unary("acosh", "Inverse hyperbolic cosine; NaN below 1", lambda x, _: np.arccosh(x))
_unary("atanh", "Inverse hyperbolic tangent; NaN outside of [-1, 1]", lambda x, _: np.arctanh(x))
_unary("not", "Logical negation", lambda x, _: np.logical_not(x), "b")
_unary("is_nan", "Whether x is NaN", lambda x, _: np.isnan(x), result=BOOL)
_unary("is_inf", "Whether x is +Inf or -Inf", lambda x, _: np.isinf(x), result=BOOL)
_unary("softplus", "log(1 + exp(x))", lambda x, _: np.logaddexp(x, x.dtype.type(0)))
_unary(
    "gelu", "x/2 (1 + erf(x/sqrt 2)), or its tanh approximation", _gelu, attrs=(AttrDef("approximate", "str", "none"),)
)
_unary("silu", "x sigmoid(x)", lambda x, _: x * sigmoid(x))
_unary("leaky_relu", "x, or alpha x below 0", _leaky_relu, attrs=(_ALPHA,))
_unary(
    "elu",
    "x, or alpha (exp(x) - 1) below 0",
    _elu,
    attrs=(_ALPHA,),
)
_unary("hard_sigmoid", "alpha x + beta, cut to [0, 1]", _hard_sigmoid, attrs=(_ALPHA, AttrDef("beta", "float")))


def _infer_cast(operands: Operands, attrs: Attrs) -> tuple[Type, ...]:
    if attrs["round_mode"] not in ("up", "down", "nearest"):
        raise InferenceError(f"round_mode is up, down or nearest, not {attrs['round_mode']!r}")
    return (TensorType(attrs["dtype"], tensor_of(operands, 0).shape),)


def _cast(arrays: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    x, dtype = array_at(arrays, 0), attrs["dtype"]
    if dtype.kind == "s":
        return (np.array([str(v) for v in x.ravel()], object).reshape(x.shape),)
    if x.dtype == object:
        read: Callable[[str], Any] = float if dtype.kind in "fc" else int
        x = np.array([read(v) for v in x.ravel()]).reshape(x.shape)
    if dtype.kind == "b":
        return (np.asarray(widen(x) != 0),)
    if dtype.kind in "iu" and dtype.bits < 8:
        x = widen(x).astype(np.int32)
    if dtype.name == "f8e8m0":
        return (_power_of_two(widen(x).astype(np.float32), attrs["round_mode"], attrs["saturate"]),)
    if saturates(dtype) and attrs["saturate"]:
        return (saturated(widen(x), dtype),)
    return (x.astype(dtype.numpy, copy=False),)


def saturates(dtype: DType) -> bool:
    """Whether a cast to `dtype` may either saturate or give infinities or NaN."""
    return dtype.kind == "f" and dtype.bits == 8 and dtype.name != "f8e8m0"


def saturated(x: np.ndarray, dtype: DType) -> np.ndarray:
    """`x` in a float type of 8 bits, infinities and what is too large as its largest number."""
    high = float(ml_dtypes.finfo(dtype.numpy).max)  # type: ignore[no-untyped-call]
    out: np.ndarray = np.clip(x, x.dtype.type(-high), x.dtype.type(high)).astype(dtype.numpy)
    return out


def _power_of_two(x: np.ndarray, mode: str, saturate: bool) -> np.ndarray:
    """The exponents of float32 `x` as f8e8m0; signs are lost, infinities become NaN, zero the smallest number."""
    bits: np.ndarray = np.ascontiguousarray(x).view(np.uint32).reshape(x.shape)
    exponent, fraction = (bits >> 23) & 255, bits & 0x7FFFFF
    if mode == "up":
        up = fraction > 0
    elif mode == "nearest":
        up = (fraction > 0x400000) | ((fraction == 0x400000) & (exponent > 0))
    else:
        up = np.zeros(x.shape, bool)
    up &= exponent < (254 if saturate else 255)
    out: np.ndarray = (exponent + up).astype(np.uint8).view(DTYPES["f8e8m0"].numpy)
    return out


define(
    "cast",
    "The value in another dtype: floats to integers cut toward 0, non-zero to true; what is too large for a float of 8 "
    "bits becomes its largest number with `saturate`; `round_mode` (up, down, nearest) is that of f8e8m0",
    "x",
    _infer_cast,
    quiet(_cast),
    (AttrDef("dtype", "dtype"), AttrDef("saturate", "bool", True), AttrDef("round_mode", "str", "up")),
    traits="elementwise",
)


def _div(a: np.ndarray, b: np.ndarray, _: Attrs) -> Any:
    if a.dtype.kind not in "iu":
        return np.divide(a, b)
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


def _pow(a: np.ndarray, b: np.ndarray, _: Attrs) -> Any:
    if a.dtype.kind != "i":
        return np.power(a, b)
    odd = np.where(b & 1, -1, 1)
    negative = np.where(a == 1, 1, np.where(a == -1, odd, 0))
    return np.where(b < 0, negative, np.power(a, np.maximum(b, 0)))


def _binary(
    name: str,
    summary: str,
    fn: Binary,
    kinds: str = "fiu",
    attrs: tuple[AttrDef, ...] = (),
    result: DType | None = None,
    traits: str = "",
) -> None:
    def infer(operands: Operands, _: Attrs) -> tuple[Type, ...]:
        a, b = tensor_of(operands, 0, kinds), tensor_of(operands, 1, kinds)
        dtype = result or same_dtype((a, b))
        same_dtype((a, b))
        if a.shape is None or b.shape is None:
            return (TensorType(dtype, None),)
        return (TensorType(dtype, broadcast((a.shape, b.shape))),)

    @quiet
    def evaluate(arrays: Arrays, at: Attrs) -> tuple[np.ndarray, ...]:
        a, b = present(arrays)
        return (np.asarray(fn(widen(a), widen(b), at)).astype(result.numpy if result else a.dtype, copy=False),)

    define(name, summary, "a b", infer, evaluate, attrs, traits=f"elementwise {traits}")


_binary("add", "a + b", lambda a, b, _: np.add(a, b), "fiuc", traits="commutative")
_binary("sub", "a - b", lambda a, b, _: np.subtract(a, b), "fiuc")
_binary("mul", "a b", lambda a, b, _: np.multiply(a, b), "fiuc", traits="commutative")
_binary("div", "a / b; integers cut toward 0", _div, "fiuc")
_binary("pow", "a to the b; a negative integer power is 1 / a^-b cut toward 0", _pow)
_binary(
    "mod",
    "Remainder with the sign of b; with fmod, of a",
    lambda a, b, at: np.fmod(a, b) if at["fmod"] else np.mod(a, b),
    attrs=(AttrDef("fmod", "bool", False),),
)
_binary("min", "The smaller; NaN if either is", lambda a, b, _: np.minimum(a, b), traits="commutative")
_binary("max", "The larger; NaN if either is", lambda a, b, _: np.maximum(a, b), traits="commutative")
_binary("equal", "a == b", lambda a, b, _: a == b, "fiubcs", result=BOOL, traits="commutative")
_binary("less", "a < b", lambda a, b, _: a < b, result=BOOL)
_binary("less_equal", "a <= b", lambda a, b, _: a <= b, result=BOOL)
_binary("and", "Logical and", lambda a, b, _: a & b, "b", traits="commutative")
_binary("or", "Logical or", lambda a, b, _: a | b, "b", traits="commutative")
_binary("xor", "Logical exclusive or", lambda a, b, _: a ^ b, "b", traits="commutative")


def _infer_where(operands: Operands, _: Attrs) -> tuple[Type, ...]:
    c, x, y = tensor_of(operands, 0, "b"), tensor_of(operands, 1), tensor_of(operands, 2)
    dtype = same_dtype((x, y))
    if c.shape is None or x.shape is None or y.shape is None:
        return (TensorType(dtype, None),)
    return (TensorType(dtype, broadcast((x.shape, y.shape, c.shape))),)


define(
    "where",
    "x where c holds, else y",
    "c x y",
    _infer_where,
    lambda arrays, _: (np.asarray(np.where(*present(arrays))),),
    traits="elementwise",
)

define(
    "constant",
    "Data known at compile time",
    "",
    lambda _, attrs: (attrs["value"].type,),
    lambda _, attrs: (attrs["value"].array,),
    (AttrDef("value", "constant"),),
)


def _infer_dims(_: Operands, attrs: Attrs) -> tuple[Type, ...]:
    if attrs["scalar"]:
        if len(attrs["values"]) != 1:
            raise InferenceError(f"a scalar has one value, not {len(attrs['values'])}")
        return (tensor(I64),)
    return (tensor(I64, len(attrs["values"])),)


def _dims(_: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    out = np.array(ints(attrs, "values"), np.int64)
    return (out.reshape(()) if attrs["scalar"] else out,)


define(
    "dims",
    "The run-time values of symbolic dims, i64[n] or i64[]",
    "",
    _infer_dims,
    _dims,
    (AttrDef("values", "dims"), AttrDef("scalar", "bool", False)),
)


def _infer_range(_: Operands, attrs: Attrs) -> tuple[Type, ...]:
    if len(attrs["start"]) != 1 or len(attrs["size"]) != 1:
        raise InferenceError("start and size hold one dim each")
    if attrs["dtype"].kind not in "fiu":
        raise InferenceError(f"a range of {attrs['dtype']} is not defined")
    size = attrs["size"][0]
    if isinstance(size, int) and size < 0:
        raise InferenceError(f"size is {size}, below 0")
    return (tensor(attrs["dtype"], size),)


def _range(_: Arrays, attrs: Attrs) -> tuple[np.ndarray, ...]:
    (start,), (size,) = ints(attrs, "start"), ints(attrs, "size")
    return ((start + attrs["step"] * np.arange(size)).astype(attrs["dtype"].numpy),)


define(
    "range_",
    "start, start + step, ... : `size` elements",
    "",
    _infer_range,
    _range,
    (AttrDef("start", "dims"), AttrDef("size", "dims"), AttrDef("step", "int"), AttrDef("dtype", "dtype")),
)
