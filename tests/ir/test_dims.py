"""Symbolic dims: the canonical form against plain integers."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from opcel_compiler.ir.dims import (
    Dim,
    Expr,
    Symbol,
    as_symbol,
    bounds,
    ceildiv,
    dim_max,
    dim_min,
    equal,
    evaluate,
    floordiv,
    mod,
    product,
    substitute,
    symbol,
    symbols_of,
)
from opcel_compiler.ir.parse_dims import parse_dim

SYMBOLS = {"n": Symbol("n", 1, 6), "s": Symbol("s"), "t": Symbol("t", 2), "in": Symbol("in", 0, 3)}
VALUES = st.fixed_dictionaries(
    {"n": st.integers(1, 6), "s": st.integers(0, 40), "t": st.integers(2, 40), "in": st.integers(0, 3)}
)

Build = tuple[Dim, str]
"""A dim and the Python expression that it was built from."""


def _leaf() -> st.SearchStrategy[Build]:
    numbers = st.integers(-5, 9).map(lambda i: (i, f"({i})"))
    names = st.sampled_from(sorted(SYMBOLS)).map(lambda n: (Expr((((SYMBOLS[n],), 1),)), f"v[{n!r}]"))
    return st.one_of(numbers, names)


def _combine(children: st.SearchStrategy[Build]) -> st.SearchStrategy[Build]:
    def join(op: str, a: Build, b: Build) -> Build:
        text = f"{op}({a[1]}, {b[1]})" if op in ("min", "max") else f"({a[1]} {op} {b[1]})"
        try:
            if op == "+":
                return a[0] + b[0], text
            if op == "-":
                return a[0] - b[0], text
            if op == "*":
                return a[0] * b[0], text
            return {"//": floordiv, "%": mod, "min": dim_min, "max": dim_max}[op](a[0], b[0]), text
        except ZeroDivisionError:
            return 0, "0"

    return st.builds(join, st.sampled_from(["+", "-", "*", "//", "%", "min", "max"]), children, children)


DIMS = st.recursive(_leaf(), _combine, max_leaves=8)


@given(DIMS, VALUES)
def test_canonical_form_has_the_value_of_what_it_was_built_from(built: Build, v: dict[str, int]) -> None:
    dim, text = built
    try:
        expected = eval(text, {"v": v, "min": min, "max": max})
    except ZeroDivisionError:
        assume(False)
    assert evaluate(dim, v) == expected


@given(DIMS, VALUES)
def test_bounds_contain_every_value(built: Build, v: dict[str, int]) -> None:
    dim, _ = built
    try:
        value = evaluate(dim, v)
    except ZeroDivisionError:
        assume(False)
    low, high = bounds(dim)
    assert low is None or low <= value
    assert high is None or value <= high


@given(DIMS)
def test_text_round_trip(built: Build) -> None:
    assert parse_dim(str(built[0]), SYMBOLS) == built[0]


@given(DIMS, DIMS, VALUES)
def test_equal_never_errs(a: Build, b: Build, v: dict[str, int]) -> None:
    try:
        same = evaluate(a[0], v) == evaluate(b[0], v)
    except ZeroDivisionError:
        assume(False)
    assert equal(a[0], b[0]) in (None, same)


@given(DIMS, DIMS)
def test_sums_and_products_commute(a: Build, b: Build) -> None:
    assert a[0] + b[0] == b[0] + a[0]
    assert a[0] * b[0] == b[0] * a[0]
    assert a[0] - a[0] == 0


N, S = symbol("n"), symbol("s", 1, 512)


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (N * 2 + 1, "2*n + 1"),
        ((N * S * 4) // 2, "2*n*s"),
        ((N * S) // N, "s"),
        ((N * 4 + 3) // 4, "n"),
        (ceildiv(N, 2), "((n + 1) // (2))"),
        (mod(N * 6 + 5, 3), "2"),
        (mod(dim_min(S, 8), 9), "min(8, s)"),
        (dim_min(S, 512), "s"),
        (dim_max(S, 1), "s"),
        (dim_max(S, N), "max(n, s)"),
        (floordiv(S, 513), "0"),
        (floordiv(floordiv(N + 1, 2), 3), "((n + 1) // (6))"),
        (floordiv(floordiv(N, 2) * 3 + floordiv(N, 4) + 2, 3), "((n) // (2)) + ((n + 8) // (12))"),
        (dim_max(ceildiv(N, 2) * 2 - N + 1, 0), "-1*n + 2*((n + 1) // (2)) + 1"),
        (product([N, 3, S]), "3*n*s"),
        (0 - N, "-1*n"),
        (3 - N - 3, "-1*n"),
    ],
)
def test_simplification(dim: Dim, text: str) -> None:
    assert str(dim) == text


def test_equal_uses_ranges() -> None:
    assert equal(N, N) is True
    assert equal(S, 0) is False
    assert equal(S, 513) is False
    assert equal(N, S) is None
    assert equal(N + 1, N) is False


def test_bounds_of_what_rounding_up_adds() -> None:
    assert bounds(ceildiv(N, 4) * 4 - N) == (0, 3)
    assert bounds(N - floordiv(N, 3) * 3) == (0, 2)
    assert bounds(ceildiv(N, 4) * 2 - ceildiv(N, 2)) == (0, 1)
    assert bounds(N - floordiv(N, 3)) == (0, None)


def test_same_padding_of_a_symbolic_size_stays_small() -> None:
    size = N
    for _ in range(5):
        out = ceildiv(size, 2)
        pad = dim_max((out - 1) * 2 + 3 - size, 0)
        size = floordiv(size + pad - 3, 2) + 1
        assert size == out


def test_symbols_and_substitution() -> None:
    dim = floordiv(N * S + 1, 3)
    assert {s.name for s in symbols_of(dim)} == {"n", "s"}
    assert substitute(dim, {"n": 4}) == floordiv(S * 4 + 1, 3)
    assert substitute(dim, {"n": symbol("k"), "s": 3}) == symbol("k")
    assert as_symbol(N) == Symbol("n") and as_symbol(N + 1) is None and as_symbol(7) is None
    with pytest.raises(KeyError, match="s"):
        evaluate(dim, {"n": 1})


@pytest.mark.parametrize(
    "text",
    ["", "n +", "n n", "n.x", "2.5", "f(n)", "min(n)", "min(n, 2, 3)", "(n", "n)", "n // 0", "n ** 2", "a if b", "'n'"],
)
def test_parse_refuses(text: str) -> None:
    with pytest.raises(ValueError, match="is not a dimension expression"):
        parse_dim(text)


def test_names_that_python_reserves_are_names() -> None:
    assert parse_dim("in + None*2") == symbol("in") + symbol("None") * 2
    assert parse_dim("min + 1") == symbol("min") + 1


def test_bad_symbols() -> None:
    with pytest.raises(ValueError, match="identifier"):
        Symbol("a-b")
    with pytest.raises(ValueError, match="empty range"):
        Symbol("a", 3, 2)


def test_division_by_zero() -> None:
    with pytest.raises(ZeroDivisionError):
        floordiv(N, 0)
    with pytest.raises(ZeroDivisionError):
        mod(N, 0)
