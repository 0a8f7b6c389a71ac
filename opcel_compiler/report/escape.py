"""Text of a model, which may be hostile, made fit for HTML."""

from __future__ import annotations

import html


def escaped(text: object) -> str:
    """`text` for element content or a quoted attribute; what cannot be printed, directions of writing among it, is
    shown by its code."""
    return html.escape(visible(str(text)))


def visible(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def shortened(text: str, length: int, *, keep_end: bool = False) -> str:
    """`text` made visible, at most `length` characters of it; the rest, at the end or with `keep_end` at the beginning,
    becomes an ellipsis."""
    text = visible(text)
    if len(text) <= length:
        return text
    return "…" + text[1 - length :] if keep_end else text[: length - 1] + "…"
