"""The C++ text of dims, literals, and the elementwise bodies of kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from opcel_compiler.ir.dims import Call, Dim, Expr, Symbol
from opcel_compiler.ir.encodings import Constant
from opcel_compiler.ir.graph import Graph, Node, Value
from opcel_compiler.ir.program import View
from opcel_compiler.ir.types import BOOL, DTYPES, DType, TensorType
from opcel_compiler.targets.kernels import kernel_table

CTYPES: dict[DType, str] = {
    DTYPES["f32"]: "float", DTYPES["f64"]: "double", DTYPES["bool"]: "bool",
    **{DTYPES[f"{k}{b}"]: f"{'u' if k == 'u' else ''}int{b}_t" for k in "iu" for b in (8, 16, 32, 64)},
}  # fmt: skip
"""The C++ type of each element type that CPU kernels compute with."""


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
    if node.op == "cast" and node.attrs["dtype"] == node.operand(0).tensor.dtype:
        return args[0]
    if vector and node.op in ("min", "max"):
        constant = next((i for i, v in enumerate(node.operands) if v is not None and v.constant is not None), None)
        if constant is not None:
            return f"{node.op}({args[constant]}, {args[1 - constant]})"
    text = entry.vector if vector else entry.scalar
    assert text is not None
    return text.format(*args, **{k: _attribute(v, vector) for k, v in node.attrs.items()})


def _attribute(value: object, vector: bool) -> str:
    if isinstance(value, DType):
        return CTYPES[value]
    if isinstance(value, bool):
        return "fmod" if value else "mod"
    if isinstance(value, (int, float)):
        text = literal(value, DTYPES["f32"])
        return f"set({text})" if vector else text
    return {"none": "erf"}.get(str(value), str(value))


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
        elif kernel_table().elementwise[node.op].vector is None:
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
