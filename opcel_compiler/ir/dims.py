"""Symbolic dimensions: integers, or integer expressions over named symbols in a canonical form.

An expression is a polynomial with integer coefficients over *atoms*; an atom is a `Symbol` or one of floor-div,
mod, min, max of two dims. Equal polynomials are equal objects, so `==` on dims is structural and cheap; `equal`
also answers "no" or "unknown" from the symbols' ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Union

from opcel_compiler.errors import OpcelError

Dim = Union[int, "Expr"]

MAX_ATOMS, MAX_DEPTH, MAX_TERMS, MAX_DEGREE = 4000, 40, 2000, 64
"""The largest expression: atoms within one atom, how deep they nest, the terms of a polynomial, factors of a term."""


class DimError(OpcelError, ValueError):
    """An expression of sizes that is too large to be worked with."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A named size with the inclusive range [lo, hi] that it may take; `hi` None means unbounded."""

    name: str
    lo: int = 0
    hi: int | None = None

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ValueError(f"a symbol's name must be an identifier, not {self.name!r}")
        if self.hi is not None and self.hi < self.lo:
            raise ValueError(f"symbol {self.name}: empty range [{self.lo}, {self.hi}]")

    @property
    def key(self) -> tuple[str, ...]:
        return ("", self.name)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Call:
    """An atom `fn(a, b)` with fn one of //, %, min, max, which no polynomial rule could remove."""

    fn: str
    a: Dim
    b: Dim
    atoms: int = field(init=False, compare=False, repr=False)
    depth: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        inner = [atom for dim in (self.a, self.b) for mono, _ in _terms(dim) for atom in mono]
        atoms = 1 + sum(a.atoms if isinstance(a, Call) else 1 for a in inner)
        depth = 1 + max((a.depth for a in inner if isinstance(a, Call)), default=0)
        if atoms > MAX_ATOMS or depth > MAX_DEPTH:
            raise DimError(
                f"an expression of sizes has {atoms} parts, {depth} deep; {MAX_ATOMS}, {MAX_DEPTH} deep, may be"
            )
        object.__setattr__(self, "atoms", atoms)
        object.__setattr__(self, "depth", depth)

    @property
    def key(self) -> tuple[str, ...]:
        return (self.fn, str(self.a), str(self.b))

    def __str__(self) -> str:
        if self.fn in ("min", "max"):
            return f"{self.fn}({self.a}, {self.b})"
        return f"({self.a}) {self.fn} ({self.b})"


Atom = Symbol | Call
Monomial = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class Expr:
    """A non-constant polynomial: `terms` maps sorted monomials to non-zero coefficients, in sorted order."""

    terms: tuple[tuple[Monomial, int], ...]

    def __add__(self, other: Dim) -> Dim:
        return _sum(self, other, 1)

    __radd__ = __add__

    def __sub__(self, other: Dim) -> Dim:
        return _sum(self, other, -1)

    def __rsub__(self, other: int) -> Dim:
        return _sum(other, self, -1)

    def __neg__(self) -> Dim:
        return _sum(0, self, -1)

    def __mul__(self, other: Dim) -> Dim:
        out: dict[Monomial, int] = {}
        if len(_terms(self)) * len(_terms(other)) > MAX_TERMS:
            raise DimError(f"a product of sizes has more than {MAX_TERMS} terms")
        for ma, ca in _terms(self):
            for mb, cb in _terms(other):
                mono = tuple(sorted(ma + mb, key=lambda atom: atom.key))
                out[mono] = out.get(mono, 0) + ca * cb
        return _build(out)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return floordiv(other, self)

    def __mod__(self, other: Dim) -> Dim:
        return mod(self, other)

    def __rmod__(self, other: int) -> Dim:
        return mod(other, self)

    def __str__(self) -> str:
        parts = []
        for mono, coeff in self.terms:
            factors = [f"({a})" if isinstance(a, Call) and a.fn in ("//", "%") else str(a) for a in mono]
            if coeff != 1 or not factors:
                factors = [str(coeff), *factors]
            parts.append("*".join(factors))
        return " + ".join(parts)

    __repr__ = __str__


def symbol(name: str, lo: int = 0, hi: int | None = None) -> Expr:
    """The dim that is just the symbol `name` with range [lo, hi]."""
    return Expr((((Symbol(name, lo, hi),), 1),))


def as_symbol(dim: Dim) -> Symbol | None:
    """The symbol that `dim` is, or None when it is a constant or a larger expression."""
    if isinstance(dim, Expr) and len(dim.terms) == 1:
        mono, coeff = dim.terms[0]
        if coeff == 1 and len(mono) == 1 and isinstance(mono[0], Symbol):
            return mono[0]
    return None


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    if isinstance(dim, Expr):
        return dim.terms
    return (((), dim),) if dim else ()


def _build(terms: Mapping[Monomial, int]) -> Dim:
    kept = [(m, c) for m, c in terms.items() if c]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    if len(kept) > MAX_TERMS or any(len(mono) > MAX_DEGREE for mono, _ in kept):
        raise DimError(f"a sum of products of sizes has more than {MAX_TERMS} terms, or {MAX_DEGREE} factors in one")
    kept.sort(key=lambda t: (-len(t[0]), [a.key for a in t[0]]))
    return Expr(tuple(kept))


def _sum(a: Dim, b: Dim, sign: int) -> Dim:
    out = dict(_terms(a))
    for mono, coeff in _terms(b):
        out[mono] = out.get(mono, 0) + sign * coeff
    return _build(out)


def _divide_terms(a: Dim, b: Dim) -> tuple[Dim, Dim]:
    """(q, r) with a = q*b + r, where q collects the terms of `a` that the single-term `b` divides."""
    divisor = _terms(b)
    if len(divisor) != 1:
        return (1, 0) if a == b else (0, a)
    mono_b, coeff_b = divisor[0]
    quotient: dict[Monomial, int] = {}
    rest: dict[Monomial, int] = {}
    for mono, coeff in _terms(a):
        left = list(mono)
        for atom in mono_b:
            if atom not in left:
                break
            left.remove(atom)
        else:
            if coeff % coeff_b == 0:
                quotient[tuple(left)] = coeff // coeff_b
                continue
        rest[mono] = coeff
    return _build(quotient), _build(rest)


def _is_remainder(a: Dim, b: Dim) -> bool:
    """Whether 0 <= a < b for every value of the symbols."""
    lo, hi = bounds(a)
    lo_b, _ = bounds(b)
    return lo is not None and lo >= 0 and hi is not None and lo_b is not None and hi < lo_b


def _shifted_quotient(dim: Dim) -> tuple[Dim, int] | None:
    """(a, c) when `dim` is a // c + k, written as (a + k c) // c, with c > 0; ⌊⌊a / c⌋ / d⌋ is then ⌊a / (c d)⌋."""
    terms = dict(_terms(dim))
    shift = terms.pop((), 0)
    if len(terms) == 1:
        (mono, coeff), *_ = terms.items()
        if coeff == 1 and len(mono) == 1 and isinstance(mono[0], Call) and mono[0].fn == "//":
            a, c = mono[0].a, mono[0].b
            if isinstance(c, int) and c > 0:
                return a + shift * c, c
    return None


def floordiv(a: Dim, b: Dim) -> Dim:
    """⌊a / b⌋; where `b` may be 0, any expression that is right for every other value. Raises ZeroDivisionError when
    `b` is the constant 0."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 0:
        raise ZeroDivisionError("a symbolic dimension divided by zero")
    quotient, rest = _divide_terms(a, b)
    if isinstance(rest, int) and isinstance(b, int):
        return quotient + rest // b
    if rest == 0 or _is_remainder(rest, b):
        return quotient
    if isinstance(b, int) and b > 0 and (inner := _shifted_quotient(rest)):
        return quotient + floordiv(inner[0], inner[1] * b)
    return quotient + Expr((((Call("//", rest, b),), 1),))


def mod(a: Dim, b: Dim) -> Dim:
    """a modulo b with the sign of b, as Python's `%`."""
    if isinstance(a, int) and isinstance(b, int):
        return a % b
    if b == 0:
        raise ZeroDivisionError("a symbolic dimension modulo zero")
    _, rest = _divide_terms(a, b)
    if isinstance(rest, int) and isinstance(b, int):
        return rest % b
    if rest == 0 or _is_remainder(rest, b):
        return rest
    return Expr((((Call("%", rest, b),), 1),))


def ceildiv(a: Dim, b: Dim) -> Dim:
    """⌈a / b⌉ for positive b."""
    return floordiv(a + b - 1, b)


def _extreme(fn: str, a: Dim, b: Dim) -> Dim:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b) if fn == "min" else max(a, b)
    lo, hi = bounds(a - b)
    if (lo is not None and lo >= 0) or a == b:
        return b if fn == "min" else a
    if hi is not None and hi <= 0:
        return a if fn == "min" else b
    a, b = sorted((a, b), key=str)
    return Expr((((Call(fn, a, b),), 1),))


def dim_min(a: Dim, b: Dim) -> Dim:
    return _extreme("min", a, b)


def dim_max(a: Dim, b: Dim) -> Dim:
    return _extreme("max", a, b)


def product(dims: tuple[Dim, ...] | list[Dim]) -> Dim:
    """The product of `dims`; 1 for none."""
    out: Dim = 1
    for d in dims:
        out = out * d
    return out


Bounds = tuple[int | None, int | None]


def bounds(dim: Dim) -> Bounds:
    """An inclusive interval (lo, hi) that contains every value of `dim`; None means unbounded on that side."""
    return _bounds(dim) if isinstance(dim, Expr) else (dim, dim)


@lru_cache(maxsize=1 << 14)
def _bounds(dim: Expr) -> Bounds:
    lo, hi = _sum_of_bounds(dim)
    scale, expanded = _without_quotients(dim)
    if expanded != dim:
        other_lo, other_hi = bounds(expanded)
        if other_lo is not None:
            other_lo = -(-other_lo // scale)
            lo = other_lo if lo is None else max(lo, other_lo)
        if other_hi is not None:
            other_hi = other_hi // scale
            hi = other_hi if hi is None else min(hi, other_hi)
    return lo, hi


def _without_quotients(dim: Dim) -> tuple[int, Dim]:
    """(s, s dim) for an s > 0 such that every term k (a // c), c a positive constant, can be written as
    s k / c (a - a % c): quotients then cancel against what they divide."""
    terms = _terms(dim)
    found = [
        mono[0].b if len(mono) == 1 and isinstance(mono[0], Call) and mono[0].fn == "//" else 0 for mono, _ in terms
    ]
    divisors = [c if isinstance(c, int) and c > 0 else 0 for c in found]
    scale = math.lcm(*filter(None, divisors))
    out: Dim = 0
    for (mono, coeff), c in zip(terms, divisors, strict=True):
        if c and isinstance(mono[0], Call):
            a = mono[0].a
            out = out + (a - mod(a, c)) * (coeff * scale // c)
        else:
            out = out + _build({mono: coeff * scale})
    return scale, out


def _sum_of_bounds(dim: Dim) -> Bounds:
    lo: int | None = 0
    hi: int | None = 0
    for mono, coeff in _terms(dim):
        t: Bounds = (coeff, coeff)
        for atom in mono:
            t = _mul_bounds(t, _atom_bounds(atom))
        lo = None if lo is None or t[0] is None else lo + t[0]
        hi = None if hi is None or t[1] is None else hi + t[1]
    return lo, hi


def _atom_bounds(atom: Atom) -> Bounds:
    if isinstance(atom, Symbol):
        return atom.lo, atom.hi
    (alo, ahi), (blo, bhi) = bounds(atom.a), bounds(atom.b)
    if atom.fn == "//":
        if blo is None or blo <= 0:
            return None, None
        lo = None if alo is None else (alo // blo if alo < 0 else (0 if bhi is None else alo // bhi))
        hi = None if ahi is None else (ahi // blo if ahi >= 0 else -1 if bhi is None else ahi // bhi)
        return lo, hi
    if atom.fn == "%":
        if blo is not None and blo > 0:
            return 0, None if bhi is None else bhi - 1
        return None, None
    if atom.fn == "min":
        highs = [h for h in (ahi, bhi) if h is not None]
        return (None if alo is None or blo is None else min(alo, blo)), (min(highs) if highs else None)
    lows = [v for v in (alo, blo) if v is not None]
    return (max(lows) if lows else None), (None if ahi is None or bhi is None else max(ahi, bhi))


def _mul_bounds(a: Bounds, b: Bounds) -> Bounds:
    corners = [_mul_ends(x, y) for x in _ends(a) for y in _ends(b)]
    lo, hi = min(corners), max(corners)
    return None if isinstance(lo, float) else lo, None if isinstance(hi, float) else hi


def _ends(b: Bounds) -> tuple[int | float, int | float]:
    """An interval with infinities, the only floats, for its open ends."""
    return -math.inf if b[0] is None else b[0], math.inf if b[1] is None else b[1]


def _mul_ends(x: int | float, y: int | float) -> int | float:
    if x == 0 or y == 0:
        return 0
    if isinstance(x, int) and isinstance(y, int):
        return x * y
    return math.inf if (x > 0) == (y > 0) else -math.inf


def equal(a: Dim, b: Dim) -> bool | None:
    """True or False when a == b is the same for every value of the symbols, else None."""
    diff = a - b
    if isinstance(diff, int):
        return diff == 0
    lo, hi = bounds(diff)
    if (lo is not None and lo > 0) or (hi is not None and hi < 0):
        return False
    return None


def symbols_of(dim: Dim) -> Iterator[Symbol]:
    """The symbols in `dim`, with repetitions."""
    for mono, _ in _terms(dim):
        for atom in mono:
            if isinstance(atom, Symbol):
                yield atom
            else:
                yield from symbols_of(atom.a)
                yield from symbols_of(atom.b)


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The value of `dim` with each symbol's value taken from `values`. Raises KeyError for an unbound symbol."""
    out = substitute(dim, values)
    if not isinstance(out, int):
        raise KeyError(next(symbols_of(out)).name)
    return out


def substitute(dim: Dim, values: Mapping[str, Dim]) -> Dim:
    """`dim` with the symbols named in `values` replaced."""
    out: Dim = 0
    for mono, coeff in _terms(dim):
        term: Dim = coeff
        for atom in mono:
            if isinstance(atom, Symbol):
                term = term * values.get(atom.name, Expr((((atom,), 1),)))
            else:
                term = term * FUNCTIONS[atom.fn](substitute(atom.a, values), substitute(atom.b, values))
        out = out + term
    return out


FUNCTIONS = {"//": floordiv, "%": mod, "min": dim_min, "max": dim_max}
