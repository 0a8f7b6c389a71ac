"""The largest and the smallest that a dim gets while some of its symbols run through a range."""

from __future__ import annotations

from collections.abc import Mapping

from opcel_compiler.ir.dims import FUNCTIONS, Atom, Dim, Expr, Symbol, bounds, symbols_of

Ends = Mapping[str, tuple[Dim, "Dim | None"]]
"""(least, largest) of each symbol that runs, by name; None: there is no limit."""


def extreme(dim: Dim, ends: Ends, high: bool) -> Dim | None:
    """A bound of `dim`, from above if `high`, that names none of the symbols of `ends`; None where none is found."""
    if isinstance(dim, int) or all(s.name not in ends for s in symbols_of(dim)):
        return dim
    known = bounds(dim)[1 if high else 0]
    if known is not None:
        return known
    out: Dim = 0
    for mono, coeff in dim.terms:
        term: Dim = coeff
        for atom in mono:
            alone = Expr((((atom,), 1),))
            if any(s.name in ends for s in symbols_of(alone)):
                low = [bounds(Expr((((a,), 1),)))[0] for a in mono]
                if len(mono) > 1 and any(b is None or b < 0 for b in low):
                    return None
                bound = _atom(atom, ends, high == (coeff > 0))
                if bound is None:
                    return None
                term = term * bound
            else:
                term = term * alone
        out = out + term
    return out


def _atom(atom: Atom, ends: Ends, high: bool) -> Dim | None:
    if isinstance(atom, Symbol):
        return ends[atom.name][1 if high else 0]
    if atom.fn in ("min", "max"):
        a, b = extreme(atom.a, ends, high), extreme(atom.b, ends, high)
        if a is None or b is None:
            # A min is below either of its operands, a max above.
            return (b if a is None else a) if high == (atom.fn == "min") else None
        return FUNCTIONS[atom.fn](a, b)
    if atom.fn == "//" and isinstance(atom.b, int) and atom.b > 0:
        a = extreme(atom.a, ends, high)
        return None if a is None else FUNCTIONS["//"](a, atom.b)
    return None
