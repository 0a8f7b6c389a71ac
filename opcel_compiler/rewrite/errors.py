"""Errors of passes, rules and pipelines."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from opcel_compiler.errors import OpcelError


class RewriteError(OpcelError):
    """A rule broke its contract, or rules undo each other."""


class PassError(OpcelError):
    """A pass failed, or was given a subject of the wrong level."""


class PipelineError(OpcelError):
    """The text of a pipeline names something that is not there, or is not well formed."""


def suggest(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest of `known`, or their list when none is near."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=2, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(n) for n in near) + "?"
    return f"; known: {', '.join(options) or 'none'}"
