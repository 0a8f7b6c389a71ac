"""Characters of the text form: what stands here, and where an error is."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn

from opcel_compiler.errors import OpcelError


class ParseError(OpcelError):
    """The text is not a graph; the message starts with the line and column, both counted from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"line {line}, column {column}: {message}")
        self.line = line
        self.column = column


SPACE = re.compile(r"(\s|;[^\n]*)*")
WORD = re.compile(r"[^\W\d]\w*")
NAME = re.compile(r"%([A-Za-z0-9_.]+)")
STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
BYTES = re.compile(r'bytes"([^"]*)"')
NUMBER = re.compile(r"[-+]?(0x[0-9a-fA-F]+|inf\b|nan\b|\d+(\.\d*)?([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?)")
DIGEST = re.compile(r"#([0-9a-f]+)")
INT = re.compile(r"[-+]?\d+\Z")


class Scanner:
    """A position in a text, and the tokens that may stand there."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def fail(self, message: str, at: int | None = None) -> NoReturn:
        if at is None:
            self.skip()
            at = self.at
        before = self.text[:at]
        raise ParseError(message, before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1)

    def skip(self) -> None:
        found = SPACE.match(self.text, self.at)
        self.at = found.end() if found else self.at

    def take(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The match of `pattern` here, consumed, or None."""
        self.skip()
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def sign(self, mark: str) -> bool:
        """Whether `mark` stands here; it is then consumed."""
        self.skip()
        if self.text.startswith(mark, self.at):
            self.at += len(mark)
            return True
        return False

    def expect(self, mark: str) -> None:
        if not self.sign(mark):
            self.fail(f"expected {mark!r}")

    def word(self, word: str) -> bool:
        """Whether the identifier `word` stands here; it is then consumed."""
        start = self.at
        found = self.take(WORD)
        if found and found.group() == word:
            return True
        self.at = start
        return False

    def identifier(self, what: str) -> str:
        found = self.take(WORD)
        return found.group() if found else self.fail(f"expected {what}")

    def peek(self, pattern: re.Pattern[str]) -> bool:
        self.skip()
        return pattern.match(self.text, self.at) is not None

    def items(self, opening: str, closing: str, item: Callable[[], Any]) -> list[Any]:
        """`item`s between brackets, separated by commas."""
        self.expect(opening)
        out: list[Any] = []
        while not self.sign(closing):
            if out:
                self.expect(",")
            out.append(item())
        return out

    def single(self, opening: str, closing: str, item: Callable[[], Any]) -> Any:
        """One `item` between brackets."""
        self.expect(opening)
        out = item()
        self.expect(closing)
        return out

    def string(self) -> str:
        found = self.take(STRING)
        if not found:
            self.fail("expected a string in double quotes")
        try:
            out: str = json.loads(found.group())
        except ValueError:
            self.fail("not a valid string", found.start())
        return out

    def integer(self, what: str) -> int:
        start = self.at
        found = self.take(NUMBER)
        if not found or not INT.match(found.group()):
            self.at = start
            self.fail(f"expected {what}")
        return int(self.number(found))

    def number(self, found: re.Match[str]) -> int | float:
        """The number of a match of NUMBER."""
        text = found.group()
        try:
            return int(text) if INT.match(text) else float(text)
        except ValueError:
            self.fail(f"{text[:40]} is no number that can stand here", found.start())

    def truth(self) -> bool:
        if self.word("true"):
            return True
        return False if self.word("false") else self.fail("expected true or false")

    def binary(self) -> bytes:
        found = self.take(BYTES)
        if not found:
            self.fail('expected bytes"..."')
        try:
            return base64.b64decode(found[1], validate=True)
        except binascii.Error:
            self.fail("not valid base64", found.start())
