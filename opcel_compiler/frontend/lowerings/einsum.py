"""Einsum: each operand's diagonals and sums first, then one product after the other."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from opcel_compiler.frontend.limits import ModelError
from opcel_compiler.frontend.lowering import Lowering, lowers
from opcel_compiler.ir.dims import Dim, product
from opcel_compiler.ir.graph import Value
from opcel_compiler.ir.types import I64

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


class _Term(NamedTuple):
    """A tensor, and the label of each of its axes."""

    value: Value
    labels: list[str]


def _labels(c: Lowering, term: str, dots: int, text: str) -> list[str]:
    """The labels of a term, in which the dots stand for `dots` axes, numbered from the last one backwards."""
    head, found, tail = term.partition("...")
    if not set(head + tail) <= _LETTERS:
        raise ModelError(f"node {c.origin!r} (Einsum): the equation {text!r} is not valid")
    return [*head, *(str(i) for i in range(dots, 0, -1) if found), *tail]


def _parse(c: Lowering) -> tuple[list[_Term], list[str]]:
    """The operands with their labels, and the labels of the result."""
    text = c.attr_str("equation").replace(" ", "")
    left, arrow, out = text.partition("->")
    terms, values = left.split(","), [c.x(i) for i in range(len(c.inputs))]
    if len(terms) != len(values):
        raise ModelError(f"node {c.origin!r} (Einsum): {text!r} has {len(terms)} terms for {len(values)} operands")
    parsed, most = [], 0
    for term, value in zip(terms, values, strict=True):
        dots = c.rank(value) - len(term.replace("...", "")) if "..." in term else 0
        labels = _labels(c, term, dots, text)
        if dots < 0 or len(labels) != c.rank(value):
            raise ModelError(f"node {c.origin!r} (Einsum): {text!r} does not fit an operand of rank {c.rank(value)}")
        most = max(most, dots)
        parsed.append(_Term(value, labels))
    if arrow:
        wanted = _labels(c, out, most, text)
    else:
        letters = [k for k in left if k in _LETTERS]
        wanted = [*(str(i) for i in range(most, 0, -1)), *sorted(k for k in set(letters) if letters.count(k) == 1)]
    known = {k for t in parsed for k in t.labels}
    if len(set(wanted)) < len(wanted) or not set(wanted) <= known:
        raise ModelError(f"node {c.origin!r} (Einsum): the equation {text!r} is not valid")
    return parsed, wanted


@lowers("Einsum", first=12)
def einsum(c: Lowering) -> Value:
    terms, wanted = _parse(c)
    large = {k for t in terms for k, d in zip(t.labels, c.shape(t.value), strict=True) if d != 1}
    terms = [_without_ones(c, _diagonal(c, t), large) for t in terms]
    total = terms[0]
    for i, term in enumerate(terms):
        later = {*wanted, *(k for t in terms[i + 1 :] for k in t.labels)}
        if i == 0:
            total = _summed(c, term, later)
        else:
            total = _product(c, total, _summed(c, term, {*later, *total.labels}), later)
    return c.transpose(total.value, [total.labels.index(k) for k in wanted])


def _diagonal(c: Lowering, term: _Term) -> _Term:
    """One axis for each label."""
    value, labels = term
    for label in dict.fromkeys(labels):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            order = [i for i in range(len(labels)) if i not in (first, second)]
            shape, n = [c.shape(value)[i] for i in order], c.shape(value)[first]
            value = c.reshape(c.transpose(value, [*order, first, second]), (*shape, n * n))
            places = c.emit("range_", start=(0,), size=(n,), step=1, dtype=I64)
            places = c.emit("mul", places, c.of_dims([n + 1], scalar=True))
            value, labels = c.emit("gather", value, places, axis=len(shape)), [*(labels[i] for i in order), label]
    return _Term(value, labels)


def _without_ones(c: Lowering, term: _Term, large: Collection[str]) -> _Term:
    """Without the axes of size 1 that are broadcast to another operand's."""
    shape = c.shape(term.value)
    kept = [i for i, k in enumerate(term.labels) if not (shape[i] == 1 and k in large)]
    return _Term(c.reshape(term.value, [shape[i] for i in kept]), [term.labels[i] for i in kept])


def _summed(c: Lowering, term: _Term, needed: Collection[str]) -> _Term:
    """Summed over the labels that nothing else needs."""
    axes = tuple(i for i, k in enumerate(term.labels) if k not in needed)
    if not axes:
        return term
    value = c.emit("reduce_sum", term.value, axes=axes, keepdims=False)
    return _Term(value, [k for k in term.labels if k in needed])


def _product(c: Lowering, a: _Term, b: _Term, needed: Collection[str]) -> _Term:
    """Two terms joined; labels of both that nothing needs are contracted."""
    p, q = a.labels, b.labels
    size = dict(zip(q, c.shape(b.value), strict=True)) | dict(zip(p, c.shape(a.value), strict=True))
    batch = [k for k in p if k in q and k in needed]
    inner = [k for k in p if k in q and k not in needed]
    rows, columns = [k for k in p if k not in q], [k for k in q if k not in p]

    def arranged(term: _Term, *groups: list[str]) -> Value:
        flat: list[Dim] = [size[k] for k in batch]
        flat += [product([size[k] for k in group]) for group in groups]
        labels = [*batch, *(k for group in groups for k in group)]
        return c.reshape(c.transpose(term.value, [term.labels.index(k) for k in labels]), flat)

    if inner:
        y = c.emit("matmul", arranged(a, rows, inner), arranged(b, inner, columns))
    else:
        y = c.emit("mul", arranged(a, rows, []), arranged(b, [], columns))
    order = [*batch, *rows, *columns]
    total = _Term(c.reshape(y, [size[k] for k in order]), order)
    return _summed(c, total, needed)
