"""The C++ text of dims, literals, and the elementwise bodies of kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from opcel_compiler.ir.dims import Call, Dim, Expr, Symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.types import BOOL, DTYPES, DType, TensorType

CTYPES: dict[DType, str] = {
    DTYPES["f32"]: "float", DTYPES["f64"]: "double", DTYPES["bool"]: "bool",
    **{DTYPES[f"{k}{b}"]: f"{'u' if k == 'u' else ''}int{b}_t" for k in "iu" for b in (8, 16, 32, 64)},
}  # fmt: skip
"""The C++ type of each element type that CPU kernels compute with."""


def c_dim(dim: Dim, symbols: Mapping[str, str]) -> str:
    """The C++ expression of a dim (int64_t); `symbols` gives the expression of each symbol by name."""
    if isinstance(dim, int):
        return f"INT64_C({dim})"
    assert isinstance(dim, Expr)
    terms = []
    for mono, coeff in dim.terms:
        factors = [c_dim(coeff, symbols)] if coeff != 1 or not mono else []
        for atom in mono:
            factors.append(symbols[atom.name] if isinstance(atom, Symbol) else _call(atom, symbols))
        terms.append(" * ".join(factors))
    return f"({' + '.join(terms)})"


_HELPERS = {"//": "floor_div", "%": "floor_mod", "min": "least", "max": "greatest"}


def _call(atom: Call, symbols: Mapping[str, str]) -> str:
    return f"dims::{_HELPERS[atom.fn]}({c_dim(atom.a, symbols)}, {c_dim(atom.b, symbols)})"


def literal(value: float | int | bool, dtype: DType) -> str:
    """A C++ literal of exactly this value."""
    if dtype == BOOL:
        return "true" if value else "false"
    if dtype.is_float:
        suffix = "f" if dtype.bits == 32 else ""
        x = float(value)
        if math.isnan(x):
            return f"__builtin_nan{suffix}(\"\")"
        if math.isinf(x):
            return f"{'-' if x < 0 else ''}__builtin_inf{suffix}()"
        return x.hex() + suffix
    v = int(value)
    if v == -(1 << 63):
        return "INT64_MIN"
    return f"UINT64_C({v})" if v >= 1 << 63 else f"INT64_C({v})"


VECTOR: dict[str, str] = {
    "neg": "-{0}", "abs": "abs({0})", "exp": "exp({0})", "log": "log({0})", "sqrt": "sqrt({0})",
    "reciprocal": "reciprocal({0})", "erf": "erf({0})", "tanh": "tanh({0})", "sigmoid": "sigmoid({0})",
    "relu": "max(vf{{}}, {0})", "floor": "floor({0})", "ceil": "ceil({0})", "round": "round_even({0})",
    "sin": "sin({0})", "cos": "cos({0})", "softplus": "softplus({0})", "silu": "silu({0})",
    "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}", "div": "{0} / {1}", "pow": "pow({0}, {1})",
    "min": "select({0} != {0}, {0}, min({0}, {1}))", "max": "select({0} != {0}, {0}, max({0}, {1}))",
    "equal": "{0} == {1}", "less": "{0} < {1}", "less_equal": "{0} <= {1}", "and": "{0} & {1}", "or": "{0} | {1}",
    "xor": "{0} ^ {1}", "not": "~{0}", "where": "select({0}, {1}, {2})", "is_nan": "{0} != {0}",
}  # fmt: skip
"""f32 operators on vectors; bool values are lane masks."""

SCALAR: dict[str, str] = {
    "neg": "-{0}", "abs": "scalar::abs({0})", "exp": "exp({0})", "log": "log({0})", "sqrt": "std::sqrt({0})",
    "reciprocal": "1 / {0}", "erf": "erf({0})", "tanh": "tanh({0})", "sigmoid": "sigmoid({0})",
    "relu": "({0} < 0 ? 0 : {0})", "floor": "std::floor({0})", "ceil": "std::ceil({0})",
    "round": "std::nearbyint({0})", "sign": "scalar::sign({0})", "sin": "sin({0})", "cos": "cos({0})",
    "softplus": "softplus({0})", "silu": "silu({0})", "add": "{0} + {1}", "sub": "{0} - {1}", "mul": "{0} * {1}",
    "div": "scalar::div<T>({0}, {1})", "pow": "scalar::pow<T>({0}, {1})", "min": "scalar::min<T>({0}, {1})",
    "max": "scalar::max<T>({0}, {1})", "equal": "{0} == {1}", "less": "{0} < {1}", "less_equal": "{0} <= {1}",
    "and": "{0} && {1}", "or": "{0} || {1}", "xor": "{0} != {1}", "not": "!{0}", "where": "{0} ? {1} : {2}",
    "is_nan": "{0} != {0}", "is_inf": "{0} - {0} != 0 && {0} == {0}",
}  # fmt: skip

WITH_ATTRS = frozenset({"cast", "gelu", "leaky_relu", "elu", "hard_sigmoid", "mod"})
ONLY_F32 = frozenset(
    {"exp", "log", "erf", "tanh", "sigmoid", "sin", "cos", "softplus", "silu", "gelu", "elu"}
)
"""Operators that csrc/base/vmath.h has in f32 alone."""


def elementwise_ops() -> frozenset[str]:
    """The elementwise operators that CPU code can be generated for."""
    return frozenset(SCALAR) | WITH_ATTRS


def _operator(node: Node, args: list[str], vector: bool) -> str:
    a = node.attrs
    f32 = (lambda x: f"set({literal(x, DTYPES['f32'])})") if vector else (lambda x: literal(x, DTYPES["f32"]))
    if node.op == "gelu":
        return f"gelu_{'erf' if a['approximate'] == 'none' else 'tanh'}({args[0]})"
    if node.op == "cast":
        to, source = a["dtype"], node.operand(0).tensor.dtype
        return args[0] if to == source else f"scalar::cast<{CTYPES[to]}>({args[0]})"
    if node.op == "mod":
        return f"scalar::{'fmod' if a['fmod'] else 'mod'}<T>({args[0]}, {args[1]})"
    x = args[0]
    choose = (lambda c, p, q: f"select({c}, {p}, {q})") if vector else (lambda c, p, q: f"({c} ? {p} : {q})")
    zero = "vf{}" if vector else "0"
    if node.op == "leaky_relu":
        return choose(f"{x} < {zero}", f"{x} * {f32(a['alpha'])}", x)
    if node.op == "elu":
        return choose(f"{x} < {zero}", f"{f32(a['alpha'])} * (exp({x}) - 1.0f)", x)
    if node.op == "hard_sigmoid":
        line = f"{f32(a['alpha'])} * {x} + {f32(a['beta'])}"
        return f"min({f32(1)}, max({f32(0)}, {line}))" if vector else f"scalar::min<float>(1, scalar::max<float>(0, {line}))"
    return (VECTOR if vector else SCALAR)[node.op].format(*args)


def vectorizable(body: Graph) -> bool:
    """Whether a body computes in f32 (with lane masks for comparisons) and reads and writes only f32."""
    f32 = DTYPES["f32"]

    def dtype(v: Value | None) -> DType:
        return v.type.dtype if v is not None and isinstance(v.type, TensorType) else f32

    if any(dtype(v) != f32 for v in (*body.inputs, *body.outputs)):
        return False
    for node in body.nodes:
        if node.op == "constant":
            if dtype(node.result) != f32:
                return False
        elif node.op not in VECTOR and node.op not in ("gelu", "leaky_relu", "elu", "hard_sigmoid"):
            return False
        elif any(dtype(v) not in (f32, BOOL) for v in (*node.operands, node.result)):
            return False
    return True


def emit_body(nodes: list[Node], known: dict[Value, str], vector: bool, indent: str = "    ") -> list[str]:
    """C++ statements for `nodes`; `known` maps values to C++ expressions and gains each node's result."""
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
            lines.append(f"{indent}const {'vi' if result == BOOL else 'vf'} {name} = {text};")
        else:
            operand = node.operand(0).tensor.dtype
            text = text.replace("<T>", f"<{CTYPES[operand]}>")
            lines.append(f"{indent}const {CTYPES[result]} {name} = static_cast<{CTYPES[result]}>({text});")
        known[node.result] = name
    return lines


def constant_text(data: Constant, vector: bool) -> str:
    """The literal of a one-element constant."""
    text = literal(np.asarray(data.array).reshape(-1)[0].item(), data.dtype)
    return f"set({text})" if vector else f"static_cast<{CTYPES[data.dtype]}>({text})"
