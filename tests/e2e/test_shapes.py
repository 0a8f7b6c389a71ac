"""Products, attention, reductions and elementwise work in shapes that the twins do not have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto

import opcel_compiler as oc

from .builder import Net
from .conftest import assert_same, reference
from .twins import LOWEST, feeds


def _attention(
    net: Net,
    heads: int = 2,
    size: int = 8,
    value: int = 8,
    mask: tuple[int | str, ...] | None = None,
    scaled: str = "scores",
) -> str:
    """softmax(q kᵀ · scale + mask) v on [b, h, s, d] operands, with query and key lengths of their own."""
    q = net.input("q", "b", heads, "s", size)
    k, v = net.input("k", "b", heads, "t", size), net.input("v", "b", heads, "t", value)
    scale = float(size**-0.5)
    if scaled == "query":
        q = net("Mul", q, scale)
    elif scaled == "both":
        q, k = net("Mul", q, float(scale**0.5)), net("Mul", k, float(scale**0.5))
    scores = net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2]))
    if scaled == "scores":
        scores = net("Mul", scores, scale)
    if mask is not None:
        scores = net("Add", scores, net.input("bias", *mask))
    return net("MatMul", net("Softmax", scores, axis=-1), v)


ATTENTION: dict[str, Callable[[Net], str]] = {
    "plain": _attention,
    "head size 20, value size 12": lambda net: _attention(net, size=20, value=12),
    "one head of 64": lambda net: _attention(net, heads=1, size=64, value=64),
    "bias of keys": lambda net: _attention(net, mask=("b", 1, 1, "t")),
    "bias of rows": lambda net: _attention(net, mask=("s", "t")),
    "bias of heads": lambda net: _attention(net, mask=(1, 2, "s", "t")),
    "full bias": lambda net: _attention(net, mask=("b", 2, "s", "t")),
    "scaled query": lambda net: _attention(net, scaled="query"),
    "both scaled": lambda net: _attention(net, scaled="both"),
    "not scaled": lambda net: _attention(net, scaled="none", mask=("b", 1, 1, "t")),
    "odd head sizes": lambda net: _attention(net, size=7, value=5),
    "odd size of values": lambda net: _attention(net, value=6, mask=("b", 1, 1, "t")),
    "constant added": lambda net: net(
        "MatMul",
        net("Softmax", net("Add", _two(net, ("b", 3, "s", 8), ("b", 3, 8, "t")), 0.25), axis=-1),
        net.input("v", "b", 3, "t", 8),
    ),
    "bias of one element": lambda net: _attention(net, mask=(1,)),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name: str) -> None:
    net = Net("attention", 13)
    net.output("y", ATTENTION[name](net))
    _check(net, {"b": 2, "s": 5, "t": 9}, {"b": 1, "s": 1, "t": 70}, {"b": 3, "s": 40, "t": 1})


def test_causal_attention_of_an_exporter() -> None:
    """A square mask of the lowest number, sliced to the length at run time."""
    net = Net("causal", 13)
    x = net.input("x", "b", "s", 3, 2, 8)
    size = net("Slice", net("Shape", x), np.array([1]), np.array([2]), np.array([0]))
    triangle = np.triu(np.full((1, 1, 64, 64), LOWEST, np.float32), 1)
    mask = net("Slice", triangle, np.array([0, 0]), net("Concat", size, size, axis=0), np.array([2, 3]))
    parts = [net("Gather", x, np.array(i), axis=2) for i in range(3)]
    q, k, v = (net("Transpose", p, perm=[0, 2, 1, 3]) for p in parts)
    scores = net("Div", net("MatMul", q, net("Transpose", k, perm=[0, 1, 3, 2])), float(8**0.5))
    y = net("MatMul", net("Softmax", net("Add", scores, mask), axis=-1), v)
    net.output("y", net("Reshape", net("Transpose", y, perm=[0, 2, 1, 3]), np.array([0, 0, 16])))
    _check(net, {"b": 2, "s": 5}, {"b": 1, "s": 1}, {"b": 1, "s": 40})


def _two(net: Net, a: tuple[int | str, ...], b: tuple[int | str, ...]) -> str:
    return net("MatMul", net.input("a", *a), net.input("b", *b))


PRODUCTS: dict[str, Callable[[Net], str]] = {
    "vector, matrix": lambda net: _two(net, (6,), (6, 5)),
    "matrix, vector": lambda net: _two(net, ("n", 6), (6,)),
    "vector, vector": lambda net: _two(net, (6,), (6,)),
    "matrix, stack": lambda net: _two(net, ("n", 6), (3, 6, 5)),
    "stack, matrix": lambda net: _two(net, (3, "n", 6), (6, 5)),
    "stacks": lambda net: _two(net, (3, "n", 6), (3, 6, 5)),
    "broadcast stacks": lambda net: _two(net, (2, 1, "n", 6), (3, 6, 5)),
    "one row": lambda net: _two(net, ("n", 1, 6), ("n", 6, 5)),
    "no inner products": lambda net: _two(net, ("n", 1), (1, 5)),
    "stack of weights": lambda net: net("MatMul", net.input("a", 3, "n", 6), net.weight(3, 6, 40)),
    "turned operands": lambda net: net(
        "MatMul", net("Transpose", net.input("a", 6, "n")), net("Transpose", net.input("b", 70, 6))
    ),
    "Gemm": lambda net: net(
        "Gemm", net.input("a", 6, "n"), net.weight(40, 6), net.weight(40), alpha=0.5, beta=2.0, transA=1, transB=1
    ),
    "bias of rows": lambda net: net(
        "Relu", net("Add", net("MatMul", net.input("a", "n", 6), net.weight(6, 20)), net.input("bias", "n", 1))
    ),
    "residual read twice": lambda net: _residual(net),
    "long sums": lambda net: net("MatMul", net.input("a", "n", 3000), net.weight(3000, 33, scale=1 / 55)),
    "wide": lambda net: net("Sigmoid", net("MatMul", net.input("a", "n", 5), net.weight(5, 1030))),
}


def _residual(net: Net) -> str:
    x = net.input("a", "n", 20)
    y = net("Add", x, net("MatMul", x, net.weight(20, 20)))
    return net("Add", net("Mul", y, net("Sigmoid", y)), x)


@pytest.mark.parametrize("name", PRODUCTS)
def test_product(name: str) -> None:
    net = Net("product", 13)
    net.output("y", PRODUCTS[name](net))
    _check(net, {"n": 1}, {"n": 7}, {"n": 50})


def test_integer_products() -> None:
    net = Net("integers", 13)
    a, b = (net.input(n, 3, 4, 4, dtype=TensorProto.INT32) for n in "ab")
    net.output("y", net("MatMul", a, b), TensorProto.INT32)
    _check(net, {})


ROWS: dict[str, Callable[[Net, str], str]] = {
    "softmax of a product, scaled": lambda net, x: net(
        "Mul", net("Softmax", net("Mul", x, net.weight(9)), axis=-1), 3.0
    ),
    "softmax of a sum over rows": lambda net, x: net("Softmax", net("Add", x, net.weight(5, 1)), axis=-1),
    "softmax over two flattened axes": lambda net, x: net("Softmax", net("Reshape", x, np.array([0, 45])), axis=1),
    "softmax over the batch": lambda net, x: net("Softmax", x, axis=0),
    "reduce two axes apart": lambda net, x: net("ReduceMean", x, axes=[0, 2], keepdims=0),
    "reduce the batch": lambda net, x: net("ReduceMax", x, axes=[0]),
    "reduce all": lambda net, x: net("ReduceProd", net("Mul", x, 0.5), keepdims=0),
    "norm of two axes": lambda net, x: net("Div", x, net("Sqrt", net("ReduceSum", net("Mul", x, x), np.array([1, 2])))),
    "reduce what is turned": lambda net, x: net("ReduceMin", net("Transpose", x, perm=[2, 0, 1]), axes=[2]),
    "reduce a slice": lambda net, x: net(
        "ReduceMean", net("Slice", x, np.array([1]), np.array([4]), np.array([1])), axes=[2]
    ),
    "where with a row condition": lambda net, x: net(
        "Where", net("Less", net("ReduceMean", x, axes=[2]), 0.0), x, net("Neg", x)
    ),
    "no vector form after a norm": lambda net, x: net("Sign", net("Softmax", net("Sign", x), axis=-1)),
    "variance by hand": lambda net, x: net(
        "ReduceMean", net("Pow", net("Sub", x, net("ReduceMean", x, axes=[1])), 2.0), axes=[1]
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows(name: str) -> None:
    net = Net("rows", 13)
    net.output("y", ROWS[name](net, net.input("x", "n", 5, 9)))
    _check(net, {"n": 1}, {"n": 6})


ONE: dict[str, Callable[[Net], str]] = {
    "one filter": lambda net: net("Conv", net.input("x", "n", 3, 5, 5), net.weight(1, 3, 3, 3), net.weight(1)),
    "one filter, Relu": lambda net: net(
        "Relu", net("Conv", net.input("x", "n", 20, 5, 5), net.weight(1, 20, 1, 1), net.weight(1))
    ),
    "one weight": lambda net: net("Conv", net.input("x", "n", 1, 5, 5), net.weight(1, 1, 1, 1), net.weight(1)),
    "one plane": lambda net: net("Conv", net.input("x", "n", 1, 5, 5), net.weight(1, 1, 3, 3), net.weight(1)),
    "one weight of three axes": lambda net: net("Conv", net.input("x", "n", 1, 2, 3, 4), net.weight(1, 1, 1, 1, 1)),
    "product with one weight": lambda net: net("MatMul", net.input("x", "n", 1), net.weight(1, 1)),
    "one column and bias": lambda net: net("Gemm", net.input("x", "n", 7), net.weight(7, 1), net.weight(1)),
    "norm of one element": lambda net: net(
        "LayerNormalization", net.input("x", "n", 3, 1), net.weight(1), net.weight(1), axis=-1
    ),
    "softmax of one element": lambda net: net("Softmax", net.input("x", "n", 3, 1), axis=-1),
    "reduce one element": lambda net: net("ReduceSum", net.input("x", "n", 3, 1), np.array([2])),
    "pool of one pixel": lambda net: net("GlobalAveragePool", net.input("x", "n", 3, 1, 1)),
    "gather with one index": lambda net: net("Gather", net.input("x", "n", 4), np.array([2]), axis=1),
    "gather from one row": lambda net: net(
        "Gather", net.weight(1, 1), net("Cast", net("Floor", net("Sigmoid", net.input("x", "n"))), to=TensorProto.INT64)
    ),
    "pad with one value": lambda net: net("Pad", net.input("x", "n", 1), np.array([0, 2, 0, 1]), 3.0),
    "nothing but constants": lambda net: net("Add", net("Mul", net.input("x", "n"), 0.0), net("Exp", net.const(1.0))),
}


@pytest.mark.parametrize("name", ONE)
def test_extents_of_one(name: str) -> None:
    net = Net("one", 17)
    net.output("y", ONE[name](net))
    _check(net, {"n": 1}, {"n": 4})


def _check(net: Net, *sizes: dict[str, int]) -> None:
    model: onnx.ModelProto = net.model()
    with oc.compile(model, fallback="error") as compiled:
        for seed, chosen in enumerate(sizes):
            given = feeds(model, chosen, seed)
            assert_same(compiled.run(given), reference(model, given), **chosen)
