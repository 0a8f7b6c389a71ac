"""TfIdfVectorizer of integers: every window of a row compared with every n-gram of its length."""

from __future__ import annotations

import itertools

import numpy as np

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, Unsupported, lowers
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import F32, STRING

MAX_COMPARED = 1 << 22
"""Windows times n-grams of a row at most."""


@lowers("TfIdfVectorizer", first=9)
def tf_idf_vectorizer(c: Lowering) -> Value:
    x, mode = c.x(), c.attr_str("mode")
    if c.dtype(x) == STRING or c.has("pool_strings"):
        raise Unsupported("its n-grams are strings")
    if mode not in ("TF", "IDF", "TFIDF"):
        raise ModelError(f"node {c.origin!r} (TfIdfVectorizer): mode {mode!r}")
    single = c.rank(x) == 1
    if single:
        x = c.reshape(x, (1, *c.shape(x)))
    rows, length = c.shape(x)
    if not isinstance(length, int):
        raise Unsupported(f"rows of {length} elements, no constant number, have no lowering")
    columns = np.array(c.attr_ints("ngram_indexes"), np.int64)
    counts, taken = _counts(c, x, length)
    width = int(columns.max(initial=-1)) + 1
    if (taken and max(taken) >= len(columns)) or not width:
        raise ModelError(f"node {c.origin!r} (TfIdfVectorizer): {len(columns)} ngram_indexes for its pool")
    places = np.zeros((len(taken), width), np.float32)
    places[np.arange(len(taken)), columns[taken]] = 1
    if len(taken) == 0 or counts is None:
        y = c.emit("expand", c.constant(np.zeros((1, 1), np.float32)), shape=(rows, width))
    elif (places.sum(0) <= 1).all():  # each column is one n-gram's, or nobody's
        zero = c.emit("expand", c.constant(np.zeros((1, 1), np.float32)), shape=(rows, 1))
        index = np.where(places.any(0), places.argmax(0), len(taken))
        y = c.emit("gather", c.emit("concat", counts, zero, axis=1), c.constant(index), axis=1)
    else:
        y = c.emit("matmul", counts, c.constant(places))
    weights = np.array(c.attr_floats("weights", ()), np.float32)
    if len(weights) not in (0, len(columns)):
        raise ModelError(f"node {c.origin!r} (TfIdfVectorizer): {len(weights)} weights for {len(columns)} n-grams")
    if len(weights) and len(np.unique(columns)) < len(columns):
        raise Unsupported("n-grams with weights that share a column have no lowering")
    if mode == "IDF":
        y = c.cast(c.emit("less", c.number(0, y), y), F32)
    if mode != "TF" and len(weights):
        factors = np.ones(width, np.float32)
        factors[columns] = weights
        y = c.emit("mul", y, c.constant(factors))
    return c.reshape(y, (width,)) if single else y


def _counts(c: Lowering, x: Value, length: int) -> tuple[Value | None, list[int]]:
    """(how often each n-gram that is looked for occurs in each row, the numbers of those n-grams)."""
    shortest, longest, skips = (c.attr_int(n) for n in ("min_gram_length", "max_gram_length", "max_skip_count"))
    pool = np.array(c.attr_ints("pool_int64s"), np.int64)
    starts = [*c.attr_ints("ngram_counts"), len(pool)]
    found: list[Value] = []
    taken: list[int] = []
    number = 0
    for size, (start, end) in enumerate(itertools.pairwise(starts), 1):
        if not 0 <= start <= end <= len(pool) or (end - start) % size:
            raise ModelError(f"node {c.origin!r} (TfIdfVectorizer): ngram_counts do not fit its pool")
        grams = pool[start:end].reshape(-1, size)
        number += len(grams)
        if not len(grams) or not shortest <= size <= longest:
            continue
        if length * len(grams) * (skips + 1) * size > MAX_COMPARED:
            raise Unsupported(f"{len(grams)} n-grams in rows of {length} have no lowering")
        total: Value | None = None
        for distance in range(1, 2 if size == 1 else skips + 2):
            windows = length - distance * (size - 1)
            if windows > 0:
                hits = _occurrences(c, x, grams, distance, windows)
                total = hits if total is None else c.emit("add", total, hits)
        if total is not None:
            found.append(total)
            taken += range(number - len(grams), number)
    if not found:
        return None, taken
    return (found[0] if len(found) == 1 else c.emit("concat", *found, axis=1)), taken


def _occurrences(c: Lowering, x: Value, grams: np.ndarray, distance: int, windows: int) -> Value:
    """How often each of `grams` [n, size] occurs with its elements `distance` apart: [rows, n]."""
    same: Value | None = None
    for i in range(grams.shape[1]):
        part = c.slice(x, 1, i * distance, windows)
        part = c.reshape(part, (*c.shape(part), 1))
        equal = c.emit("equal", part, c.constant(np.ascontiguousarray(grams[:, i]).astype(c.dtype(x).numpy)))
        same = equal if same is None else c.emit("and", same, equal)
    assert same is not None
    return c.emit("reduce_sum", c.cast(same, F32), axes=(1,), keepdims=False)
