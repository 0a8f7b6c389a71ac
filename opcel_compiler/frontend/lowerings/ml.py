"""ai.onnx.ml's preparation of features and linear models, by operators that there are."""

from __future__ import annotations

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.frontend.lowerings.scores import labels_of, transformed
from opcel_compiler.ir.dims import Dim, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, F64, I64, STRING

DOMAIN = "ai.onnx.ml"
MAX_COMPARED = 4096
"""Keys that an element is compared with at most."""


def _number(c: Lowering, i: int = 0) -> Value:
    x = c.x(i)
    if c.dtype(x) == STRING:
        raise Unsupported("its input holds strings")
    return x


def _per_feature(c: Lowering, name: str, x: Value) -> Value | None:
    """The floats `name`, one for all features or one for each; None for none."""
    values = np.array(c.attr_floats(name, ()), np.float32)
    size = c.shape(x)[-1] if c.shape(x) else 1
    if not len(values):
        return None
    if len(values) != 1 and isinstance(size, int) and len(values) != size:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {name} has {len(values)} entries for {size} features")
    return c.constant(values)


# -- features ---------------------------------------------------------------------------------------------------------


@lowers("ArrayFeatureExtractor", domain=DOMAIN, first=1)
def array_feature_extractor(c: Lowering) -> Value:
    x, index = _number(c), c.x(1)
    dims = c.shape(x)
    count = product(c.shape(index))
    y = c.emit("gather", x, c.reshape(index, (count,)), axis=len(dims) - 1)
    return c.reshape(y, (1, count)) if len(dims) == 1 else y


@lowers("Binarizer", domain=DOMAIN, first=1)
def binarizer(c: Lowering) -> Value:
    x = _number(c)
    above = c.emit("less", c.number(c.attr_float("threshold", 0.0), x), x)
    return c.cast(above, c.dtype(x))


@lowers("Scaler", domain=DOMAIN, first=1)
def scaler(c: Lowering) -> Value:
    x = c.cast(_number(c), F32)
    offset, scale = _per_feature(c, "offset", x), _per_feature(c, "scale", x)
    y = x if offset is None else c.emit("sub", x, offset)
    return y if scale is None else c.emit("mul", y, scale)


@lowers("Imputer", domain=DOMAIN, first=1)
def imputer(c: Lowering) -> Value:
    x = _number(c)
    if c.dtype(x).is_float:
        values, old = (
            np.array(c.attr_floats("imputed_value_floats", ()), c.dtype(x).numpy),
            c.attr_float("replaced_value_float", 0.0),
        )
    else:
        values, old = (
            np.array(c.attr_ints("imputed_value_int64s", ()), c.dtype(x).numpy),
            c.attr_int("replaced_value_int64", 0),
        )
    if not len(values):
        raise ModelError(f"node {c.origin!r} (Imputer) has no values for elements of type {c.dtype(x)}")
    hit = c.emit("is_nan", x) if old != old else c.emit("equal", x, c.number(old, x))
    return c.emit("where", hit, c.constant(values), x)


@lowers("Normalizer", domain=DOMAIN, first=1)
def normalizer(c: Lowering) -> Value:
    x = c.cast(_number(c), F32)
    dims, norm = c.shape(x), c.attr_str("norm", "MAX")
    if len(dims) not in (1, 2):
        raise Unsupported(f"Normalizer of rank {len(dims)} has no lowering")
    if norm not in ("MAX", "L1", "L2"):
        raise ModelError(f"node {c.origin!r} (Normalizer): norm {norm!r}")
    axes = (len(dims) - 1,)
    if norm == "MAX":
        size = c.emit("reduce_max", x, axes=axes, keepdims=True)
    elif norm == "L1":
        size = c.emit("reduce_sum", c.emit("abs", x), axes=axes, keepdims=True)
    else:
        size = c.emit("sqrt", c.emit("reduce_sum", c.emit("mul", x, x), axes=axes, keepdims=True))
    zero = c.emit("equal", size, c.number(0, x))
    return c.emit("div", x, c.emit("where", zero, c.number(1, x), size))


@lowers("FeatureVectorizer", domain=DOMAIN, first=1)
def feature_vectorizer(c: Lowering) -> Value:
    columns = []
    for i in range(len(c.inputs)):
        x = c.cast(_number(c, i), F32)
        columns.append(c.reshape(x, (c.shape(x)[0], 1)) if c.rank(x) == 1 else x)
    if any(c.rank(x) != 2 for x in columns):
        raise Unsupported("FeatureVectorizer of operands that are no rows has no lowering")
    return columns[0] if len(columns) == 1 else c.emit("concat", *columns, axis=1)


def _matches(c: Lowering, x: Value, keys: np.ndarray) -> Value:
    """Whether each element of x is each of the keys: [..., keys]."""
    if len(keys) > MAX_COMPARED:
        raise Unsupported(f"{len(keys)} keys have no lowering")
    column = c.reshape(x, (*c.shape(x), 1))
    found = c.emit("equal", column, c.constant(keys))
    nan = np.isnan(keys) if keys.dtype.kind == "f" else np.zeros(len(keys), bool)
    if c.opset >= 4 and nan.any():
        found = c.emit("or", found, c.emit("and", c.emit("is_nan", column), c.constant(nan)))
    return found


@lowers("OneHotEncoder", domain=DOMAIN, first=1)
def one_hot_encoder(c: Lowering) -> Value:
    x = _number(c)
    if not c.attr_int("zeros", 1):
        raise Unsupported("OneHotEncoder with zeros=0, which refuses what it does not know, has no lowering")
    if not c.has("cats_int64s"):
        raise Unsupported("its categories are strings")
    return c.cast(_matches(c, c.cast(x, I64), np.array(c.attr_ints("cats_int64s"), np.int64)), F32)


@lowers("LabelEncoder", domain=DOMAIN, first=2)
def label_encoder(c: Lowering) -> Value:
    x = _number(c)
    keys, values = _table(c, "keys"), _table(c, "values")
    if len(keys) != len(values) or not len(keys):
        raise ModelError(f"node {c.origin!r} (LabelEncoder): {len(keys)} keys and {len(values)} values")
    if values.dtype.kind not in "fiu":
        raise Unsupported(f"labels of type {values.dtype} have no lowering")
    if c.has("default_tensor"):
        given = c.attr_tensor("default_tensor")
        assert given is not None
        default = given.array.reshape(-1)[0]
    else:
        default = c.attr_int("default_int64", -1) if values.dtype.kind in "iu" else c.attr_float("default_float", -0.0)
    found = c.emit("cast", _matches(c, x, keys.astype(c.dtype(x).numpy)), dtype=I64)
    axis = c.rank(x)
    index = c.emit("arg_max", found, axis=axis, keepdims=False)
    known = c.emit("equal", c.emit("reduce_max", found, axes=(axis,), keepdims=False), c.number(1, found))
    picked = c.emit("gather", c.constant(values), index, axis=0)
    return c.emit("where", known, picked, c.number(default, picked))


def _table(c: Lowering, side: str) -> np.ndarray:
    """The keys or values of a LabelEncoder. Unsupported for strings."""
    if c.has(f"{side}_tensor"):
        data = c.attr_tensor(f"{side}_tensor")
        assert data is not None
        if data.dtype == STRING:
            raise Unsupported(f"its {side} are strings")
        flat: np.ndarray = data.array.reshape(-1)
        return flat
    if c.has(f"{side}_strings"):
        raise Unsupported(f"its {side} are strings")
    if c.has(f"{side}_int64s"):
        return np.array(c.attr_ints(f"{side}_int64s"), np.int64)
    return np.array(c.attr_floats(f"{side}_floats", ()), np.float32)


# -- linear models ----------------------------------------------------------------------------------------------------


def linear(c: Lowering, x: Value, rows: int, coefficients: np.ndarray, intercepts: np.ndarray | None) -> Value:
    """x coefficientsᵀ + intercepts: [rows of x, rows of coefficients]."""
    if len(coefficients) % max(rows, 1) or not rows:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): {len(coefficients)} coefficients for {rows} results")
    y = c.emit("matmul", x, c.constant(np.ascontiguousarray(coefficients.reshape(rows, -1).T)))
    if intercepts is not None and len(intercepts):
        if len(intercepts) != rows:
            raise ModelError(f"node {c.origin!r} ({c.op_type}): {len(intercepts)} intercepts for {rows} results")
        y = c.emit("add", y, c.constant(intercepts))
    return y


def feature_rows(c: Lowering) -> Value:
    x = _number(c)
    x = x if c.dtype(x) in (F32, F64) else c.cast(x, F32)
    dims: tuple[Dim, ...] = c.shape(x)
    if len(dims) == 1:
        return c.cast(c.reshape(x, (1, dims[0])), F32)
    if len(dims) != 2:
        raise ModelError(f"node {c.origin!r} ({c.op_type}): its input has rank {len(dims)}, not 2")
    return c.cast(x, F32)


@lowers("LinearRegressor", domain=DOMAIN, first=1)
def linear_regressor(c: Lowering) -> Value:
    coefficients = np.array(c.attr_floats("coefficients"), np.float32)
    intercepts = np.array(c.attr_floats("intercepts", ()), np.float32)
    y = linear(c, feature_rows(c), c.attr_int("targets", 1), coefficients, intercepts)
    return transformed(c, y, c.attr_str("post_transform", "NONE"))


@lowers("LinearClassifier", domain=DOMAIN, first=1)
def linear_classifier(c: Lowering) -> tuple[Value, Value]:
    labels = labels_of(c, "classlabels_ints")
    coefficients = np.array(c.attr_floats("coefficients"), np.float32)
    intercepts = np.array(c.attr_floats("intercepts", ()), np.float32)
    x = feature_rows(c)
    width = c.shape(x)[1]
    rows = len(intercepts) or (len(coefficients) // width if isinstance(width, int) and width else 0)
    y, post = linear(c, x, rows, coefficients, intercepts), c.attr_str("post_transform", "NONE")
    if rows > 1:
        if len(labels) != rows:
            raise Unsupported(f"{len(labels)} labels of {rows} scores have no lowering")
        label = c.emit("gather", c.constant(labels), c.emit("arg_max", y, axis=1, keepdims=False), axis=0)
        return label, transformed(c, y, post)
    if len(labels) != 2:
        raise Unsupported(f"{len(labels)} labels of one score have no lowering")
    return two_classes(c, y, labels, post)


def two_classes(c: Lowering, y: Value, labels: np.ndarray, post: str) -> tuple[Value, Value]:
    """Labels and scores of two classes from one score [rows, 1], which is the second's."""
    positive = c.emit("less", c.number(0, y), c.reshape(y, (c.shape(y)[0],)))
    label = c.emit("where", positive, c.constant(labels[1:].reshape(())), c.constant(labels[:1].reshape(())))
    if post not in ("NONE", "LOGISTIC"):
        raise Unsupported(f"{post} of one score for two classes has no lowering")
    if post == "LOGISTIC":
        y = c.emit("sigmoid", y)
    return label, c.emit("concat", c.emit("sub", c.number(1, y), y), y, axis=1)
