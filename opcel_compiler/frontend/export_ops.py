"""How each of our operators is written in ONNX. An entry gives the name of the node's result, or of its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from opcel_compiler.frontend.limits import ExportError
from opcel_compiler.frontend.proto_types import code_of
from opcel_compiler.frontend.writer import INT64_MIN, Writer
from opcel_compiler.ir.dims import Dim, floordiv
from opcel_compiler.ir.graph import Node
from opcel_compiler.ir.types import I64, DType

Export = Callable[[Writer, Node, list[str]], "str | Sequence[str]"]
EXPORTS: dict[str, Export] = {}

# our operator: (ONNX operator, the first opset that has it for the types in use)
_DIRECT: dict[str, tuple[str, int]] = {
    "neg": ("Neg", 7), "abs": ("Abs", 7), "exp": ("Exp", 7), "log": ("Log", 7), "sqrt": ("Sqrt", 7),
    "reciprocal": ("Reciprocal", 7), "erf": ("Erf", 9), "tanh": ("Tanh", 7), "sigmoid": ("Sigmoid", 7),
    "floor": ("Floor", 7), "ceil": ("Ceil", 7), "round": ("Round", 11), "sign": ("Sign", 9), "sin": ("Sin", 7),
    "cos": ("Cos", 7), "not": ("Not", 7), "is_nan": ("IsNaN", 9), "is_inf": ("IsInf", 10), "softplus": ("Softplus", 7),
    "add": ("Add", 7), "sub": ("Sub", 7), "mul": ("Mul", 7), "div": ("Div", 7), "pow": ("Pow", 7), "min": ("Min", 8),
    "max": ("Max", 8), "equal": ("Equal", 7), "less": ("Less", 7), "and": ("And", 7), "or": ("Or", 7),
    "xor": ("Xor", 7), "where": ("Where", 9), "matmul": ("MatMul", 7),
    "asin": ("Asin", 7), "acos": ("Acos", 7), "atan": ("Atan", 7), "sinh": ("Sinh", 9), "cosh": ("Cosh", 9),
    "asinh": ("Asinh", 9), "acosh": ("Acosh", 9), "atanh": ("Atanh", 9),
}  # fmt: skip


def exports(*ops: str) -> Callable[[Export], Export]:
    def register(fn: Export) -> Export:
        for op in ops:
            EXPORTS[op] = fn
        return fn

    return register


def _dtype(node: Node, i: int = 0) -> DType:
    return node.operand(i).tensor.dtype


def _dims(node: Node, i: int = 0) -> tuple[Dim, ...]:
    return node.operand(i).tensor.dims


def need(w: Writer, opset: int, what: str) -> None:
    if w.opset < opset:
        raise ExportError(f"{w.where}: {what} needs opset {opset}, and the model is written at opset {w.opset}")


@exports(*_DIRECT)
def direct(w: Writer, node: Node, xs: list[str]) -> str:
    op_type, first = _DIRECT[node.op]
    need(w, first, op_type)
    return w.node(op_type, xs)


@exports("relu")
def relu(w: Writer, node: Node, xs: list[str]) -> str:
    if _dtype(node).is_float or w.opset >= 14:
        return w.node("Relu", xs)
    return w.node("Max", [xs[0], w.number(0, _dtype(node))])


@exports("less_equal")
def less_equal(w: Writer, node: Node, xs: list[str]) -> str:
    if w.opset >= 12:
        return w.node("LessOrEqual", xs)
    return w.node("Or", [w.node("Less", xs), w.node("Equal", xs)])


@exports("cast")
def cast(w: Writer, node: Node, xs: list[str]) -> str:
    attrs = {
        k: int(v) if isinstance(v, bool) else v
        for k, v in node.attrs.items()
        if k != "dtype" and v != node.definition.attrs[k].default
    }
    need(w, 24 if "round_mode" in attrs else 19 if attrs else 7, "this Cast")
    return w.cast(xs[0], node.attrs["dtype"], **attrs)


@exports("mod")
def mod(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 10, "Mod")
    if _dtype(node).is_float and not node.attrs["fmod"]:
        whole = w.node("Floor", [w.node("Div", xs)])
        return w.node("Sub", [xs[0], w.node("Mul", [whole, xs[1]])])
    return w.node("Mod", xs, fmod=int(node.attrs["fmod"]))


@exports("gelu")
def gelu(w: Writer, node: Node, xs: list[str]) -> str:
    x, dtype = xs[0], _dtype(node)
    how = node.attrs["approximate"]
    if w.opset >= 20:
        return w.node("Gelu", xs, approximate=how)
    if how == "tanh":
        cube = w.node("Mul", [w.node("Mul", [w.node("Mul", [x, x]), x]), w.number(0.044715, dtype)])
        inner = w.node("Mul", [w.node("Add", [x, cube]), w.number(math.sqrt(2 / math.pi), dtype)])
        inner = w.node("Tanh", [inner])
    else:
        need(w, 9, "Erf")
        inner = w.node("Erf", [w.node("Mul", [x, w.number(math.sqrt(0.5), dtype)])])
    half = w.node("Mul", [x, w.number(0.5, dtype)])
    return w.node("Mul", [half, w.node("Add", [inner, w.number(1, dtype)])])


@exports("silu")
def silu(w: Writer, node: Node, xs: list[str]) -> str:
    return w.node("Mul", [xs[0], w.node("Sigmoid", xs)])


@exports("leaky_relu", "elu", "hard_sigmoid")
def with_slopes(w: Writer, node: Node, xs: list[str]) -> str:
    op_type = {"leaky_relu": "LeakyRelu", "elu": "Elu", "hard_sigmoid": "HardSigmoid"}[node.op]
    return w.node(op_type, xs, **{k: float(v) for k, v in node.attrs.items()})


@exports("dims")
def dims(w: Writer, node: Node, xs: list[str]) -> str:
    values = w.dims(node.attrs["values"])
    return _reshape(w, values, ()) if node.attrs["scalar"] else w.node("Identity", [values])


@exports("range_")
def range_(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 11, "Range")
    (start,), (size,), step, dtype = (node.attrs[k] for k in ("start", "size", "step", "dtype"))
    ends = [_reshape(w, w.dim(d), ()) for d in (start, start + size * step)]
    out = w.node("Range", [*ends, w.constant(np.array(step, np.int64))])
    return out if dtype == I64 else w.cast(out, dtype)


def _reshape(w: Writer, x: str, shape: tuple[Dim, ...]) -> str:
    return w.node("Reshape", [x, _target(w, shape)])


def _target(w: Writer, shape: tuple[Dim, ...]) -> str:
    """The shape operand of Reshape; one symbolic size among constants is left to -1."""
    symbolic = [d for d in shape if not isinstance(d, int)]
    if len(symbolic) == 1 and 0 not in shape:
        return w.ints([d if isinstance(d, int) else -1 for d in shape])
    if 0 in shape and not symbolic and w.opset < 14:
        # Before allowzero, a 0 copies the size of the source, which an empty result of another shape cannot use.
        raise ExportError(f"{w.where}: reshaping to {list(shape)} needs opset 14")
    return w.dims(shape)


@exports("invalid")
def invalid(w: Writer, node: Node, xs: list[str]) -> list[str]:
    """An index that is out of range, which engines find when they run it."""
    out = []
    for v in node.results:
        data = w.constant(np.zeros(1, v.tensor.dtype.numpy), v.tensor.dtype)
        one = w.node("Gather", [data, w.constant(np.array(7))])
        out.append(w.node("Expand", [one, w.dims(v.tensor.dims)]) if v.tensor.dims else one)
    return out


@exports("sequence")
def sequence(w: Writer, node: Node, xs: list[str]) -> str:
    if node.attrs["stacked"]:
        return w.node("SplitToSequence", xs, axis=0, keepdims=0)
    return w.node("SequenceConstruct", xs) if xs else w.node("SequenceEmpty", [], dtype=code_of(node.attrs["dtype"]))


@exports("reshape")
def reshape(w: Writer, node: Node, xs: list[str]) -> str:
    shape = node.attrs["shape"]
    zero = w.opset >= 14 and any(not isinstance(d, int) or d == 0 for d in shape)
    target = _target(w, shape)
    open_ = sum(not isinstance(d, int) for d in shape) == 1 and 0 not in shape
    return w.node("Reshape", [xs[0], target], allowzero=1 if zero and not open_ else None)


@exports("transpose")
def transpose(w: Writer, node: Node, xs: list[str]) -> str:
    return w.node("Transpose", xs, perm=list(node.attrs["perm"]) or None)


@exports("expand")
def expand(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 8, "Expand")
    return w.node("Expand", [xs[0], w.dims(node.attrs["shape"])])


@exports("slice")
def slice_(w: Writer, node: Node, xs: list[str]) -> str:
    have = _dims(node)
    starts, sizes, steps = (node.attrs[k] for k in ("starts", "sizes", "steps"))
    axes = [i for i, n in enumerate(have) if (starts[i], sizes[i], steps[i]) != (0, n, 1)]
    if not axes:
        return w.node("Identity", xs)
    begin = [starts[i] for i in axes]
    end = [_end(starts[i], sizes[i], steps[i]) for i in axes]
    by = [steps[i] for i in axes]
    if w.opset < 10:
        if any(s != 1 for s in by) or not all(isinstance(d, int) for d in (*begin, *end)):
            raise ExportError(f"{w.where}: a slice with steps or symbolic bounds needs opset 10")
        return w.node("Slice", xs, starts=begin, ends=end, axes=axes)
    stop = w.dims(end)
    if any(s < 0 and not isinstance(d, int) for d, s in zip(end, by, strict=True)):
        # Going down to the first element ends before it, at -1, which ONNX takes as the last element.
        stop = w.node("Where", [w.node("Less", [stop, w.ints([0])]), w.ints([INT64_MIN]), stop])
    return w.node("Slice", [xs[0], w.dims(begin), stop, w.ints(axes), w.ints(by)])


def _end(start: Dim, size: Dim, step: int) -> Dim:
    end = start + size * step
    return INT64_MIN if isinstance(end, int) and end < 0 else end


@exports("concat")
def concat(w: Writer, node: Node, xs: list[str]) -> str:
    return w.node("Concat", xs, axis=node.attrs["axis"])


@exports("pad")
def pad(w: Writer, node: Node, xs: list[str]) -> str:
    pads, mode = node.attrs["pads"], node.attrs["mode"]
    if mode == "wrap":
        need(w, 19, "Pad with mode wrap")
    if w.opset >= 11:
        return w.node("Pad", [xs[0], w.dims(pads), *xs[1:]], mode=mode)
    data = node.operands[1].constant if len(node.operands) > 1 and node.operands[1] is not None else None
    if (len(xs) > 1 and data is None) or not all(isinstance(d, int) for d in pads):
        raise ExportError(f"{w.where}: computed pads need opset 11")
    return w.node("Pad", xs[:1], mode=mode, pads=list(pads), value=0.0 if data is None else float(data.array))


@exports("gather")
def gather(w: Writer, node: Node, xs: list[str]) -> str:
    return w.node("Gather", xs, axis=node.attrs["axis"])


@exports("gather_elements")
def gather_elements(w: Writer, node: Node, xs: list[str]) -> str:
    need(w, 11, "GatherElements")
    return w.node("GatherElements", xs, axis=node.attrs["axis"])


@exports("gather_nd")
def gather_nd(w: Writer, node: Node, xs: list[str]) -> str:
    batch = node.attrs["batch_dims"]
    need(w, 12 if batch else 11, "GatherND")
    return w.node("GatherND", xs, batch_dims=batch or None)


@exports("reduce_sum", "reduce_mean", "reduce_max", "reduce_min", "reduce_prod")
def reduce(w: Writer, node: Node, xs: list[str]) -> str:
    op_type = "Reduce" + node.op.split("_")[1].capitalize()
    return reduced(w, op_type, xs[0], list(node.attrs["axes"]), node.attrs["keepdims"])


def reduced(w: Writer, op_type: str, x: str, axes: list[int], keepdims: bool = True) -> str:
    if not axes:
        return w.node("Identity", [x])
    if w.opset >= (13 if op_type == "ReduceSum" else 18):
        return w.node(op_type, [x, w.ints(axes)], keepdims=int(keepdims))
    return w.node(op_type, [x], axes=axes, keepdims=int(keepdims))


@exports("arg_max", "arg_min")
def arg(w: Writer, node: Node, xs: list[str]) -> str:
    if node.attrs["last"]:
        need(w, 12, "select_last_index")
    op_type = "ArgMax" if node.op == "arg_max" else "ArgMin"
    last = 1 if node.attrs["last"] else None
    return w.node(op_type, xs, axis=node.attrs["axis"], keepdims=int(node.attrs["keepdims"]), select_last_index=last)


def _window(node: Node, *names: str) -> dict[str, Any]:
    return {name: list(node.attrs[name]) for name in names}


@exports("conv")
def conv(w: Writer, node: Node, xs: list[str]) -> str:
    return w.node("Conv", xs, **_window(node, "strides", "pads", "dilations"), group=node.attrs["groups"])


@exports("conv_transpose")
def conv_transpose(w: Writer, node: Node, xs: list[str]) -> str:
    attrs = _window(node, "strides", "pads", "dilations", "output_padding")
    return w.node("ConvTranspose", xs, **attrs, group=node.attrs["groups"])


@exports("max_pool", "avg_pool")
def pool(w: Writer, node: Node, xs: list[str]) -> str:
    op_type = "MaxPool" if node.op == "max_pool" else "AveragePool"
    return w.node(op_type, xs, **pool_attrs(w, node, op_type))


def pool_attrs(w: Writer, node: Node, op_type: str) -> dict[str, Any]:
    """The attributes of a pool. Raises ExportError for what the opset lacks."""
    attrs: dict[str, Any] = {"kernel_shape": list(node.attrs["kernel"]), **_window(node, "strides", "pads")}
    if any(d != 1 for d in node.attrs["dilations"]):
        need(w, 10 if op_type == "MaxPool" else 19, f"{op_type} with dilations")
        attrs["dilations"] = list(node.attrs["dilations"])
    if node.attrs["ceil_mode"]:
        need(w, 10, f"{op_type} with ceil_mode")
        attrs["ceil_mode"] = 1
    if node.attrs.get("count_include_pad"):
        attrs["count_include_pad"] = 1
    return attrs


@exports("softmax", "log_softmax")
def softmax(w: Writer, node: Node, xs: list[str]) -> str:
    op_type = "Softmax" if node.op == "softmax" else "LogSoftmax"
    axis, rank = node.attrs["axis"], len(_dims(node))
    if w.opset >= 13 or axis == rank - 1:
        return w.node(op_type, xs, axis=axis)
    perm = [i for i in range(rank) if i != axis] + [axis]
    y = w.node(op_type, [w.node("Transpose", xs, perm=perm)], axis=rank - 1)
    return w.node("Transpose", [y], perm=[perm.index(i) for i in range(rank)])


@exports("layer_norm")
def layer_norm(w: Writer, node: Node, xs: list[str]) -> str:
    axis, epsilon = node.attrs["axis"], float(node.attrs["epsilon"])
    if w.opset >= 17 and len(xs) > 1 and xs[1]:
        return w.node("LayerNormalization", xs, axis=axis, epsilon=epsilon)
    axes = list(range(axis, len(_dims(node))))
    centred = w.node("Sub", [xs[0], reduced(w, "ReduceMean", xs[0], axes)])
    y = _normalised(w, centred, axes, epsilon, _dtype(node))
    for op_type, side in zip(("Mul", "Add"), xs[1:], strict=False):
        y = w.node(op_type, [y, side]) if side else y
    return y


@exports("rms_norm")
def rms_norm(w: Writer, node: Node, xs: list[str]) -> str:
    axis, epsilon = node.attrs["axis"], float(node.attrs["epsilon"])
    if w.opset >= 23 and len(xs) > 1 and xs[1]:
        return w.node("RMSNormalization", xs, axis=axis, epsilon=epsilon)
    y = _normalised(w, xs[0], list(range(axis, len(_dims(node)))), epsilon, _dtype(node))
    return w.node("Mul", [y, xs[1]]) if len(xs) > 1 and xs[1] else y


def _normalised(w: Writer, x: str, axes: list[int], epsilon: float, dtype: DType) -> str:
    """x over the root of its mean square plus epsilon."""
    square = reduced(w, "ReduceMean", w.node("Mul", [x, x]), axes)
    return w.node("Div", [x, w.node("Sqrt", [w.node("Add", [square, w.number(epsilon, dtype)])])])


@exports("attention")
def attention(w: Writer, node: Node, xs: list[str]) -> str:
    (b, h, s, d), (_, hk, t, _), (_, _, _, dv) = _dims(node, 0), _dims(node, 1), _dims(node, 2)
    q, k, v = xs[:3]
    dtype = _dtype(node)
    if h != hk:
        share = floordiv(h, hk)
        k, v = _repeat(w, k, (b, hk, t, d), share), _repeat(w, v, (b, hk, t, dv), share)
    q = w.node("Mul", [q, w.number(float(node.attrs["scale"]), dtype)])
    scores = w.node("MatMul", [q, w.node("Transpose", [k], perm=[0, 1, 3, 2])])
    if node.attrs["causal"]:
        need(w, 11, "causal attention")
        one = w.constant(np.array(1, np.int64))
        first, last, stop = (_reshape(w, w.dim(n), ()) for n in (t - s, t, t))
        rows = w.node("Reshape", [w.node("Range", [first, last, one]), w.ints([-1, 1])])
        columns = w.node("Range", [w.constant(np.array(0, np.int64)), stop, one])
        scores = w.node("Where", [w.node("Less", [rows, columns]), w.number(-math.inf, dtype), scores])
    if len(xs) > 3 and xs[3]:
        scores = w.node("Add", [scores, xs[3]])
    return w.node("MatMul", [w.node("Softmax", [scores], axis=3 if w.opset < 13 else -1), v])


def _repeat(w: Writer, x: str, dims: tuple[Dim, Dim, Dim, Dim], times: Dim) -> str:
    """Each head of [b, heads, t, d] `times` times, next to one another."""
    b, heads, t, d = dims
    x = w.node("Reshape", [x, w.dims((b, heads, 1, t, d))])
    x = w.node("Expand", [x, w.dims((b, heads, times, t, d))])
    return w.node("Reshape", [x, w.dims((b, heads * times, t, d))])
