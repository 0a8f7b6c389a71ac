"""The C++ text of dims, literals, and the elementwise bodies of kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from opcel_compiler.ir.dims import Call, Dim, Expr, Symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Node, Value
from opcel_compiler.ir.ops.elementwise import saturates
from opcel_compiler.ir.ops.quant import integer_range
from opcel_compiler.ir.program import View
from opcel_compiler.ir.types import BOOL, DTYPES, F32, F64, DType
from opcel_compiler.targets.kernels import kernel_table

CTYPES: dict[DType, str] = {
    DTYPES["f32"]: "float", DTYPES["f64"]: "double", DTYPES["bool"]: "bool",
    **{DTYPES[f"{k}{b}"]: f"{'u' if k == 'u' else ''}int{b}_t" for k in "iu" for b in (8, 16, 32, 64)},
    **{d: d.name for d in DTYPES.values() if d.kind in "fiu" and (d.bits < 8 or (d.kind == "f" and d.bits <= 16))},
}  # fmt: skip
"""The C++ type of each element type that CPU kernels compute with; those of csrc/base/narrow.h by their own names."""


def computing_type(dtype: DType) -> str:
    """The C++ type in which single elements of `dtype` are computed; results are rounded to `dtype` one by one."""
    if dtype.is_float and dtype.bits <= 16:
        return "float"
    return "int32_t" if dtype.is_integer and dtype.bits < 8 else CTYPES[dtype]


def stored_type(view: View) -> str:
    """The C++ type of a view's elements in memory."""
    return view.buffer.layout.storage or CTYPES[view.dtype]


def c_dim(dim: Dim, symbols: Mapping[str, str], number: str = "INT64_C") -> str:
    """The C++ expression of a dim; `symbols` gives the expression of each symbol by name, and `number` what makes a
    constant of its type: INT64_C for int64_t, `double` where the value may be too large for that."""
    if isinstance(dim, int):
        return f"{number}({dim})"
    assert isinstance(dim, Expr)
    terms = []
    for mono, coeff in dim.terms:
        factors = [c_dim(coeff, symbols, number)] if coeff != 1 or not mono else []
        for atom in mono:
            factors.append(symbols[atom.name] if isinstance(atom, Symbol) else _call(atom, symbols, number))
        terms.append(" * ".join(factors))
    return f"({' + '.join(terms)})"


_HELPERS = {"//": "floor_div", "%": "floor_mod", "min": "least", "max": "greatest"}


def _call(atom: Call, symbols: Mapping[str, str], number: str) -> str:
    return f"dims::{_HELPERS[atom.fn]}({c_dim(atom.a, symbols, number)}, {c_dim(atom.b, symbols, number)})"


def literal(value: float | int | bool, dtype: DType) -> str:
    """A C++ literal of exactly this value."""
    if dtype == BOOL:
        return "true" if value else "false"
    if dtype.is_float:
        suffix = "f" if dtype.bits == 32 else ""
        x = float(value)
        if math.isnan(x):
            return f'__builtin_nan{suffix}("")'
        if math.isinf(x):
            return f"{'-' if x < 0 else ''}__builtin_inf{suffix}()"
        return x.hex() + suffix
    v = int(value)
    if v == -(1 << 63):
        return "INT64_MIN"
    return f"UINT64_C({v})" if v >= 1 << 63 else f"INT64_C({v})"


def _operator(node: Node, args: list[str], vector: bool) -> str:
    """The C++ expression of one elementwise node."""
    entry = kernel_table().elementwise[node.op]
    if node.op in _WRITTEN:
        return _WRITTEN[node.op](node, args, vector)
    if vector and node.op in ("min", "max"):
        constant = next((i for i, v in enumerate(node.operands) if v is not None and v.constant is not None), None)
        if constant is not None:
            return f"{node.op}({args[constant]}, {args[1 - constant]})"
    text = entry.vector if vector else entry.scalar
    assert text is not None
    dtype = F64 if node.operand(0).tensor.dtype == F64 else F32
    return text.format(*args, **{k: _attribute(v, vector, dtype) for k, v in node.attrs.items()})


def _cast(node: Node, args: list[str], vector: bool) -> str:
    x, have, want = args[0], node.operand(0).tensor.dtype, node.attrs["dtype"]
    saturate = node.attrs["saturate"] and saturates(want)
    if have == want:
        return x
    if not vector:
        if want.name == "f8e8m0":
            mode = f"Rounding::{node.attrs['round_mode']}, {str(node.attrs['saturate']).lower()}"
            return f"f8e8m0::rounded(static_cast<float>({x}), {mode})"
        return f"{CTYPES[want]}::saturated({x})" if saturate else f"scalar::cast<{CTYPES[want]}>({x})"
    if want == BOOL:
        return f"{x} != vf{{}}"
    if have == BOOL:
        return f"select({x}, set(1.0f), vf{{}})"
    return f"saturated<{CTYPES[want]}>({x})" if saturate else x


def _quantize(node: Node, args: list[str], vector: bool) -> str:
    """x / scale in x's dtype; to integers rounded, the zero point added, and cut to the range."""
    have, want = node.operand(0).tensor.dtype, node.attrs["dtype"]
    quotient = args[0] if _is_one(node.operand(1)) else f"{args[0]} / {args[1]}"
    if have.bits < 32:
        quotient = f"rounded<{CTYPES[have]}>({quotient})" if vector else f"float({CTYPES[have]}({quotient}))"
    if want.is_float:
        how = "saturated" if saturates(want) and node.attrs["saturate"] else "rounded"
        if vector:
            return f"{how}<{CTYPES[want]}>({quotient})"
        return f"{CTYPES[want]}::saturated({quotient})" if how == "saturated" else quotient
    low, high = (literal(float(v), F32) for v in integer_range(want))
    zero = args[2] if len(args) > 2 else ("vf{}" if vector else "0.0f")
    return f"quantized({quotient}, {zero}, {low}, {high})"


def _is_one(scale: Value) -> bool:
    data = scale.constant
    return data is not None and data.array.size == 1 and data.array.reshape(-1)[0] == 1


def _dequantize(node: Node, args: list[str], vector: bool) -> str:
    """(x - zero point) scale in f32."""
    x, scale, *zero = args if vector else [f"static_cast<float>({a})" for a in args]
    return f"({x} - {zero[0]}) * {scale}" if zero else f"{x} * {scale}"


_WRITTEN = {"cast": _cast, "quantize": _quantize, "dequantize": _dequantize}


def _attribute(value: object, vector: bool, dtype: DType) -> str:
    if isinstance(value, DType):
        return CTYPES[value]
    if isinstance(value, bool):
        return "fmod" if value else "mod"
    if isinstance(value, (int, float)):
        text = literal(value, dtype)
        return f"set({text})" if vector else text
    return {"none": "erf"}.get(str(value), str(value))


ROUNDED = frozenset({"neg", "abs", "relu", "min", "max", "where", "floor", "ceil", "round", "sign", "quantize"})
"""Operators whose results on values of a dtype are values of it, or that round by themselves."""


def lane_type(dtype: DType) -> str:
    """The C++ type of W values in registers."""
    return "vi" if dtype == BOOL else "vf"


def lane_load(dtype: DType, address: str, broadcast: bool, tail: str) -> str:
    """The C++ expression of W elements at `address`, or of W times the one there."""
    if broadcast:
        return f"{'set_mask' if dtype == BOOL else 'set'}(*({address}))"
    return f"{'load_mask' if dtype == BOOL else 'load_t'}<{tail}>({address}, lanes)"


def lane_store(dtype: DType, address: str, value: str, tail: str) -> str:
    """The C++ statement that writes lanes to `address`."""
    return f"{'store_mask' if dtype == BOOL else 'store_t'}<{tail}>({address}, {value}, lanes);"


def emit_body(
    nodes: list[Node], known: dict[Value, str], vector: bool, indent: str = "    ", apart: bool = False
) -> list[str]:
    """C++ statements for `nodes`; `known` maps values to C++ expressions and gains each node's result. `apart`: no
    product is added without being rounded, whatever the compiler can contract.

    Single elements are held in `computing_type`, lanes in `lane_type`, both rounded to the value's dtype.
    """
    lines = []
    for node in nodes:
        if node.op == "constant":
            known[node.result] = constant_text(node.attrs["value"], vector)
            continue
        args = [known[v] for v in node.operands if v is not None]
        name = f"t{len(known)}"
        result = node.result.tensor.dtype
        text = _operator(node, args, vector)
        if vector:
            rounds = result.is_float and result.bits < 32 and node.op not in ROUNDED
            if rounds and not text.startswith("saturated<"):
                text = f"rounded<{CTYPES[result]}>({text})"
            product = apart and node.op in ("mul", "dequantize")
            lines.append(f"{indent}{'' if product else 'const '}{lane_type(result)} {name} = {text};")
            if product:
                lines.append(f"{indent}keep({name});")
        else:
            text = text.replace("<T>", f"<{computing_type(node.operand(0).tensor.dtype)}>")
            lines.append(f"{indent}const {computing_type(result)} {name} = static_cast<{CTYPES[result]}>({text});")
        known[node.result] = name
    return lines


def constant_text(data: Constant, vector: bool) -> str:
    """The literal of a one-element constant."""
    value = np.asarray(data.array).reshape(-1)[0].item()
    if not vector:
        ctype = computing_type(data.dtype)
        return f"static_cast<{ctype}>({literal(value, F32 if ctype == 'float' else data.dtype)})"
    return f"set_mask({literal(value, BOOL)})" if data.dtype == BOOL else f"set({literal(value, F32)})"
