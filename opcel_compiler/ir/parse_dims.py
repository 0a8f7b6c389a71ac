"""Reading dims from their text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

from opcel_compiler.ir.dims import FUNCTIONS, Dim, Expr, Symbol, symbol


def parse_dim(text: str, ranges: Mapping[str, Symbol] | None = None) -> Dim:
    """The dim that `text` writes, as printed by `str`; `ranges` gives the symbols with their ranges.

    Raises ValueError on anything but integers, identifiers, + - * // % min() max() and parentheses.
    """
    try:
        return _DimParser(text, ranges or {}).parse()
    except (RecursionError, ZeroDivisionError):
        raise ValueError(f"{text!r} is not a dimension expression") from None


_TOKEN = re.compile(r"\s*(\d+|[^\W\d]\w*|//|[-+*%(),]|$)")


class _DimParser:
    """Recursive descent with Python's precedences."""

    def __init__(self, text: str, ranges: Mapping[str, Symbol]) -> None:
        self.text = text
        self.ranges = ranges
        self.at = 0
        self.token = ""
        self.advance()

    def fail(self) -> NoReturn:
        raise ValueError(f"{self.text!r} is not a dimension expression")

    def advance(self) -> str:
        """Read the next token, "" at the end; returns the one before it."""
        before = self.token
        found = _TOKEN.match(self.text, self.at)
        if found is None:
            self.fail()
        self.at, self.token = found.end(), found[1]
        return before

    def accept(self, *tokens: str) -> str:
        return self.advance() if self.token in tokens else ""

    def expect(self, token: str) -> None:
        if not self.accept(token):
            self.fail()

    def parse(self) -> Dim:
        out = self.sum()
        if self.token:
            self.fail()
        return out

    def sum(self) -> Dim:
        out = self.product()
        while sign := self.accept("+", "-"):
            right = self.product()
            out = out + right if sign == "+" else out - right
        return out

    def product(self) -> Dim:
        out = self.factor()
        while sign := self.accept("*", "//", "%"):
            right = self.factor()
            out = out * right if sign == "*" else FUNCTIONS[sign](out, right)
        return out

    def factor(self) -> Dim:
        if self.accept("-"):
            return 0 - self.factor()
        if self.accept("("):
            out = self.sum()
            self.expect(")")
            return out
        name = self.advance()
        if name.isdigit():
            return int(name)
        if not name.isidentifier():
            self.fail()
        if name in ("min", "max") and self.accept("("):
            a = self.sum()
            self.expect(",")
            b = self.sum()
            self.expect(")")
            return FUNCTIONS[name](a, b)
        found = self.ranges.get(name)
        return Expr((((found,), 1),)) if found else symbol(name)
