"""Support vector machines: kernel functions by products, then a product with the coefficients."""

from __future__ import annotations

from itertools import combinations

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.ml import DOMAIN, feature_rows, linear
from opcel_compiler.frontend.lowerings.scores import labels_of, transformed
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32


def _kernel(c: Lowering, x: Value, vectors: np.ndarray) -> Value:
    """The kernel function of each row of x and each vector: [rows, vectors]."""
    kind = c.attr_str("kernel_type", "LINEAR")
    gamma, offset, degree = (*c.attr_floats("kernel_params", ()), 0.0, 0.0, 0.0)[:3]
    if kind == "RBF":
        # Around the vectors' mean the squares are no larger than they must be.
        middle = vectors.mean(0, dtype=np.float64).astype(np.float32)
        vectors, x = vectors - middle, c.emit("sub", x, c.constant(middle))
        own = c.emit("reduce_sum", c.emit("mul", x, x), axes=(1,), keepdims=True)
        squares = (vectors.astype(np.float64) ** 2).sum(1).astype(np.float32)
        product_ = c.emit("matmul", x, c.constant(np.ascontiguousarray(-2 * vectors.T)))
        distance = c.emit("add", c.emit("add", product_, own), c.constant(squares))
        distance = c.emit("max", distance, c.number(0, distance))
        return c.emit("exp", c.emit("mul", distance, c.number(-gamma, distance)))
    y = c.emit("matmul", x, c.constant(np.ascontiguousarray(vectors.T)))
    if kind == "LINEAR":
        return y
    y = c.emit("add", c.emit("mul", y, c.number(gamma, y)), c.number(offset, y))
    if kind == "SIGMOID":
        return c.emit("tanh", y)
    if kind == "POLY":
        return c.emit("pow", y, c.number(degree, y))
    raise ModelError(f"node {c.origin!r} ({c.op_type}): kernel_type {kind!r}")


@lowers("SVMRegressor", domain=DOMAIN, first=1)
def svm_regressor(c: Lowering) -> Value:
    x = feature_rows(c)
    coefficients = np.array(c.attr_floats("coefficients"), np.float32)
    rho = np.array(c.attr_floats("rho", (0.0,)), np.float32)[:1]
    count = c.attr_int("n_supports", 0)
    if count:
        if len(coefficients) != count:
            raise ModelError(f"node {c.origin!r} (SVMRegressor): {len(coefficients)} coefficients for {count} vectors")
        x = _kernel(c, x, _vectors(c, count))
    y = linear(c, x, 1, coefficients, rho)
    if c.attr_int("one_class", 0):
        return c.emit("where", c.emit("less", c.number(0, y), y), c.number(1, y), c.number(-1, y))
    return transformed(c, y, c.attr_str("post_transform", "NONE"), alone=True)


def _vectors(c: Lowering, count: int) -> np.ndarray:
    vectors = np.array(c.attr_floats("support_vectors"), np.float32)
    if len(vectors) % count:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {len(vectors)} numbers are no {count} support_vectors")
    out: np.ndarray = vectors.reshape(count, -1)
    return out


@lowers("SVMClassifier", domain=DOMAIN, first=1)
def svm_classifier(c: Lowering) -> tuple[Value, Value]:
    """Every two classes decide between them, and the one chosen most often is the label."""
    labels, post = labels_of(c, "classlabels_ints"), c.attr_str("post_transform", "NONE")
    sizes = c.attr_ints("vectors_per_class", ())
    if not sizes or len(sizes) != len(labels) or len(labels) < 2:
        raise Unsupported(f"support vectors of {len(sizes)} classes for {len(labels)} labels have no lowering")
    if c.has("prob_a") and c.attr_floats("prob_a"):
        raise Unsupported("probabilities of classes, which are found step by step, have no lowering")
    count, classes = sum(sizes), len(sizes)
    coefficients = np.array(c.attr_floats("coefficients"), np.float32)
    rho = np.array(c.attr_floats("rho"), np.float32)
    pairs = list(combinations(range(classes), 2))
    if len(coefficients) != (classes - 1) * count or len(rho) != len(pairs):
        raise ModelError(f"node {c.origin!r} (SVMClassifier): its coefficients or rho do not fit {count} vectors")
    table, ends = coefficients.reshape(classes - 1, count), np.cumsum([0, *sizes])
    weights = np.zeros((len(pairs), count), np.float32)
    votes = np.zeros((len(pairs), classes), np.float32)
    base = np.zeros(classes, np.float32)
    for row, (i, j) in enumerate(pairs):
        weights[row, ends[i] : ends[i + 1]] = table[j - 1, ends[i] : ends[i + 1]]
        weights[row, ends[j] : ends[j + 1]] = table[i, ends[j] : ends[j + 1]]
        votes[row, i], votes[row, j] = 1, -1
        base[j] += 1
    y = linear(c, _kernel(c, feature_rows(c), _vectors(c, count)), len(pairs), weights.reshape(-1), rho)
    first = c.cast(c.emit("less", c.number(0, y), y), F32)
    total = c.emit("add", c.emit("matmul", first, c.constant(votes)), c.constant(base))
    label = c.emit("gather", c.constant(labels), c.emit("arg_max", total, axis=1, keepdims=False), axis=0)
    if classes > 2:
        return label, transformed(c, y, post)
    if post not in ("NONE", "LOGISTIC"):
        raise Unsupported(f"{post} of one score for two classes has no lowering")
    both = c.emit("concat", c.emit("neg", y), y, axis=1)
    return label, transformed(c, both, post)
